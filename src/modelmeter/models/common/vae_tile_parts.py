"""``tiled_decode`` and ``tiled_encode`` of the Wan VAE in parts: the chunks of a tile, seams, and the whole picture.

What other tiles hold meanwhile is one number of elements, ``held``. A seam is blended line by line.

Source: ``AutoencoderKLWan.tiled_decode`` and ``tiled_encode`` of diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmeter.models.common.vae_layers import Features
from modelmeter.models.common.vae_parts import CHUNK_FRAMES, AutoencoderKLWanPart, Decode, Dims, Encode, unpatchify
from modelmeter.nn import Cache, Dim, Tensor, resident, resident_cache
from modelmeter.nn import functional as F


class Tiles:
    """The parts of a tiled call.

    Args:
        direction: the call without tiles, whose modules, weights and chunks are the same.
    """

    def __init__(self, direction: Decode | Encode) -> None:
        self.direction = direction
        self.decodes = isinstance(direction, Decode)
        self.last = direction.decoder.conv_out if isinstance(direction, Decode) else direction.quant_conv

    def parts(self, name: str) -> Mapping[str, AutoencoderKLWanPart]:
        """Parts by name."""
        part = self.direction.part
        return {
            f"{name} tile first chunk": part(self.first_chunk, self.first_given),
            f"{name} tile second chunk": part(self.later_chunk, lambda dims: self.left(dims, 1)),
            f"{name} tile later chunk": part(self.later_chunk, lambda dims: self.left(dims, dims["done"])),
            f"{name} tile": part(self.tile, lambda dims: self.left(dims, dims["frames"])),
            f"{name} seam": part(self.seam, self.seam_given),
            f"{name} row": part(self.row, self.row_given),
            f"{name} picture": part(self.picture, self.row_given),
            **({} if self.decodes else {f"{name} patches": part(self.patches, self.direction.given)}),
        }

    # -- what a tile runs -----------------------------------------------------------------------------------------

    def first_given(self, dims: Dims) -> dict[str, Any]:
        return {"source": self.whole(dims), "held": self.held(dims)}

    def left(self, dims: Dims, done: Dim) -> dict[str, Any]:
        """What is alive after ``done`` chunks of a tile: those chunks, the features, and what other tiles hold."""
        given = self.direction.left(dims, done)
        video = given["video"]
        return {**self.first_given(dims), "time": video, "features": given["features"]}

    def whole(self, dims: Dims) -> Tensor:
        """A tile of what the tiles are cut from."""
        return self.direction.source(dims)

    def held(self, dims: Dims) -> Tensor:
        """What other tiles hold, and patches of the video if there are any."""
        return Tensor((dims.get("held", 0),), self.last.weight.dtype)

    def first_chunk(self, source: Tensor, held: Tensor) -> Any:
        held, features = resident(held), Cache[str]()
        tile = source[:, :, :1]
        return self.coded(tile, features, first_chunk=True), features

    def later_chunk(self, source: Tensor, held: Tensor, time: Tensor, features: Features) -> Any:
        held, time, features = resident(held), resident(time), resident_cache(features)
        tile = source[:, :, 1:2] if self.decodes else source[:, :, 1 : 1 + CHUNK_FRAMES]
        return self.coded(tile, features, first_chunk=False), features

    def coded(self, tile: Tensor, features: Features, *, first_chunk: bool) -> Tensor:
        if isinstance(self.direction, Decode):
            tile = self.direction.post_quant_conv(tile)
            return self.direction.decoder(tile, features, first_chunk=first_chunk)
        tile = self.direction.encoder(tile, features)
        tile = self.direction.quant_conv(tile)
        return tile

    def tile(self, source: Tensor, held: Tensor, time: Tensor, features: Features) -> Tensor:
        """All chunks of a tile as one."""
        held, time, features = resident(held), resident(time), resident_cache(features)
        return F.cat([time], dim=2)

    # -- what joins tiles -----------------------------------------------------------------------------------------

    def seam_given(self, dims: Dims) -> dict[str, Any]:
        """One line of ``length`` elements of each of two tiles."""
        line = self.lines(dims, dims["length"])
        return {"a": line, "b": line, "held": self.held(dims)}

    def seam(self, a: Tensor, b: Tensor, held: Tensor) -> None:
        held = resident(held)
        b.copy_(a * 0.5 + b * 0.5)

    def row_given(self, dims: Dims) -> dict[str, Any]:
        """What is cut from tiles side by side: ``rows`` x ``columns`` in the units of the result."""
        shape = (*self.lines(dims, dims["rows"]).shape, dims["columns"])
        return {"pieces": Tensor(shape, self.last.weight.dtype), "held": self.held(dims)}

    def lines(self, dims: Dims, length: Dim) -> Tensor:
        """A line of the result of a tile: [B, C, T, length]."""
        frames = 1 + CHUNK_FRAMES * (dims["frames"] - 1) if self.decodes else dims["frames"]
        weight = self.last.weight
        return Tensor((dims["batch"], weight.shape[0], frames, length), weight.dtype)

    def row(self, pieces: Tensor, held: Tensor) -> Tensor:
        held = resident(held)
        return F.cat([pieces], dim=-1)

    def picture(self, pieces: Tensor, held: Tensor) -> Any:
        """All rows as one picture, and what the call makes of it."""
        held = resident(held)
        picture = F.cat([pieces], dim=3)
        if isinstance(self.direction, Encode):
            return self.direction.derived(picture)
        if self.direction.patch_size != 1:
            picture = unpatchify(picture, self.direction.patch_size)
        picture = F.clamp(picture, -1.0, 1.0)
        return picture

    def patches(self, x: Tensor) -> Any:
        """Squares of pixels as channels."""
        assert isinstance(self.direction, Encode)
        return self.direction.patched(x)
