"""Tiled calls of the Wan VAE: which tiles a video is cut into, what each runs, and how they are joined.

Source: ``AutoencoderKLWan.enable_tiling``, ``tiled_decode`` and ``tiled_encode`` of diffusers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TypeAlias

from modelmeter.models.common.vae import decode_call, encode_call
from modelmeter.models.common.vae_parts import CHUNK_FRAMES
from modelmeter.stage import Call, Forward

#: Rows or columns of a tile, and from one tile to the next: the defaults of ``AutoencoderKLWan``.
TILE_SIZE = 256
TILE_STEP = 192

#: Rows and columns of a tile.
Tile: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How a video is cut into tiles and joined again.

    Args:
        size, step: of tiles, in latents.
        scale: rows or columns of the result for a latent.
        channels: of the result.
        blend: rows or columns of the result in which tiles overlap.
        held: elements alive beside the tiles.
    """

    name: str
    size: int
    step: int
    scale: int
    channels: int
    blend: int
    held: int = 0


def tiled_decode_call(
    batch: int,
    frames: int,
    rows: int,
    columns: int,
    times: int,
    *,
    scale_factor_spatial: int,
    patch_size: int | None = None,
    out_channels: int = 3,
) -> Call:
    """As :func:`~modelmeter.models.common.vae.decode_call`, but tile by tile where the video is larger than one.

    Example:
        >>> call = tiled_decode_call(1, 1, 60, 104, 1, scale_factor_spatial=8)
        >>> sum(forward.times for forward in call.forwards if forward.label == "decode tile first chunk")
        15
    """
    size, step = TILE_SIZE // scale_factor_spatial, TILE_STEP // scale_factor_spatial
    whole = decode_call(batch, frames, rows, columns, times)
    if rows <= size and columns <= size:
        return whole
    patch = patch_size or 1
    blend = TILE_SIZE // patch - TILE_STEP // patch
    scale = scale_factor_spatial // patch
    cut = Cut(name="decode", size=size, step=step, scale=scale, channels=out_channels, blend=blend)
    return replace(whole, forwards=tuple(_forwards(cut, whole)), in_order=False)


def tiled_encode_call(
    batch: int,
    frames: int,
    rows: int,
    columns: int,
    times: int,
    *,
    scale_factor_spatial: int,
    patch_size: int | None = None,
    in_channels: int = 3,
    z_dim: int = 16,
) -> Call:
    """As :func:`~modelmeter.models.common.vae.encode_call`, but tile by tile where the video is larger than one.

    The reference compares pixels with the size of a tile, but cuts what patchifying has left of them.
    """
    whole = encode_call(batch, frames, rows, columns, times)
    if max(rows, columns) * scale_factor_spatial <= TILE_SIZE:
        return whole
    stride = scale_factor_spatial // (patch_size or 1)
    size, step = TILE_SIZE // stride, TILE_STEP // stride
    patches = 0
    if patch_size not in (None, 1):
        patches = batch * in_channels * (1 + CHUNK_FRAMES * (frames - 1)) * rows * columns * stride**2
    cut = Cut(name="encode", size=size, step=step, scale=1, channels=2 * z_dim, blend=size - step, held=patches)
    before = [Forward(dims=whole.dims, label="encode patches")] if patches else []
    return replace(whole, forwards=(*before, *_forwards(cut, whole)), in_order=False)


def tiles(rows: int, columns: int, size: int, step: int) -> Counter[Tile]:
    """How often each size of tile occurs; the last ones of an axis are cut off, however little is left.

    Example:
        >>> tiles(60, 32, 32, 24)
        Counter({(32, 32): 2, (32, 8): 2, (12, 32): 1, (12, 8): 1})
    """
    return Counter((height, width) for height in _spans(rows, size, step) for width in _spans(columns, size, step))


def _spans(length: int, size: int, step: int) -> list[int]:
    return [min(size, length - start) for start in range(0, length, step)]


# -- forwards -----------------------------------------------------------------------------------------------------


def _forwards(cut: Cut, whole: Call) -> Iterator[Forward]:
    """Everything a tiled call runs: equal tiles once, with what the tiles before the last of them hold."""
    dims = whole.dims
    grid = [_spans(dims[axis], cut.size, cut.step) for axis in ("rows", "columns")]
    in_turn = [(height, width) for height in grid[0] for width in grid[1]]
    # a frame of a chunk of the result, by tile
    areas = [cut.channels * dims["batch"] * prod(tile) * cut.scale**2 for tile in in_turn]
    first, chunk = 1, (CHUNK_FRAMES if cut.name == "decode" else 1)
    frames = first + chunk * (dims["frames"] - 1)
    last_chunk = chunk if dims["frames"] > 1 else first
    for tile, count in Counter(in_turn).items():
        at = max(i for i, each in enumerate(in_turn) if each == tile)
        held = cut.held + frames * sum(areas[:at])
        # the last chunk of the tile before lives until the first of this one is there
        stale = last_chunk * areas[at - 1] if at and cut.name == "decode" else 0
        yield from _tile(cut, dims, tile, count, held, stale)
    held = cut.held + frames * sum(areas) + frames * areas[-1]  # and the chunks of the last tile
    for (label, length), lines in _seams(cut, grid).items():
        yield Forward(dims=_held(_only(dims, length=length), held), times=lines, label=f"{cut.name} {label}")
    heights, widths = ([min(span, cut.step) * cut.scale for span in spans] for spans in grid)
    done = 0
    for height in heights:
        row = {"rows": height, "columns": sum(widths)}
        yield Forward(dims=_held(_only(dims, **row), held + done), label=f"{cut.name} row")
        done += dims["batch"] * cut.channels * frames * height * sum(widths)
    picture = {"rows": sum(heights), "columns": sum(widths)}
    yield Forward(dims=_held(_only(dims, **picture), held + done), label=f"{cut.name} picture")


def _tile(cut: Cut, dims: Mapping[str, int], tile: Tile, count: int, held: int, stale: int) -> Iterator[Forward]:
    own = {**dims, "rows": tile[0], "columns": tile[1]}
    chunks = dims["frames"]
    name = f"{cut.name} tile"
    yield Forward(dims=_held(own, held + stale), times=count, label=f"{name} first chunk")
    if chunks > 1:
        yield Forward(dims=_held(own, held), times=count, label=f"{name} second chunk")
    if chunks > 2:
        later = _held({**own, "done": chunks - 1}, held)
        yield Forward(dims=later, times=count * (chunks - 2), label=f"{name} later chunk")
    yield Forward(dims=_held(own, held), times=count, label=name)


def _seams(cut: Cut, grid: list[list[int]]) -> Counter[tuple[str, int]]:
    """How many lines of which length are blended."""
    rows, columns = ([span * cut.scale for span in spans] for spans in grid)
    lines: Counter[tuple[str, int]] = Counter()
    for i, height in enumerate(rows):
        for j, width in enumerate(columns):
            if i > 0:
                lines["seam", width] += min(rows[i - 1], height, cut.blend)
            if j > 0:
                lines["seam", height] += min(columns[j - 1], width, cut.blend)
    return lines


def _only(dims: Mapping[str, int], **others: int) -> dict[str, int]:
    return {"batch": dims["batch"], "frames": dims["frames"], **others}


def _held(dims: Mapping[str, int], held: int) -> dict[str, int]:
    """Nothing held is no size."""
    return {**dims, **({"held": held} if held else {})}
