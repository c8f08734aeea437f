"""What diffusers' video transformers take from its shared files, on shapes: norms, feed-forward, attention, embeddings.

Sources: diffusers 0.42 ``models/normalization.py``, ``models/activations.py``, ``models/attention.py``,
``models/attention_dispatch.py`` and ``models/embeddings.py``.
"""

from __future__ import annotations

from typing import TypeAlias

from modelmeter import nn
from modelmeter.nn import (
    GELU,
    Dropout,
    DType,
    Linear,
    Module,
    ModuleList,
    Parameter,
    SiLU,
    Tensor,
    float32,
    functional,
)

#: Cosine and sine of every token.
RotaryEmbedding: TypeAlias = tuple[Tensor, Tensor]


class FP32LayerNorm(Module):
    """Layer norm computed in float32 and returned in the dtype of its input: [..., D] -> [..., D]."""

    def __init__(self, normalized_shape: int, *, elementwise_affine: bool) -> None:
        self.normalized_shape = normalized_shape
        self.weight = Parameter((normalized_shape,), float32) if elementwise_affine else None
        self.bias = Parameter((normalized_shape,), float32) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(
            x.float(),
            self.normalized_shape,
            None if self.weight is None else self.weight.float(),
            None if self.bias is None else self.bias.float(),
        ).to(x.dtype)


class RMSNorm(Module):
    """diffusers' own RMS norm, without a weight, kernel by kernel in float32: [..., D] -> [..., D]."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = hidden_states.dtype
        variance = functional.mean(hidden_states.float() ** 2, -1, keepdim=True)
        hidden_states = hidden_states * functional.rsqrt(variance + 1e-6)
        return hidden_states.to(dtype)


class GELUProjection(Module):
    """Linear and GELU, the first half of a feed-forward: [..., dim_in] -> [..., dim_out].

    Source: diffusers ``activations.GELU``.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        self.proj = Linear(dim_in, dim_out)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.proj(hidden_states)
        hidden_states = functional.gelu(hidden_states)
        return hidden_states


class FeedForward(Module):
    """[..., dim] -> [..., inner_dim] -> [..., dim_out], which is dim unless given."""

    def __init__(self, dim: int, *, inner_dim: int, dim_out: int | None = None) -> None:
        self.net = ModuleList([GELUProjection(dim, inner_dim), Dropout(), Linear(inner_dim, dim_out or dim)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        for module in self.net:
            hidden_states = module(hidden_states)
        return hidden_states


class Timesteps(Module):
    """Sinusoidal embedding of timesteps: [N] -> [N, num_channels], cosines first."""

    def __init__(self, num_channels: int) -> None:
        self.num_channels = num_channels

    def forward(self, timesteps: Tensor) -> Tensor:
        half = self.num_channels // 2
        exponent = functional.arange(half) * -1.0  # the factor is -ln(10000)
        exponent = exponent / half
        wave = functional.exp(exponent)
        wave = timesteps[:, None].float() * wave[None, :]
        wave = wave * 1.0  # a scale that runs although it is 1
        wave = functional.cat([functional.sin(wave), functional.cos(wave)], dim=-1)
        wave = functional.cat([wave[:, half:], wave[:, :half]], dim=-1)
        return wave if self.num_channels == 2 * half else functional.pad(wave, (0, 1))


class TimestepEmbedding(Module):
    """Two linear layers around SiLU: [..., in_channels] -> [..., time_embed_dim]."""

    def __init__(self, in_channels: int, time_embed_dim: int) -> None:
        self.linear_1 = Linear(in_channels, time_embed_dim)
        self.act = SiLU()
        self.linear_2 = Linear(time_embed_dim, time_embed_dim)

    def forward(self, sample: Tensor) -> Tensor:
        sample = self.linear_1(sample)
        sample = self.act(sample)
        return self.linear_2(sample)


class PixArtAlphaCombinedTimestepSizeEmbeddings(Module):
    """Timesteps, without further conditions, as they modulate: [N] -> [N, embedding_dim]."""

    def __init__(self, embedding_dim: int) -> None:
        self.time_proj = Timesteps(256)
        self.timestep_embedder = TimestepEmbedding(256, embedding_dim)

    def forward(self, timestep: Tensor, hidden_dtype: DType) -> Tensor:
        timesteps_proj = self.time_proj(timestep)
        return self.timestep_embedder(timesteps_proj.to(hidden_dtype))


class AdaLayerNormSingle(Module):
    """One modulation for all blocks: timesteps [N] -> [N, 6 embedding_dim], and what it is made of."""

    def __init__(self, embedding_dim: int) -> None:
        self.emb = PixArtAlphaCombinedTimestepSizeEmbeddings(embedding_dim)
        self.silu = SiLU()
        self.linear = Linear(embedding_dim, 6 * embedding_dim)

    def forward(self, timestep: Tensor, hidden_dtype: DType) -> tuple[Tensor, Tensor]:
        embedded_timestep = self.emb(timestep, hidden_dtype)
        return self.linear(self.silu(embedded_timestep)), embedded_timestep


class PixArtAlphaTextProjection(Module):
    """Text features to the width of the transformer: [B, L, in_features] -> [B, L, hidden_size]."""

    def __init__(self, in_features: int, hidden_size: int) -> None:
        self.in_features = in_features
        self.linear_1 = Linear(in_features, hidden_size)
        self.act_1 = GELU()
        self.linear_2 = Linear(hidden_size, hidden_size)

    def forward(self, caption: Tensor) -> Tensor:
        hidden_states = self.linear_1(caption)
        hidden_states = self.act_1(hidden_states)
        return self.linear_2(hidden_states)


class Attention(Module):
    """What attention with RMS-normalised query and key is made of; a family says how it runs."""

    norm: type[nn.RMSNorm] = nn.RMSNorm

    def __init__(self, dim: int, *, heads: int) -> None:
        self.heads = heads
        self.to_q = Linear(dim, dim)
        self.to_k = Linear(dim, dim)
        self.to_v = Linear(dim, dim)
        self.to_out = ModuleList([Linear(dim, dim), Dropout()])
        self.norm_q = self.norm(dim)
        self.norm_k = self.norm(dim)

    def projected(self, hidden_states: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query of the one, key and value of the other: [B, S, D], [B, L, D] -> [B, S, D], twice [B, L, D]."""
        query = self.to_q(hidden_states)
        key = self.to_k(source)
        value = self.to_v(source)
        query = self.norm_q(query)
        key = self.norm_k(key)
        return query, key, value

    def output(self, hidden_states: Tensor) -> Tensor:
        """The output projection: [B, S, D] -> [B, S, D]."""
        for module in self.to_out:
            hidden_states = module(hidden_states)
        return hidden_states


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of heads that stand behind the tokens: [B, S, H, E], twice [B, L, H, E] -> [B, S, D].

    Args:
        mask: what is added to the scores, of the shape [B, H, S, L] or one that expands to it.
    """
    attended = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask
    ).transpose(1, 2)
    return attended.flatten(2, 3).to(query.dtype)
