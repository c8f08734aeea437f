"""Whether a run fits on a device: which policies do, with how much to spare, and how far they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from modelmeter.api import Model
from modelmeter.devices import Device
from modelmeter.errors import InputError
from modelmeter.footprint import Memory
from modelmeter.policy import Policy
from modelmeter.workload import Workload

#: Device memory that a run cannot use: the CUDA context, libraries, and what the allocator rounds up and leaves in
#: holes. An assumption; it agrees with the published run nearest to the brim, whose allocations alone peak at
#: 22.9 GiB of a card of 24 (Wan2.2 TI2V-5B on an RTX 4090, assets/comp_effic.png of Wan2.2 at 42bf4cf).
RESERVE_BYTES = 2**30
#: What is tried where the user asks for nothing else, beside the precision in which the implementation loads; the most
#: faithful and the fastest first.
PRECISIONS = ("bf16", "fp8", "q4_k")
OFFLOADS = ("none", "component", "block")
DEVICES = ("cuda", "cpu")
#: Frames that a latent frame stands for, but the first.
FRAMES_PER_LATENT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A policy, and what it needs.

    Args:
        vae_tiling: the VAE runs tile by tile.
        usable_bytes: of the device.
    """

    policy: Policy
    vae_tiling: bool
    memory: Memory
    usable_bytes: int

    @property
    def headroom_bytes(self) -> int:
        """What is left at the peak; below zero what is missing."""
        return self.usable_bytes - self.memory.peak_bytes

    @property
    def fits(self) -> bool:
        """Whether the peak is within what is usable."""
        return self.headroom_bytes >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far a policy goes: the most frames at the size asked for, and the largest size with the frames asked for."""

    num_frames: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Every option for a workload on a device, the most faithful and fastest first.

    Args:
        best: options that fit, the first of each precision, and how far they go.
    """

    model: str
    device: Device
    workload: Workload
    options: tuple[Option, ...]
    best: tuple[tuple[Option, Reach], ...]
    warnings: tuple[str, ...]

    @property
    def fitting(self) -> tuple[Option, ...]:
        """The options that fit."""
        return tuple(option for option in self.options if option.fits)

    @property
    def worthwhile(self) -> tuple[Option, ...]:
        """Of the options that fit, those that need less than every faster one of their precision."""
        least: dict[str, int] = {}
        found = []
        for option in self.fitting:
            precision, peak = option.policy.precision, option.memory.peak_bytes
            if peak < least.get(precision, peak + 1):
                least[precision] = peak
                found.append(option)
        return tuple(found)


def fit(model: Model, device: Device, *, workload: str | None = None) -> Fit:
    """Which policies let a workload run on a device, or on several alike (``gpus=``).

    Args:
        model: keys of a policy that its user has set stay as they are; the others are tried.
        workload: name of a preset; the model's default without one.

    Raises:
        InputError: a device whose memory is not known, or a workload that the model cannot run.

    Example:
        >>> from modelmeter.api import load
        >>> from modelmeter.devices import find_device
        >>> found = fit(load("wan2.1-t2v-1.3b"), find_device("4090"))
        >>> found.fitting[0].policy.offload
        'none'
    """
    if device.memory_bytes is None:
        raise InputError("device", device.name, "one whose memory is known")
    usable = max(device.memory_bytes - RESERVE_BYTES, 0)
    video = model.workload(workload)
    plan = model.plan(video)
    options = tuple(
        Option(policy=policy, vae_tiling=tiling, memory=_memory(model, policy, video, tiling), usable_bytes=usable)
        for policy in _policies(model)
        for tiling in _tilings(model)
    )
    best: dict[str, Option] = {}
    for option in options:
        if option.fits:
            best.setdefault(option.policy.precision, option)
    left_out = ", ".join(plan.not_modelled)
    missing = (f"more is needed than this: not modelled are {left_out}",) if left_out else ()
    return Fit(
        model=model.id,
        device=device,
        workload=plan.workload,
        options=options,
        best=tuple((option, _reach(model, option, video)) for option in best.values()),
        warnings=(*plan.warnings, *missing),
    )


def _policies(model: Model) -> Iterator[Policy]:
    """The policy of the configuration, with what its user left open varied."""
    asked, fixed = Policy.of(model.config), model.overrides.config
    loaded = Policy.of(model.with_config({"precision": "default"}).config).precision
    precisions = (asked.precision,) if "precision" in fixed else tuple(dict.fromkeys((loaded, *PRECISIONS)))
    offloads = (asked.offload,) if "offload" in fixed else OFFLOADS if asked.gpus == 1 else OFFLOADS[:-1]
    devices = (asked.text_encoder_device,) if "text_encoder_device" in fixed else DEVICES
    for precision in precisions:
        for offload in offloads:
            for device in devices:
                yield replace(asked, precision=precision, offload=offload, text_encoder_device=device)


def _tilings(model: Model) -> tuple[bool, ...]:
    if "vae_tiling" not in model.config:
        return (False,)
    return (model.config["vae_tiling"],) if "vae_tiling" in model.overrides.config else (False, True)


def _memory(model: Model, policy: Policy, video: Workload, tiling: bool) -> Memory:
    """What a workload needs under a policy; models are made once for what changes their forwards or weights."""
    changes = {"precision": policy.precision} | ({"vae_tiling": tiling} if "vae_tiling" in model.config else {})
    changed = model.with_config(changes)
    return changed.estimated(changed.plan(video)).memory_under(policy)


def _reach(model: Model, option: Option, video: Workload) -> Reach:
    """The most frames and the largest size of the same shape that still fit, each with the other as it is."""

    def fits(**keys: Any) -> bool:
        try:
            memory = _memory(model, option.policy, replace(video, **keys), option.vae_tiling)
        except InputError:  # more than the model can run
            return False
        return memory.peak_bytes <= option.usable_bytes

    def frames(latents: int) -> int:
        return 1 + FRAMES_PER_LATENT * latents

    def size(units: int) -> dict[str, int]:
        """The height of so many steps, and the width nearest to the shape."""
        step = _step(model, video)
        return {"height": units * step, "width": max(round(units * video.width / video.height), 1) * step}

    latents = _largest(lambda count: fits(num_frames=frames(count)), (video.num_frames - 1) // FRAMES_PER_LATENT)
    units = _largest(lambda count: fits(**size(count)), video.height // _step(model, video))
    return Reach(num_frames=max(frames(latents), video.num_frames), **size(units))


def _step(model: Model, video: Workload) -> int:
    """Pixels between two heights that the model can run."""
    (rows,) = {
        call.dims["rows"] for stage in model.plan(video).stages if stage.id == "transformer" for call in stage.calls
    }
    return video.height // rows


def _largest(fits: Callable[[int], bool], known: int) -> int:
    """The largest count that fits, from one that does; whatever is larger than one that does not, does not either."""
    low, high = known, 2 * known + 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
