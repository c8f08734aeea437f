"""The Wan2.1 diffusion transformer on shapes, module by module as diffusers' ``WanTransformer3DModel``.

It follows what that class runs (diffusers 0.42, ``models/transformers/transformer_wan.py``), operator by
operator, with the same module names and the same lifetimes: an extra name for an intermediate result would
keep it alive longer and raise the peak, so the style of chaining is part of the model.

Shapes: B batch, S video tokens, L text tokens, D width, H heads, E = D // H channels a head.
"""

from __future__ import annotations

from math import prod

from modelmeter.models.common.layers import Attention, FeedForward, FP32LayerNorm, RotaryEmbedding, attend
from modelmeter.models.wan2_1.embeddings import (
    WanRotaryPosEmbed,
    WanTimeTextImageEmbedding,
    apply_rotary_emb,
    token_grid,
)
from modelmeter.nn import (
    Conv3d,
    Dim,
    DType,
    Identity,
    Linear,
    Module,
    ModuleList,
    Parameter,
    Tensor,
    float32,
    functional,
    int64,
)
from modelmeter.stage import Component

#: Text tokens behind the image tokens of a context. Source: "hardcoded for now" in diffusers' ``WanAttnProcessor``.
TEXT_TOKENS_WITH_IMAGES = 512

#: Weights that diffusers keeps in float32 whatever dtype is asked for.
#: Source: ``WanTransformer3DModel._keep_in_fp32_modules``.
KEEP_IN_FP32 = ("rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")


class WanAttention(Attention):
    """Attention with RMS-normalised query and key: [B, S, D] (and text [B, L, D]) -> [B, S, D].

    With added keys and values the context is [images, text]; the same query attends to each apart, and the
    results are added before the output projection.
    """

    def __init__(self, dim: int, *, heads: int, added_kv_proj_dim: int | None = None) -> None:
        super().__init__(dim, heads=heads)
        self.add_k_proj = None if added_kv_proj_dim is None else Linear(added_kv_proj_dim, dim)
        self.add_v_proj = None if added_kv_proj_dim is None else Linear(added_kv_proj_dim, dim)
        self.norm_added_k = None if added_kv_proj_dim is None else self.norm(dim)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        rotary_emb: RotaryEmbedding | None = None,
    ) -> Tensor:
        images: Tensor | None = None
        if self.add_k_proj is not None:
            assert encoder_hidden_states is not None
            image_tokens = encoder_hidden_states.shape[1] - TEXT_TOKENS_WITH_IMAGES
            images = encoder_hidden_states[:, :image_tokens]
            encoder_hidden_states = encoder_hidden_states[:, image_tokens:]

        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = self.projected(hidden_states, source)

        query = query.unflatten(2, (self.heads, -1))
        key = key.unflatten(2, (self.heads, -1))
        value = value.unflatten(2, (self.heads, -1))
        if rotary_emb is not None:
            query = apply_rotary_emb(query, *rotary_emb)
            key = apply_rotary_emb(key, *rotary_emb)

        hidden_states_img: Tensor | None = None
        if images is not None:
            assert self.add_k_proj is not None
            assert self.add_v_proj is not None
            assert self.norm_added_k is not None
            key_img = self.add_k_proj(images)
            value_img = self.add_v_proj(images)
            key_img = self.norm_added_k(key_img)
            key_img = key_img.unflatten(2, (self.heads, -1))
            value_img = value_img.unflatten(2, (self.heads, -1))
            hidden_states_img = attend(query, key_img, value_img)

        hidden_states = attend(query, key, value)
        if hidden_states_img is not None:
            hidden_states = hidden_states + hidden_states_img
        return self.output(hidden_states)


