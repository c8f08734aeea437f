"""The forward of the official ``WanModel`` on shapes, on the modules and weights of diffusers' class.

What it multiplies is the same, module by module; what it casts, copies and keeps alive is not: autocast over
weights of any dtype, RMS norm in six kernels, rotation in complex128, attention by ``flash-attn`` with results
back in float32, a residual stream in float32.

Source: Wan2.1 ``wan/modules/model.py`` and ``wan/modules/attention.py`` at 9737cba, Wan2.2 at 42bf4cf, which gives
every token its own modulation. The reference takes its samples one by one where they may differ in length; here
they are one batch of equal samples. The lengths themselves, a few integers, are left out.

Shapes: B batch, S video tokens, L text tokens, I image tokens, D width, H heads, E = D // H channels a head.
"""

from __future__ import annotations

from typing import TypeAlias

from modelmeter.models.common.layers import FP32LayerNorm, Timesteps
from modelmeter.models.wan2_1.embeddings import (
    WanImageEmbedding,
    WanRotaryPosEmbed,
    WanTimeTextImageEmbedding,
    token_grid,
)
from modelmeter.models.wan2_1.transformer import (
    TEXT_TOKENS_WITH_IMAGES,
    Wan2_1DiTModel,
    WanAttention,
    WanTransformerBlock,
    head_modulation,
)
from modelmeter.nn import (
    Buffer,
    Conv3d,
    Dim,
    RMSNorm,
    Tensor,
    autocast,
    bfloat16,
    complex128,
    float16,
    float32,
    float64,
    functional,
    int64,
)

#: Rotations of every position along the three axes, and the tokens along each.
Rotations: TypeAlias = tuple[tuple[Tensor, ...], tuple[Dim, Dim, Dim]]

#: What the official pipelines run the model under. Source: ``param_dtype`` of ``wan/configs/shared_config.py``.
AUTOCAST_DTYPE = bfloat16


class WanRMSNorm(RMSNorm):
    """RMS norm over the last dimension in float32, back in the dtype of its input, times the weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self._norm(x.float()).to(x.dtype) * self.weight

    def _norm(self, x: Tensor) -> Tensor:
        return x * functional.rsqrt(functional.mean(x**2, -1, keepdim=True) + 1e-6)


class LayerNorm(FP32LayerNorm):
    """``torch.nn.LayerNorm``, which autocast runs in float32: [..., D] -> [..., D] in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.normalized_shape, self.weight, self.bias)


class MLPProj(WanImageEmbedding):
    """Features of the condition images to the width of the transformer, in float32."""

    norm = LayerNorm


class RotaryTables(WanRotaryPosEmbed):
    """Rotations of every position as complex numbers, and the grid: latents [B, C, T, h, w] -> three tables, grid."""

    def __init__(self, attention_head_dim: int, patch_size: tuple[int, int, int], max_seq_len: int) -> None:
        pairs = attention_head_dim // 2
        side = pairs // 3
        self.patch_size = patch_size
        self.split_sizes = (pairs - 2 * side, side, side)
        self.freqs = Buffer((max_seq_len, pairs), complex128)

    def forward(self, latents: Tensor) -> Rotations:  # type: ignore[override]
        return self.freqs.split(self.split_sizes, dim=1), token_grid(latents, self.patch_size)


def rope_apply(x: Tensor, freqs: tuple[Tensor, ...], grid: tuple[Dim, Dim, Dim]) -> Tensor:
    """Rotate pairs of channels in complex128: [B, S, H, E] -> [B, S, H, E] in float32."""
    frames, rows, columns = grid
    batch, tokens, heads, _ = x.shape
    with autocast(None):
        x_i = functional.view_as_complex(x.to(float64).reshape(batch, tokens, heads, -1, 2))
        freqs_i = functional.cat(
            [
                freqs[0][:frames].view(frames, 1, 1, -1).expand(*grid, freqs[0].shape[1]),
                freqs[1][:rows].view(1, rows, 1, -1).expand(*grid, freqs[1].shape[1]),
                freqs[2][:columns].view(1, 1, columns, -1).expand(*grid, freqs[2].shape[1]),
            ],
            dim=-1,
        ).reshape(tokens, 1, -1)
        x_i = functional.view_as_real(x_i * freqs_i).flatten(3)
        x_i = functional.cat([x_i], dim=1)  # behind it the padding of the sequence, of which there is none
        return functional.stack([x_i], dim=0).squeeze(0).float()


