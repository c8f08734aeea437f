"""Stand-in for ``wan/modules/vae2_2.py`` of Wan2.2."""

from itertools import pairwise

import torch
from torch import nn

from .vae2_1 import CausalConv3d, Resample, ResidualBlock, head, middle, run, slots


class Means(nn.Module):
    """Means over cells of the input: a shortcut without weights."""

    def __init__(self, out_dim, factor_t, factor_s):
        super().__init__()
        self.out_dim, self.factor_t, self.factor_s = out_dim, factor_t, factor_s

    def forward(self, x):
        """[B, C, T, H, W] -> [B, C', T', H', W']."""
        x = nn.functional.pad(x, (0, 0, 0, 0, -x.shape[2] % self.factor_t, 0))
        x = x.unflatten(4, (-1, self.factor_s)).unflatten(3, (-1, self.factor_s)).unflatten(2, (-1, self.factor_t))
        x = x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
        return x.unflatten(1, (self.out_dim, -1)).mean(dim=2)


class Copies(nn.Module):
    """The input repeated: a shortcut without weights."""

    def __init__(self, in_dim, out_dim, factor_t, factor_s):
        super().__init__()
        self.sizes = out_dim, factor_t, factor_s, factor_s
        self.repeats = out_dim * factor_t * factor_s * factor_s // in_dim

    def forward(self, x, first_chunk=False):
        """[B, C, T, H, W] -> [B, C', T', H', W']."""
        x = x.repeat_interleave(self.repeats, dim=1).unflatten(1, self.sizes)
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return x[:, :, self.sizes[1] - 1 :] if first_chunk else x


class Down_ResidualBlock(nn.Module):  # noqa: N801 (the name in the official code)
    """A level of the encoder."""

    def __init__(self, in_dim, out_dim, dropout, mult, temperal_downsample, down_flag):
        super().__init__()
        self.avg_shortcut = Means(out_dim, 2 if temperal_downsample else 1, 2 if down_flag else 1)
        layers = [ResidualBlock(out_dim if i else in_dim, out_dim, dropout) for i in range(mult)]
        if down_flag:
            layers.append(Resample(out_dim, "downsample3d" if temperal_downsample else "downsample2d"))
        self.downsamples = nn.Sequential(*layers)

    def forward(self, x, feat_cache=None, feat_idx=(0,)):
        """A chunk."""
        return run(self.downsamples, x.clone(), feat_cache, feat_idx) + self.avg_shortcut(x)


class Up_ResidualBlock(nn.Module):  # noqa: N801 (the name in the official code)
    """A level of the decoder."""

    def __init__(self, in_dim, out_dim, dropout, mult, temperal_upsample, up_flag):
        super().__init__()
        self.avg_shortcut = Copies(in_dim, out_dim, 2 if temperal_upsample else 1, 2) if up_flag else None
        layers = [ResidualBlock(out_dim if i else in_dim, out_dim, dropout) for i in range(mult)]
        if up_flag:
            layers.append(Resample(out_dim, "upsample3d" if temperal_upsample else "upsample2d", keep=True))
        self.upsamples = nn.Sequential(*layers)

    def forward(self, x, feat_cache=None, feat_idx=(0,), first_chunk=False):
        """A chunk."""
        main = run(self.upsamples, x.clone(), feat_cache, feat_idx)
        return main if self.avg_shortcut is None else main + self.avg_shortcut(x, first_chunk)


class Encoder3d(nn.Module):
    """Frames to moments."""

    def __init__(self, dim, z_dim, dim_mult, num_res_blocks, attn_scales, temperal_downsample, dropout):
        super().__init__()
        dims = [dim * u for u in [1, *dim_mult]]
        self.conv1 = CausalConv3d(12, dims[0], 3, padding=1)
        levels = [
            Down_ResidualBlock(*pair, dropout, num_res_blocks, down and temperal_downsample[i], down)
            for i, pair in enumerate(pairwise(dims))
            for down in [i != len(dim_mult) - 1]
        ]
        self.downsamples = nn.Sequential(*levels)
        self.middle = middle(dims[-1], dropout)
        self.head = head(dims[-1], z_dim)

    def forward(self, x, feat_cache=None, feat_idx=(0,)):
        """A chunk."""
        x = run([self.conv1], x, feat_cache, feat_idx)
        for level in self.downsamples:
            x = level(x, feat_cache, feat_idx)
        return run([*self.middle, *self.head], x, feat_cache, feat_idx)


class Decoder3d(nn.Module):
    """Latents to frames."""

    def __init__(self, dim, z_dim, dim_mult, num_res_blocks, attn_scales, temperal_upsample, dropout):
        super().__init__()
        dims = [dim * u for u in [dim_mult[-1], *dim_mult[::-1]]]
        self.conv1 = CausalConv3d(z_dim, dims[0], 3, padding=1)
        self.middle = middle(dims[0], dropout)
        levels = [
            Up_ResidualBlock(*pair, dropout, num_res_blocks + 1, up and temperal_upsample[i], up)
            for i, pair in enumerate(pairwise(dims))
            for up in [i != len(dim_mult) - 1]
        ]
        self.upsamples = nn.Sequential(*levels)
        self.head = head(dims[-1], 12)

    def forward(self, x, feat_cache=None, feat_idx=(0,), first_chunk=False):
        """A chunk."""
        x = run([self.conv1, *self.middle], x, feat_cache, feat_idx)
        for level in self.upsamples:
            x = level(x, feat_cache, feat_idx, first_chunk)
        return run(self.head, x, feat_cache, feat_idx)


class WanVAE_(nn.Module):  # noqa: N801 (the name in the official code)
    """The VAE, on squares of 2 x 2 pixels."""

    def __init__(
        self,
        dim=160,
        dec_dim=256,
        z_dim=16,
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
        self.decoder = Decoder3d(dec_dim, z_dim, *rest, temperal_downsample[::-1], dropout)

    def encode(self, x, scale):
        """Frames [B, 3, F, H, W] -> latents [B, C, T, h, w]."""
        features = slots(self.encoder)
        x = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)
        chunks = [x[:, :, :1], *(x[:, :, i : i + 4] for i in range(1, x.shape[2] - 3, 4))]
        mean, _ = self.conv1(torch.cat([self.encoder(chunk, features, [0]) for chunk in chunks], 2)).chunk(2, dim=1)
        return (mean - scale[0]) * scale[1]

    def decode(self, z, scale):
        """Latents [B, C, T, h, w] -> frames [B, 3, F, H, W]."""
        features = slots(self.decoder)
        x = self.conv2(z / scale[1] + scale[0])
        frames = [self.decoder(x[:, :, i : i + 1], features, [0], first_chunk=i == 0) for i in range(x.shape[2])]
        x = torch.cat(frames, 2).unflatten(1, (3, 2, 2))
        return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
