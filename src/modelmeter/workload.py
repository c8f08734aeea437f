"""What is asked for: the workload, its bounds, and its geometry from pixels to latents to tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from numbers import Integral, Real
from operator import index
from types import MappingProxyType
from typing import Any, Literal, cast

from modelmeter.errors import InputError, choice, with_type

#: Smallest and largest value of every integer key.
BOUNDS: Mapping[str, tuple[int, int]] = {
    "batch_size": (1, 65_536),
    "num_frames": (1, 1_000_000),
    "height": (1, 65_536),
    "width": (1, 65_536),
    "num_inference_steps": (1, 100_000),
    "text_len": (1, 65_536),
    "num_reference_images": (0, 1000),
    "num_clips": (1, 10_000),
}
#: Keys that only some models have.
MODEL_KEYS = ("num_reference_images", "num_clips", "task")
TASKS = ("t2v", "i2v")
#: Keys that take finite decimals above 0, and their largest value.
DECIMALS: Mapping[str, float] = {"guidance_scale": 1000.0, "flow_shift": 1000.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One generation: how many videos of which size, in how many steps.

    Args:
        batch_size: videos generated together.
        num_frames: frames asked for.
        height, width: pixels of the size that runs.
        num_inference_steps: denoising steps.
        text_len: tokens to which the prompt is padded.
        guidance_scale: above 1, every step runs the transformer twice.
        flow_shift: shift of the flow-matching schedule; the implementation's own without it.
        num_reference_images: images whose latent frames stand before the video (VACE).
        num_clips: clips that are generated one after the other, of ``num_frames`` each (S2V, Animate).
        task: ``t2v`` or ``i2v``, of a model that does both.

    Raises:
        InputError: a value out of bounds or of the wrong type.

    Example:
        >>> video = Workload(num_frames=81, height=480, width=832, num_inference_steps=50)
        >>> video.guidance_passes
        2
    """

    batch_size: int = 1
    num_frames: int
    height: int
    width: int
    num_inference_steps: int
    text_len: int = 512
    guidance_scale: float = 5.0
    flow_shift: float | None = None
    num_reference_images: int | None = None
    num_clips: int | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        for key, bounds in BOUNDS.items():
            if key not in MODEL_KEYS or getattr(self, key) is not None:
                object.__setattr__(self, key, _integer(key, getattr(self, key), bounds))
        for key, largest in DECIMALS.items():
            if key != "flow_shift" or self.flow_shift is not None:
                object.__setattr__(self, key, _decimal(key, getattr(self, key), largest))
        if self.task is not None and self.task not in TASKS:
            raise choice("task", self.task, TASKS)

    @property
    def guidance_passes(self) -> int:
        """Forwards of the transformer in one step: with and without the prompt if guidance is on."""
        return 2 if self.guidance_scale > 1 else 1

    @property
    def values(self) -> dict[str, int | float | str]:
        """Keys and values that are set, in the order of definition."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: value for key, value in found.items() if value is not None}


#: Every key of a workload, and those that every model has.
KEYS: tuple[str, ...] = tuple(field.name for field in fields(Workload))
COMMON_KEYS: tuple[str, ...] = tuple(key for key in KEYS if key not in MODEL_KEYS)


def workload(values: Mapping[str, Any], own: Mapping[str, Any] = MappingProxyType({})) -> Workload:
    """A workload from keys and values as a user gave them.

    Args:
        own: keys that this model has beside the common ones, and their defaults.

    Raises:
        InputError: an unknown key, or a bad value.

    Example:
        >>> workload({"num_frames": 4, "height": 256, "width": 256, "num_inference_steps": 1}).text_len
        512
    """
    allowed = (*COMMON_KEYS, *own)
    for key in values:
        if key not in allowed:
            raise choice("workload key", key, allowed)
    missing = [key for key in ("num_frames", "height", "width", "num_inference_steps") if key not in values]
    if missing:
        raise InputError(missing[0], "nothing", "an integer (this key has no default)")
    return Workload(**{**own, **values})


def _integer(key: str, value: object, bounds: tuple[int, int]) -> int:
    smallest, largest = bounds
    allowed = f"an integer from {smallest:,} to {largest:,}"
    try:
        number = index(cast("int", None if isinstance(value, bool) else value))
    except TypeError:
        raise InputError(key, with_type(value), allowed) from None
    if not smallest <= number <= largest:
        nearest = smallest if number < smallest else largest
        raise InputError(key, number, f"{allowed}; nearest: {nearest}")
    return number


def _decimal(key: str, value: object, largest: float) -> int | float:
    allowed = f"a decimal number above 0, at most {largest:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(key, with_type(value), allowed)
    number = finite(value)
    if number is None or not 0 < number <= largest:
        raise InputError(key, value, allowed)
    return number


def finite(value: object) -> int | float | None:
    """A number of any kind as Python's own, or ``None`` where it is no finite number; integers stay exact.

    Example:
        >>> finite(10**400) == 10**400, finite(0.5), finite(float("nan")), finite("1"), finite(True)
        (True, 0.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    if isinstance(value, Integral):
        return int(value)
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Sizes inside the model: the latent video and the tokens of its self-attention."""

    latent_frames: int
    latent_height: int
    latent_width: int
    tokens: int

    @property
    def values(self) -> dict[str, int]:
        """Names and sizes, in the order of definition."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How a model divides a video: pixels per latent, latents per token, and the most tokens along an axis, if any.

    Example:
        >>> grid = Grid(temporal_stride=4, spatial_stride=8, patch_size=(1, 2, 2), max_positions=1024)
        >>> grid.geometry(Workload(num_frames=81, height=480, width=832, num_inference_steps=1)).tokens
        32760
    """

    temporal_stride: int
    spatial_stride: int
    patch_size: tuple[int, int, int]
    max_positions: int | None = None

    def geometry(self, video: Workload, *, reference_frames: int = 0) -> Geometry:
        """Latents and tokens of a video, with latent frames of reference images before it.

        Raises:
            InputError: a side that does not divide, or more positions than the model has.
        """
        p_t, p_h, p_w = self.patch_size
        latent_frames = (video.num_frames - 1) // self.temporal_stride + 1
        frames = latent_frames + reference_frames
        if frames % p_t:
            raise InputError("num_frames", video.num_frames, f"a number whose latent frames divide by {p_t}")
        self._check_positions("num_frames", video.num_frames, frames // p_t)
        for key, side, patch in (("height", video.height, p_h), ("width", video.width, p_w)):
            step = self.spatial_stride * patch
            if side % step:
                below, above = side // step * step, (side // step + 1) * step
                nearest = f"{below} or {above}" if below else str(above)
                raise InputError(key, side, f"a multiple of {step} for this model; nearest: {nearest}")
            self._check_positions(key, side, side // step)
        latent_height, latent_width = video.height // self.spatial_stride, video.width // self.spatial_stride
        tokens = frames // p_t * (latent_height // p_h) * (latent_width // p_w)
        return Geometry(
            latent_frames=latent_frames, latent_height=latent_height, latent_width=latent_width, tokens=tokens
        )

    def tokens(self, geometry: Geometry, *, reference_frames: int = 0) -> dict[str, int]:
        """Tokens along each axis, by the names that the inputs of a diffusion transformer give them.

        Example:
            >>> grid = Grid(temporal_stride=8, spatial_stride=32, patch_size=(1, 1, 1))
            >>> video = Workload(num_frames=161, height=480, width=832, num_inference_steps=1)
            >>> grid.tokens(grid.geometry(video))
            {'frames': 21, 'rows': 15, 'columns': 26}
        """
        p_t, p_h, p_w = self.patch_size
        return {
            "frames": (geometry.latent_frames + reference_frames) // p_t,
            "rows": geometry.latent_height // p_h,
            "columns": geometry.latent_width // p_w,
        }

    def _check_positions(self, key: str, value: int, positions: int) -> None:
        if self.max_positions is not None and positions > self.max_positions:
            raise InputError(
                key,
                value,
                f"a size of at most {self.max_positions} tokens along the axis for this model, not {positions}",
            )


def round_frames(
    video: Workload, count: Literal["kept", "rounded"], temporal_stride: int = 4
) -> tuple[Workload, list[str]]:
    """The workload that really runs where ``num_frames`` is not a multiple of the stride plus one.

    Args:
        count: some pipelines round it before anything runs (``F // 4 * 4 + 1``). Where others keep it, the latents
            hold fewer frames than asked for, and the decoder gives only those.

    Example:
        >>> video = Workload(num_frames=84, height=480, width=832, num_inference_steps=1)
        >>> round_frames(video, "rounded")[0].num_frames, round_frames(video, "kept")[0].num_frames
        (85, 84)
    """
    asked = video.num_frames
    if asked % temporal_stride == 1 or temporal_stride == 1:
        return video, []
    if count == "rounded":
        runs = asked // temporal_stride * temporal_stride + 1
        return replace(video, num_frames=runs), [f"num_frames={asked}: diffusers rounds to {runs} frames"]
    gives = (asked - 1) // temporal_stride * temporal_stride + 1
    return video, [
        f"num_frames={asked}: the decoder gives {gives} frame{'s' if gives > 1 else ''} "
        f"(a multiple of {temporal_stride}, plus 1)"
    ]
