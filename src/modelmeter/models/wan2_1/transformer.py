"""The Wan2.1 diffusion transformer on shapes, module by module as diffusers' ``WanTransformer3DModel``.

It follows what that class runs (diffusers 0.42, ``models/transformers/transformer_wan.py``), operator by
operator, with the same module names and the same lifetimes: an extra name for an intermediate result would
keep it alive longer and raise the peak, so the style of chaining is part of the model.

Shapes: B batch, S video tokens, L text tokens, D width, H heads, E = D // H channels a head.
"""

from __future__ import annotations

from math import prod

from modelmeter.models.wan2_1.layers import (
    FeedForward,
    FP32LayerNorm,
    PixArtAlphaTextProjection,
    TimestepEmbedding,
    Timesteps,
)
from modelmeter.nn import (
    Buffer,
    Conv3d,
    Dim,
    Dropout,
    Identity,
    Linear,
    Module,
    ModuleList,
    Parameter,
    RMSNorm,
    SiLU,
    Tensor,
    float32,
    functional,
    int64,
)
from modelmeter.stage import Component

RotaryEmbedding = tuple[Tensor, Tensor]

#: Weights that diffusers keeps in float32 whatever dtype is asked for.
#: Source: ``WanTransformer3DModel._keep_in_fp32_modules``.
KEEP_IN_FP32 = ("rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")


