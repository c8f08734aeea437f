"""Stand-in for ``wan/modules/animate/motion_encoder.py`` of Wan2.2."""

import torch
from torch import nn
from torch.nn import functional

CHANNELS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32}


class Blur(nn.Module):
    """Every channel by itself, as pictures of one channel."""

    def __init__(self, padding):
        super().__init__()
        self.padding = padding
        self.register_buffer("kernel", torch.ones(4, 4) / 16)

    def forward(self, x):
        """[N, C, H, W] -> [N, C, H', W']."""
        pictures = functional.pad(x.flatten(0, 1).unsqueeze(1), (*self.padding, *self.padding))
        return functional.conv2d(pictures, self.kernel[None, None]).unflatten(0, x.shape[:2]).squeeze(2)


class EqualConv2d(nn.Module):
    """A convolution with scaled weights."""

    def __init__(self, in_channel, out_channel, kernel_size, stride=1, padding=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channel, in_channel, kernel_size, kernel_size))
        self.stride, self.padding = stride, padding

    def forward(self, x):
        """[N, C, H, W] -> [N, C', H', W']."""
        return functional.conv2d(x, self.weight * 0.5, stride=self.stride, padding=self.padding)


class FusedLeakyReLU(nn.Module):
    """Bias and activation."""

    def __init__(self, channel):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channel, 1, 1))

    def forward(self, x):
        """[N, C, H, W] -> [N, C, H, W]."""
        return functional.leaky_relu(x + self.bias, 0.2) * 2**0.5


class ConvLayer(nn.Sequential):
    """Blur, convolution, activation."""

    def __init__(self, in_channel, out_channel, kernel_size, downsample=False, activate=True):
        surplus = 2 + kernel_size - 1
        layers = [Blur(((surplus + 1) // 2, surplus // 2))] if downsample else []
        padding = 0 if downsample else kernel_size // 2
        layers.append(EqualConv2d(in_channel, out_channel, kernel_size, 2 if downsample else 1, padding))
        super().__init__(*layers, *([FusedLeakyReLU(out_channel)] if activate else []))


class ResBlock(nn.Module):
    """Half the picture."""

    def __init__(self, in_channel, out_channel):
        super().__init__()
        self.conv1 = ConvLayer(in_channel, in_channel, 3)
        self.conv2 = ConvLayer(in_channel, out_channel, 3, downsample=True)
        self.skip = ConvLayer(in_channel, out_channel, 1, downsample=True, activate=False)

    def forward(self, x):
        """[N, C, H, W] -> [N, C', H / 2, W / 2]."""
        return (self.conv2(self.conv1(x)) + self.skip(x)) / 2**0.5


class EncoderApp(nn.Module):
    """Picture to features."""

    def __init__(self, size, w_dim):
        super().__init__()
        sides = [side for side in sorted(CHANNELS, reverse=True) if side <= size]
        self.convs = nn.ModuleList([ConvLayer(3, CHANNELS[size], 1)])
        self.convs.extend(ResBlock(CHANNELS[side], CHANNELS[side // 2]) for side in sides[:-1])
        self.convs.append(EqualConv2d(CHANNELS[4], w_dim, 4))

    def forward(self, x):
        """[N, 3, H, W] -> [N, C]."""
        for conv in self.convs:
            x = conv(x)
        return x.flatten(1)


class EqualLinear(nn.Module):
    """A linear layer with scaled weights."""

    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, x):
        """[N, C] -> [N, C']."""
        return functional.linear(x, self.weight * 0.5, self.bias)


class Encoder(nn.Module):
    """Picture to coordinates of its motion."""

    def __init__(self, size, dim, dim_motion):
        super().__init__()
        self.net_app = EncoderApp(size, dim)
        self.fc = nn.Sequential(*(EqualLinear(dim, dim) for _ in range(4)), EqualLinear(dim, dim_motion))


class Direction(nn.Module):
    """Directions of motion, made orthonormal."""

    def __init__(self, motion_dim):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(512, motion_dim))

    def forward(self, x):
        """[N, motion] -> [N, 512]."""
        directions, _ = torch.linalg.qr(self.weight + 1e-8)
        return torch.sum(torch.matmul(torch.diag_embed(x), directions.T), dim=1)


class Synthesis(nn.Module):
    """Motion along its directions."""

    def __init__(self, motion_dim):
        super().__init__()
        self.direction = Direction(motion_dim)


class Generator(nn.Module):
    """Pictures of a face to motion."""

    def __init__(self, size, style_dim=512, motion_dim=20):
        super().__init__()
        self.enc = Encoder(size, style_dim, motion_dim)
        self.dec = Synthesis(motion_dim)

    def get_motion(self, img):
        """[N, 3, size, size] -> [N, 512]."""
        return self.dec.direction(self.enc.fc(self.enc.net_app(img)))