def modulation(table: Parameter, temb: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Table and timestep added in float32, cut into parts: [1, P, D] and [B, P, D] -> P times [B, 1, D].

    With a timestep for every token, [B, S, P, D] -> P times [B, S, D]. The six of a block are shift, scale and
    gate, first of the self-attention, then of the feed-forward.
    """
    if temb.ndim == 4:
        return tuple(part.squeeze(2) for part in (table.unsqueeze(0) + temb.float()).chunk(parts, dim=2))
    return (table + temb.float()).chunk(parts, dim=1)


def modulated(norm: Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Norm, scale and shift in float32, in the dtype of ``x``: [B, S, D] -> [B, S, D]."""
    return (norm(x.float()) * (scale + 1) + shift).to(x.dtype)


class WanTransformerBlock(Module):
    """Self-attention, cross-attention and feed-forward, the outer two gated by the timestep."""

    self_attention: type[WanAttention] = WanAttention
    cross_attention: type[WanAttention] = WanAttention
    #: Only the control blocks of VACE have one.
    proj_out: Linear | None = None

    def __init__(
        self, dim: int, *, ffn_dim: int, num_heads: int, cross_attn_norm: bool, added_kv_proj_dim: int | None
    ) -> None:
        self.norm1 = FP32LayerNorm(dim, elementwise_affine=False)
        self.attn1 = self.self_attention(dim, heads=num_heads)
        self.attn2 = self.cross_attention(dim, heads=num_heads, added_kv_proj_dim=added_kv_proj_dim)
        self.norm2 = FP32LayerNorm(dim, elementwise_affine=True) if cross_attn_norm else Identity()
        self.ffn = FeedForward(dim, inner_dim=ffn_dim)
        self.norm3 = FP32LayerNorm(dim, elementwise_affine=False)
        self.scale_shift_table = Parameter((1, 6, dim), float32)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: RotaryEmbedding
    ) -> Tensor:
        """[B, S, D], context [B, L, D], timestep projection [B, 6, D] or [B, S, 6, D], rotary tables -> [B, S, D]."""
        return self.attended(hidden_states, encoder_hidden_states, temb, rotary_emb)[1]

    def attended(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: RotaryEmbedding
    ) -> tuple[Tensor | None, Tensor]:
        """What ``forward`` gives, and before it what the output projection makes of it, where there is one."""
        shift_msa, scale_msa, gate_msa, c_shift_msa, c_scale_msa, c_gate_msa = modulation(
            self.scale_shift_table, temb, 6
        )

        norm_hidden_states = modulated(self.norm1, hidden_states, scale_msa, shift_msa)
        attn_output = self.attn1(norm_hidden_states, None, rotary_emb)
        hidden_states = (hidden_states.float() + attn_output * gate_msa).to(hidden_states.dtype)

        norm_hidden_states = self.norm2(hidden_states.float()).to(hidden_states.dtype)
        attn_output = self.attn2(norm_hidden_states, encoder_hidden_states)
        hidden_states = hidden_states + attn_output

        norm_hidden_states = modulated(self.norm3, hidden_states, c_scale_msa, c_shift_msa)
        ff_output = self.ffn(norm_hidden_states)
        hidden_states = (hidden_states.float() + ff_output.float() * c_gate_msa).to(hidden_states.dtype)
        return (None if self.proj_out is None else self.proj_out(hidden_states)), hidden_states


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
        image_dim: width of the image encoder's output, for models that condition on it.
        added_kv_proj_dim: width of the image tokens to which every cross-attention attends besides the text.
        pos_embed_seq_len: image tokens of two frames together, which then have positions.
        expand_timesteps: give every token a timestep of its own (diffusers' pipelines' name); only ``inputs`` differ.
        rope_max_seq_len: most positions along any axis of the token grid.

    Example:
        >>> from modelmeter.nn import trace
        >>> model = Wan2_1DiTModel(num_attention_heads=2, attention_head_dim=128, ffn_dim=512, num_layers=2)
        >>> inputs = model.inputs(batch=1, frames=3, rows=8, columns=8, text_len=64)
        >>> trace(model, **inputs).outputs.shape
        (1, 16, 3, 16, 16)
    """

    #: Classes of what another implementation runs differently.
    block: type[WanTransformerBlock] = WanTransformerBlock
    embedding: type[WanTimeTextImageEmbedding] = WanTimeTextImageEmbedding
    rotary: type[WanRotaryPosEmbed] = WanRotaryPosEmbed
    #: dtypes of the latents, the text and the image features; ``None`` for that of the weights.
    input_dtypes: tuple[DType | None, DType | None, DType | None] = (None, None, None)

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
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        expand_timesteps: bool = False,
    ) -> None:
        inner_dim = num_attention_heads * attention_head_dim
        self.patch_size = patch_size
        self.out_channels = out_channels
        self.expand_timesteps = expand_timesteps
        self.rope = self.rotary(attention_head_dim, patch_size, rope_max_seq_len)
        self.patch_embedding = Conv3d(in_channels, inner_dim, patch_size, stride=patch_size)
        self.condition_embedder = self.embedding(
            dim=inner_dim,
            time_freq_dim=freq_dim,
            text_embed_dim=text_dim,
            image_embed_dim=image_dim,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        self.blocks = ModuleList(
            [
                self.block(
                    inner_dim,
                    ffn_dim=ffn_dim,
                    num_heads=num_attention_heads,
                    cross_attn_norm=cross_attn_norm,
                    added_kv_proj_dim=added_kv_proj_dim,
                )
                for _ in range(num_layers)
            ]
        )
        self.norm_out = FP32LayerNorm(inner_dim, elementwise_affine=False)
        self.proj_out = Linear(inner_dim, out_channels * prod(patch_size))
        self.scale_shift_table = Parameter((1, 2, inner_dim), float32)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
    ) -> Tensor:
        """Latents [B, C, T, h, w], timesteps [B] or [B, S], text [B, L, text_dim], images -> [B, C', T, h, w]."""
        batch_size, grid = hidden_states.shape[0], token_grid(hidden_states, self.patch_size)
        rotary_emb = self.rope(hidden_states)

        hidden_states = self.patch_embedding(hidden_states)
        hidden_states = hidden_states.flatten(2).transpose(1, 2)  # [B, S, D]
        hidden_states = hidden_states.contiguous()

        ts_seq_len: Dim | None = None
        if timestep.ndim == 2:
            ts_seq_len = timestep.shape[1]
            timestep = timestep.flatten()
        temb, timestep_proj, encoder_hidden_states, encoder_hidden_states_image = self.condition_embedder(
            timestep, encoder_hidden_states, encoder_hidden_states_image, ts_seq_len
        )
        timestep_proj = timestep_proj.unflatten(-1, (6, -1))
        if encoder_hidden_states_image is not None:
            encoder_hidden_states = functional.cat([encoder_hidden_states_image, encoder_hidden_states], dim=1)

        for block in self.blocks:
            hidden_states = block(hidden_states, encoder_hidden_states, timestep_proj, rotary_emb)

        shift, scale = head_modulation(self.scale_shift_table, temb)
        hidden_states = modulated(self.norm_out, hidden_states, scale, shift)
        hidden_states = self.proj_out(hidden_states)
        return unpatchified(hidden_states, batch_size, grid, self.patch_size)

    def inputs(self, **dims: Dim) -> dict[str, Tensor]:
        """What ``forward`` takes for ``batch`` videos of ``frames`` x ``rows`` x ``columns`` tokens, by name.

        ``text_len`` is the length of the text, ``image_tokens`` that of a condition image without positions.
        """
        grid = dims["frames"], dims["rows"], dims["columns"]
        in_channels = self.patch_embedding.weight.shape[1]
        embedder = self.condition_embedder
        batch, weight = dims["batch"], self.patch_embedding.weight
        latent_dtype, text_dtype, image_dtype = (dtype or weight.dtype for dtype in self.input_dtypes)
        latents = (size * patch for size, patch in zip(grid, self.patch_size, strict=True))
        result = {
            "hidden_states": Tensor((batch, in_channels, *latents), latent_dtype),
            "timestep": self._timestep(batch, prod(grid, start=1)),
            "encoder_hidden_states": Tensor((batch, dims["text_len"], embedder.text_embedder.in_features), text_dtype),
        }
        if embedder.image_embedder is not None:
            features = embedder.image_embedder.norm1.normalized_shape
            positions = embedder.image_embedder.pos_embed
            images = (batch, dims["image_tokens"]) if positions is None else (2 * batch, positions.shape[1] // 2)
            result["encoder_hidden_states_image"] = Tensor((*images, features), image_dtype)
        return result

    def _timestep(self, batch: Dim, tokens: Dim) -> Tensor:
        """[B], or one for every token: the product with a mask of ones, the same for all videos.

        Source: ``mask[0][0][:, ::2, ::2] * t`` and ``expand(latents.shape[0], -1)`` in ``WanPipeline.__call__``.
        """
        return Tensor((1, tokens), float32).expand(batch, tokens) if self.expand_timesteps else Tensor((batch,), int64)


def head_modulation(table: Parameter, temb: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale of the head: [1, 2, D] and [B, D] -> [B, 1, D]; for every token, [B, S, D] -> [B, S, D]."""
    if temb.ndim == 3:
        shift, scale = (table.unsqueeze(0) + temb.unsqueeze(2)).chunk(2, dim=2)
        return shift.squeeze(2), scale.squeeze(2)
    shift, scale = (table + temb.unsqueeze(1)).chunk(2, dim=1)
    return shift, scale


def unpatchified(
    tokens: Tensor, batch_size: Dim, grid: tuple[Dim, Dim, Dim], patch_size: tuple[int, int, int]
) -> Tensor:
    """Tokens back to a video: [B, S, pt ph pw C'] -> [B, C', T pt, H ph, W pw]."""
    tokens = tokens.reshape(batch_size, *grid, *patch_size, -1)
    tokens = tokens.permute(0, 7, 1, 4, 2, 5, 3, 6)
    return tokens.flatten(6, 7).flatten(4, 5).flatten(2, 3)
