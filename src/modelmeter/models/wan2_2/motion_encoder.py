"""The motion encoder of Wan2.2 Animate on shapes: pictures of a face to what moves in it.

A StyleGAN-like encoder whose convolutions scale their weights on every call, blur before they halve the
picture, and end in coordinates along learned directions of motion, which are made orthonormal on every call.

Source: diffusers 0.42 ``models/transformers/transformer_wan_animate.py``. Shapes: N pictures, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import sqrt

from modelmeter.nn import Buffer, Module, ModuleList, Parameter, Tensor, float32, functional

#: Channels by side of the picture. Source: ``WAN_ANIMATE_MOTION_ENCODER_CHANNEL_SIZES`` of diffusers.
CHANNEL_SIZES: Mapping[str, int] = {
    "4": 512,
    "8": 512,
    "16": 512,
    "32": 512,
    "64": 256,
    "128": 128,
    "256": 64,
    "512": 32,
    "1024": 16,
}
#: Taps of the blur along each side. Source: the default ``blur_kernel`` of ``MotionEncoderResBlock``.
BLUR_TAPS = 4
#: Side of the feature map after the last residual block, which the last convolution covers.
LAST_SIDE = 4
#: What is added to the directions of motion before they are made orthonormal.
DIRECTIONS_OFFSET = 1e-8


class FusedLeakyReLU(Module):
    """Bias of every channel, leaky ReLU and scale: [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, bias_channels: int) -> None:
        self.scale = 2**0.5
        self.bias = Parameter((bias_channels,), float32)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias.reshape(1, -1, 1, 1)
        x = x + bias
        return functional.leaky_relu(x) * self.scale


class MotionConv2d(Module):
    """Blur where asked, convolution with scaled weights, activation where asked: [N, C, H, W] -> [N, C', H', W'].

    Args:
        blur: blur first, each channel by itself, and pad so that ``stride`` divides the side.
        use_activation: add the bias in the activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        blur: bool = False,
        use_activation: bool = True,
    ) -> None:
        self.in_channels = in_channels
        self.blur_padding = (BLUR_TAPS - stride + kernel_size) // 2
        self.blur_kernel = Buffer((BLUR_TAPS, BLUR_TAPS), float32) if blur else None
        self.weight = Parameter((out_channels, in_channels, kernel_size, kernel_size), float32)
        self.scale = 1 / sqrt(in_channels * kernel_size**2)
        self.stride = (stride, stride)
        self.padding = padding
        self.act_fn = FusedLeakyReLU(out_channels) if use_activation else None

    def forward(self, x: Tensor) -> Tensor:
        if self.blur_kernel is not None:
            expanded_kernel = self.blur_kernel[None, None].expand(self.in_channels, 1, BLUR_TAPS, BLUR_TAPS)
            x = functional.conv(
                x, expanded_kernel.to(x.dtype), stride=(1, 1), padding=self.blur_padding, groups=self.in_channels
            )
        x = x.to(self.weight.dtype)
        x = functional.conv(x, self.weight * self.scale, stride=self.stride, padding=self.padding)
        if self.act_fn is not None:
            x = self.act_fn(x)
        return x


class MotionLinear(Module):
    """Linear with scaled weights: [N, in_dim] -> [N, out_dim]."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        self.weight = Parameter((out_dim, in_dim), float32)
        self.scale = 1 / sqrt(in_dim)
        self.bias = Parameter((out_dim,), float32)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.scale, self.bias)


class MotionEncoderResBlock(Module):
    """Two convolutions and a shortcut that halve the picture: [N, C, H, W] -> [N, C', H / 2, W / 2]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        self.conv1 = MotionConv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = MotionConv2d(in_channels, out_channels, 3, stride=2, blur=True)
        self.conv_skip = MotionConv2d(in_channels, out_channels, 1, stride=2, blur=True, use_activation=False)

    def forward(self, x: Tensor) -> Tensor:
        x_out = self.conv1(x)
        x_out = self.conv2(x_out)
        x_skip = self.conv_skip(x)
        x_out = (x_out + x_skip) / sqrt(2)
        return x_out


class WanAnimateMotionEncoder(Module):
    """Pictures of a face to motion: [N, 3, size, size] -> [N, out_dim].

    Args:
        size: rows and columns of a picture, a power of 2.
        style_dim: width of the linear layers.
        motion_dim: directions of motion.
        motion_blocks: linear layers.
        channels: channels by side, as :data:`CHANNEL_SIZES`.
    """

    def __init__(
        self,
        *,
        size: int,
        style_dim: int,
        motion_dim: int,
        out_dim: int,
        motion_blocks: int = 5,
        channels: Mapping[str, int] | None = None,
    ) -> None:
        channels = CHANNEL_SIZES if channels is None else channels
        self.size = size
        sides = [side for side in map(int, channels) if LAST_SIDE <= side <= size]
        widths = [channels[str(side)] for side in sorted(sides, reverse=True)]
        self.conv_in = MotionConv2d(3, widths[0], 1)
        self.res_blocks = ModuleList([MotionEncoderResBlock(wide, narrow) for wide, narrow in pairwise(widths)])
        self.conv_out = MotionConv2d(widths[-1], style_dim, LAST_SIDE, use_activation=False)
        dims = [style_dim] * motion_blocks + [motion_dim]
        self.motion_network = ModuleList([MotionLinear(wide, narrow) for wide, narrow in pairwise(dims)])
        self.motion_synthesis_weight = Parameter((out_dim, motion_dim), float32)

    def forward(self, face_image: Tensor) -> Tensor:
        face_image = self.conv_in(face_image)
        for block in self.res_blocks:
            face_image = block(face_image)
        face_image = self.conv_out(face_image)
        motion_feat = face_image.squeeze(-1).squeeze(-1)

        for linear_layer in self.motion_network:
            motion_feat = linear_layer(motion_feat)

        weight = self.motion_synthesis_weight + DIRECTIONS_OFFSET
        original_motion_dtype = motion_feat.dtype
        motion_feat = motion_feat.float()
        weight = weight.float()
        directions = functional.qr(weight)
        motion_feat_diag = functional.diag_embed(motion_feat)
        # the product with the transposed directions, [N, motion_dim, motion_dim] @ [motion_dim, out_dim]
        motion_decomposition = functional.linear(motion_feat_diag, directions)
        motion_vec = functional.sum(motion_decomposition, 1)
        motion_vec = motion_vec.to(original_motion_dtype)
        return motion_vec
