"""The audio encoder wav2vec 2.0 on shapes, module by module as transformers' ``Wav2Vec2ForCTC``.

It follows what that class runs (transformers 5.23, ``models/wav2vec2/modeling_wav2vec2.py``, attention through
``integrations/sdpa_attention.py``), operator by operator, with the same module names and the same lifetimes,
as the large models of the XLSR family are configured: layer norms in the feature extractor and before every
attention and feed-forward (``feat_extract_norm="layer"``, ``do_stable_layer_norm=True``).

Shapes: B recordings, N samples, T tokens (one every 20 ms), C channels of the convolutions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from modelmeter.models.common.audio_layers import (
    Wav2Vec2FeatureEncoder,
    Wav2Vec2FeatureProjection,
    Wav2Vec2LayerNormConvLayer,
    Wav2Vec2PositionalConvEmbedding,
)
from modelmeter.nn import GELU, Dim, Dropout, LayerNorm, Linear, Module, ModuleList, Tensor, float32, functional
from modelmeter.stage import Component

#: Kernels and strides of the convolutions over the samples. Source: ``Wav2Vec2Config``.
CONV_KERNEL = (10, 3, 3, 3, 3, 2, 2)
CONV_STRIDE = (5, 2, 2, 2, 2, 2, 2)


class Wav2Vec2Attention(Module):
    """Self-attention: [B, T, D] -> [B, T, D]."""

    def __init__(self, hidden_size: int, *, num_attention_heads: int) -> None:
        self.head_dim = hidden_size // num_attention_heads
        self.k_proj = Linear(hidden_size, hidden_size)
        self.v_proj = Linear(hidden_size, hidden_size)
        self.q_proj = Linear(hidden_size, hidden_size)
        self.out_proj = Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        query_states = self._heads(self.q_proj(hidden_states))
        key_states = self._heads(self.k_proj(hidden_states))
        value_states = self._heads(self.v_proj(hidden_states))
        attn_output = functional.scaled_dot_product_attention(query_states, key_states, value_states)
        attn_output = attn_output.transpose(1, 2).contiguous()
        attn_output = attn_output.reshape(*hidden_states.shape[:-1], -1).contiguous()
        attn_output = self.out_proj(attn_output)
        return attn_output

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, E]."""
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)


