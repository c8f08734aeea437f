"""Stand-in for ``wan/modules/clip.py`` of Wan2.1."""

import math

import torch
from torch import nn

from .attention import flash_attention


class SelfAttention(nn.Module):
    """Query, key and value by one linear layer."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        """[B, L, D] -> [B, L, D]."""
        q, k, v = self.to_qkv(x).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        return self.proj(flash_attention(q, k, v, dropout_p=0.0, causal=False, version=2).flatten(2))


class AttentionBlock(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, dim, mlp_ratio, num_heads, norm_eps):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        inner = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim), nn.Dropout(0.0))

    def forward(self, x):
        """[B, L, D] -> [B, L, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """The image encoder."""

    def __init__(self, image_size, patch_size, dim, mlp_ratio, out_dim, num_heads, num_layers, norm_eps):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size, bias=False)
        self.cls_embedding = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, (image_size // patch_size) ** 2 + 1, dim))
        self.dropout = nn.Dropout(0.0)
        self.pre_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.transformer = nn.Sequential(
            *(AttentionBlock(dim, mlp_ratio, num_heads, norm_eps) for _ in range(num_layers))
        )
        self.post_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.head = nn.Parameter(torch.randn(dim, out_dim))

    def forward(self, x, interpolation=False, use_31_block=False):
        """[B, 3, size, size] -> [B, L, D]."""
        assert use_31_block
        x = self.patch_embedding(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.cls_embedding.expand(len(x), -1, -1), x], dim=1)
        x = self.pre_norm(self.dropout(x + self.pos_embedding))
        return self.transformer[:-1](x)


class XLMRobertaCLIP(nn.Module):
    """Image encoder and text encoder, of which the latter is one weight here."""

    def __init__(
        self,
        embed_dim=1024,
        image_size=224,
        patch_size=14,
        vision_dim=1280,
        vision_mlp_ratio=4,
        vision_heads=16,
        vision_layers=32,
        vision_pool="token",
        vision_pre_norm=True,
        vision_post_norm=False,
        activation="gelu",
        vocab_size=250002,
        text_dim=1024,
        norm_eps=1e-5,
    ):
        super().__init__()
        assert (vision_pool, activation) == ("token", "gelu")
        self.visual = VisionTransformer(
            image_size, patch_size, vision_dim, vision_mlp_ratio, embed_dim, vision_heads, vision_layers, norm_eps
        )
        self.textual = nn.Embedding(vocab_size, text_dim)
        self.log_scale = nn.Parameter(math.log(1 / 0.07) * torch.ones([]))
