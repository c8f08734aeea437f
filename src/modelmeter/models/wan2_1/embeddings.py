"""What the blocks of the Wan transformers are conditioned on: timestep, text, images and positions, on shapes.

Source: diffusers 0.42 ``models/transformers/transformer_wan.py``. Shapes: B batch, S video tokens, L text tokens,
I image tokens, D width, H heads, E = D // H channels a head.
"""

from __future__ import annotations

from math import prod

from modelmeter.models.common.layers import (
    FeedForward,
    FP32LayerNorm,
    PixArtAlphaTextProjection,
    RotaryEmbedding,
    TimestepEmbedding,
    Timesteps,
)
from modelmeter.nn import Buffer, Dim, Linear, Module, Parameter, SiLU, Tensor, float32, functional


class WanImageEmbedding(Module):
    """Features of the condition images to the width of the transformer: [B, I, in_features] -> [B, I, out_features].

    With positions, the two images of a first and last frame are seen as one sequence: [2 B, I, in] -> [B, 2 I, out].
    """

    norm: type[FP32LayerNorm] = FP32LayerNorm

    def __init__(self, in_features: int, out_features: int, *, pos_embed_seq_len: int | None) -> None:
        self.norm1 = self.norm(in_features, elementwise_affine=True)
        self.ff = FeedForward(in_features, inner_dim=in_features, dim_out=out_features)
        self.norm2 = self.norm(out_features, elementwise_affine=True)
        self.pos_embed = None if pos_embed_seq_len is None else Parameter((1, pos_embed_seq_len, in_features), float32)

    def forward(self, encoder_hidden_states_image: Tensor) -> Tensor:
        if self.pos_embed is not None:
            _, tokens, features = encoder_hidden_states_image.shape
            encoder_hidden_states_image = encoder_hidden_states_image.view(-1, 2 * tokens, features)
            encoder_hidden_states_image = encoder_hidden_states_image + self.pos_embed
        hidden_states = self.norm1(encoder_hidden_states_image)
        hidden_states = self.ff(hidden_states)
        return self.norm2(hidden_states)


class WanTimeTextImageEmbedding(Module):
    """Timestep, text and condition images as the blocks take them.

    Timesteps [B] (or one for every token, [B S] with S given), text [B, L, text_dim], images [B, I, image_dim] ->
    temb [B, D] or [B, S, D], its projection [..., 6 D], text [B, L, D], images [B, I, D].
    """

    timesteps: type[Timesteps] = Timesteps
    image_embedding: type[WanImageEmbedding] = WanImageEmbedding

    def __init__(
        self,
        *,
        dim: int,
        time_freq_dim: int,
        text_embed_dim: int,
        image_embed_dim: int | None,
        pos_embed_seq_len: int | None,
    ) -> None:
        self.timesteps_proj = self.timesteps(time_freq_dim)
        self.time_embedder = TimestepEmbedding(time_freq_dim, dim)
        self.act_fn = SiLU()
        self.time_proj = Linear(dim, 6 * dim)
        self.text_embedder = PixArtAlphaTextProjection(text_embed_dim, dim)
        self.image_embedder = (
            None
            if image_embed_dim is None
            else self.image_embedding(image_embed_dim, dim, pos_embed_seq_len=pos_embed_seq_len)
        )

    def forward(
        self,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None,
        timestep_seq_len: Dim | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        timestep = self.timesteps_proj(timestep)
        if timestep_seq_len is not None:
            timestep = timestep.unflatten(0, (-1, timestep_seq_len))
        timestep = timestep.to(self.time_embedder.linear_1.weight.dtype)
        temb = self.time_embedder(timestep).to(encoder_hidden_states.dtype)
        timestep_proj = self.time_proj(self.act_fn(temb))
        encoder_hidden_states = self.text_embedder(encoder_hidden_states)
        if encoder_hidden_states_image is not None:
            assert self.image_embedder is not None
            encoder_hidden_states_image = self.image_embedder(encoder_hidden_states_image)
        return temb, timestep_proj, encoder_hidden_states, encoder_hidden_states_image


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
        grid = token_grid(latents, self.patch_size)
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


def token_grid(latents: Tensor, patch_size: tuple[int, int, int]) -> tuple[Dim, Dim, Dim]:
    """Tokens along time, height and width: of latents [B, C, T, h, w]."""
    frames, rows, columns = (size // patch for size, patch in zip(latents.shape[2:], patch_size, strict=True))
    return frames, rows, columns
