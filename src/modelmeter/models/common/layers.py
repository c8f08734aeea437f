"""Layers that diffusers' video transformers share, on shapes: norms, feed-forward, attention, embeddings.

Sources: diffusers 0.42 ``models/normalization.py``, ``models/activations.py``, ``models/attention.py``,
``models/attention_dispatch.py`` and ``models/embeddings.py``.
"""

from __future__ import annotations

from modelmeter.nn import GELU, Dropout, Linear, Module, ModuleList, Parameter, SiLU, Tensor, float32, functional


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


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of heads that stand behind the tokens: [B, S, H, E], twice [B, L, H, E] -> [B, S, D].

    Args:
        mask: what is added to the scores, of the shape [B, H, S, L] or one that expands to it.
    """
    attended = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask
    ).transpose(1, 2)
    return attended.flatten(2, 3).to(query.dtype)