class WanTimeTextImageEmbedding(Module):
    """Timestep and text as the blocks take them.

    [B], [B, L, text_dim] -> temb [B, D], its projection [B, 6 D], text [B, L, D].
    """

    def __init__(self, *, dim: int, time_freq_dim: int, text_embed_dim: int) -> None:
        self.timesteps_proj = Timesteps(time_freq_dim)
        self.time_embedder = TimestepEmbedding(time_freq_dim, dim)
        self.act_fn = SiLU()
        self.time_proj = Linear(dim, 6 * dim)
        self.text_embedder = PixArtAlphaTextProjection(text_embed_dim, dim)

    def forward(self, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        timestep = self.timesteps_proj(timestep)
        weight = self.time_embedder.linear_1.weight
        timestep = timestep.to(weight.dtype)
        temb = self.time_embedder(timestep).to(encoder_hidden_states.dtype)
        timestep_proj = self.time_proj(self.act_fn(temb))
        encoder_hidden_states = self.text_embedder(encoder_hidden_states)
        return temb, timestep_proj, encoder_hidden_states


class WanRotaryPosEmbed(Module):
    """Cosine and sine of every video token: latents [B, C, T, h, w] -> two of [1, S, 1, E].

    A third of the channels of a head (rounded to even) goes to each of height and width, the rest to time.
    """

    def __init__(self, attention_head_dim: int, patch_size: tuple[int, int, int], max_seq_len: int) -> None:
        side = 2 * (attention_head_dim // 6)
        self.patch_size = patch_size
        self.split_sizes = (attention_head_dim - 2 * side, side, side)
        self.freqs_cos = Buffer((max_seq_len, attention_head_dim), float32)
        self.freqs_sin = Buffer((max_seq_len, attention_head_dim), float32)

    def forward(self, latents: Tensor) -> RotaryEmbedding:
        grid = tuple(size // patch for size, patch in zip(latents.shape[2:], self.patch_size, strict=True))
        cos = self._table(self.freqs_cos, grid)
        sin = self._table(self.freqs_sin, grid)
        return cos.reshape(1, prod(grid, start=1), 1, -1), sin.reshape(1, prod(grid, start=1), 1, -1)

    def _table(self, freqs: Tensor, grid: tuple[Dim, ...]) -> Tensor:
        """The rows of each axis, repeated over the other two: [max_seq_len, E] -> [T, H, W, E]."""
        time, height, width = freqs.split(self.split_sizes, dim=1)
        frames, rows, columns = grid
        return functional.cat(
            [
                time[:frames][:, None, None].expand(*grid, self.split_sizes[0]),
                height[:rows][None, :, None].expand(*grid, self.split_sizes[1]),
                width[:columns][None, None].expand(*grid, self.split_sizes[2]),
            ],
            dim=-1,
        )


def apply_rotary_emb(x: Tensor, freqs_cos: Tensor, freqs_sin: Tensor) -> Tensor:
    """Rotate pairs of channels in place of a fresh tensor: [B, S, H, E] -> [B, S, H, E]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos = freqs_cos[..., 0::2]
    sin = freqs_sin[..., 1::2]
    rotated = functional.empty_like(x)
    rotated[..., 0::2].copy_(even * cos - odd * sin)
    rotated[..., 1::2].copy_(even * sin + odd * cos)
    return rotated.to(x.dtype)


class WanAttention(Module):
    """Attention with RMS-normalised query and key: [B, S, D] (and text [B, L, D]) -> [B, S, D]."""

    def __init__(self, dim: int, *, heads: int) -> None:
        self.heads = heads
        self.to_q = Linear(dim, dim)
        self.to_k = Linear(dim, dim)
        self.to_v = Linear(dim, dim)
        self.to_out = ModuleList([Linear(dim, dim), Dropout()])
        self.norm_q = RMSNorm(dim)
        self.norm_k = RMSNorm(dim)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        rotary_emb: RotaryEmbedding | None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = self.to_q(hidden_states)
        key = self.to_k(source)
        value = self.to_v(source)
        query = self.norm_q(query)
        key = self.norm_k(key)

        query = query.unflatten(2, (self.heads, -1))
        key = key.unflatten(2, (self.heads, -1))
        value = value.unflatten(2, (self.heads, -1))
        if rotary_emb is not None:
            query = apply_rotary_emb(query, *rotary_emb)
            key = apply_rotary_emb(key, *rotary_emb)

        hidden_states = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        ).transpose(1, 2)
        hidden_states = hidden_states.flatten(2, 3).to(query.dtype)
        for module in self.to_out:
            hidden_states = module(hidden_states)
        return hidden_states


def modulated(norm: Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Norm, scale and shift in float32, in the dtype of ``x``: [B, S, D] -> [B, S, D]."""
    return (norm(x.float()) * (scale + 1) + shift).to(x.dtype)


class WanTransformerBlock(Module):
    """Self-attention, cross-attention and feed-forward, the outer two gated by the timestep."""

    def __init__(self, dim: int, *, ffn_dim: int, num_heads: int, cross_attn_norm: bool) -> None:
        self.norm1 = FP32LayerNorm(dim, elementwise_affine=False)
        self.attn1 = WanAttention(dim, heads=num_heads)
        self.attn2 = WanAttention(dim, heads=num_heads)
        self.norm2 = FP32LayerNorm(dim, elementwise_affine=True) if cross_attn_norm else Identity()
        self.ffn = FeedForward(dim, inner_dim=ffn_dim)
        self.norm3 = FP32LayerNorm(dim, elementwise_affine=False)
        self.scale_shift_table = Parameter((1, 6, dim), float32)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: RotaryEmbedding
    ) -> Tensor:
        """[B, S, D], text [B, L, D], timestep projection [B, 6, D], rotary tables -> [B, S, D]."""
        # six of [B, 1, D]: shift, scale and gate, first of the self-attention, then of the feed-forward
        shift_msa, scale_msa, gate_msa, c_shift_msa, c_scale_msa, c_gate_msa = (
            self.scale_shift_table + temb.float()
        ).chunk(6, dim=1)

        norm_hidden_states = modulated(self.norm1, hidden_states, scale_msa, shift_msa)
        attn_output = self.attn1(norm_hidden_states, None, rotary_emb)
        hidden_states = (hidden_states.float() + attn_output * gate_msa).to(hidden_states.dtype)

        norm_hidden_states = self.norm2(hidden_states.float()).to(hidden_states.dtype)
        attn_output = self.attn2(norm_hidden_states, encoder_hidden_states)
        hidden_states = hidden_states + attn_output

        norm_hidden_states = modulated(self.norm3, hidden_states, c_scale_msa, c_shift_msa)
        ff_output = self.ffn(norm_hidden_states)
        return (hidden_states.float() + ff_output.float() * c_gate_msa).to(hidden_states.dtype)


class Wan2_1DiTModel(Component):
    """The diffusion transformer of Wan2.1 text-to-video, as diffusers' ``WanTransformer3DModel``.

    Args:
        patch_size: latent frames, rows and columns of one token.
        num_attention_heads, attention_head_dim: their product is the width D.
        in_channels, out_channels: latent channels in and out.
        text_dim: width of the text encoder's output.
        freq_dim: width of the sinusoidal timestep embedding.
        ffn_dim: inner width of the feed-forward.
        num_layers: number of blocks.
        cross_attn_norm: a layer norm with weights before the cross-attention.
        rope_max_seq_len: most positions along any axis of the token grid.

    Example:
        >>> from modelmeter.nn import trace
        >>> model = Wan2_1DiTModel(num_attention_heads=2, attention_head_dim=128, ffn_dim=512, num_layers=2)
        >>> inputs = model.inputs(batch=1, frames=3, rows=8, columns=8, text_len=64)
        >>> trace(model, **inputs).outputs.shape
        (1, 16, 3, 16, 16)
    """

    def __init__(
        self,
        *,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        rope_max_seq_len: int = 1024,
    ) -> None:
        inner_dim = num_attention_heads * attention_head_dim
        self.patch_size = patch_size
        self.rope = WanRotaryPosEmbed(attention_head_dim, patch_size, rope_max_seq_len)
        self.patch_embedding = Conv3d(in_channels, inner_dim, patch_size, stride=patch_size)
        self.condition_embedder = WanTimeTextImageEmbedding(
            dim=inner_dim, time_freq_dim=freq_dim, text_embed_dim=text_dim
        )
        self.blocks = ModuleList(
            [
                WanTransformerBlock(
                    inner_dim, ffn_dim=ffn_dim, num_heads=num_attention_heads, cross_attn_norm=cross_attn_norm
                )
                for _ in range(num_layers)
            ]
        )
        self.norm_out = FP32LayerNorm(inner_dim, elementwise_affine=False)
        self.proj_out = Linear(inner_dim, out_channels * prod(patch_size))
        self.scale_shift_table = Parameter((1, 2, inner_dim), float32)

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Latents [B, C, T, h, w], timesteps [B], text [B, L, text_dim] -> [B, C', T, h, w]."""
        batch_size = hidden_states.shape[0]
        frames, rows, columns = (
            size // patch for size, patch in zip(hidden_states.shape[2:], self.patch_size, strict=True)
        )
        rotary_emb = self.rope(hidden_states)

        hidden_states = self.patch_embedding(hidden_states)
        hidden_states = hidden_states.flatten(2).transpose(1, 2)  # [B, S, D]
        hidden_states = hidden_states.contiguous()

        temb, timestep_proj, encoder_hidden_states = self.condition_embedder(timestep, encoder_hidden_states)
        timestep_proj = timestep_proj.unflatten(1, (6, -1))

        for block in self.blocks:
            hidden_states = block(hidden_states, encoder_hidden_states, timestep_proj, rotary_emb)

        shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        hidden_states = modulated(self.norm_out, hidden_states, scale, shift)
        hidden_states = self.proj_out(hidden_states)

        # tokens back to a video: [B, T, H, W, pt, ph, pw, C'] -> [B, C', T pt, H ph, W pw]
        hidden_states = hidden_states.reshape(batch_size, frames, rows, columns, *self.patch_size, -1)
        hidden_states = hidden_states.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return hidden_states.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def inputs(self, **dims: Dim) -> dict[str, Tensor]:
        """What ``forward`` takes for ``batch`` videos of ``frames`` x ``rows`` x ``columns`` tokens, by name."""
        grid = zip((dims["frames"], dims["rows"], dims["columns"]), self.patch_size, strict=True)
        in_channels = self.patch_embedding.weight.shape[1]
        text_dim = self.condition_embedder.text_embedder.linear_1.weight.shape[1]
        dtype, batch = self.patch_embedding.weight.dtype, dims["batch"]
        return {
            "hidden_states": Tensor((batch, in_channels, *(size * patch for size, patch in grid)), dtype),
            "timestep": Tensor((batch,), int64),
            "encoder_hidden_states": Tensor((batch, dims["text_len"], text_dim), dtype),
        }