class Wav2Vec2FeedForward(Module):
    """[B, T, D] -> [B, T, intermediate_size] -> [B, T, D], exact GELU."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        self.intermediate_dropout = Dropout()
        self.intermediate_dense = Linear(hidden_size, intermediate_size)
        self.intermediate_act_fn = GELU()
        self.output_dense = Linear(intermediate_size, hidden_size)
        self.output_dropout = Dropout()

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.intermediate_dense(hidden_states)
        hidden_states = self.intermediate_act_fn(hidden_states)
        hidden_states = self.intermediate_dropout(hidden_states)
        hidden_states = self.output_dense(hidden_states)
        hidden_states = self.output_dropout(hidden_states)
        return hidden_states


class Wav2Vec2EncoderLayerStableLayerNorm(Module):
    """Attention and feed-forward, each after a norm and added to its input: [B, T, D] -> [B, T, D]."""

    def __init__(self, hidden_size: int, *, intermediate_size: int, num_attention_heads: int) -> None:
        self.attention = Wav2Vec2Attention(hidden_size, num_attention_heads=num_attention_heads)
        self.dropout = Dropout()
        self.layer_norm = LayerNorm(hidden_size)
        self.feed_forward = Wav2Vec2FeedForward(hidden_size, intermediate_size)
        self.final_layer_norm = LayerNorm(hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        attn_residual = hidden_states
        hidden_states = self.layer_norm(hidden_states)
        hidden_states = self.attention(hidden_states)
        hidden_states = self.dropout(hidden_states)
        hidden_states = attn_residual + hidden_states
        hidden_states = hidden_states + self.feed_forward(self.final_layer_norm(hidden_states))
        return hidden_states


class Wav2Vec2EncoderStableLayerNorm(Module):
    """Positions, layers, and a final norm: [B, T, D] -> the result and what went into and came out of the layers."""

    def __init__(
        self,
        hidden_size: int,
        *,
        num_conv_pos_embeddings: int,
        num_conv_pos_embedding_groups: int,
        layers: list[Wav2Vec2EncoderLayerStableLayerNorm],
    ) -> None:
        self.pos_conv_embed = Wav2Vec2PositionalConvEmbedding(
            hidden_size, kernel_size=num_conv_pos_embeddings, groups=num_conv_pos_embedding_groups
        )
        self.layer_norm = LayerNorm(hidden_size)
        self.dropout = Dropout()
        self.layers = ModuleList(layers)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        position_embeddings = self.pos_conv_embed(hidden_states)
        hidden_states = hidden_states + position_embeddings
        hidden_states = self.dropout(hidden_states)
        collected = [hidden_states]
        for layer in self.layers:
            hidden_states = layer(hidden_states)
            collected.append(hidden_states)
        hidden_states = self.layer_norm(hidden_states)
        return hidden_states, tuple(collected)


class Wav2Vec2Model(Module):
    """Samples [B, N] -> [B, T, D], the features that were projected [B, T, C], and all hidden states."""

    def __init__(
        self,
        feature_extractor: Wav2Vec2FeatureEncoder,
        feature_projection: Wav2Vec2FeatureProjection,
        encoder: Wav2Vec2EncoderStableLayerNorm,
    ) -> None:
        self.feature_extractor = feature_extractor
        self.feature_projection = feature_projection
        self.encoder = encoder

    def forward(self, input_values: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        extract_features = self.feature_extractor(input_values)
        extract_features = extract_features.transpose(1, 2)
        hidden_states, extract_features = self.feature_projection(extract_features)
        hidden_states, collected = self.encoder(hidden_states)
        return hidden_states, extract_features, collected


class Wav2Vec2ForCTC(Component):
    """wav2vec 2.0 with its letters, as transformers' class of that name, all hidden states kept.

    Pipelines take the hidden states; the letters are computed and thrown away.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, conv_dim, conv_kernel,
            conv_stride, conv_bias, num_conv_pos_embeddings, num_conv_pos_embedding_groups: as in the configuration
            of the real class.

    Example:
        >>> from modelmeter.nn import trace
        >>> model = Wav2Vec2ForCTC(hidden_size=64, intermediate_size=128, num_hidden_layers=2)
        >>> logits, hidden_states = trace(model, **model.inputs(batch=1, samples=80_000)).outputs
        >>> logits.shape, len(hidden_states)
        ((1, 249, 33), 3)
    """

    def __init__(
        self,
        *,
        vocab_size: int = 33,
        hidden_size: int = 1024,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        intermediate_size: int = 4096,
        conv_dim: Sequence[int] = (512,) * 7,
        conv_kernel: Sequence[int] = CONV_KERNEL,
        conv_stride: Sequence[int] = CONV_STRIDE,
        conv_bias: bool = True,
        num_conv_pos_embeddings: int = 128,
        num_conv_pos_embedding_groups: int = 16,
    ) -> None:
        self.span = token_span(conv_kernel, conv_stride)
        channels = (1, *conv_dim)
        convolutions = [
            Wav2Vec2LayerNormConvLayer(*channels[i : i + 2], kernel=kernel, stride=stride, bias=conv_bias)
            for i, (kernel, stride) in enumerate(zip(conv_kernel, conv_stride, strict=True))
        ]
        layers = [
            Wav2Vec2EncoderLayerStableLayerNorm(
                hidden_size, intermediate_size=intermediate_size, num_attention_heads=num_attention_heads
            )
            for _ in range(num_hidden_layers)
        ]
        self.wav2vec2 = Wav2Vec2Model(
            Wav2Vec2FeatureEncoder(convolutions),
            Wav2Vec2FeatureProjection(channels[-1], hidden_size),
            Wav2Vec2EncoderStableLayerNorm(
                hidden_size,
                num_conv_pos_embeddings=num_conv_pos_embeddings,
                num_conv_pos_embedding_groups=num_conv_pos_embedding_groups,
                layers=layers,
            ),
        )
        self.dropout = Dropout()
        self.lm_head = Linear(hidden_size, vocab_size)

    def forward(self, input_values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Samples [B, N] -> letters [B, T, vocab_size], hidden states."""
        outputs = self.wav2vec2(input_values)
        hidden_states = outputs[0]
        hidden_states = self.dropout(hidden_states)
        logits = self.lm_head(hidden_states)
        return logits, outputs[2]

    def inputs(self, **dims: Dim) -> dict[str, Tensor]:
        """What ``forward`` takes for ``batch`` recordings of so many ``samples``, by name."""
        return {"input_values": Tensor((dims["batch"], dims["samples"]), float32)}

    def sizes(self, dims: Mapping[str, int]) -> dict[str, Dim]:
        """``samples`` are so many ``tokens`` and a rest, which is a number also in closed forms."""
        first, step = self.span
        rest = dims["samples"] - first - step * (dims["tokens"] - 1)
        found = super().sizes(dims)
        return {**found, "samples": step * (found["tokens"] - 1) + first + rest}


def token_span(kernels: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Samples of the first token, and from one token to the next.

    Example:
        >>> token_span(CONV_KERNEL, CONV_STRIDE)
        (400, 320)
    """
    first = 1 + sum((kernel - 1) * prod(strides[:i]) for i, kernel in enumerate(kernels))
    return first, prod(strides)


def audio_dims(batch: int, samples: int, span: tuple[int, int]) -> dict[str, int]:
    """Sizes of recordings of so many samples, for tokens of a :func:`token_span`.

    Example:
        >>> audio_dims(1, 80_000, (400, 320))
        {'batch': 1, 'samples': 80000, 'tokens': 249}
    """
    first, step = span
    return {"batch": batch, "samples": samples, "tokens": (samples - first) // step + 1}
