"""Motion of the frames before a clip as few tokens, and rotations of any tokens, on shapes.

Source: Wan2.2 ``wan/modules/s2v/motioner.py`` (``FramePackMotioner``) and ``wan/modules/s2v/s2v_utils.py`` at 42bf4cf.
Rows of the tables of rotations are taken as a slice here, where the reference picks them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from modelmeter.nn import Buffer, Conv3d, Dim, Module, Tensor, complex128, float64, functional

#: Positions of the rotations along any axis. Source: ``rope_params(1024, ...)``.
MAX_POSITIONS = 1024
#: Latent frames that are packed, from the nearest to the farthest. Source: ``zip_frame_buckets`` in ``WanModel_S2V``.
ZIP_FRAME_BUCKETS = (1, 2, 16)
#: Their patches. Source: ``FramePackMotioner``.
PATCHES = {"proj": (1, 2, 2), "proj_2x": (2, 4, 4), "proj_4x": (4, 8, 8)}
#: Channels of the latents that are packed. Source: ``FramePackMotioner.proj``.
MOTION_CHANNELS = 16

#: Tokens along time, height and width.
TokenGrid: TypeAlias = tuple[Dim, Dim, Dim]


def rotation_tables(head_dim: int) -> Buffer:
    """Rotations of every position along the three axes."""
    return Buffer((MAX_POSITIONS, head_dim // 2), complex128)


def rope_precompute(x: Tensor, grids: Sequence[TokenGrid], freqs: Tensor) -> Tensor:
    """Rotations of all tokens, grid behind grid: [1, S, H, E] -> complex128 [1, S, H, E / 2]."""
    c = freqs.shape[1]
    assert isinstance(c, int)
    time, height, width = freqs.split((c - 2 * (c // 3), c // 3, c // 3), dim=1)
    _, s, n, _ = x.shape
    output = functional.view_as_complex(x.reshape(1, s, n, -1, 2).to(float64))
    start: Dim = 0
    for grid in grids:
        frames, rows, columns = grid
        tokens = frames * rows * columns
        freqs_i = functional.cat(
            [
                time[:frames].view(frames, 1, 1, -1).expand(*grid, time.shape[1]),
                height[:rows].view(1, rows, 1, -1).expand(*grid, height.shape[1]),
                width[:columns].view(1, 1, columns, -1).expand(*grid, width.shape[1]),
            ],
            dim=-1,
        ).reshape(tokens, 1, -1)
        output[0, start : start + tokens].copy_(freqs_i.expand(tokens, n, c))
        start = start + tokens
    return output


class FramePackMotioner(Module):
    """Latents of the frames before as tokens, the farther the coarser: [C, T, h, w] -> [1, M, D], their rotations."""

    def __init__(self, inner_dim: int, num_heads: int) -> None:
        self.num_heads = num_heads
        self.proj = _patches(inner_dim, PATCHES["proj"])
        self.proj_2x = _patches(inner_dim, PATCHES["proj_2x"])
        self.proj_4x = _patches(inner_dim, PATCHES["proj_4x"])
        self.freqs = rotation_tables(inner_dim // num_heads)

    def forward(self, m: Tensor) -> tuple[Tensor, Tensor]:
        _, frames, lat_height, lat_width = m.shape
        assert isinstance(frames, int)
        padd_lat = functional.zeros((MOTION_CHANNELS, sum(ZIP_FRAME_BUCKETS), lat_height, lat_width), m.dtype)
        overlap_frame = min(sum(ZIP_FRAME_BUCKETS), frames)
        padd_lat[:, -overlap_frame:].copy_(m[:, -overlap_frame:])
        padd_lat = padd_lat.unsqueeze(0)
        clean_latents_4x, clean_latents_2x, clean_latents_post = padd_lat.split(ZIP_FRAME_BUCKETS[::-1], dim=2)

        clean_latents_post = self.proj(clean_latents_post)
        clean_latents_2x = self.proj_2x(clean_latents_2x)
        clean_latents_4x = self.proj_4x(clean_latents_4x)
        packed = (clean_latents_post, clean_latents_2x, clean_latents_4x)
        grids = [_grid(latents) for latents in packed]
        motion_lat = functional.cat([latents.flatten(2).transpose(1, 2) for latents in packed], dim=1)
        motion_rope_emb = rope_precompute(motion_lat.unflatten(2, (self.num_heads, -1)), grids, self.freqs)
        return motion_lat, motion_rope_emb


def _patches(dim: int, size: tuple[int, int, int]) -> Conv3d:
    return Conv3d(MOTION_CHANNELS, dim, size, stride=size)


def _grid(latents: Tensor) -> TokenGrid:
    _, _, frames, rows, columns = latents.shape
    return frames, rows, columns


def packed_tokens(rows: int, columns: int) -> int:
    """Tokens of the packed motion for latents of so many rows and columns.

    Example:
        >>> packed_tokens(60, 104)
        2314
    """
    tokens = 0
    for frames, (p_t, p_h, p_w) in zip(ZIP_FRAME_BUCKETS, PATCHES.values(), strict=True):
        tokens += (frames // p_t) * (rows // p_h) * (columns // p_w)
    return tokens
