"""Layers of the Wan VAE: causal convolutions over chunks of frames, resampling, shortcuts.

Source: diffusers ``models/autoencoders/autoencoder_kl_wan.py``. Videos are [B, C, T, H, W].
"""

from __future__ import annotations

from typing import TypeAlias

from modelmeter.nn import (
    Cache,
    Conv2d,
    Conv3d,
    Identity,
    Module,
    Parameter,
    Sequential,
    Tensor,
    ZeroPad2d,
    bfloat16,
    float16,
    float32,
)
from modelmeter.nn import functional as F

#: The frames of earlier chunks, by causal convolution.
Features: TypeAlias = Cache[str]

#: Frames of a causal convolution's input that the next chunk needs.
KEPT_FRAMES = 2
#: What an upsampler keeps of the first chunk, whose frames it does not double.
NO_FRAMES = "no frames"


class WanCausalConv3d(Conv3d):
    """A convolution whose kernel ends at the current frame: cached frames or zeros stand before the first.

    ``padding`` is that of a centred kernel: of its frames, all stand before. By nothing at all it copies too.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int],
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride)
        self.padding = padding

    def forward(self, x: Tensor, cached: Tensor | None = None) -> Tensor:
        frames, rows, columns = self.padding
        before = 2 * frames
        if cached is not None and before > 0:
            x = F.cat([cached, x], dim=2)
            before -= length(cached)
        x = F.pad(x, (columns, columns, rows, rows, before, 0))
        return super().forward(x)


def conv_1(in_channels: int, out_channels: int) -> WanCausalConv3d:
    """A causal convolution of single pixels."""
    return WanCausalConv3d(in_channels, out_channels, (1, 1, 1))


def conv_3(in_channels: int, out_channels: int) -> WanCausalConv3d:
    """A causal convolution of 3 frames, rows and columns that keeps the size."""
    return WanCausalConv3d(in_channels, out_channels, (3, 3, 3), padding=(1, 1, 1))


def length(x: Tensor) -> int:
    """Frames of a chunk: always a number, since chunks have a fixed length."""
    frames = x.shape[2]
    assert isinstance(frames, int)
    return frames


def last_frames(x: Tensor, frames: int) -> Tensor:
    """A copy of the last frames, or of all where there are fewer."""
    return x[:, :, -min(frames, length(x)) :].clone()


def with_last_frame(cached: Tensor, x: Tensor) -> Tensor:
    """The last cached frame, and what follows it."""
    return F.cat([cached[:, :, -1].unsqueeze(2), x], dim=2)


def convolved(conv: Module, x: Tensor, features: Features) -> Tensor:
    """A causal convolution that goes on where the chunk before ended, and keeps frames for the next."""
    kept = last_frames(x, KEPT_FRAMES)
    cached = features.slot
    assert not isinstance(cached, str)
    if length(kept) < KEPT_FRAMES and cached is not None:
        kept = with_last_frame(cached, kept)
    x = conv(x, cached)
    del cached
    features.keep(kept)
    return x


class WanRMS_norm(Module):  # noqa: N801 (the reference's name)
    """RMS norm over the channels, of videos or (``images``) of single frames."""

    def __init__(self, dim: int, *, images: bool = True) -> None:
        self.scale = dim**0.5
        self.gamma = Parameter((dim, 1, 1) if images else (dim, 1, 1, 1), float32)

    def forward(self, x: Tensor) -> Tensor:
        half = x.dtype in (float16, bfloat16)
        normalized = F.normalize(x.float() if half else x, 1).to(x.dtype)
        # The reference adds a bias that is the number 0 here: a full pass over the video.
        return normalized * self.scale * self.gamma + 0.0


class WanUpsample(Module):
    """Twice the rows and columns, in float32 in between."""

    def forward(self, x: Tensor) -> Tensor:
        return F.upsample_nearest_exact(x.float(), 2).to(x.dtype)


class WanResample(Module):
    """Half or twice the rows and columns, frame by frame; and half or twice the frames, but not of the first chunk.

    Args:
        mode: ``upsample2d``, ``upsample3d``, ``downsample2d`` or ``downsample3d``; 3d is with frames.
        upsample_out_dim: channels after upsampling; half of ``dim`` if not given.
    """

    def __init__(self, dim: int, *, mode: str, upsample_out_dim: int | None = None) -> None:
        self.mode = mode
        if mode in ("upsample2d", "upsample3d"):
            out_dim = dim // 2 if upsample_out_dim is None else upsample_out_dim
            self.resample = Sequential([WanUpsample(), Conv2d(dim, out_dim, (3, 3), padding=1)])
        elif mode in ("downsample2d", "downsample3d"):
            self.resample = Sequential([ZeroPad2d((0, 1, 0, 1)), Conv2d(dim, dim, (3, 3), stride=(2, 2))])
        else:
            raise ValueError(f"mode={mode}: upsample2d, upsample3d, downsample2d or downsample3d")
        if mode == "upsample3d":
            self.time_conv = WanCausalConv3d(dim, dim * 2, (3, 1, 1), padding=(1, 0, 0))
        elif mode == "downsample3d":
            self.time_conv = WanCausalConv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Tensor, features: Features) -> Tensor:
        b, c, t, h, w = x.shape
        if self.mode == "upsample3d":
            cached = features.slot
            if cached is None:
                features.keep(NO_FRAMES)
            else:
                kept = last_frames(x, KEPT_FRAMES)
                if length(kept) < KEPT_FRAMES:
                    if isinstance(cached, Tensor):
                        kept = with_last_frame(cached, kept)
                    else:
                        kept = F.cat([F.zeros_like(kept), kept], dim=2)
                x = self.time_conv(x, cached) if isinstance(cached, Tensor) else self.time_conv(x)
                del cached
                features.keep(kept)
                # the two halves of the channels are the two frames that one becomes
                x = x.reshape(b, 2, c, t, h, w)
                x = F.stack([x[:, 0], x[:, 1]], dim=3)
                x = x.reshape(b, c, t * 2, h, w)
        t = x.shape[2]
        x = x.permute(0, 2, 1, 3, 4).reshape(b * t, c, h, w)
        x = self.resample(x)
        x = x.view(b, t, *x.shape[1:]).permute(0, 2, 1, 3, 4)

        if self.mode == "downsample3d":
            cached = features.slot
            if cached is None:
                features.keep(x.clone())
            else:
                assert isinstance(cached, Tensor)
                kept = last_frames(x, 1)
                x = self.time_conv(F.cat([cached[:, :, -1:], x], dim=2))
                del cached
                features.keep(kept)
        return x


class AvgDown3D(Module):
    """Means over groups of what lies in one cell of ``factor_t`` frames and ``factor_s`` rows and columns.

    Raises:
        ValueError: the channels cannot be grouped.
    """

    def __init__(self, in_channels: int, out_channels: int, *, factor_t: int, factor_s: int) -> None:
        self.factor = factor_t * factor_s * factor_s
        if in_channels * self.factor % out_channels:
            raise ValueError(f"{in_channels} channels x {self.factor} are no multiple of {out_channels}")
        self.out_channels = out_channels
        self.factor_t = factor_t
        self.factor_s = factor_s
        self.group_size = in_channels * self.factor // out_channels

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, -length(x) % self.factor_t, 0))
        b, c, t, h, w = x.shape
        t, h, w = t // self.factor_t, h // self.factor_s, w // self.factor_s
        x = x.view(b, c, t, self.factor_t, h, self.factor_s, w, self.factor_s)
        x = x.permute(0, 1, 3, 5, 7, 2, 4, 6).contiguous()
        x = x.view(b, c * self.factor, t, h, w)
        x = x.view(b, self.out_channels, self.group_size, t, h, w)
        x = F.mean(x, 2, keepdim=False)
        return x


class DupUp3D(Module):
    """The reverse of :class:`AvgDown3D`: channels repeated, and laid out as frames, rows and columns.

    Raises:
        ValueError: the channels cannot be repeated.
    """

    def __init__(self, in_channels: int, out_channels: int, *, factor_t: int, factor_s: int) -> None:
        factor = factor_t * factor_s * factor_s
        if out_channels * factor % in_channels:
            raise ValueError(f"{out_channels} channels x {factor} are no multiple of {in_channels}")
        self.out_channels = out_channels
        self.factor_t = factor_t
        self.factor_s = factor_s
        self.repeats = out_channels * factor // in_channels

    def forward(self, x: Tensor, *, first_chunk: bool = False) -> Tensor:
        x = x.repeat_interleave(self.repeats, dim=1)
        b, _, t, h, w = x.shape
        x = x.view(b, self.out_channels, self.factor_t, self.factor_s, self.factor_s, t, h, w)
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).contiguous()
        x = x.view(b, self.out_channels, t * self.factor_t, h * self.factor_s, w * self.factor_s)
        if first_chunk:
            x = x[:, :, self.factor_t - 1 :]
        return x


def shortcut(in_channels: int, out_channels: int) -> Module:
    """What brings a residual to the channels of the result."""
    return Identity() if in_channels == out_channels else conv_1(in_channels, out_channels)
