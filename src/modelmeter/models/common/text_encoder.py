"""The text encoder UMT5 on shapes, module by module as transformers' ``UMT5EncoderModel``.

It follows what that class runs (transformers 5.23, ``models/umt5/modeling_umt5.py``, attention through
``integrations/sdpa_attention.py``), operator by operator, with the same module names and the same lifetimes:
names that look spare keep a tensor alive as long as the real class does.

Shapes: B batch, L tokens of the padded prompt, D width (``d_model``), H heads, E = ``d_kv`` channels a head.
"""

from __future__ import annotations

from modelmeter.nn import (
    Dim,
    Dropout,
    Embedding,
    Linear,
    Module,
    ModuleList,
    Parameter,
    Tensor,
    bool_,
    float16,
    float32,
    functional,
    int64,
)
from modelmeter.stage import Component


class UMT5LayerNorm(Module):
    """Root mean square norm, statistics in float32, as separate kernels: [..., D] -> [..., D]."""

    def __init__(self, hidden_size: int) -> None:
        self.weight = Parameter((hidden_size,), float32)

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = functional.mean(hidden_states.float() ** 2, -1, keepdim=True)
        hidden_states = hidden_states * functional.rsqrt(variance + 1e-6)
        hidden_states = hidden_states.to(self.weight.dtype)
        return self.weight * hidden_states


class NewGELUActivation(Module):
    """GELU by its tanh approximation, written out in eight kernels: [...] -> [...].

    Source: transformers ``activations.NewGELUActivation``.
    """

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + functional.tanh(0.79788 * (x + 0.044715 * x**3.0)))  # the factor is sqrt(2 / pi)


class UMT5DenseGatedActDense(Module):
    """[B, L, D] -> two of [B, L, d_ff], one through GELU, multiplied -> [B, L, D]."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        self.wi_0 = Linear(d_model, d_ff, bias=False)
        self.wi_1 = Linear(d_model, d_ff, bias=False)
        self.wo = Linear(d_ff, d_model, bias=False)
        self.dropout = Dropout()
        self.act = NewGELUActivation()

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_gelu = self.act(self.wi_0(hidden_states))
        hidden_linear = self.wi_1(hidden_states)
        hidden_states = hidden_gelu * hidden_linear
        hidden_states = self.dropout(hidden_states)
        hidden_states = hidden_states.to(self.wo.weight.dtype)
        hidden_states = self.wo(hidden_states)
        return hidden_states


class UMT5LayerFF(Module):
    """Norm and feed-forward, added to the input: [B, L, D] -> [B, L, D]."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        self.DenseReluDense = UMT5DenseGatedActDense(d_model, d_ff)
        self.layer_norm = UMT5LayerNorm(d_model)
        self.dropout = Dropout()

    def forward(self, hidden_states: Tensor) -> Tensor:
        forwarded_states = self.layer_norm(hidden_states)
        forwarded_states = self.DenseReluDense(forwarded_states)
        return hidden_states + self.dropout(forwarded_states)


class UMT5Attention(Module):
    """Self-attention with a learned bias for every distance of two tokens: [B, L, D] -> [B, L, D].

    Distances fall into ``num_buckets`` buckets, half of them for each direction; close distances have a
    bucket each, far ones share by their logarithm. The bias joins the mask and is added to the scores, so the
    memory-efficient kernel runs; scores are not scaled.
    """

    def __init__(self, d_model: int, *, d_kv: int, num_heads: int, num_buckets: int) -> None:
        self.n_heads = num_heads
        self.key_value_proj_dim = d_kv
        self.num_buckets = num_buckets
        self.q = Linear(d_model, num_heads * d_kv, bias=False)
        self.k = Linear(d_model, num_heads * d_kv, bias=False)
        self.v = Linear(d_model, num_heads * d_kv, bias=False)
        self.o = Linear(num_heads * d_kv, d_model, bias=False)
        self.relative_attention_bias = Embedding(num_buckets, num_heads)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        batch_size, seq_length = hidden_states.shape[:2]
        query_states = self._heads(self.q(hidden_states))
        key_states = self.k(hidden_states)
        value_states = self.v(hidden_states)
        key_states = self._heads(key_states)
        value_states = self._heads(value_states)
        position_bias = self._compute_bias(seq_length)
        attn_output = _biased_attention(query_states, key_states, value_states, attention_mask, position_bias)
        attn_output = attn_output.reshape(batch_size, seq_length, -1).contiguous()
        attn_output = self.o(attn_output)
        return attn_output

    def _heads(self, x: Tensor) -> Tensor:
        """[B, L, H E] -> [B, H, L, E]."""
        return x.view(*x.shape[:2], self.n_heads, self.key_value_proj_dim).transpose(1, 2)

    def _compute_bias(self, length: Dim) -> Tensor:
        """The bias of every pair of tokens: [1, H, L, L]."""
        context_position = functional.arange(length, int64)[:, None] + 0
        memory_position = functional.arange(length, int64)[None, :]
        relative_position = memory_position - context_position
        relative_position_bucket = self._relative_position_bucket(relative_position)
        values = self.relative_attention_bias(relative_position_bucket)
        return values.permute(2, 0, 1).unsqueeze(0)

    def _relative_position_bucket(self, relative_position: Tensor) -> Tensor:
        """The bucket of every distance: int64 [L, L] -> int64 [L, L]."""
        num_buckets = self.num_buckets // 2
        relative_buckets = 0 + (relative_position > 0).to(int64) * num_buckets
        relative_position = functional.absolute(relative_position)
        max_exact = num_buckets // 2
        is_small = relative_position < max_exact
        log_ratio = functional.log(relative_position.float() / max_exact) / 1.0  # the number does not matter here
        log_ratio = log_ratio * (num_buckets - max_exact)
        relative_position_if_large = max_exact + log_ratio.to(int64)
        relative_position_if_large = functional.minimum(
            relative_position_if_large, functional.full_like(relative_position_if_large, num_buckets - 1)
        )
        relative_buckets.add_(functional.where(is_small, relative_position, relative_position_if_large))
        return relative_buckets


