"""Blocks of the Wan VAE, its encoder and its decoder, for one chunk of frames at a time.

Source: diffusers ``models/autoencoders/autoencoder_kl_wan.py``. Videos are [B, C, T, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from modelmeter.models.common.vae_layers import (
    AvgDown3D,
    DupUp3D,
    Features,
    WanResample,
    WanRMS_norm,
    conv_3,
    convolved,
    shortcut,
)
from modelmeter.nn import Conv2d, Dropout, Module, ModuleList, SiLU, Tensor
from modelmeter.nn import functional as F


class WanResidualBlock(Module):
    """Norm, SiLU and causal convolution, twice, beside a shortcut."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        self.nonlinearity = SiLU()
        self.norm1 = WanRMS_norm(in_dim, images=False)
        self.conv1 = conv_3(in_dim, out_dim)
        self.norm2 = WanRMS_norm(out_dim, images=False)
        self.dropout = Dropout()
        self.conv2 = conv_3(out_dim, out_dim)
        self.conv_shortcut = shortcut(in_dim, out_dim)

    def forward(self, x: Tensor, features: Features) -> Tensor:
        h = self.conv_shortcut(x)
        x = self.norm1(x)
        x = self.nonlinearity(x)
        x = convolved(self.conv1, x, features)
        x = self.norm2(x)
        x = self.nonlinearity(x)
        x = self.dropout(x)
        x = convolved(self.conv2, x, features)
        return x + h


