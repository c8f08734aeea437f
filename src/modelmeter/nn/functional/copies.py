"""Kernels that move bytes and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence

from modelmeter.nn.dtype import DType, float32
from modelmeter.nn.polynomial import Dim
from modelmeter.nn.tensor import Tensor, launch, like


def cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenation, a copy of every operand.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> x = Tensor((2, 3), float32)
        >>> trace_function(lambda: cat([x, x], dim=-1)).outputs.shape
        (2, 6)
    """
    first = tensors[0]
    dim %= first.ndim
    for tensor in tensors:
        shape = (*tensor.shape[:dim], first.shape[dim], *tensor.shape[dim + 1 :])
        if shape != first.shape or tensor.dtype != first.dtype:
            raise ValueError(f"cat along {dim} of {first} and {tensor}")
    size: Dim = 0
    for tensor in tensors:
        size = size + tensor.shape[dim]
    return launch("cat", "copy", tensors, (*first.shape[:dim], size, *first.shape[dim + 1 :]), first.dtype)


def pad(x: Tensor, padding: Sequence[int]) -> Tensor:
    """Zeros around the last dimensions, a copy: ``padding`` is (before, after) from the last dimension back.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> trace_function(lambda: pad(Tensor((2, 3), float32), (0, 1))).outputs.shape
        (2, 4)
    """
    shape = list(x.shape)
    for i, (before, after) in enumerate(zip(padding[::2], padding[1::2], strict=True)):
        shape[-1 - i] = shape[-1 - i] + before + after
    return launch("constant_pad_nd", "copy", (x,), tuple(shape), x.dtype)


def arange(length: int, dtype: DType = float32) -> Tensor:
    """``length`` ascending numbers; writes only."""
    return launch("arange", "copy", (), (length,), dtype)


def empty_like(x: Tensor) -> Tensor:
    """Storage of the same size and layout; nothing is read or written."""
    return launch("empty_like", "allocate", (), x.shape, x.dtype, strides=like(x.shape, x), bytes_written=0)