def _biased_attention(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, position_bias: Tensor
) -> Tensor:
    """Attention under a mask and a bias: three of [B, H, L, E], bool [B, 1, L, L], [1, H, L, L] -> [B, L, H, E].

    Source: transformers ``integrations/sdpa_attention.py``.
    """
    attention_mask = _additive_mask(attention_mask, position_bias)
    attn_output = functional.scaled_dot_product_attention(query, key, value, attention_mask)
    return attn_output.transpose(1, 2).contiguous()


def _additive_mask(attention_mask: Tensor | None, position_bias: Tensor) -> Tensor:
    """The bias, and the lowest number where the mask forbids to look."""
    if attention_mask is None:
        position_bias_mask = position_bias
    else:
        position_bias_mask = functional.where(attention_mask, position_bias, -1e38)
    return position_bias_mask.contiguous()


class UMT5LayerSelfAttention(Module):
    """Norm and attention, added to the input: [B, L, D] -> [B, L, D]."""

    def __init__(self, d_model: int, *, d_kv: int, num_heads: int, num_buckets: int) -> None:
        self.SelfAttention = UMT5Attention(d_model, d_kv=d_kv, num_heads=num_heads, num_buckets=num_buckets)
        self.layer_norm = UMT5LayerNorm(d_model)
        self.dropout = Dropout()

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        normed_hidden_states = self.layer_norm(hidden_states)
        attention_output = self.SelfAttention(normed_hidden_states, attention_mask)
        return hidden_states + self.dropout(attention_output)


class UMT5Block(Module):
    """Self-attention and feed-forward: [B, L, D] -> [B, L, D].

    Raises:
        NotImplementedError: weights in float16, where the real class clamps after each of the two.
    """

    def __init__(self, d_model: int, *, d_kv: int, d_ff: int, num_heads: int, num_buckets: int) -> None:
        self.layer = ModuleList(
            [
                UMT5LayerSelfAttention(d_model, d_kv=d_kv, num_heads=num_heads, num_buckets=num_buckets),
                UMT5LayerFF(d_model, d_ff),
            ]
        )

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if hidden_states.dtype == float16:
            raise NotImplementedError("UMT5 in float16: use bfloat16 or float32")
        hidden_states = self.layer[0](hidden_states, attention_mask)
        hidden_states = self.layer[1](hidden_states)
        return hidden_states


class UMT5Stack(Module):
    """Embedding, blocks and a final norm: int64 [B, L] -> [B, L, D]."""

    def __init__(self, embed_tokens: Embedding, block: list[UMT5Block], d_model: int) -> None:
        self.embed_tokens = embed_tokens
        self.block = ModuleList(block)
        self.final_layer_norm = UMT5LayerNorm(d_model)
        self.dropout = Dropout()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        inputs_embeds = self.embed_tokens(input_ids)
        hidden_states = self.dropout(inputs_embeds)
        for layer_module in self.block:
            hidden_states = layer_module(hidden_states, attention_mask)
        hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states


class UMT5EncoderModel(Component):
    """The encoder of UMT5, as transformers' class of that name with a gated GELU feed-forward.

    The table of the vocabulary is one weight under two names, ``shared`` and ``encoder.embed_tokens``.

    Args:
        vocab_size, d_model, d_kv, d_ff, num_layers, num_heads, relative_attention_num_buckets: as in the
            configuration of the real class.
        masked: the prompt is shorter than its padding, so a mask says which tokens to look at. Pipelines pass
            it as [B, L]; here it comes as the bool [B, 1, L, L] that the real class makes of it at once.

    Example:
        >>> from modelmeter.nn import trace
        >>> model = UMT5EncoderModel(vocab_size=1000, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
        >>> trace(model, **model.inputs(batch=1, text_len=10)).outputs.shape
        (1, 10, 64)
    """

    def __init__(
        self,
        *,
        vocab_size: int = 256384,
        d_model: int = 4096,
        d_kv: int = 64,
        d_ff: int = 10240,
        num_layers: int = 24,
        num_heads: int = 64,
        relative_attention_num_buckets: int = 32,
        masked: bool = True,
    ) -> None:
        self.masked = masked
        self.shared = Embedding(vocab_size, d_model)
        embed_tokens = Embedding(vocab_size, d_model)
        embed_tokens.weight = self.shared.weight
        blocks = [
            UMT5Block(d_model, d_kv=d_kv, d_ff=d_ff, num_heads=num_heads, num_buckets=relative_attention_num_buckets)
            for _ in range(num_layers)
        ]
        self.encoder = UMT5Stack(embed_tokens, blocks, d_model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids int64 [B, L], mask bool [B, 1, L, L] -> [B, L, D]."""
        return self.encoder(input_ids, attention_mask)

    def inputs(self, **dims: Dim) -> dict[str, Tensor]:
        """What ``forward`` takes for ``batch`` prompts padded to ``text_len`` tokens, by name."""
        batch, length = dims["batch"], dims["text_len"]
        inputs = {"input_ids": Tensor((batch, length), int64)}
        if self.masked:
            inputs["attention_mask"] = Tensor((batch, 1, length, length), bool_)
        return inputs