class WanAttentionBlock(Module):
    """Self-attention with one head over the pixels of each frame."""

    def __init__(self, dim: int) -> None:
        self.norm = WanRMS_norm(dim)
        self.to_qkv = Conv2d(dim, dim * 3, (1, 1))
        self.proj = Conv2d(dim, dim, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        b, c, t, h, w = x.shape
        x = x.permute(0, 2, 1, 3, 4).reshape(b * t, c, h, w)
        x = self.norm(x)
        qkv = self.to_qkv(x)
        qkv = qkv.reshape(b * t, 1, c * 3, h * w)
        qkv = qkv.permute(0, 1, 3, 2).contiguous()
        q, k, v = qkv.chunk(3, dim=-1)
        x = F.scaled_dot_product_attention(q, k, v)
        x = x.squeeze(1).permute(0, 2, 1).reshape(b * t, c, h, w)
        x = self.proj(x)
        x = x.view(b, t, c, h, w)
        x = x.permute(0, 2, 1, 3, 4)
        return x + identity


class WanMidBlock(Module):
    """Residual block, attention, residual block."""

    def __init__(self, dim: int) -> None:
        self.attentions = ModuleList([WanAttentionBlock(dim)])
        self.resnets = ModuleList([WanResidualBlock(dim, dim), WanResidualBlock(dim, dim)])

    def forward(self, x: Tensor, features: Features) -> Tensor:
        x = self.resnets[0](x, features)
        x = self.attentions[0](x)
        x = self.resnets[1](x, features)
        return x


class WanResidualDownBlock(Module):
    """A level of the encoder of Wan2.2: residual blocks and a downsampler, beside means of the input.

    Args:
        temperal_downsample, down_flag: halve the frames; halve rows and columns.
    """

    def __init__(
        self, in_dim: int, out_dim: int, num_res_blocks: int, *, temperal_downsample: bool, down_flag: bool
    ) -> None:
        factor_t, factor_s = 2 if temperal_downsample else 1, 2 if down_flag else 1
        self.avg_shortcut = AvgDown3D(in_dim, out_dim, factor_t=factor_t, factor_s=factor_s)
        self.resnets = _residual_blocks(in_dim, out_dim, num_res_blocks)
        mode = "downsample3d" if temperal_downsample else "downsample2d"
        self.downsampler = WanResample(out_dim, mode=mode) if down_flag else None

    def forward(self, x: Tensor, features: Features) -> Tensor:
        x_copy = x.clone()
        for resnet in self.resnets:
            x = resnet(x, features)
        if self.downsampler is not None:
            x = self.downsampler(x, features)
        return x + self.avg_shortcut(x_copy)


class WanEncoder3d(Module):
    """A chunk of frames to moments of its latents.

    Args:
        in_channels: channels of a frame, after patchifying.
        dim, dim_mult: channels of the first layer, and their multiples by level.
        z_dim: channels of the result.
        num_res_blocks: residual blocks of a level.
        attn_scales: levels with attention, which the reference has but cannot run.
        temperal_downsample: for each level but the last whether it halves the frames.
        is_residual: levels as in Wan2.2.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        z_dim: int,
        dim_mult: Sequence[int],
        num_res_blocks: int,
        attn_scales: Sequence[float],
        temperal_downsample: Sequence[bool],
        *,
        is_residual: bool,
    ) -> None:
        self.nonlinearity = SiLU()
        dims = [dim * multiple for multiple in (1, *dim_mult)]
        self.conv_in = conv_3(in_channels, dims[0])
        levels: list[Module] = []
        for i, (in_dim, out_dim) in enumerate(pairwise(dims)):
            down = i != len(dim_mult) - 1
            halved = down and temperal_downsample[i]
            if is_residual:
                levels.append(
                    WanResidualDownBlock(in_dim, out_dim, num_res_blocks, temperal_downsample=halved, down_flag=down)
                )
                continue
            for resnet in _residual_blocks(in_dim, out_dim, num_res_blocks):
                levels.append(resnet)
                if 0.5**i in attn_scales:
                    levels.append(WanAttentionBlock(out_dim))
            if down:
                levels.append(WanResample(out_dim, mode="downsample3d" if halved else "downsample2d"))
        self.down_blocks = ModuleList(levels)
        self.mid_block = WanMidBlock(dims[-1])
        self.norm_out = WanRMS_norm(dims[-1], images=False)
        self.conv_out = conv_3(dims[-1], z_dim)

    def forward(self, x: Tensor, features: Features) -> Tensor:
        x = convolved(self.conv_in, x, features)
        for layer in self.down_blocks:
            x = layer(x, features)
        x = self.mid_block(x, features)
        x = self.norm_out(x)
        x = self.nonlinearity(x)
        x = convolved(self.conv_out, x, features)
        return x


class WanResidualUpBlock(Module):
    """A level of the decoder of Wan2.2: residual blocks and an upsampler, beside the input repeated.

    Args:
        upsample_mode: of :class:`~modelmeter.models.common.vae_layers.WanResample`; ``None`` without upsampler.
    """

    def __init__(self, in_dim: int, out_dim: int, num_res_blocks: int, *, upsample_mode: str | None) -> None:
        factor_t = 2 if upsample_mode == "upsample3d" else 1
        self.avg_shortcut = None if upsample_mode is None else DupUp3D(in_dim, out_dim, factor_t=factor_t, factor_s=2)
        self.resnets = _residual_blocks(in_dim, out_dim, num_res_blocks + 1)
        self.upsampler = (
            None if upsample_mode is None else WanResample(out_dim, mode=upsample_mode, upsample_out_dim=out_dim)
        )

    def forward(self, x: Tensor, features: Features, *, first_chunk: bool) -> Tensor:
        x_copy = x.clone()
        for resnet in self.resnets:
            x = resnet(x, features)
        if self.upsampler is not None:
            x = self.upsampler(x, features)
        if self.avg_shortcut is not None:
            x = x + self.avg_shortcut(x_copy, first_chunk=first_chunk)
        return x


class WanUpBlock(Module):
    """A level of the decoder of Wan2.1: residual blocks and an upsampler that halves the channels.

    ``x`` in a list is handed over: no caller holds it while the level runs.
    """

    def __init__(self, in_dim: int, out_dim: int, num_res_blocks: int, *, upsample_mode: str | None) -> None:
        self.resnets = _residual_blocks(in_dim, out_dim, num_res_blocks + 1)
        self.upsamplers = None if upsample_mode is None else ModuleList([WanResample(out_dim, mode=upsample_mode)])

    def forward(self, x: Tensor | list[Tensor], features: Features, *, first_chunk: bool) -> Tensor:
        tensor = x.pop() if isinstance(x, list) else x
        del x
        for resnet in self.resnets:
            tensor = resnet(tensor, features)
        if self.upsamplers is not None:
            tensor = self.upsamplers[0](tensor, features)
        return tensor


class WanDecoder3d(Module):
    """A chunk of latents to frames.

    Args:
        dim, dim_mult: channels of the last level, and their multiples by level of the encoder.
        z_dim: channels of the latents.
        num_res_blocks: residual blocks of a level, which has one more.
        temperal_upsample: for each level but the last whether it doubles the frames.
        out_channels: channels of a frame, before unpatchifying.
        is_residual: levels as in Wan2.2.
        flat: the layers of all levels follow each other in one list, so that nothing holds the input of a level.
    """

    def __init__(
        self,
        dim: int,
        z_dim: int,
        dim_mult: Sequence[int],
        num_res_blocks: int,
        temperal_upsample: Sequence[bool],
        out_channels: int,
        *,
        is_residual: bool,
        flat: bool = False,
    ) -> None:
        self.flat = flat and not is_residual
        self.nonlinearity = SiLU()
        dims = [dim * multiple for multiple in (dim_mult[-1], *reversed(dim_mult))]
        self.conv_in = conv_3(z_dim, dims[0])
        self.mid_block = WanMidBlock(dims[0])
        levels: list[Module] = []
        for i, (in_dim, out_dim) in enumerate(pairwise(dims)):
            mode = None
            if i != len(dim_mult) - 1:
                mode = "upsample3d" if temperal_upsample[i] else "upsample2d"
            if is_residual:
                levels.append(WanResidualUpBlock(in_dim, out_dim, num_res_blocks, upsample_mode=mode))
            else:  # the upsampler before has halved the channels
                halved = in_dim // 2 if i > 0 else in_dim
                levels.append(WanUpBlock(halved, out_dim, num_res_blocks, upsample_mode=mode))
        self.up_blocks = ModuleList(levels)
        self.norm_out = WanRMS_norm(dims[-1], images=False)
        self.conv_out = conv_3(dims[-1], out_channels)

    def forward(self, x: Tensor, features: Features, *, first_chunk: bool = False) -> Tensor:
        x = convolved(self.conv_in, x, features)
        x = self.mid_block(x, features)
        for up_block in self.up_blocks:
            if self.flat:
                handed = [x]
                del x
                x = up_block(handed, features, first_chunk=first_chunk)
            else:
                x = up_block(x, features, first_chunk=first_chunk)
        x = self.norm_out(x)
        x = self.nonlinearity(x)
        x = convolved(self.conv_out, x, features)
        return x


def _residual_blocks(in_dim: int, out_dim: int, count: int) -> ModuleList:
    """Blocks in a row; the first changes the channels."""
    return ModuleList([WanResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(count)])
