"""``decode`` and ``encode`` of the Wan VAE in parts, each traced on what the parts before have left alive.

A video runs through the VAE chunk by chunk. All chunks from the third on are alike, but for the length of
the video so far, so a whole call is a few parts and how often each runs.

Source: ``AutoencoderKLWan._decode`` and ``_encode`` of diffusers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from modelmeter.models.common.vae_blocks import WanDecoder3d, WanEncoder3d
from modelmeter.models.common.vae_layers import Features, WanCausalConv3d, length
from modelmeter.nn import Cache, Dim, Module, Tensor, resident, resident_cache, trace
from modelmeter.nn import functional as F
from modelmeter.stage import Component

#: Sizes by name: ``batch``, ``frames`` (chunks of the whole video), latent ``rows`` and ``columns``.
Dims: TypeAlias = Mapping[str, Dim]

#: Frames of every chunk of pixels but the first, which has one.
CHUNK_FRAMES = 4


class AutoencoderKLWanPart(Component):
    """A part of a call: what it runs and takes, and all the modules of the call under their own names."""

    def __init__(
        self, modules: Mapping[str, Module], run: Callable[..., Any], given: Callable[[Dims], dict[str, Any]]
    ) -> None:
        vars(self).update(modules)
        self.run = run
        self.given = given

    def forward(self, **inputs: Any) -> Any:
        return self.run(**inputs)

    def inputs(self, **dims: Dim) -> dict[str, Any]:
        """What :meth:`forward` takes, by name."""
        return self.given(dims)


class Direction:
    """``decode`` or ``encode``, in parts.

    The chunks are cut from a source, and put together to a video: frames of pixels from latents, or moments
    of latents from pixels.

    Args:
        modules: what the call runs, by name.
        patch_size: rows and columns of pixels that the VAE takes as channels; ``None`` or 1 for none.
    """

    def __init__(self, modules: Mapping[str, Module], patch_size: int | None) -> None:
        self.modules = modules
        self.patch_size = patch_size or 1
        self._after: dict[tuple[object, ...], tuple[Tensor, Tensor | None, Features]] = {}

    def parts(self, name: str) -> Mapping[str, AutoencoderKLWanPart]:
        """The whole call under its name, which has inputs only, and its parts."""
        parts = {
            "first chunk": self.part(self.first_chunk, self.first_given),
            "second chunk": self.part(self.later_chunk, lambda dims: self.left(dims, 1)),
            "later chunk": self.part(self.later_chunk, lambda dims: self.left(dims, dims["done"])),
            **self.ends(),
        }
        return {name: self.part(_unrolled, self.given)} | {f"{name} {part}": value for part, value in parts.items()}

    def part(self, run: Callable[..., Any], given: Callable[[Dims], dict[str, Any]]) -> AutoencoderKLWanPart:
        """A part with the modules of the call."""
        return AutoencoderKLWanPart(self.modules, run, given)

    def left(self, dims: Dims, done: Dim) -> dict[str, Any]:
        """What is alive after ``done`` chunks: source, video so far, last chunk and features.

        The last chunk has a name of its own from the second on; the features no longer change their sizes.
        """
        video, chunk, features = self.after(dims, first_only=done == 1)
        if chunk is not None:
            batch, channels, _, *sizes = video.shape
            frames = length(video) + (done - 1) * length(chunk)
            video = Tensor((batch, channels, frames, *sizes), video.dtype)
        return {"source": self.source(dims), "video": video, "chunk": chunk, "features": features}

    def after(self, dims: Dims, *, first_only: bool) -> tuple[Tensor, Tensor | None, Features]:
        """The first chunk of the video, the second where it ran too, and the features they leave; traced once."""
        source = self.source(dims)
        key = (first_only, source.shape[0], source.shape[1], *source.shape[3:], source.dtype)
        if key not in self._after:
            if first_only:
                part, given = self.part(self.first_chunk, self.first_given), self.first_given(dims)
                video, features = trace(part, **given).outputs
                self._after[key] = video, None, features
            else:
                video, _, features = self.after(dims, first_only=True)
                second: dict[str, Any] = {"source": source, "video": video, "chunk": None, "features": features}
                _, chunk, features = trace(self.part(self.later_chunk, self.given), **second).outputs
                self._after[key] = video, chunk, features
        return self._after[key]

    def later_chunk(self, source: Tensor, video: Tensor, chunk: Tensor | None, features: Features) -> Any:
        """A chunk after the first, which is put behind the video so far."""
        source, video, features = self.held(source), resident(video), resident_cache(features)
        chunk = None if chunk is None else resident(chunk)  # lives until this one is there
        chunk = self.coded(source, features)
        assert chunk is not None
        video = F.cat([video, chunk], dim=2)
        return video, chunk, features

    @abstractmethod
    def given(self, dims: Dims) -> dict[str, Any]:
        """The arguments of the real call."""

    @abstractmethod
    def source(self, dims: Dims) -> Tensor:
        """What the chunks are cut from."""

    @abstractmethod
    def held(self, source: Tensor) -> Tensor:
        """The source; it counts as alive unless it is the input of the call."""

    @abstractmethod
    def first_given(self, dims: Dims) -> dict[str, Any]:
        """What the first chunk takes."""

    @abstractmethod
    def first_chunk(self, source: Tensor) -> tuple[Tensor, Features]:
        """The first chunk: a single frame."""

    @abstractmethod
    def coded(self, source: Tensor, features: Features) -> Tensor:
        """One of the chunks after the first."""

    @abstractmethod
    def ends(self) -> Mapping[str, AutoencoderKLWanPart]:
        """What runs before the first chunk or after the last."""


def _unrolled(**_: Any) -> Any:
    raise NotImplementedError("a whole call of the VAE runs in parts")


class Decode(Direction):
    """Latents to pixels."""

    def __init__(self, post_quant_conv: WanCausalConv3d, decoder: WanDecoder3d, patch_size: int | None) -> None:
        super().__init__({"post_quant_conv": post_quant_conv, "decoder": decoder}, patch_size)
        self.post_quant_conv = post_quant_conv
        self.decoder = decoder

    def given(self, dims: Dims) -> dict[str, Any]:
        return {"z": self.source(dims)}

    def source(self, dims: Dims) -> Tensor:
        weight = self.post_quant_conv.weight
        return Tensor((dims["batch"], weight.shape[0], dims["frames"], dims["rows"], dims["columns"]), weight.dtype)

    def held(self, source: Tensor) -> Tensor:
        return resident(source)

    def first_given(self, dims: Dims) -> dict[str, Any]:
        return {"source": self.source(dims)}

    def first_chunk(self, source: Tensor) -> tuple[Tensor, Features]:
        source, features = self.held(source), Cache[str]()
        return self.decoder(source[:, :, :1], features, first_chunk=True), features

    def coded(self, source: Tensor, features: Features) -> Tensor:
        return self.decoder(source[:, :, 1:2], features, first_chunk=False)

    def ends(self) -> Mapping[str, AutoencoderKLWanPart]:
        def all_left(dims: Dims) -> dict[str, Any]:
            return self.left(dims, dims["frames"])

        return {"latents": self.part(self.latents, self.given), "video": self.part(self.video, all_left)}

    def latents(self, z: Tensor) -> Tensor:
        """The source of the chunks, all at once."""
        return self.post_quant_conv(z)

    def video(self, source: Tensor, video: Tensor, chunk: Tensor | None, features: Features) -> Tensor:
        """Patches back to pixels, and pixels held to their range."""
        source, video, features = self.held(source), resident(video), resident_cache(features)
        chunk = None if chunk is None else resident(chunk)
        if self.patch_size != 1:
            video = unpatchify(video, self.patch_size)
        video = F.clamp(video, -1.0, 1.0)
        return video


class Encode(Direction):
    """Pixels to moments of latents.

    Args:
        stride: rows or columns of pixels per latent.
    """

    def __init__(self, encoder: WanEncoder3d, quant_conv: WanCausalConv3d, patch_size: int | None, stride: int) -> None:
        super().__init__({"encoder": encoder, "quant_conv": quant_conv}, patch_size)
        self.encoder = encoder
        self.quant_conv = quant_conv
        self.stride = stride

    def given(self, dims: Dims) -> dict[str, Any]:
        return {"x": self.pixels(dims)}

    def pixels(self, dims: Dims) -> Tensor:
        """The video that is encoded: one frame, and four for every further chunk."""
        weight = self.quant_conv.weight
        in_channels = self.encoder.conv_in.weight.shape[1]
        frames = 1 + CHUNK_FRAMES * (dims["frames"] - 1)
        sizes = (self.stride * dims["rows"], self.stride * dims["columns"])
        return Tensor((dims["batch"], in_channels // self.patch_size**2, frames, *sizes), weight.dtype)

    def source(self, dims: Dims) -> Tensor:
        pixels, p = self.pixels(dims), self.patch_size
        batch, channels, frames, rows, columns = pixels.shape
        return Tensor((batch, channels * p * p, frames, rows // p, columns // p), pixels.dtype)

    def held(self, source: Tensor) -> Tensor:
        return source if self.patch_size == 1 else resident(source)

    def first_given(self, dims: Dims) -> dict[str, Any]:
        return {"source": self.pixels(dims)}

    def first_chunk(self, source: Tensor) -> tuple[Tensor, Features]:
        features = Cache[str]()
        source = self.patched(source)
        return self.encoder(source[:, :, :1], features), features

    def patched(self, x: Tensor) -> Tensor:
        """Squares of pixels as channels, where the VAE takes them so."""
        return x if self.patch_size == 1 else patchify(x, self.patch_size)

    def coded(self, source: Tensor, features: Features) -> Tensor:
        return self.encoder(source[:, :, 1 : 1 + CHUNK_FRAMES], features)

    def ends(self) -> Mapping[str, AutoencoderKLWanPart]:
        return {"moments": self.part(self.moments, lambda dims: self.left(dims, dims["frames"]))}

    def moments(self, source: Tensor, video: Tensor, chunk: Tensor | None, features: Features) -> tuple[Tensor, ...]:
        """Moments of all latents, and what their distribution derives at once."""
        return self.derived(self.quantised(source, video, chunk, features))

    def derived(self, moments: Tensor) -> tuple[Tensor, ...]:
        """Moments, and what ``DiagonalGaussianDistribution`` derives from them at once."""
        mean, logvar = moments.chunk(2, dim=1)
        logvar = F.clamp(logvar, -30.0, 20.0)
        std = F.exp(0.5 * logvar)
        var = F.exp(logvar)
        return moments, mean, logvar, std, var

    def quantised(self, source: Tensor, video: Tensor, chunk: Tensor | None, features: Features) -> Tensor:
        """The last convolution, on all frames; all else is freed after it."""
        source, video, features = self.held(source), resident(video), resident_cache(features)
        chunk = None if chunk is None else resident(chunk)
        return self.quant_conv(video)


def patchify(x: Tensor, size: int) -> Tensor:
    """Squares of ``size`` x ``size`` pixels as channels: [B, C, T, H, W] -> [B, C * size^2, T, H / size, W / size]."""
    b, c, t, h, w = x.shape
    x = x.view(b, c, t, h // size, size, w // size, size)
    x = x.permute(0, 1, 6, 4, 2, 3, 5).contiguous()
    return x.view(b, c * size * size, t, h // size, w // size)


def unpatchify(x: Tensor, size: int) -> Tensor:
    """The reverse of :func:`patchify`."""
    b, channels, t, h, w = x.shape
    c = channels // (size * size)
    x = x.view(b, c, size, size, t, h, w)
    x = x.permute(0, 1, 4, 5, 3, 6, 2).contiguous()
    return x.view(b, c, t, h * size, w * size)
