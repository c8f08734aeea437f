"""Wan2.1 text-to-video in plain PyTorch, written from the mathematics: the reference that needs torch alone.

What matters here is which matrix products run on which shapes, not their values: weights are random, and
positions are not rotated, since a rotation multiplies element by element. Names are diffusers', so that
modules are compared by name; only the MLP keeps ``fc1`` and ``fc2``, which ``MIRRORED`` in the pipeline maps.

Shapes: B batch, S video tokens, L text tokens, D width.
"""

from __future__ import annotations

from math import log, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RefWan2_1MLP(nn.Module):
    """``fc2(GELU(fc1(x)))``: [..., hidden_size] -> [..., intermediate_size] -> [..., hidden_size]."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.fc2 = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden_size] -> [..., hidden_size]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v over heads, q and k normalised over all heads together."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(hidden_size, hidden_size)
        self.to_k = nn.Linear(hidden_size, hidden_size)
        self.to_v = nn.Linear(hidden_size, hidden_size)
        self.to_out = nn.ModuleList([nn.Linear(hidden_size, hidden_size)])
        self.norm_q = nn.RMSNorm(hidden_size)
        self.norm_k = nn.RMSNorm(hidden_size)

    def attend(self, queries: Tensor, context: Tensor) -> Tensor:
        """Queries [B, S, D] over a context [B, L, D] -> [B, S, D]."""
        q = self.split(self.norm_q(self.to_q(queries)))
        k = self.split(self.norm_k(self.to_k(context)))
        v = self.split(self.to_v(context))
        scores = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)  # [B, H, S, L]
        return self.to_out[0]((scores @ v).transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, H, S, D / H]."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


class RefWan2_1SelfAttention(_Attention):
    """Every video token attends to every video token: [B, S, D] -> [B, S, D]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        return self.attend(x, x)


class RefWan2_1CrossAttention(_Attention):
    """Every video token attends to every text token: [B, S, D], [B, L, D] -> [B, S, D]."""

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """[B, S, D], [B, L, D] -> [B, S, D]."""
        return self.attend(x, text)


class RefWan2_1Block(nn.Module):
    """x + gate * attn1(mod(x)), + attn2(norm(x), text), + gate * ffn(mod(x)); mod scales and shifts by the timestep."""

    def __init__(self, hidden_size: int, intermediate_size: int, num_heads: int) -> None:
        super().__init__()
        self.attn1 = RefWan2_1SelfAttention(hidden_size, num_heads)
        self.attn2 = RefWan2_1CrossAttention(hidden_size, num_heads)
        self.ffn = RefWan2_1MLP(hidden_size, intermediate_size)
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)

    def forward(self, x: Tensor, text: Tensor, modulation: Tensor) -> Tensor:
        """[B, S, D], [B, L, D], [B, 6, D] -> [B, S, D]."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.unbind(1)
        x = x + gate[:, None] * self.attn1(_modulate(self.norm(x), shift, scale))
        x = x + self.attn2(self.norm(x), text)
        return x + ffn_gate[:, None] * self.ffn(_modulate(self.norm(x), ffn_shift, ffn_scale))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class _Perceptron(nn.Module):
    """Two linear layers around an activation: [..., in_size] -> [..., out_size]."""

    def __init__(self, in_size: int, out_size: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_size, out_size)
        self.activation = activation
        self.linear_2 = nn.Linear(out_size, out_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


class _Conditions(nn.Module):
    """Timestep [B] and text [B, L, text_dim] -> [B, D], six of [B, D], [B, L, D]."""

    def __init__(self, hidden_size: int, freq_dim: int, text_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = _Perceptron(freq_dim, hidden_size, nn.SiLU())
        self.time_proj = nn.Linear(hidden_size, 6 * hidden_size)
        self.text_embedder = _Perceptron(text_dim, hidden_size, nn.GELU(approximate="tanh"))

    def forward(self, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = self.freq_dim // 2
        frequencies = torch.exp(-log(10_000) * torch.arange(half, device=timestep.device) / max(half, 1))
        angles = timestep[:, None] * frequencies
        waves = F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, self.freq_dim - 2 * half))
        time = self.time_embedder(waves.to(text.dtype))
        return time, self.time_proj(F.silu(time)).unflatten(1, (6, -1)), self.text_embedder(text)


class RefWan2_1DiffusionCore(nn.Module):
    """The diffusion transformer: latents [B, C, T, h, w], timesteps [B], text [B, L, text_dim] -> [B, C', T, h, w].

    Takes the arguments of diffusers' ``WanTransformer3DModel``; those that decide no matrix product are ignored.
    """

    def __init__(
        self,
        *,
        patch_size: tuple[int, int, int],
        num_attention_heads: int,
        attention_head_dim: int,
        in_channels: int,
        out_channels: int,
        text_dim: int,
        freq_dim: int,
        ffn_dim: int,
        num_layers: int,
        cross_attn_norm: bool = True,
        rope_max_seq_len: int = 1024,
    ) -> None:
        super().__init__()
        hidden_size = num_attention_heads * attention_head_dim
        self.patch_size = patch_size
        self.patch_embedding = nn.Conv3d(in_channels, hidden_size, patch_size, stride=patch_size)
        self.condition_embedder = _Conditions(hidden_size, freq_dim, text_dim)
        self.blocks = nn.ModuleList(
            [RefWan2_1Block(hidden_size, ffn_dim, num_attention_heads) for _ in range(num_layers)]
        )
        self.norm_out = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.proj_out = nn.Linear(hidden_size, out_channels * prod(patch_size))
        self.modulation = nn.Parameter(torch.zeros(1, 2, hidden_size))

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Latents [B, C, T, h, w], timesteps [B], text [B, L, text_dim] -> [B, C', T, h, w]."""
        patches = self.patch_embedding(hidden_states)
        grid = patches.shape[2:]
        time, modulation, text = self.condition_embedder(timestep, encoder_hidden_states)
        x = patches.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, text, modulation)
        shift, scale = (self.modulation + time[:, None]).unbind(1)
        x = self.proj_out(_modulate(self.norm_out(x), shift, scale))
        x = x.unflatten(-1, (*self.patch_size, -1)).unflatten(1, grid)  # [B, T, H, W, pt, ph, pw, C']
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
