"""``torch.nn`` on shapes: the modules that models are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modelmeter.nn import functional as F
from modelmeter.nn.dtype import float32
from modelmeter.nn.modules import Module
from modelmeter.nn.tensor import Parameter, Tensor


class ModuleList(Module):
    """Modules under the names ``0``, ``1``, ...; not called itself."""

    def __init__(self, modules: Sequence[Module]) -> None:
        vars(self).update((str(i), module) for i, module in enumerate(modules))

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self.named_children())

    def __getitem__(self, index: int) -> Module:
        module: Module = vars(self)[str(index)]
        return module


class Linear(Module):
    """[..., in_features] -> [..., out_features].

    Example:
        >>> Linear(4, 8).params
        40
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        self.weight = Parameter((out_features, in_features), float32)
        self.bias = Parameter((out_features,), float32) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv1d(Module):
    """[B, in_channels, L] -> [B, out_channels, L'], no padding.

    Example:
        >>> from modelmeter.nn import float32, trace
        >>> trace(Conv1d(4, 8, 3, stride=2), Tensor((1, 4, 9), float32)).outputs.shape
        (1, 8, 4)
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, bias: bool = True
    ) -> None:
        self.stride = stride
        self.weight = Parameter((out_channels, in_channels, kernel_size), float32)
        self.bias = Parameter((out_channels,), float32) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.conv(x, self.weight, self.bias, stride=(self.stride,))


class Conv2d(Module):
    """[B, in_channels, H, W] -> [B, out_channels, H', W'], with ``padding`` zeros on every side.

    Example:
        >>> from modelmeter.nn import float32, trace
        >>> trace(Conv2d(3, 32, (14, 14), stride=(14, 14), bias=False), Tensor((1, 3, 28, 28), float32)).outputs.shape
        (1, 32, 2, 2)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        *,
        stride: tuple[int, int] = (1, 1),
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        self.stride = stride
        self.padding = padding
        self.weight = Parameter((out_channels, in_channels, *kernel_size), float32)
        self.bias = Parameter((out_channels,), float32) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.conv(x, self.weight, self.bias, stride=self.stride, padding=self.padding)


class Conv3d(Module):
    """[B, in_channels, T, H, W] -> [B, out_channels, T', H', W'], no padding.

    Example:
        >>> from modelmeter.nn import float32, trace
        >>> trace(Conv3d(16, 32, (1, 2, 2), stride=(1, 2, 2)), Tensor((1, 16, 5, 8, 8), float32)).outputs.shape
        (1, 32, 5, 4, 4)
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int], *, stride: tuple[int, int, int]
    ) -> None:
        self.stride = stride
        self.weight = Parameter((out_channels, in_channels, *kernel_size), float32)
        self.bias = Parameter((out_channels,), float32)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv(x, self.weight, self.bias, stride=self.stride)


class Embedding(Module):
    """Rows of a table by index: [...] -> [..., embedding_dim].

    Example:
        >>> Embedding(1000, 8).params
        8000
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        self.weight = Parameter((num_embeddings, embedding_dim), float32)

    def forward(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.weight)


class LayerNorm(Module):
    """Layer norm over the last dimension, with weight and bias unless it has none.

    Example:
        >>> LayerNorm(128).params, LayerNorm(128, elementwise_affine=False).params
        (256, 0)
    """

    def __init__(self, normalized_shape: int, *, elementwise_affine: bool = True) -> None:
        self.normalized_shape = normalized_shape
        self.weight = Parameter((normalized_shape,), float32) if elementwise_affine else None
        self.bias = Parameter((normalized_shape,), float32) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias)


class RMSNorm(Module):
    """RMS norm over the last dimension, with a weight: one kernel, or its steps where ``fused`` is false.

    Example:
        >>> RMSNorm(128).params
        128
    """

    def __init__(self, normalized_shape: int) -> None:
        self.fused = True
        self.weight = Parameter((normalized_shape,), float32)

    def forward(self, x: Tensor) -> Tensor:
        (size,) = self.weight.shape
        assert isinstance(size, int)
        run = F.rms_norm if self.fused else F.decomposed_rms_norm
        return run(x, size, self.weight)


class GELU(Module):
    """GELU on every element."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class SiLU(Module):
    """SiLU on every element."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class Identity(Module):
    """Returns its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Dropout(Identity):
    """Dropout in inference: returns its input."""


class Sequential(ModuleList):
    """Modules under the names ``0``, ``1``, ..., each called on what the one before returned.

    Example:
        >>> from modelmeter.nn import Linear, float32, trace
        >>> trace(Sequential([Linear(4, 8), Linear(8, 2)]), Tensor((3, 4), float32)).outputs.shape
        (3, 2)
    """

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x


class ZeroPad2d(Module):
    """Zeros around rows and columns: ``padding`` is left, right, top, bottom."""

    def __init__(self, padding: tuple[int, int, int, int]) -> None:
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.padding)
