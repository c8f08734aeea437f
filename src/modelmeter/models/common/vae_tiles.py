"""Tiled calls of the Wan VAE: which tiles a video is cut into, and what each runs.

Source: ``AutoencoderKLWan.enable_tiling``, ``tiled_decode`` and ``tiled_encode`` of diffusers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from modelmeter.models.common.vae import decode_call, encode_call
from modelmeter.stage import Call, Forward

#: Rows or columns of a tile, and from one tile to the next: the defaults of ``AutoencoderKLWan``.
TILE_SIZE = 256
TILE_STEP = 192


def tiled_decode_call(
    batch: int, frames: int, rows: int, columns: int, times: int, *, scale_factor_spatial: int
) -> Call:
    """As :func:`~modelmeter.models.common.vae.decode_call`, but tile by tile where the video is larger than one.

    FLOPs are exact; live bytes are those of a tile alone, without the tiles that are done.

    Example:
        >>> call = tiled_decode_call(1, 1, 60, 104, 1, scale_factor_spatial=8)
        >>> sum(forward.times for forward in call.forwards if forward.label == "decode first chunk")
        15
    """
    size, step = TILE_SIZE // scale_factor_spatial, TILE_STEP // scale_factor_spatial
    whole = decode_call(batch, frames, rows, columns, times)
    if rows <= size and columns <= size:
        return whole
    forwards = [
        forward
        for (tile_rows, tile_columns), count in tiles(rows, columns, size, step).items()
        for forward in _repeated(decode_call(batch, frames, tile_rows, tile_columns, 1), count)
        if forward.label != "decode video"
    ]
    return replace(whole, forwards=tuple(forwards))


def tiled_encode_call(
    batch: int,
    frames: int,
    rows: int,
    columns: int,
    times: int,
    *,
    scale_factor_spatial: int,
    patch_size: int | None = None,
) -> Call:
    """As :func:`~modelmeter.models.common.vae.encode_call`, but tile by tile where the video is larger than one.

    The reference compares pixels with the size of a tile, but cuts what patchifying has left of them.
    FLOPs are exact; live bytes are those of a tile alone, without the tiles that are done.
    """
    whole = encode_call(batch, frames, rows, columns, times)
    if max(rows, columns) * scale_factor_spatial <= TILE_SIZE:
        return whole
    stride = scale_factor_spatial // (patch_size or 1)
    forwards = [
        forward
        for (tile_rows, tile_columns), count in tiles(rows, columns, TILE_SIZE // stride, TILE_STEP // stride).items()
        for forward in _repeated(encode_call(batch, frames, tile_rows, tile_columns, 1), count)
    ]
    return replace(whole, forwards=tuple(forwards))


def tiles(rows: int, columns: int, size: int, step: int) -> Counter[tuple[int, int]]:
    """How often each size of tile occurs; the last ones of an axis are cut off, however little is left.

    Example:
        >>> tiles(60, 32, 32, 24)
        Counter({(32, 32): 2, (32, 8): 2, (12, 32): 1, (12, 8): 1})
    """
    return Counter(
        (min(size, rows - top), min(size, columns - left))
        for top in range(0, rows, step)
        for left in range(0, columns, step)
    )


def _repeated(call: Call, count: int) -> list[Forward]:
    return [replace(forward, times=forward.times * count) for forward in call.forwards]
