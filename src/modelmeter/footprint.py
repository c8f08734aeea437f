"""The memory of a run: what every stage needs on the device at its peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from modelmeter.compiled import CompiledForward
from modelmeter.nn import Tensor, evaluate, float32
from modelmeter.policy import Policy
from modelmeter.residency import LATENTS_HELD, host_bytes, resident_bytes
from modelmeter.stage import Component, Forward, Stage
from modelmeter.weights import Weights

#: Stages in which the latents and what the solver keeps are alive.
WITH_LATENTS = ("transformer", "transformer_2", "vae_decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Bytes on the device at the peak of a stage.

    Args:
        weights_bytes: of the modules that the stage runs.
        resident_bytes: all weights on the device, whichever component they belong to.
        held_bytes: latents and what the solver keeps.
        input_bytes: what the largest call is given.
        activation_peak_bytes: the most that is alive above weights and inputs, without workspaces.
        workspace_bytes: what workspaces add to that peak.
        dequantised_bytes: the largest matrix in the dtype it runs in, where matrices are quantised.
        peak_node: module that runs at the peak.
    """

    id: str
    weights_bytes: int
    resident_bytes: int
    held_bytes: int
    input_bytes: int
    activation_peak_bytes: int
    workspace_bytes: int
    dequantised_bytes: int
    peak_node: str

    @property
    def peak_bytes(self) -> int:
        """All of them together."""
        beside = self.resident_bytes + self.held_bytes + self.input_bytes + self.dequantised_bytes
        return beside + self.activation_peak_bytes + self.workspace_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a run under a policy.

    Args:
        weights_bytes: of all loaded components.
        host_bytes: of the weights that are ever away from the device.
    """

    policy: Policy
    weights_bytes: int
    host_bytes: int
    stages: tuple[StageMemory, ...]

    @property
    def largest(self) -> StageMemory:
        """The stage that needs the most."""
        return max(self.stages, key=lambda stage: stage.peak_bytes)

    @property
    def peak_bytes(self) -> int:
        """The most that is on one device at any time, before what the driver and the allocator take."""
        return self.largest.peak_bytes

    @property
    def peak_node(self) -> str:
        """The module that runs then."""
        return self.largest.peak_node


def stage_memory(
    stage: Stage,
    forwards: Sequence[tuple[Forward, int, CompiledForward]],
    component: Component,
    policy: Policy,
    loaded: Mapping[str, Weights],
    *,
    latent_bytes: int,
    before: Sequence[str],
    from_start: Sequence[str],
    undivided_bytes: int,
) -> StageMemory:
    """What one stage needs.

    Args:
        forwards: what is traced, how often it runs, and its closed forms.
        latent_bytes: of the latents of the run in float32.
        before: components of the stages up to this one.
        from_start: components that the official code moves to the device when it loads them.
        undivided_bytes: of activations of a transformer that every device holds for all tokens.
    """
    own = loaded[stage.component]
    running = {path for _, _, form in forwards for path, _ in form.module.named_modules()}
    plain, _ = highest_peak(forwards)
    with_workspace, peak_path = highest_peak(forwards, policy.workspace)
    transformer = stage.component.startswith("transformer")
    devices = policy.gpus if transformer else 1  # only the transformers share the tokens; the rest runs on each device
    shared = undivided_bytes if devices > 1 else 0
    activation = shared - (shared - plain) // devices
    elsewhere = stage.component == "text_encoder" and policy.text_encoder_device == "cpu"
    return StageMemory(
        id=stage.id,
        weights_bytes=sum(own.by_module.get(path, 0) for path in running),
        resident_bytes=resident_bytes(policy, loaded, stage.component, before, from_start=from_start),
        held_bytes=LATENTS_HELD * latent_bytes if stage.id in WITH_LATENTS else 0,
        # the latents that are decoded are among those that are held
        input_bytes=0 if elsewhere or stage.id == "vae_decode" else input_bytes(stage, component),
        activation_peak_bytes=0 if elsewhere else activation,
        workspace_bytes=0 if elsewhere else -((plain - with_workspace) // devices),
        dequantised_bytes=own.largest_matrix,
        peak_node=stage.path(peak_path),
    )


def highest_peak(forwards: Sequence[tuple[Forward, int, CompiledForward]], workspace: str = "none") -> tuple[int, str]:
    """The most bytes alive in any of these forwards, and the path of the module that runs then."""
    found = (form.peak(forward.dims, workspace) for forward, _, form in forwards)
    return max(((evaluate(peak.live, {}), peak.path) for peak in found), key=lambda peak: peak[0])


def memory(
    parts: Sequence[tuple[Stage, Sequence[tuple[Forward, int, CompiledForward]], Component]],
    policy: Policy,
    loaded: Mapping[str, Weights],
    *,
    latents: tuple[int, ...],
    from_start: Sequence[str] = (),
    undivided_bytes: int = 0,
) -> Memory:
    """What the stages of a run need, in order.

    Args:
        parts: stages with their forwards and components.
        loaded: weights of every component by id.
        latents: sizes of the latents of the run.
        from_start: components that the official code moves to the device when it loads them.
        undivided_bytes: of activations of a transformer that every device holds for all tokens.
    """
    held = prod(latents) * float32.itemsize
    stages = [
        stage_memory(
            stage,
            forwards,
            component,
            policy,
            loaded,
            latent_bytes=held,
            before=[earlier.component for earlier, _, _ in parts[: i + 1]],
            from_start=from_start,
            undivided_bytes=undivided_bytes,
        )
        for i, (stage, forwards, component) in enumerate(parts)
    ]
    return Memory(
        policy=policy,
        weights_bytes=sum(weights.total for weights in loaded.values()),
        host_bytes=host_bytes(policy, loaded),
        stages=tuple(stages),
    )


def input_bytes(stage: Stage, component: Component) -> int:
    """Bytes of the tensors that the largest call of a stage is given."""
    sizes = []
    for call in stage.calls:
        entry = component.entry(call.forwards[0].label.split(" ")[0])
        tensors = [value for value in entry.inputs(**call.dims).values() if isinstance(value, Tensor)]
        sizes.append(sum(evaluate(tensor.numel(), {}) * tensor.dtype.itemsize for tensor in tensors))
    return max(sizes)
