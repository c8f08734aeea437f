"""Stand-in for ``wan/modules/vae.py`` of Wan2.1 and ``vae2_1.py`` of Wan2.2."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

FRAMES = 2


class CausalConv3d(nn.Conv3d):
    """Looks at the frames before and none after."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        time, rows, columns = self.padding
        self.around = (columns, columns, rows, rows, 2 * time, 0)
        self.padding = (0, 0, 0)

    def forward(self, x, cache_x=None):
        """[B, C, T, H, W], frames before it -> [B, C', T', H', W']."""
        around = list(self.around)
        if cache_x is not None and around[4] > 0:
            x = torch.cat([cache_x, x], dim=2)
            around[4] -= cache_x.shape[2]
        return super().forward(functional.pad(x, around))


class RMS_norm(nn.Module):  # noqa: N801 (the name in the official code)
    """Root mean square norm over channels."""

    def __init__(self, dim, channel_first=True, images=True, bias=False):
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1) if images else torch.ones(dim, 1, 1, 1))
        self.bias = 0.0

    def forward(self, x):
        """[B, C, ...] -> [B, C, ...]."""
        return functional.normalize(x, dim=1) * self.scale * self.gamma + self.bias


def cached(conv, x, feat_cache, feat_idx):
    """A convolution that goes on where the chunk before ended."""
    i = feat_idx[0]
    kept = x[:, :, -FRAMES:].clone()
    if kept.shape[2] < FRAMES and feat_cache[i] is not None:
        kept = torch.cat([feat_cache[i][:, :, -1:], kept], dim=2)
    x = conv(x, feat_cache[i])
    feat_cache[i] = kept
    feat_idx[0] += 1
    return x


class Resample(nn.Module):
    """Half or twice the rows and columns, and frames."""

    def __init__(self, dim, mode, keep=False):
        super().__init__()
        self.mode = mode
        if mode.startswith("upsample"):
            up = nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact")
            self.resample = nn.Sequential(up, nn.Conv2d(dim, dim if keep else dim // 2, 3, padding=1))
        else:
            self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=(2, 2)))
        if mode == "upsample3d":
            self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1), padding=(1, 0, 0))
        elif mode == "downsample3d":
            self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1), padding=(0, 0, 0))

    def forward(self, x, feat_cache=None, feat_idx=(0,)):
        """[B, C, T, H, W] -> [B, C', T', H', W']."""
        if self.mode == "upsample3d":
            i = feat_idx[0]
            if feat_cache[i] is None:
                feat_cache[i] = "first"
                feat_idx[0] += 1
            else:
                before = feat_cache[i]
                kept = x[:, :, -FRAMES:].clone()
                if kept.shape[2] < FRAMES:
                    missing = torch.zeros_like(kept) if isinstance(before, str) else before[:, :, -1:]
                    kept = torch.cat([missing, kept], dim=2)
                x = self.time_conv(x) if isinstance(before, str) else self.time_conv(x, before)
                feat_cache[i] = kept
                feat_idx[0] += 1
                x = x.unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)
        batch, frames = x.shape[0], x.shape[2]
        x = self.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)
        if self.mode == "downsample3d":
            i = feat_idx[0]
            if feat_cache[i] is None:
                feat_cache[i] = x.clone()
            else:
                kept = x[:, :, -1:].clone()
                x = self.time_conv(torch.cat([feat_cache[i][:, :, -1:], x], dim=2))
                feat_cache[i] = kept
            feat_idx[0] += 1
        return x


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, in_dim, out_dim, dropout=0.0):
        super().__init__()
        self.residual = nn.Sequential(
            RMS_norm(in_dim, images=False),
            nn.SiLU(),
            CausalConv3d(in_dim, out_dim, 3, padding=1),
            RMS_norm(out_dim, images=False),
            nn.SiLU(),
            nn.Dropout(dropout),
            CausalConv3d(out_dim, out_dim, 3, padding=1),
        )
        self.shortcut = CausalConv3d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, x, feat_cache=None, feat_idx=(0,)):
        """[B, C, T, H, W] -> [B, C', T, H, W]."""
        h = self.shortcut(x)
        for layer in self.residual:
            x = cached(layer, x, feat_cache, feat_idx) if isinstance(layer, CausalConv3d) else layer(x)
        return x + h


class AttentionBlock(nn.Module):
    """Attention among the pixels of a frame."""

    def __init__(self, dim):
        super().__init__()
        self.norm = RMS_norm(dim)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        """[B, C, T, H, W] -> [B, C, T, H, W]."""
        batch, frames = x.shape[0], x.shape[2]
        pixels = self.norm(x.transpose(1, 2).flatten(0, 1))
        q, k, v = self.to_qkv(pixels).flatten(2).transpose(1, 2).unsqueeze(1).contiguous().chunk(3, dim=-1)
        attended = functional.scaled_dot_product_attention(q, k, v)
        attended = self.proj(attended.squeeze(1).transpose(1, 2).reshape(pixels.shape))
        return attended.unflatten(0, (batch, frames)).transpose(1, 2) + x


