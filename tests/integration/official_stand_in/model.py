"""Stand-in for ``wan/modules/model.py`` of Wan2.1."""

import math

import torch
import torch.cuda.amp as amp
from torch import nn

from .attention import flash_attention

TEXT_TOKENS = 512


def waves(dim, position):
    """Sinusoidal embedding in float64."""
    position = position.type(torch.float64)
    rates = torch.pow(10000, -torch.arange(dim // 2).to(position).div(dim // 2))
    angles = torch.outer(position, rates)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


@amp.autocast(enabled=False)
def rope_params(length, dim):
    """Complex rotations by position."""
    angles = torch.outer(torch.arange(length), 1.0 / torch.pow(10000, torch.arange(0, dim, 2).to(torch.float64) / dim))
    return torch.polar(torch.ones_like(angles), angles)


@amp.autocast(enabled=False)
def rope_apply(x, grid_sizes, freqs):
    """Rotate pairs of channels, video by video."""
    heads, pairs = x.size(2), x.size(3) // 2
    parts = freqs.split([pairs - 2 * (pairs // 3), pairs // 3, pairs // 3], dim=1)
    rotated = []
    for i, (f, h, w) in enumerate(grid_sizes.tolist()):
        tokens = f * h * w
        video = torch.view_as_complex(x[i, :tokens].to(torch.float64).reshape(tokens, heads, -1, 2))
        table = torch.cat(
            [
                parts[0][:f].view(f, 1, 1, -1).expand(f, h, w, -1),
                parts[1][:h].view(1, h, 1, -1).expand(f, h, w, -1),
                parts[2][:w].view(1, 1, w, -1).expand(f, h, w, -1),
            ],
            dim=-1,
        ).reshape(tokens, 1, -1)
        video = torch.view_as_real(video * table).flatten(2)
        rotated.append(torch.cat([video, x[i, tokens:]]))
    return torch.stack(rotated).float()


class RMSNorm(nn.Module):
    """Root mean square norm over all channels."""

    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        """[B, L, D] -> [B, L, D]."""
        return x.float() * torch.rsqrt(x.float().pow(2).mean(dim=-1, keepdim=True) + self.eps) * self.weight


class LayerNorm(nn.LayerNorm):
    """Layer norm in float32."""

    def __init__(self, dim, eps=1e-6, elementwise_affine=False):
        super().__init__(dim, elementwise_affine=elementwise_affine, eps=eps)

    def forward(self, x):
        """[B, L, D] -> [B, L, D]."""
        return super().forward(x.float()).type_as(x)


class SelfAttention(nn.Module):
    """Attention over the video."""

    def __init__(self, dim, num_heads, window_size=(-1, -1), qk_norm=True, eps=1e-6):
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps=eps) if qk_norm else nn.Identity()
        self.norm_k = RMSNorm(dim, eps=eps) if qk_norm else nn.Identity()

    def heads(self, x):
        """[B, L, D] -> [B, L, H, E]."""
        return x.unflatten(2, (self.num_heads, -1))

    def forward(self, x, seq_lens, grid_sizes, freqs):
        """[B, L, D] -> [B, L, D]."""
        q, k, v = self.heads(self.norm_q(self.q(x))), self.heads(self.norm_k(self.k(x))), self.heads(self.v(x))
        x = flash_attention(
            q=rope_apply(q, grid_sizes, freqs),
            k=rope_apply(k, grid_sizes, freqs),
            v=v,
            k_lens=seq_lens,
            window_size=self.window_size,
        )
        return self.o(x.flatten(2))


class TextCrossAttention(SelfAttention):
    """Attention to the text."""

    def forward(self, x, context, context_lens):
        """[B, L, D], [B, L2, D] -> [B, L, D]."""
        q, k = self.heads(self.norm_q(self.q(x))), self.heads(self.norm_k(self.k(context)))
        return self.o(flash_attention(q, k, self.heads(self.v(context)), k_lens=context_lens).flatten(2))


class ImageCrossAttention(SelfAttention):
    """Attention to the text, and apart from it to the images before it."""

    def __init__(self, dim, num_heads, window_size=(-1, -1), qk_norm=True, eps=1e-6):
        super().__init__(dim, num_heads, window_size, qk_norm, eps)
        self.k_img = nn.Linear(dim, dim)
        self.v_img = nn.Linear(dim, dim)
        self.norm_k_img = RMSNorm(dim, eps=eps) if qk_norm else nn.Identity()

    def forward(self, x, context, context_lens):
        """[B, L, D], [B, I + 512, D] -> [B, L, D]."""
        images, context = context[:, : context.shape[1] - TEXT_TOKENS], context[:, context.shape[1] - TEXT_TOKENS :]
        q, k = self.heads(self.norm_q(self.q(x))), self.heads(self.norm_k(self.k(context)))
        k_img = self.heads(self.norm_k_img(self.k_img(images)))
        of_images = flash_attention(q, k_img, self.heads(self.v_img(images)), k_lens=None)
        x = flash_attention(q, k, self.heads(self.v(context)), k_lens=context_lens)
        return self.o(x.flatten(2) + of_images.flatten(2))


CROSS_ATTENTION = {"t2v_cross_attn": TextCrossAttention, "i2v_cross_attn": ImageCrossAttention}


class WanAttentionBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward."""

    def __init__(
        self,
        cross_attn_type,
        dim,
        ffn_dim,
        num_heads,
        window_size=(-1, -1),
        qk_norm=True,
        cross_attn_norm=False,
        eps=1e-6,
    ):
        super().__init__()
        self.dim = dim
        self.norm1 = LayerNorm(dim, eps)
        self.self_attn = SelfAttention(dim, num_heads, window_size, qk_norm, eps)
        self.norm3 = LayerNorm(dim, eps, elementwise_affine=True) if cross_attn_norm else nn.Identity()
        self.cross_attn = CROSS_ATTENTION[cross_attn_type](dim, num_heads, (-1, -1), qk_norm, eps)
        self.norm2 = LayerNorm(dim, eps)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, x, e, seq_lens, grid_sizes, freqs, context, context_lens):
        """[B, L, D], a modulation for the video or for every token of it -> [B, L, D]."""
        assert e.dtype == torch.float32
        e = [part.squeeze(-2) if e.ndim == 4 else part for part in (self.modulation + e).chunk(6, dim=-2)]
        x = x + self.self_attn(self.norm1(x) * (1 + e[1]) + e[0], seq_lens, grid_sizes, freqs) * e[2]
        x = x + self.cross_attn(self.norm3(x), context, context_lens)
        return x + self.ffn(self.norm2(x) * (1 + e[4]) + e[3]) * e[5]


class Head(nn.Module):
    """Tokens to patches."""

    def __init__(self, dim, out_dim, patch_size, eps=1e-6):
        super().__init__()
        self.norm = LayerNorm(dim, eps)
        self.head = nn.Linear(dim, math.prod(patch_size) * out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x, e):
        """[B, L, D] -> [B, L, patch x C]."""
        shift, scale = (self.modulation + e.unsqueeze(-2)).chunk(2, dim=-2)
        if e.ndim == 3:
            shift, scale = shift.squeeze(2), scale.squeeze(2)
        return self.head(self.norm(x) * (1 + scale) + shift)


class ImageProjection(nn.Module):
    """Image features to the width of the transformer; with positions where two images are seen as one."""

    def __init__(self, in_dim, out_dim, flf_pos_emb=False):
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(in_dim),
            nn.Linear(in_dim, in_dim),
            nn.GELU(),
            nn.Linear(in_dim, out_dim),
            nn.LayerNorm(out_dim),
        )
        if flf_pos_emb:
            self.emb_pos = nn.Parameter(torch.zeros(1, 2 * 257, 1280))

    def forward(self, images):
        """[B, 257, 1280] -> [B, 257, D], or [2 B, 257, 1280] -> [B, 514, D]."""
        if hasattr(self, "emb_pos"):
            images = images.view(-1, 2 * images.shape[1], images.shape[2]) + self.emb_pos
        return self.proj(images)


class WanModel(nn.Module):
    """The diffusion transformer."""

    def __init__(
        self,
        model_type="t2v",
        patch_size=(1, 2, 2),
        text_len=512,
        in_dim=16,
        dim=2048,
        ffn_dim=8192,
        freq_dim=256,
        text_dim=4096,
        out_dim=16,
        num_heads=16,
        num_layers=32,
        window_size=(-1, -1),
        qk_norm=True,
        cross_attn_norm=True,
        eps=1e-6,
    ):
        super().__init__()
        self.model_type = model_type
        self.patch_size = patch_size
        self.text_len = text_len
        self.freq_dim = freq_dim
        self.dim = dim
        self.out_dim = out_dim
        self.num_layers = num_layers
        self.patch_embedding = nn.Conv3d(in_dim, dim, kernel_size=patch_size, stride=patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            self.block(dim, ffn_dim, num_heads, window_size, qk_norm, cross_attn_norm, eps, i)
            for i in range(num_layers)
        )
        self.head = Head(dim, out_dim, patch_size, eps)
        d = dim // num_heads
        self.freqs = torch.cat([rope_params(1024, part) for part in (d - 4 * (d // 6), 2 * (d // 6), 2 * (d // 6))], 1)
        if self.takes_images():
            self.img_emb = ImageProjection(1280, dim, flf_pos_emb=model_type == "flf2v")

    def takes_images(self):
        """Whether images come as tokens."""
        return self.model_type in ("i2v", "flf2v")

    def block(self, dim, ffn_dim, num_heads, window_size, qk_norm, cross_attn_norm, eps, i):
        """One of the blocks."""
        kind = "i2v_cross_attn" if self.takes_images() else "t2v_cross_attn"
        return WanAttentionBlock(kind, dim, ffn_dim, num_heads, window_size, qk_norm, cross_attn_norm, eps)

    def embedded(self, x, y, context, seq_len, clip_fea):
        """Tokens of videos and context, and what the blocks are told beside them."""
        if self.freqs.device != self.patch_embedding.weight.device:
            self.freqs = self.freqs.to(self.patch_embedding.weight.device)
        if y is not None:
            x = [torch.cat(pair, dim=0) for pair in zip(x, y, strict=True)]
        x = [self.patch_embedding(video.unsqueeze(0)) for video in x]
        grid_sizes = torch.stack([torch.tensor(video.shape[2:], dtype=torch.long) for video in x])
        x = [video.flatten(2).transpose(1, 2) for video in x]
        seq_lens = torch.tensor([video.size(1) for video in x], dtype=torch.long)
        assert seq_lens.max() <= seq_len
        x = torch.cat([self.padded(video, seq_len, 1) for video in x])
        context = self.text_embedding(torch.stack([self.padded(text, self.text_len, 0) for text in context]))
        if clip_fea is not None:
            context = torch.concat([self.img_emb(clip_fea), context], dim=1)
        given = {"seq_lens": seq_lens, "grid_sizes": grid_sizes, "freqs": self.freqs}
        return x, {**given, "context": context, "context_lens": None}

    def padded(self, x, length, dim):
        """Zeros up to a length."""
        shape = list(x.shape)
        shape[dim] = length - shape[dim]
        return torch.cat([x, x.new_zeros(shape)], dim=dim)

    def times(self, t, seq_len):
        """A timestep for every video."""
        with amp.autocast(dtype=torch.float32):
            e = self.time_embedding(waves(self.freq_dim, t).float())
            return e, self.time_projection(e).unflatten(1, (6, self.dim))

    def forward(self, x, t, context, seq_len, clip_fea=None, y=None):
        """Lists of [C, T, h, w] and [L, C], timesteps [B] -> list of [C', T, h, w]."""
        if self.takes_images():
            assert clip_fea is not None
            assert y is not None
        x, given = self.embedded(x, y, context, seq_len, clip_fea)
        e, given["e"] = self.times(t, seq_len)
        for block in self.blocks:
            x = block(x, **given)
        return self.unpatchify(self.head(x, e), given["grid_sizes"])

    def unpatchify(self, x, grid_sizes):
        """Tokens back to videos."""
        videos = []
        for tokens, grid in zip(x, grid_sizes.tolist(), strict=True):
            video = tokens[: math.prod(grid)].view(*grid, *self.patch_size, self.out_dim)
            video = torch.einsum("fhwpqrc->cfphqwr", video)
            videos.append(video.reshape(self.out_dim, *(n * p for n, p in zip(grid, self.patch_size, strict=True))))
        return videos
