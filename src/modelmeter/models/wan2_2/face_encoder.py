"""What Wan2.2 Animate makes of the motion of a face, and where the video attends to it, on shapes.

Source: diffusers 0.42 ``models/transformers/transformer_wan_animate.py``. Shapes: B batch, F frames of the face,
T latent frames, S video tokens, D width, N tokens of a face in one latent frame.
"""

from __future__ import annotations

from modelmeter.models.common.layers import attend
from modelmeter.nn import Conv1d, LayerNorm, Linear, Module, Parameter, RMSNorm, SiLU, Tensor, float32, functional

#: Steps in time that a convolution sees, all but one of them before its own.
KERNEL_SIZE = 3
#: Repeated first frames and no last ones, so that nothing depends on later frames.
TIME_CAUSAL_PADDING = (KERNEL_SIZE - 1, 0)


class WanAnimateFaceEncoder(Module):
    """Motion of every frame to tokens of every fourth: [B, F, in_dim] -> [B, (F - 1) // 4 + 1, num_heads + 1, D]."""

    def __init__(self, in_dim: int, out_dim: int, *, hidden_dim: int, num_heads: int) -> None:
        self.num_heads = num_heads
        self.act = SiLU()
        self.conv1_local = Conv1d(in_dim, hidden_dim * num_heads, KERNEL_SIZE)
        self.conv2 = Conv1d(hidden_dim, hidden_dim, KERNEL_SIZE, stride=2)
        self.conv3 = Conv1d(hidden_dim, hidden_dim, KERNEL_SIZE, stride=2)
        self.norm1 = LayerNorm(hidden_dim, elementwise_affine=False)
        self.norm2 = LayerNorm(hidden_dim, elementwise_affine=False)
        self.norm3 = LayerNorm(hidden_dim, elementwise_affine=False)
        self.out_proj = Linear(hidden_dim, out_dim)
        self.padding_tokens = Parameter((1, 1, 1, out_dim), float32)

    def forward(self, x: Tensor) -> Tensor:
        batch_size = x.shape[0]

        x = x.permute(0, 2, 1)
        x = functional.replication_pad1d(x, TIME_CAUSAL_PADDING)
        x = self.conv1_local(x)
        x = x.unflatten(1, (self.num_heads, -1)).flatten(0, 1)
        x = x.permute(0, 2, 1)
        x = self.norm1(x)
        x = self.act(x)

        x = x.permute(0, 2, 1)
        x = functional.replication_pad1d(x, TIME_CAUSAL_PADDING)
        x = self.conv2(x)
        x = x.permute(0, 2, 1)
        x = self.norm2(x)
        x = self.act(x)

        x = x.permute(0, 2, 1)
        x = functional.replication_pad1d(x, TIME_CAUSAL_PADDING)
        x = self.conv3(x)
        x = x.permute(0, 2, 1)
        x = self.norm3(x)
        x = self.act(x)

        x = self.out_proj(x)
        x = x.unflatten(0, (batch_size, -1)).permute(0, 2, 1, 3)
        padding = self.padding_tokens.repeat(batch_size, x.shape[1], 1, 1)
        x = functional.cat([x, padding], dim=-2)
        return x


class WanAnimateFaceBlockCrossAttention(Module):
    """Attention of the tokens of each latent frame to the face in it: [B, S, D], [B, T, N, D] -> [B, S, D]."""

    def __init__(self, dim: int, *, heads: int) -> None:
        self.heads = heads
        self.pre_norm_q = LayerNorm(dim, elementwise_affine=False)
        self.pre_norm_kv = LayerNorm(dim, elementwise_affine=False)
        self.to_q = Linear(dim, dim)
        self.to_k = Linear(dim, dim)
        self.to_v = Linear(dim, dim)
        self.to_out = Linear(dim, dim)
        self.norm_q = RMSNorm(dim // heads)
        self.norm_k = RMSNorm(dim // heads)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        hidden_states = self.pre_norm_q(hidden_states)
        encoder_hidden_states = self.pre_norm_kv(encoder_hidden_states)
        batch, frames, tokens, _ = encoder_hidden_states.shape
        encoder_hidden_states = encoder_hidden_states.flatten(1, 2)

        query = self.to_q(hidden_states)
        key = self.to_k(encoder_hidden_states)
        value = self.to_v(encoder_hidden_states)
        query = query.unflatten(2, (self.heads, -1))
        key = key.view(batch, frames, tokens, self.heads, -1)
        value = value.view(batch, frames, tokens, self.heads, -1)
        query = self.norm_q(query)
        key = self.norm_k(key)

        query = query.unflatten(1, (frames, -1)).flatten(0, 1)
        key = key.flatten(0, 1)
        value = value.flatten(0, 1)
        hidden_states = attend(query, key, value)
        hidden_states = hidden_states.unflatten(0, (batch, frames)).flatten(1, 2)
        hidden_states = self.to_out(hidden_states)
        return hidden_states