def middle(dim, dropout):
    """The lowest level."""
    return nn.Sequential(ResidualBlock(dim, dim, dropout), AttentionBlock(dim), ResidualBlock(dim, dim, dropout))


def head(dim, out_dim):
    """The last layers."""
    return nn.Sequential(RMS_norm(dim, images=False), nn.SiLU(), CausalConv3d(dim, out_dim, 3, padding=1))


def run(layers, x, feat_cache, feat_idx):
    """Layers in a row, with features where they keep some."""
    for layer in layers:
        if isinstance(layer, CausalConv3d):
            x = cached(layer, x, feat_cache, feat_idx)
        elif isinstance(layer, (ResidualBlock, Resample)):
            x = layer(x, feat_cache, feat_idx)
        else:
            x = layer(x)
    return x


class Encoder3d(nn.Module):
    """Frames to moments."""

    def __init__(self, dim, z_dim, dim_mult, num_res_blocks, attn_scales, temperal_downsample, dropout):
        super().__init__()
        dims = [dim * u for u in [1, *dim_mult]]
        self.conv1 = CausalConv3d(3, dims[0], 3, padding=1)
        layers = []
        for i, (in_dim, out_dim) in enumerate(pairwise(dims)):
            for number in range(num_res_blocks):
                layers.append(ResidualBlock(out_dim if number else in_dim, out_dim, dropout))
            if i != len(dim_mult) - 1:
                layers.append(Resample(out_dim, "downsample3d" if temperal_downsample[i] else "downsample2d"))
        self.downsamples = nn.Sequential(*layers)
        self.middle = middle(dims[-1], dropout)
        self.head = head(dims[-1], z_dim)

    def forward(self, x, feat_cache=None, feat_idx=(0,)):
        """A chunk."""
        return run([self.conv1, *self.downsamples, *self.middle, *self.head], x, feat_cache, feat_idx)


class Decoder3d(nn.Module):
    """Latents to frames."""

    def __init__(self, dim, z_dim, dim_mult, num_res_blocks, attn_scales, temperal_upsample, dropout):
        super().__init__()
        dims = [dim * u for u in [dim_mult[-1], *dim_mult[::-1]]]
        self.conv1 = CausalConv3d(z_dim, dims[0], 3, padding=1)
        self.middle = middle(dims[0], dropout)
        layers = []
        for i, (in_dim, out_dim) in enumerate(pairwise(dims)):
            for number in range(num_res_blocks + 1):
                # the upsampler before has halved the channels
                first = in_dim // 2 if i else in_dim
                layers.append(ResidualBlock(out_dim if number else first, out_dim, dropout))
            if i != len(dim_mult) - 1:
                layers.append(Resample(out_dim, "upsample3d" if temperal_upsample[i] else "upsample2d"))
        self.upsamples = nn.Sequential(*layers)
        self.head = head(dims[-1], 3)

    def forward(self, x, feat_cache=None, feat_idx=(0,)):
        """A chunk."""
        return run([self.conv1, *self.middle, *self.upsamples, *self.head], x, feat_cache, feat_idx)


def slots(module):
    """A place for the features of every convolution."""
    return [None] * sum(isinstance(each, CausalConv3d) for each in module.modules())


class WanVAE_(nn.Module):  # noqa: N801 (the name in the official code)
    """The VAE."""

    def __init__(
        self,
        dim=128,
        z_dim=4,
        dim_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        attn_scales=(),
        temperal_downsample=(True, True, False),
        dropout=0.0,
    ):
        super().__init__()
        self.z_dim = z_dim
        rest = dim_mult, num_res_blocks, attn_scales
        self.encoder = Encoder3d(dim, z_dim * 2, *rest, temperal_downsample, dropout)
        self.conv1 = CausalConv3d(z_dim * 2, z_dim * 2, 1)
        self.conv2 = CausalConv3d(z_dim, z_dim, 1)
        self.decoder = Decoder3d(dim, z_dim, *rest, temperal_downsample[::-1], dropout)

    def encode(self, x, scale):
        """Frames [B, 3, F, H, W] -> latents [B, C, T, h, w]."""
        features = slots(self.encoder)
        chunks = [x[:, :, :1], *(x[:, :, i : i + 4] for i in range(1, x.shape[2] - 3, 4))]
        mean, _ = self.conv1(torch.cat([self.encoder(chunk, features, [0]) for chunk in chunks], 2)).chunk(2, dim=1)
        return (mean - scale[0]) * scale[1]

    def decode(self, z, scale):
        """Latents [B, C, T, h, w] -> frames [B, 3, F, H, W]."""
        features = slots(self.decoder)
        x = self.conv2(z / scale[1] + scale[0])
        return torch.cat([self.decoder(x[:, :, i : i + 1], features, [0]) for i in range(x.shape[2])], 2)
