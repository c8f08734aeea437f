"""Stand-in for ``wan/modules/t5.py``."""

import torch
from torch import nn
from torch.nn import functional


class Norm(nn.Module):
    """Root mean square norm."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        """[B, L, D] -> [B, L, D]."""
        return self.weight * x * torch.rsqrt(x.float().pow(2).mean(dim=-1, keepdim=True) + self.eps)


class Attention(nn.Module):
    """Self-attention with a bias and without a scale."""

    def __init__(self, dim, dim_attn, num_heads, dropout=0.1):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim_attn, bias=False)
        self.k = nn.Linear(dim, dim_attn, bias=False)
        self.v = nn.Linear(dim, dim_attn, bias=False)
        self.o = nn.Linear(dim_attn, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask, pos_bias):
        """[B, L, D] -> [B, L, D]."""
        q, k, v = (each(x).unflatten(2, (self.num_heads, -1)) for each in (self.q, self.k, self.v))
        bias = x.new_zeros(len(x), self.num_heads, x.size(1), x.size(1)) + pos_bias
        if mask is not None:
            assert mask.ndim == 2
            bias.masked_fill_(mask.view(len(x), 1, 1, -1) == 0, torch.finfo(x.dtype).min)
        scores = functional.softmax((torch.einsum("binc,bjnc->bnij", q, k) + bias).float(), dim=-1)
        return self.dropout(self.o(torch.einsum("bnij,bjnc->binc", scores, v).flatten(2)))


class FeedForward(nn.Module):
    """Two ways in, one through GELU, multiplied."""

    def __init__(self, dim, dim_ffn, dropout=0.1):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(dim, dim_ffn, bias=False), nn.GELU(approximate="tanh"))
        self.fc1 = nn.Linear(dim, dim_ffn, bias=False)
        self.fc2 = nn.Linear(dim_ffn, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        """[B, L, D] -> [B, L, D]."""
        return self.dropout(self.fc2(self.dropout(self.fc1(x) * self.gate(x))))


class RelativeEmbedding(nn.Module):
    """A bias for every distance."""

    def __init__(self, num_buckets, num_heads):
        super().__init__()
        self.num_buckets = num_buckets
        self.embedding = nn.Embedding(num_buckets, num_heads)

    def forward(self, length):
        """-> [1, H, L, L]."""
        positions = torch.arange(length, device=self.embedding.weight.device)
        distances = (positions.unsqueeze(0) - positions.unsqueeze(1)).abs().clamp(max=self.num_buckets - 1)
        return self.embedding(distances).permute(2, 0, 1).unsqueeze(0).contiguous()


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm."""

    def __init__(self, dim, dim_attn, dim_ffn, num_heads, num_buckets, dropout=0.1):
        super().__init__()
        self.norm1 = Norm(dim)
        self.attn = Attention(dim, dim_attn, num_heads, dropout)
        self.norm2 = Norm(dim)
        self.ffn = FeedForward(dim, dim_ffn, dropout)
        self.pos_embedding = RelativeEmbedding(num_buckets, num_heads)

    def forward(self, x, mask=None):
        """[B, L, D] -> [B, L, D]."""
        x = x + self.attn(self.norm1(x), mask, self.pos_embedding(x.size(1)))
        return x + self.ffn(self.norm2(x))


class T5Encoder(nn.Module):
    """The text encoder."""

    def __init__(self, vocab, dim, dim_attn, dim_ffn, num_heads, num_layers, num_buckets, shared_pos=True, dropout=0.1):
        super().__init__()
        assert not shared_pos
        self.token_embedding = nn.Embedding(vocab, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(dim, dim_attn, dim_ffn, num_heads, num_buckets, dropout) for _ in range(num_layers)
        )
        self.norm = Norm(dim)

    def forward(self, ids, mask=None):
        """Ids and mask of [B, L] -> [B, L, D]."""
        x = self.dropout(self.token_embedding(ids))
        for block in self.blocks:
            x = block(x, mask)
        return self.dropout(self.norm(x))


def umt5_xxl(encoder_only=False, dtype=torch.float32, device="cpu", **sizes):
    """The encoder in its size of UMT5-XXL, on the CPU unless told otherwise."""
    assert encoder_only
    sizes = {
        "vocab_size": 256384,
        "dim": 4096,
        "dim_attn": 4096,
        "dim_ffn": 10240,
        "num_heads": 64,
        "encoder_layers": 24,
        "num_buckets": 32,
        "shared_pos": False,
        "dropout": 0.1,
        **sizes,
    }
    with torch.device(device):
        model = T5Encoder(vocab=sizes.pop("vocab_size"), num_layers=sizes.pop("encoder_layers"), **sizes)
    return model.to(dtype=dtype, device=device)
