"""The blocks of the transformer of Wan2.2 S2V on shapes, under the official code's own names.

Source: Wan2.2 ``wan/modules/model.py`` and ``wan/modules/s2v/model_s2v.py`` at 42bf4cf. The noise has the timestep
of the step, all that conditions it (reference and motion, behind the noise) the timestep 0.

Shapes: S tokens, of which the first S' are noise, L text tokens, D width, H heads, E = D // H channels a head.
"""

from __future__ import annotations

from math import prod
from typing import TypeAlias

from modelmeter.models.common.layers import FP32LayerNorm
from modelmeter.models.wan2_1.official import WanRMSNorm, flash_attention
from modelmeter.nn import (
    GELU,
    Dim,
    Linear,
    Module,
    Parameter,
    Sequential,
    Tensor,
    autocast,
    float32,
    float64,
    functional,
)

#: The modulation of noise and condition [1, 6, 2, D], and where the condition begins.
Modulation: TypeAlias = tuple[Tensor, Dim]


def rope_apply(x: Tensor, freqs: Tensor) -> Tensor:
    """Rotate pairs of channels in complex128: [1, S, H, E], complex [1, S, H, E / 2] -> [1, S, H, E] in float32."""
    with autocast(None):
        _, s, n, _ = x.shape
        x_i = functional.view_as_complex(x[0].to(float64).reshape(s, n, -1, 2))
        freqs_i = freqs[0]
        x_i = functional.view_as_real(x_i * freqs_i).flatten(2)
        x_i = functional.cat([x_i], dim=0)  # behind it the padding of the sequence, of which there is none
        return functional.stack([x_i], dim=0).float()


class WanS2VSelfAttention(Module):
    """Self-attention: [1, S, D], rotations [1, S, H, E / 2] -> [1, S, D]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.o = Linear(dim, dim)
        self.norm_q = WanRMSNorm(dim)
        self.norm_k = WanRMSNorm(dim)

    def forward(self, x: Tensor, freqs: Tensor) -> Tensor:
        q, k, v = self.qkv(x, x)
        x = flash_attention(q=rope_apply(q, freqs), k=rope_apply(k, freqs), v=v, k_lens=True)
        return self.projected(x)

    def qkv(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query of ``x``, key and value of the context, by heads."""
        q = self.norm_q(self.q(x)).unflatten(2, (self.num_heads, -1))
        k = self.norm_k(self.k(context)).unflatten(2, (self.num_heads, -1))
        v = self.v(context).unflatten(2, (self.num_heads, -1))
        return q, k, v

    def projected(self, x: Tensor) -> Tensor:
        """The output projection: [B, S, H, E] -> [B, S, D]."""
        x = x.flatten(2)
        x = self.o(x)
        return x


class WanCrossAttention(WanS2VSelfAttention):
    """Attention to a context, without positions: [B, S, D], [B, L, D] -> [B, S, D].

    Args:
        k_lens: the context comes with lengths.
    """

    def __init__(self, dim: int, num_heads: int, *, k_lens: bool = False) -> None:
        super().__init__(dim, num_heads)
        self.k_lens = k_lens

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = self.qkv(x, context)
        x = flash_attention(q, k, v, k_lens=self.k_lens)
        return self.projected(x)


class WanS2VAttentionBlock(Module):
    """Self-attention, cross-attention and feed-forward, the outer two modulated in two parts: [1, S, D]."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int) -> None:
        self.norm1 = FP32LayerNorm(dim, elementwise_affine=False)
        self.self_attn = WanS2VSelfAttention(dim, num_heads)
        self.norm3 = FP32LayerNorm(dim, elementwise_affine=True)
        self.cross_attn = WanCrossAttention(dim, num_heads)
        self.norm2 = FP32LayerNorm(dim, elementwise_affine=False)
        self.ffn = Sequential([Linear(dim, ffn_dim), GELU(), Linear(ffn_dim, dim)])
        self.modulation = Parameter((1, 6, dim), float32)

    def forward(self, x: Tensor, e: Modulation, freqs: Tensor, context: Tensor) -> Tensor:
        seg_idx = e[1]
        modulation = self.modulation.unsqueeze(2)
        parts_e = [element.squeeze(1) for element in (modulation + e[0]).chunk(6, dim=1)]
        norm_x = self.norm1(x).float()
        parts = _modulated(norm_x, seg_idx, parts_e[0], parts_e[1])
        norm_x = functional.cat(parts, dim=1)
        y = self.self_attn(norm_x, freqs)
        z = _gated(y, seg_idx, parts_e[2])
        y = functional.cat(z, dim=1)
        x = x + y
        # norm_x, parts, y and z live on: what follows is a function inside this one
        x = self._cross_attn_ffn(x, context, seg_idx, parts_e)
        return x

    def _cross_attn_ffn(self, x: Tensor, context: Tensor, seg_idx: Dim, e: list[Tensor]) -> Tensor:
        x = x + self.cross_attn(self.norm3(x), context)
        norm2_x = self.norm2(x).float()
        parts = _modulated(norm2_x, seg_idx, e[3], e[4])
        norm2_x = functional.cat(parts, dim=1)
        y = self.ffn(norm2_x)
        z = _gated(y, seg_idx, e[5])
        y = functional.cat(z, dim=1)
        x = x + y
        return x


def _segments(x: Tensor, at: Dim) -> tuple[Tensor, Tensor]:
    """Noise and condition, views: [1, S, D] -> [1, S', D], [1, S - S', D]."""
    return x[:, :at], x[:, at:]


def _modulated(x: Tensor, at: Dim, shift: Tensor, scale: Tensor) -> list[Tensor]:
    """Each part scaled and shifted by its own row: [1, S, D], twice [1, 2, D]."""
    parts = []
    for i, part in enumerate(_segments(x, at)):
        parts.append(part * (scale[:, i : i + 1] + 1) + shift[:, i : i + 1])
    return parts


def _gated(x: Tensor, at: Dim, gate: Tensor) -> list[Tensor]:
    """Each part times its own row: [1, S, D], [1, 2, D]."""
    parts = []
    for i, part in enumerate(_segments(x, at)):
        parts.append(part * gate[:, i : i + 1])
    return parts


class Head_S2V(Module):  # noqa: N801 - the name is the reference's
    """Norm, modulation and the last projection, in float32: [1, S', D], e [1, D] -> [1, S', pt ph pw C']."""

    def __init__(self, dim: int, out_dim: int, patch_size: tuple[int, int, int]) -> None:
        self.norm = FP32LayerNorm(dim, elementwise_affine=False)
        self.head = Linear(dim, prod(patch_size) * out_dim)
        self.modulation = Parameter((1, 2, dim), float32)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        with autocast(float32):
            shift, scale = (self.modulation + e.unsqueeze(1)).chunk(2, dim=1)
            x = self.head(self.norm(x) * (scale + 1) + shift)
        return x
