"""Several GPUs: how a run is divided among ranks, and what the ranks send one another.

Shapes: S tokens of a video, u = ulysses, r = ring, S' = ceil(S / (u r)) tokens of a rank, D width, N blocks.
Sources: Wan2.1 ``wan/distributed/xdit_context_parallel.py`` at 9737cba, Wan2.2 ``wan/distributed/ulysses.py``,
``sequence_parallel.py`` and ``fsdp.py`` at 42bf4cf; DeepSpeed-Ulysses, arXiv:2309.14509; Ring Attention,
arXiv:2310.01889.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from modelmeter.api import Model
from modelmeter.devices import Device
from modelmeter.errors import InputError, Typed, choice
from modelmeter.estimate import Estimate
from modelmeter.footprint import Memory
from modelmeter.nn import bfloat16
from modelmeter.policy import INTEGERS, Policy, implementation
from modelmeter.rates import Constants
from modelmeter.roofline import Shard
from modelmeter.stage import Blocks, Plan

#: Modules of a transformer that run on the tokens of their rank; what is before them runs on all tokens on every
#: rank, the per-token time embedding of Wan2.2 included. Source: ``usp_dit_forward``, ``sp_dit_forward``.
SHARED_MODULES = ("blocks", "vace_blocks", "norm_out", "proj_out")
#: Sizes of a forward whose product is the tokens of a video.
TOKEN_AXES = ("frames", "rows", "columns")
#: Passes over query, key, value and output around the all-to-all of the official code: chunks are copied and joined
#: again, each read and written. Source: ``all_to_all`` in wan/distributed/util.py of Wan2.2.
COPIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """A layout of ranks.

    Args:
        cfg: 2 where the forwards with and without the prompt run side by side.
        ulysses: ranks that divide the heads inside attention, the tokens elsewhere.
        ring: ranks that pass keys and values around.
        fsdp: ranks that keep the weights together, each its part.

    Example:
        >>> Parallel(cfg=2, ulysses=4).ranks, Parallel.parse("ulysses=4,fsdp=4")
        (8, Parallel(cfg=1, ulysses=4, ring=1, fsdp=4))
    """

    cfg: int = 1
    ulysses: int = 1
    ring: int = 1
    fsdp: int = 1

    def __post_init__(self) -> None:
        most = INTEGERS["gpus"][1]
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise InputError(f"parallel.{field.name}", value, f"an integer from 1 to {most}")
        if self.cfg > 2:
            raise InputError("parallel.cfg", self.cfg, "1 or 2: with and without the prompt")

    @classmethod
    def parse(cls, text: str) -> Parallel:
        """A layout as it is typed: ``cfg=2,ulysses=4,fsdp=8``.

        Raises:
            InputError: a word that is no ``key=number``, an unknown key, or one given twice.
        """
        names = [field.name for field in fields(cls)]
        found: dict[str, int] = {}
        for word in text.split(","):
            key, equals, number = word.strip().partition("=")
            if key not in names:
                raise choice("parallel", Typed(key), names)
            if key in found or not equals:
                raise InputError("parallel", text, "key=number, each key once, such as cfg=2,ulysses=4,fsdp=8")
            if not (number.isascii() and number.isdigit()) or len(number) > 9:
                raise InputError(f"parallel.{key}", Typed(number), f"an integer from 1 to {INTEGERS['gpus'][1]}")
            found[key] = int(number)
        return cls(**found)

    @property
    def sequence(self) -> int:
        """Ranks that share the tokens of one video."""
        return self.ulysses * self.ring

    @property
    def ranks(self) -> int:
        """Devices that run."""
        return self.cfg * self.sequence

    def __str__(self) -> str:
        said = [f"{field.name}={getattr(self, field.name)}" for field in fields(self) if getattr(self, field.name) > 1]
        return ",".join(said) or "none"


ALONE = Parallel()


def default_layout(gpus: int, model: Model, engine: str, *, guided: bool) -> Parallel:
    """The layout of so many devices where none is named.

    The official code as its README runs it (``--ulysses_size N --dit_fsdp --t5_fsdp``); a fused engine divides the
    two forwards of guidance first (LightX2V ``cfg_p_size``, SGLang ``--enable-cfg-parallel``) and copies the weights.

    Raises:
        InputError: an implementation that has no layout of its own.
    """
    if gpus == 1:
        return ALONE
    if engine == "fused":
        cfg = 2 if guided and gpus % 2 == 0 else 1
        return Parallel(cfg=cfg, ulysses=gpus // cfg)
    if implementation(model.config) != "official":
        raise InputError("gpus", gpus, f"1 without --parallel, such as ulysses={gpus}: diffusers has no usual layout")
    return Parallel(ulysses=gpus, fsdp=gpus)


def blocks_of(model: Model) -> Blocks:
    """The transformer blocks of a model that runs on several devices.

    Raises:
        InputError: how it would is not modelled.
    """
    if model.pipeline.blocks is None or "num_clips" in model.config["workload_keys"]:
        raise InputError("gpus", "several", f"1: how {model.id} runs on several devices is not modelled")
    return model.pipeline.blocks(model.config)


def check_layout(layout: Parallel, gpus: int, model: Model, plan: Plan, device: Device) -> None:
    """Refuse what cannot run.

    Raises:
        InputError: a layout that does not fit the devices, the model or the workload.
    """
    Policy.of({**model.config, "gpus": gpus})
    if layout.ranks != gpus:
        raise InputError("parallel", layout, f"a layout whose cfg x ulysses x ring is gpus={gpus}, not {layout.ranks}")
    if layout.fsdp not in (1, gpus):
        raise InputError("parallel.fsdp", layout.fsdp, f"1 or {gpus}, the number of devices")
    if gpus == 1:
        return
    if device.link_bandwidth is None:
        raise InputError("gpus", gpus, f"1 on {device.name}: no link to other devices is known")
    blocks_of(model)
    if layout.cfg == 2 and plan.workload.guidance_passes != 2:
        raise InputError("parallel.cfg", 2, f"1 without guidance (guidance_scale={plan.workload.guidance_scale:g})")
    heads = model.config["transformer"]["num_heads"]
    if heads % layout.ulysses:
        raise InputError("parallel.ulysses", layout.ulysses, f"a divisor of the {heads} heads (ring needs none)")
    if layout.sequence > plan.geometry.tokens:
        raise InputError("parallel", layout, f"at most as many ranks as the {plan.geometry.tokens} tokens of the video")


def tokens_of_rank(layout: Parallel, dims: Mapping[str, int]) -> int:
    """S', padding included: every rank has as many."""
    return -(-_tokens(dims) // layout.sequence)


def shard(layout: Parallel, dims: Mapping[str, int]) -> Shard | None:
    """What a rank runs of the kernels that share tokens; ``None`` where each runs all."""
    if layout.sequence == 1:
        return None
    axis = next(axis for axis in TOKEN_AXES if dims[axis] > 1)
    return Shard(part=tokens_of_rank(layout, dims) / _tokens(dims), rest={**dims, axis: 0})


def _tokens(dims: Mapping[str, int]) -> int:
    frames, rows, columns = (dims[axis] for axis in TOKEN_AXES)
    return frames * rows * columns


# -- what is sent, in bytes a rank and forward -------------------------------------------------------------------


def ulysses_bytes(layout: Parallel, dims: Mapping[str, int], blocks: Blocks) -> float:
    """All-to-all of query, key, value and output: N * 4 * S' * D * 2 * (u - 1) / u; nothing for u = 1."""
    u = layout.ulysses
    return blocks.count * 4 * _state_bytes(layout, dims, blocks) * (u - 1) / u


def ring_bytes(layout: Parallel, dims: Mapping[str, int], blocks: Blocks) -> int:
    """Keys and values passed on r - 1 times: N * 2 * S' * D * 2 * (r - 1)."""
    return blocks.count * 2 * _state_bytes(layout, dims, blocks) * (layout.ring - 1)


def gather_bytes(layout: Parallel, params: int) -> float:
    """Weights of the other ranks, in bfloat16 (``param_dtype``): 2 * params * (n - 1) / n."""
    return bfloat16.itemsize * params * (layout.fsdp - 1) / layout.fsdp


def copied_bytes(layout: Parallel, dims: Mapping[str, int], blocks: Blocks) -> int:
    """Chunks of query, key, value and output copied and joined around the all-to-all, in the official code."""
    return blocks.count * 4 * COPIES * _state_bytes(layout, dims, blocks) if layout.ulysses > 1 else 0


def _state_bytes(layout: Parallel, dims: Mapping[str, int], blocks: Blocks) -> int:
    """A query, key, value or output of a rank in bfloat16: [B, S', D]."""
    return dims["batch"] * tokens_of_rank(layout, dims) * blocks.width * bfloat16.itemsize


# -- how long it takes -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a rank sends and waits while all of them send.

    Args:
        rate: bytes per second.
        latency_seconds: of an exchange, however little is sent.
        hides: weights are gathered while blocks run; over PCIe, through the memory of the host, nothing is hidden.
        ring_shows: part of the keys and values passed around a ring that arithmetic does not hide.
    """

    rate: float
    latency_seconds: float
    hides: bool
    ring_shows: float

    @classmethod
    def of(cls, device: Device, values: Constants) -> Link:
        """The link of a device that has one."""
        assert device.link_bandwidth is not None
        pcie = over_pcie(device)
        return cls(
            rate=values["pcie_link_gb_s"] * 1e9 if pcie else values["link_of_datasheet"] * device.link_bandwidth,
            latency_seconds=values["link_latency_us"] * 1e-6,
            hides=not pcie,
            ring_shows=values["ring_overlap"],
        )

    def seconds(self, layout: Parallel, dims: Mapping[str, int], blocks: Blocks, *, params: int, busy: float) -> float:
        """Seconds that a rank waits for others in a forward of ``params`` whose kernels take ``busy`` seconds."""
        exchanges = 4 * blocks.count * self.latency_seconds if layout.ulysses > 1 else 0.0
        sent = ulysses_bytes(layout, dims, blocks) + self.ring_shows * ring_bytes(layout, dims, blocks)
        gather = gather_bytes(layout, params) / self.rate
        return sent / self.rate + exchanges + (max(0.0, gather - busy) if self.hides else gather)


def over_pcie(device: Device) -> bool:
    """Whether devices reach one another over PCIe."""
    return "PCIe" in (device.link_type or "")


def rank_memory(estimate: Estimate, layout: Parallel) -> Memory:
    """Bytes on one rank: weights divided by FSDP, activations of the transformers by the ranks that share tokens."""
    policy = Policy.of(estimate.config)
    weights = estimate.memory_under(replace(policy, gpus=layout.fsdp))
    activations = estimate.memory_under(replace(policy, gpus=layout.sequence))
    stages = tuple(
        replace(stage, activation_peak_bytes=other.activation_peak_bytes, workspace_bytes=other.workspace_bytes)
        for stage, other in zip(weights.stages, activations.stages, strict=True)
    )
    return replace(weights, policy=replace(policy, gpus=layout.ranks), stages=stages)
