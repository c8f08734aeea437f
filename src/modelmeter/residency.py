"""What is on the device while a stage runs: weights by the policy, and what the pipeline holds beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelmeter.nn import bfloat16
from modelmeter.policy import Policy
from modelmeter.weights import Weights

#: Tensors of the size of the latents, in float32, that a pipeline holds from the first step to the end: noise,
#: latents, two outputs and a sample that the solver keeps, three predictions. Source: wan/text2video.py and
#: wan/utils/fm_solvers_unipc.py at Wan2.1 9737cba.
LATENTS_HELD = 8
#: Blocks on the device while blocks are swapped: the one that runs and the one that is fetched. Source: LightX2V,
#: docs of ``cpu_offload`` by block; diffusers ``enable_group_offload(use_stream=True)``.
BLOCKS_IN_FLIGHT = 2
#: Units gathered at once under FSDP: the one that runs and the next. Source: ``limit_all_gathers`` of PyTorch's FSDP.
UNITS_IN_FLIGHT = 2
#: Components that several devices share, parameter by parameter. Source: ``--dit_fsdp --t5_fsdp``.
SHARDED = ("text_encoder", "transformer", "transformer_2")


def resident_bytes(
    policy: Policy,
    loaded: Mapping[str, Weights],
    running: str,
    before: Sequence[str],
    *,
    from_start: Sequence[str] = (),
) -> int:
    """Bytes of weights on the device while a component runs.

    Args:
        loaded: weights of every component by id.
        running: the component of the stage.
        before: components of the stages up to this one, in order.
        from_start: components that stay on the device until they have run, whatever is offloaded.
    """
    total = 0
    for name, weights in loaded.items():
        if name == "text_encoder" and policy.text_encoder_device == "cpu":
            continue
        if policy.offload != "none" and name != running and name not in waiting(policy, running, before, from_start):
            continue
        if policy.offload == "block" and name == running and weights.blocks and name != "text_encoder":
            total += weights.total - swapped(policy, weights)
        elif policy.gpus > 1 and name in SHARDED:
            total += -(-weights.total // policy.gpus) + gathered(weights, name == running, name in before)
        else:
            total += weights.total
    return total


def waiting(policy: Policy, running: str, before: Sequence[str], from_start: Sequence[str]) -> set[str]:
    """Components that are on the device beside the running one though others are offloaded.

    The official code never offloads the VAE, and moves some transformers to the device when it loads them
    (``WanT2V.__init__``). diffusers offloads everything (``enable_model_cpu_offload``).
    """
    if policy.implementation != "official":
        return set()
    done = set(before) - {running}
    return {"vae"} | (set(from_start) - done if policy.offload == "component" else set())


def swapped(policy: Policy, weights: Weights) -> int:
    """Bytes of a transformer's blocks that wait in host memory: the last ones, less those in flight."""
    sizes = list(weights.blocks.values())
    count = len(sizes) if policy.blocks_to_swap < 0 else min(policy.blocks_to_swap, len(sizes))
    away = sizes[len(sizes) - count :]
    return sum(away) - sum(sorted(away)[-BLOCKS_IN_FLIGHT:])


def gathered(weights: Weights, running: bool, has_run: bool) -> int:
    """Bytes that FSDP gathers in bfloat16: what is outside the blocks stays once it has run, blocks come and go."""
    blocks = UNITS_IN_FLIGHT * weights.params_in_block if running else 0
    outside = weights.params_outside if running or has_run else 0
    return (outside + blocks) * bfloat16.itemsize


def host_bytes(policy: Policy, loaded: Mapping[str, Weights]) -> int:
    """Bytes of the weights that are ever away from the device, each kept in host memory for the whole run."""
    total = 0
    for name, weights in loaded.items():
        if name == "text_encoder" and policy.text_encoder_device == "cpu":
            total += weights.total
        elif policy.offload == "none" or (policy.implementation == "official" and name == "vae"):
            continue
        else:
            total += weights.total
    return total