def flash_attention(q: Tensor, k: Tensor, v: Tensor, *, k_lens: bool) -> Tensor:
    """Attention in half precision, back in the dtype of the query: [B, S, H, E], twice [B, L, H, E] -> [B, S, H, E].

    Args:
        k_lens: the keys have lengths, to which they are cut: a copy.
    """
    batch, queries = q.shape[:2]
    dtype = q.dtype
    q = half(q.flatten(0, 1))
    if k_lens:
        k = half(functional.cat([k.flatten(0, 1)], dim=0))
        v = half(functional.cat([v.flatten(0, 1)], dim=0))
    else:
        k = half(k.flatten(0, 1))
        v = half(v.flatten(0, 1))
    x = functional.flash_attn_varlen(q, k, v, batch=batch).unflatten(0, (batch, queries))
    return x.to(dtype)


def half(x: Tensor) -> Tensor:
    """In bfloat16, unless it is in half precision already."""
    return x if x.dtype in (float16, bfloat16) else x.to(bfloat16)


class WanSelfAttention(WanAttention):
    """Self-attention: [B, S, D] -> [B, S, D]."""

    norm = WanRMSNorm

    def forward(self, x: Tensor, rotations: Rotations) -> Tensor:  # type: ignore[override]
        q, k, v = self.qkv(x, x)
        x = flash_attention(q=rope_apply(q, *rotations), k=rope_apply(k, *rotations), v=v, k_lens=True)
        return self.output(x.flatten(2))

    def qkv(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query of ``x``, key and value of the context, by heads."""
        q = self.norm_q(self.to_q(x)).unflatten(2, (self.heads, -1))
        k = self.norm_k(self.to_k(context)).unflatten(2, (self.heads, -1))
        v = self.to_v(context).unflatten(2, (self.heads, -1))
        return q, k, v


class WanCrossAttention(WanSelfAttention):
    """Attention to the text, and to the images before it where there are any: [B, S, D], [B, L, D] -> [B, S, D].

    ``WanT2VCrossAttention`` and ``WanI2VCrossAttention`` of the reference.
    """

    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        if self.add_k_proj is None:
            q, k, v = self.qkv(x, context)
            x = flash_attention(q, k, v, k_lens=False)
            return self.output(x.flatten(2))

        assert self.add_v_proj is not None
        assert self.norm_added_k is not None
        image_tokens = context.shape[1] - TEXT_TOKENS_WITH_IMAGES
        images = context[:, :image_tokens]
        context = context[:, image_tokens:]
        q, k, v = self.qkv(x, context)
        k_img = self.norm_added_k(self.add_k_proj(images)).unflatten(2, (self.heads, -1))
        v_img = self.add_v_proj(images).unflatten(2, (self.heads, -1))
        img_x = flash_attention(q, k_img, v_img, k_lens=False)
        x = flash_attention(q, k, v, k_lens=False)
        x = x.flatten(2)
        img_x = img_x.flatten(2)
        x = x + img_x
        return self.output(x)


class WanAttentionBlock(WanTransformerBlock):
    """Self-attention, cross-attention and feed-forward; the residual stream is in float32."""

    self_attention = WanSelfAttention
    cross_attention = WanCrossAttention

    def forward(self, x: Tensor, context: Tensor, e: Tensor, rotations: Rotations) -> Tensor:  # type: ignore[override]
        """[B, S, D], context [B, L, D], timestep projection [B, 6, D] or [B, S, 6, D], rotations -> [B, S, D]."""
        parts = self.modulation(e)
        y = self.attn1(self.norm1(x).float() * (parts[1] + 1) + parts[0], rotations)
        x = x + y * parts[2]
        x = self.cross_attn_ffn(x, context, parts)
        return x

    def modulation(self, e: Tensor) -> tuple[Tensor, ...]:
        """Table and timestep added, in six parts: [B, 6, D] -> six of [B, 1, D], [B, S, 6, D] -> six of [B, S, D]."""
        if e.ndim == 4:
            return tuple(part.squeeze(2) for part in (self.scale_shift_table.unsqueeze(0) + e).chunk(6, dim=2))
        return (self.scale_shift_table + e).chunk(6, dim=1)

    def cross_attn_ffn(self, x: Tensor, context: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """The second half; its caller keeps ``x``."""
        x = x + self.attn2(self.norm2(x), context)
        y = self.ffn(self.norm3(x).float() * (parts[4] + 1) + parts[3])
        x = x + y * parts[5]
        return x


class SinusoidalEmbedding(Timesteps):
    """Sinusoidal embedding of timesteps in float64: [N] -> [N, num_channels], cosines first."""

    def forward(self, position: Tensor) -> Tensor:
        half = self.num_channels // 2
        position = position.to(float64)
        exponent = functional.neg(functional.arange(half, int64).to(float64)) / half
        sinusoid = position[:, None] * 10000**exponent
        return functional.cat([functional.cos(sinusoid), functional.sin(sinusoid)], dim=1)


class WanConditionEmbedding(WanTimeTextImageEmbedding):
    """Timestep in float32, text in the dtype of the autocast, images before the text.

    Timesteps [B] or [B, S], text [B, L, text_dim], images -> e [B, D] or [B, S, D], e0 [B, 6, D] or [B, S, 6, D],
    context [B, L or I + L, D], and the images apart, which the reference keeps too.
    """

    timesteps = SinusoidalEmbedding
    image_embedding = MLPProj

    def forward(  # type: ignore[override]
        self, t: Tensor, context: Tensor, clip_fea: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        with autocast(float32):
            if t.ndim == 2:
                tokens = t.shape[1]
                t = t.flatten()
                e = self.time_embedder(self.timesteps_proj(t).unflatten(0, (-1, tokens)).float())
            else:
                e = self.time_embedder(self.timesteps_proj(t).float())
            e0 = self.time_proj(self.act_fn(e)).unflatten(-1, (6, -1))
        return e, e0, *self.text(context, clip_fea)

    def text(self, context: Tensor, clip_fea: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The context of the blocks, and the images in it."""
        # each prompt is padded to its length, then all are stacked
        context = self.text_embedder(functional.stack([functional.cat([context], dim=1)], dim=0).squeeze(0))
        if clip_fea is None:
            return context, None
        assert self.image_embedder is not None
        context_clip = self.image_embedder(clip_fea)
        return functional.cat([context_clip, context], dim=1), context_clip


class WanModel(Wan2_1DiTModel):
    """The diffusion transformer as the official code runs it; arguments and inputs are those of diffusers' class.

    Example:
        >>> from modelmeter.nn import trace
        >>> model = WanModel(num_attention_heads=2, attention_head_dim=128, ffn_dim=512, num_layers=2)
        >>> inputs = model.inputs(batch=1, frames=3, rows=8, columns=8, text_len=64)
        >>> trace(model, **inputs).outputs
        Tensor([1, 16, 3, 16, 16], float32)
    """

    block = WanAttentionBlock
    embedding = WanConditionEmbedding
    rotary = RotaryTables
    #: Latents of the schedulers, output of umT5 (``t5_dtype``) and of CLIP (``clip_dtype``).
    input_dtypes = (float32, bfloat16, float16)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
    ) -> Tensor:
        """Latents [B, C, T, h, w], timesteps [B] or [B, S], text [B, L, text_dim], images -> [B, C', T, h, w]."""
        with autocast(AUTOCAST_DTYPE):
            rotations = self.rope(hidden_states)
            x = self.tokens(self.noisy(hidden_states), self.patch_embedding)
            e, e0, context, _context_clip = self.condition_embedder(
                timestep, encoder_hidden_states, encoder_hidden_states_image
            )
            for block in self.blocks:
                x = block(x, context, e0, rotations)
            x = self.head(x, e)
            return self.unpatchify(x, rotations[1]).float()

    def noisy(self, x: Tensor) -> Tensor:
        """Latents, put together where the reference takes the noise and what conditions it apart."""
        channels = self.out_channels
        return x if x.shape[1] == channels else functional.cat([x[:, :channels], x[:, channels:]], dim=1)

    def tokens(self, x: Tensor, embedding: Conv3d) -> Tensor:
        """Latents as tokens [B, S, D], put together twice: each sample with its padding, then all."""
        x = embedding(x)
        x = x.flatten(2).transpose(1, 2)
        x = functional.cat([functional.cat([x], dim=1)], dim=0)
        return x

    def head(self, x: Tensor, e: Tensor) -> Tensor:
        """Norm, modulation and the last projection in float32: [B, S, D] -> [B, S, pt ph pw C']."""
        with autocast(float32):
            shift, scale = head_modulation(self.scale_shift_table, e)
            x = self.proj_out(self.norm_out(x) * (scale + 1) + shift)
        return x

    def unpatchify(self, x: Tensor, grid: tuple[Dim, Dim, Dim]) -> Tensor:
        """Tokens back to a video, which autocast takes for a product: [B, S, pt ph pw C'] -> [B, C', T, h, w]."""
        x = x.view(x.shape[0], *grid, *self.patch_size, self.out_channels)
        x = functional.einsum("bfhwpqrc->bcfphqwr", x)
        sizes = (size * patch for size, patch in zip(grid, self.patch_size, strict=True))
        return x.reshape(x.shape[0], self.out_channels, *sizes)
