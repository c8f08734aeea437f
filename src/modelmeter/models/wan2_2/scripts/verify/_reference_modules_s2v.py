"""The diffusion transformer of Wan2.2 S2V in plain PyTorch, written from the mathematics: it needs torch alone.

What matters here is which matrix products run on which shapes, not their values: weights are random, and positions
are not rotated, since a rotation multiplies element by element. Modules and weights have the names of the official
class (Wan2.2 ``wan/modules/s2v/model_s2v.py``), so that modules are compared by name, and parameters with them.

Shapes: B samples, T latent frames, S tokens, L text tokens, A frames of audio, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Latent frames of motion, nearest last, by the patches that pack them. Source: ``FramePackMotioner``.
PATCHES = {"proj_4x": (16, (4, 8, 8)), "proj_2x": (2, (2, 4, 4)), "proj": (1, (1, 2, 2))}


class RefS2VAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v over heads, q and k normalised over all heads together."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = nn.RMSNorm(dim)
        self.norm_k = nn.RMSNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Queries [B, S, D] over a context [B, L, D] -> [B, S, D]."""
        q = self.split(self.norm_q(self.q(x)))
        k = self.split(self.norm_k(self.k(context)))
        v = self.split(self.v(context))
        scores = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)  # [B, H, S, L]
        return self.o((scores @ v).transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, H, S, D / H]."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


class RefS2VBlock(nn.Module):
    """x + gate * attention(mod(x)), + attention to the text, + gate * ffn(mod(x)); mod and gate differ by token."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False)
        self.self_attn = RefS2VAttention(dim, num_heads)
        self.norm3 = nn.LayerNorm(dim)
        self.cross_attn = RefS2VAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))

    def forward(self, x: Tensor, text: Tensor, modulation: Tensor) -> Tensor:
        """[1, S, D], [1, L, D], six rows for every token [1, S, 6, D] -> [1, S, D]."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.modulation[:, None] + modulation).unbind(2)
        y = self.norm1(x) * (1 + scale) + shift
        x = x + gate * self.self_attn(y, y)
        x = x + self.cross_attn(self.norm3(x), text)
        return x + ffn_gate * self.ffn(self.norm2(x) * (1 + ffn_scale) + ffn_shift)


