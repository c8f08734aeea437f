"""What an engine changes: the elementwise traffic of the transformers, and what waits for weights from the host."""

from __future__ import annotations

from collections.abc import Mapping

from modelmeter.api import TRANSFORMERS, Model
from modelmeter.devices import Device
from modelmeter.errors import InputError
from modelmeter.estimate import StageRun
from modelmeter.policy import Policy, loading
from modelmeter.rates import Constants, entries
from modelmeter.residency import swapped

#: How the transformer runs: as its implementation is written, under torch.compile, or in a fused engine.
ENGINES = ("eager", "compiled", "fused")
#: What a fused engine runs, whatever the implementation that is asked for.
FUSED: Mapping[str, object] = {
    "implementation": "diffusers",
    "differences.timesteps": {"official": "per_sample", "diffusers": "per_sample"},
}


def under_engine(model: Model, engine: str) -> Model:
    """The model as an engine runs it: a fused one takes one timestep a sample and bfloat16 weights.

    Raises:
        InputError: the traffic of the model under that engine is not known.
    """
    if engine == "eager":
        return model
    if model.pipeline.blocks is None:
        raise InputError("engine", engine, f"eager: what {model.id} moves under others is not known")
    return model.with_config(FUSED) if engine == "fused" else model


def elementwise_bytes(model: Model, dims: Mapping[str, int], engine: str) -> float:
    """Bytes that the kernels of a transformer forward move beside products and attention, under an engine that fuses.

    Args:
        dims: sizes of the forward: ``batch`` videos of ``frames`` x ``rows`` x ``columns`` tokens.
    """
    assert model.pipeline.blocks is not None
    blocks = model.pipeline.blocks(model.config)
    fused, rope = entries()["fused_elementwise"], entries()["compiled_official_rope"]
    width = fused["per_width"]
    if engine == "compiled" and model.config["implementation"] == "official":
        width += rope["per_width"]
    tokens = dims["batch"] * dims["frames"] * dims["rows"] * dims["columns"]
    per_token: float = width * blocks.width + fused["per_ffn"] * blocks.inner_width
    return tokens * blocks.count * per_token


def fuses(run: StageRun, engine: str) -> bool:
    """Whether the engine replaces the elementwise kernels of a stage: those of the diffusion transformers."""
    return engine != "eager" and run.stage.component.startswith("transformer")


def host_seconds(model: Model, run: StageRun, device: Device, values: Constants, busy: float) -> float:
    """Seconds that a stage waits for weights between host and device, while its kernels take ``busy`` seconds.

    Whole components are moved in before the stage and out after it; what the official code loads to the device from
    the start is only moved out, and its VAE never. Blocks are fetched while others run, so only what is longer shows.
    """
    policy, weights = Policy.of(model.config), model.weights()[run.stage.component]
    if policy.offload == "none" or (policy.implementation == "official" and run.stage.component == "vae"):
        return 0.0
    transformer = run.stage.component in TRANSFORMERS
    if policy.offload == "block" and transformer:
        link = device.host_bandwidth
        if link is None:
            raise InputError("device", device.name, "one whose host link is known, under offload=block")
        return max(0.0, run.calls * swapped(policy, weights) / link - busy)
    from_start = transformer and loading(model.config, "transformer_on_device") == "from_start"
    copies = 1 if from_start and policy.implementation == "official" else 2
    return copies * weights.total / (values["host_copy_gb_s"] * 1e9)
