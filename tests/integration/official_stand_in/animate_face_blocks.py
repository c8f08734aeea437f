"""Stand-in for ``wan/modules/animate/face_blocks.py`` of Wan2.2."""

import torch
from torch import nn
from torch.nn import functional

flash_attn_func = None  # the package is not installed


class CausalConv1d(nn.Module):
    """Looks at the frames before."""

    def __init__(self, chan_in, chan_out, kernel_size=3, stride=1):
        super().__init__()
        self.padding = (kernel_size - 1, 0)
        self.conv = nn.Conv1d(chan_in, chan_out, kernel_size, stride=stride)

    def forward(self, x):
        """[B, L, C] -> [B, L', C']."""
        return self.conv(functional.pad(x.transpose(1, 2), self.padding, mode="replicate")).transpose(1, 2)


class FaceEncoder(nn.Module):
    """Motion of frames to tokens of latent frames."""

    def __init__(self, in_dim, hidden_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.conv1_local = CausalConv1d(in_dim, 1024 * num_heads)
        self.conv2 = CausalConv1d(1024, 1024, stride=2)
        self.conv3 = CausalConv1d(1024, 1024, stride=2)
        self.norm1 = nn.LayerNorm(1024, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(1024, elementwise_affine=False)
        self.norm3 = nn.LayerNorm(1024, elementwise_affine=False)
        self.act = nn.SiLU()
        self.out_proj = nn.Linear(1024, hidden_dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, hidden_dim))

    def forward(self, x):
        """[B, F, C] -> [B, T, heads + 1, D]."""
        batch = len(x)
        x = self.conv1_local(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2).flatten(0, 1)
        x = self.act(self.norm1(x))
        x = self.act(self.norm2(self.conv2(x)))
        x = self.out_proj(self.act(self.norm3(self.conv3(x))))
        x = x.unflatten(0, (batch, -1)).transpose(1, 2)
        return torch.cat([x, self.padding_tokens.expand(batch, x.shape[1], 1, -1)], dim=2)


class RMSNorm(nn.Module):
    """Root mean square norm of a head."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        """[..., E] -> [..., E]."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class FaceBlock(nn.Module):
    """Attention of each latent frame to its face."""

    def __init__(self, hidden_size, heads_num):
        super().__init__()
        self.heads_num = heads_num
        self.linear1_kv = nn.Linear(hidden_size, 2 * hidden_size)
        self.linear1_q = nn.Linear(hidden_size, hidden_size)
        self.linear2 = nn.Linear(hidden_size, hidden_size)
        self.q_norm = RMSNorm(hidden_size // heads_num)
        self.k_norm = RMSNorm(hidden_size // heads_num)
        self.pre_norm_feat = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.pre_norm_motion = nn.LayerNorm(hidden_size, elementwise_affine=False)

    def forward(self, x, motion_vec):
        """[B, S, D], [B, T, N, D] -> [B, S, D]."""
        frames = motion_vec.shape[1]
        k, v = self.linear1_kv(self.pre_norm_motion(motion_vec)).unflatten(3, (2, self.heads_num, -1)).unbind(3)
        q = self.linear1_q(self.pre_norm_feat(x)).unflatten(2, (self.heads_num, -1))
        q = self.q_norm(q).unflatten(1, (frames, -1)).flatten(0, 1)
        attended = flash_attn_func(q, self.k_norm(k).flatten(0, 1), v.flatten(0, 1))
        return self.linear2(attended.flatten(2).unflatten(0, (len(x), frames)).flatten(1, 2))


class FaceAdapter(nn.Module):
    """A block after every few of the transformer."""

    def __init__(self, hidden_dim, heads_num, num_adapter_layers):
        super().__init__()
        self.fuser_blocks = nn.ModuleList(FaceBlock(hidden_dim, heads_num) for _ in range(num_adapter_layers))