class _CausalConv(nn.Module):
    """A convolution over frames that looks back only: [B, A, C] -> [B, A', C']."""

    def __init__(self, in_size: int, out_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_size, out_size, 3, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :1], x[:, :1], x], dim=1)
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class _AudioTokens(nn.Module):
    """Audio features [1, A, C] -> one token and ``heads`` + 1 tokens for every fourth frame."""

    def __init__(self, in_size: int, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.conv1_local = _CausalConv(in_size, dim // 4 * heads)
        self.conv1_global = _CausalConv(in_size, dim // 4)
        self.conv2 = _CausalConv(dim // 4, dim // 2, stride=2)
        self.conv3 = _CausalConv(dim // 2, dim, stride=2)
        self.norm1 = nn.LayerNorm(dim // 4, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(dim // 2, elementwise_affine=False)
        self.norm3 = nn.LayerNorm(dim, elementwise_affine=False)
        self.act = nn.SiLU()
        self.final_linear = nn.Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.conv1_local(x)[0].unflatten(1, (self.heads, -1)).transpose(0, 1)  # [H, A, D / 4]
        local = self.rest(heads).transpose(0, 1)[None]
        local = torch.cat([local, self.padding_tokens.expand(1, local.shape[1], 1, -1)], dim=2)
        return self.final_linear(self.rest(self.conv1_global(x))), local

    def rest(self, x: Tensor) -> Tensor:
        """[H, A, D / 4] -> [H, A', D]."""
        x = self.conv2(self.act(self.norm1(x)))
        x = self.conv3(self.act(self.norm2(x)))
        return self.act(self.norm3(x))


class RefS2VAudioEncoder(nn.Module):
    """A weighted mean of hidden states [1, 25, C, A], then tokens of it."""

    def __init__(self, in_size: int, dim: int, heads: int) -> None:
        super().__init__()
        self.encoder = _AudioTokens(in_size, dim, heads)
        self.weights = nn.Parameter(torch.ones(1, 25, 1, 1))
        self.act = nn.SiLU()

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[1, 25, C, A] -> [1, A', D], [1, A', heads + 1, D]."""
        weights = self.act(self.weights)
        mean = (features * weights).sum(1) / weights.sum()
        return self.encoder(mean.transpose(1, 2))


class _AdaptiveNorm(nn.Module):
    """norm(x) * (1 + scale) + shift, both from one vector for every frame: [T, N, D], [T, D] -> [T, N, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.silu = nn.SiLU()
        self.linear = nn.Linear(dim, 2 * dim)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        shift, scale = self.linear(self.silu(vector))[:, None].chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


class RefS2VAudioInjector(nn.Module):
    """Attention of the tokens of every frame to the audio of that frame, and the norms before it."""

    def __init__(self, dim: int, num_heads: int, layers: int) -> None:
        super().__init__()
        self.injector = nn.ModuleList([RefS2VAttention(dim, num_heads) for _ in range(layers)])
        self.injector_adain_layers = nn.ModuleList([_AdaptiveNorm(dim) for _ in range(layers)])

    def added(self, layer: int, x: Tensor, audio: tuple[Tensor, Tensor]) -> Tensor:
        """What is added to the noise: [1, S, D], audio [T, D] and [T, 5, D] -> [1, S, D]."""
        vector, tokens = audio
        frames = x[0].reshape(tokens.shape[0], -1, x.shape[-1])
        return self.injector[layer](self.injector_adain_layers[layer](frames, vector), tokens).flatten(0, 1)[None]


class RefS2VMotion(nn.Module):
    """Latent frames before the clip [C, T, h, w] -> tokens [1, M, D], the farther the coarser."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        for name, (_, patch) in PATCHES.items():
            self.add_module(name, nn.Conv3d(16, dim, patch, stride=patch))

    def forward(self, latents: Tensor) -> Tensor:
        """[C, T, h, w] -> [1, M, D]."""
        parts = latents[None, :, -sum(frames for frames, _ in PATCHES.values()) :]
        tokens = []
        split = torch.split(parts, [frames for frames, _ in PATCHES.values()], dim=2)
        for part, name in zip(split, PATCHES, strict=True):
            tokens.append(self.get_submodule(name)(part).flatten(2).transpose(1, 2))
        return torch.cat(tokens[::-1], dim=1)


class _Head(nn.Module):
    """head(norm(x) * (1 + scale) + shift): [1, S, D], [1, D] -> [1, S, out_size]."""

    def __init__(self, dim: int, out_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.head = nn.Linear(dim, out_size)
        self.modulation = nn.Parameter(torch.zeros(1, 2, dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation + time[:, None]).chunk(2, dim=1)
        return self.head(self.norm(x) * (1 + scale) + shift)


class RefWan2_2S2VModel(nn.Module):
    """The diffusion transformer. Takes the arguments and inputs of the forward on shapes."""

    def __init__(
        self,
        *,
        patch_size: tuple[int, int, int],
        in_dim: int,
        dim: int,
        ffn_dim: int,
        freq_dim: int,
        text_dim: int,
        out_dim: int,
        num_heads: int,
        num_layers: int,
        cond_dim: int,
        audio_dim: int,
        num_audio_token: int,
        audio_inject_layers: Sequence[int],
        motion_frames: tuple[int, int],
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.freq_dim = freq_dim
        self.motion_frames = motion_frames
        self.injected = [layer for layer in range(num_layers) if layer in audio_inject_layers]
        self.patch_embedding = nn.Conv3d(in_dim, dim, patch_size, stride=patch_size)
        self.cond_encoder = nn.Conv3d(cond_dim, dim, patch_size, stride=patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList([RefS2VBlock(dim, ffn_dim, num_heads) for _ in range(num_layers)])
        self.head = _Head(dim, out_dim * prod(patch_size))
        self.casual_audio_encoder = RefS2VAudioEncoder(audio_dim, dim, num_audio_token)
        self.audio_injector = RefS2VAudioInjector(dim, num_heads, len(self.injected))
        self.trainable_cond_mask = nn.Embedding(3, dim)
        self.frame_packer = RefS2VMotion(dim)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        ref_latents: Tensor,
        motion_latents: Tensor,
        cond_states: Tensor,
        audio_input: Tensor,
        drop_motion_frames: bool,
    ) -> Tensor:
        """Noise [1, C, T, h, w] -> [1, C', T, h, w]; conditions as the forward on shapes takes them."""
        before, latents_before = self.motion_frames
        audio = torch.cat([audio_input[..., :1].expand(-1, -1, -1, before), audio_input], dim=-1)
        vector, tokens = (found[0, latents_before:] for found in self.casual_audio_encoder(audio))

        patches = self.patch_embedding(x) + self.cond_encoder(cond_states)
        noise = patches.flatten(2).transpose(1, 2)
        reference = self.patch_embedding(ref_latents).flatten(2).transpose(1, 2)
        motion = self.frame_packer(motion_latents[0])
        parts = [noise, reference, *([] if drop_motion_frames else [motion])]
        kinds = [torch.full((1, part.shape[1]), kind, device=t.device) for kind, part in enumerate(parts)]
        hidden = torch.cat(parts, dim=1) + self.trainable_cond_mask(torch.cat(kinds, dim=1))

        time = self.time_embedding(self.waves(torch.cat([t, torch.zeros_like(t)])).to(x.dtype))
        rows = self.time_projection(time).unflatten(1, (6, -1))  # of the step, and of the timestep 0
        is_condition = torch.cat(kinds, dim=1).clamp(max=1)
        modulation = F.embedding(is_condition, rows.flatten(1)).reshape(1, -1, *rows.shape[1:])
        text = self.text_embedding(context)
        for i, block in enumerate(self.blocks):
            hidden = block(hidden, text, modulation)
            if i in self.injected:
                noise, condition = hidden.split([noise.shape[1], hidden.shape[1] - noise.shape[1]], dim=1)
                added = self.audio_injector.added(self.injected.index(i), noise, (vector, tokens))
                hidden = torch.cat([noise + added, condition], dim=1)

        out = self.head(hidden[:, : noise.shape[1]], time[:1])
        out = out.reshape(1, *patches.shape[2:], *self.patch_size, -1)
        return out.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def waves(self, t: Tensor) -> Tensor:
        """Sinusoids of timesteps: [N] -> [N, freq_dim]."""
        half = self.freq_dim // 2
        angles = t[:, None] * torch.exp(-log(10_000) * torch.arange(half, device=t.device) / max(half, 1))
        return torch.cat([angles.cos(), angles.sin()], dim=-1)
