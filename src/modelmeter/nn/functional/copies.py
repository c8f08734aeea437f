"""Kernels that move bytes and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from modelmeter.nn.autocast import raised
from modelmeter.nn.dtype import DType, complex64, complex128, float32, float64, promote
from modelmeter.nn.layout import suggested_strides
from modelmeter.nn.polynomial import Dim
from modelmeter.nn.tensor import Tensor, launch, like, weight_bytes


def cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenation, a copy of every operand, in the dtype that they promote to.

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
        if shape != first.shape:
            raise ValueError(f"cat along {dim} of {first} and {tensor}")
    size: Dim = 0
    for tensor in tensors:
        size = size + tensor.shape[dim]
    dtype = promote(tensor.dtype for tensor in tensors)
    return launch("cat", "copy", tensors, (*first.shape[:dim], size, *first.shape[dim + 1 :]), dtype)


def stack(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenation along a new dimension, a copy of every operand, in the dtype that they promote to.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> x = Tensor((2, 3), float32)
        >>> trace_function(lambda: stack([x, x], dim=2)).outputs.shape
        (2, 3, 2)
    """
    first = tensors[0]
    dim %= first.ndim + 1
    for tensor in tensors:
        if tensor.shape != first.shape:
            raise ValueError(f"stack of {first} and {tensor}")
    dtype = promote(tensor.dtype for tensor in tensors)
    return launch("stack", "copy", tensors, (*first.shape[:dim], len(tensors), *first.shape[dim:]), dtype)


def pad(x: Tensor, padding: Sequence[int]) -> Tensor:
    """Zeros around the last dimensions, a copy: ``padding`` is (before, after) from the last dimension back.

    By nothing at all it is a copy too, which keeps the order of dimensions in memory.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> trace_function(lambda: pad(Tensor((2, 3), float32), (0, 1))).outputs.shape
        (2, 4)
    """
    shape = list(x.shape)
    for i, (before, after) in enumerate(zip(padding[::2], padding[1::2], strict=True)):
        shape[-1 - i] = shape[-1 - i] + before + after
    strides = suggested_strides(tuple(shape), (x.shape, x.strides)) if any(padding) else like(x.shape, x)
    return launch("constant_pad_nd", "copy", (x,), tuple(shape), x.dtype, strides=strides)


def replication_pad1d(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """The first and the last element of every row repeated before and behind it, a copy: [B, C, T] -> [B, C, T'].

    Example:
        >>> from modelmeter.nn import trace_function
        >>> trace_function(replication_pad1d, Tensor((1, 3, 4), float32), (2, 0)).outputs.shape
        (1, 3, 6)
    """
    *outer, size = x.shape
    return launch("replication_pad1d", "copy", (x,), (*outer, size + padding[0] + padding[1]), x.dtype)


def diag_embed(x: Tensor) -> Tensor:
    """Diagonal matrices: [..., N] -> [..., N, N].

    Example:
        >>> from modelmeter.nn import trace_function
        >>> trace_function(diag_embed, Tensor((2, 3), float32)).outputs.shape
        (2, 3, 3)
    """
    return launch("diag_embed", "copy", (x,), (*x.shape, x.shape[-1]), x.dtype)


def upsample_nearest_exact(x: Tensor, scale: int) -> Tensor:
    """Every row and column ``scale`` times: [B, C, H, W] -> [B, C, scale * H, scale * W].

    Example:
        >>> from modelmeter.nn import trace_function
        >>> trace_function(upsample_nearest_exact, Tensor((1, 3, 4, 6), float32), 2).outputs.shape
        (1, 3, 8, 12)
    """
    x = raised(x)
    *outer, rows, columns = x.shape
    shape = (*outer, rows * scale, columns * scale)
    strides = suggested_strides(shape, (x.shape, x.strides))
    return launch("_upsample_nearest_exact2d", "copy", (x,), shape, x.dtype, strides=strides)


def arange(length: Dim, dtype: DType = float32) -> Tensor:
    """``length`` ascending numbers; writes only."""
    return launch("arange", "copy", (), (length,), dtype)


def linspace(start: float, end: float, steps: int) -> Tensor:
    """``steps`` numbers from ``start`` to ``end``; writes only."""
    return launch("linspace", "copy", (), (steps,), float32)


def zeros(shape: Sequence[Dim], dtype: DType) -> Tensor:
    """Zeros; writes only."""
    return launch("zeros", "copy", (), tuple(shape), dtype)


def ones(shape: Sequence[Dim], dtype: DType) -> Tensor:
    """Ones; writes only."""
    return launch("ones", "copy", (), tuple(shape), dtype)


def new_zeros(like: Tensor, shape: Sequence[Dim]) -> Tensor:
    """Zeros of another shape in the dtype of a tensor; writes only."""
    return launch("new_zeros", "copy", (), tuple(shape), like.dtype)


def new_ones(like: Tensor, shape: Sequence[Dim]) -> Tensor:
    """Ones of another shape in the dtype of a tensor; writes only."""
    return launch("new_ones", "copy", (), tuple(shape), like.dtype)


def empty_like(x: Tensor) -> Tensor:
    """Storage of the same size and layout; nothing is read or written."""
    return launch("empty_like", "allocate", (), x.shape, x.dtype, strides=like(x.shape, x), bytes_written=0)


def zeros_like(x: Tensor) -> Tensor:
    """Zeros of the same size and layout; writes only."""
    return launch("zeros_like", "copy", (), x.shape, x.dtype, strides=like(x.shape, x))


def ones_like(x: Tensor) -> Tensor:
    """Ones of the same size and layout; writes only."""
    return launch("ones_like", "copy", (), x.shape, x.dtype, strides=like(x.shape, x))


def full_like(x: Tensor, value: float) -> Tensor:
    """A number in every element of a tensor of the same size and layout; writes only."""
    return launch("full_like", "copy", (), x.shape, x.dtype, strides=like(x.shape, x))


def view_as_complex(x: Tensor) -> Tensor:
    """Pairs in the last dimension as complex numbers, a view: [..., 2] -> [...].

    Example:
        >>> view_as_complex(Tensor((3, 4, 2), float32))
        Tensor([3, 4], complex64)
    """
    if x.shape[-1] != 2 or not x.is_contiguous():
        raise ValueError(f"view_as_complex of {x}")
    return Tensor(x.shape[:-1], {float32: complex64, float64: complex128}[x.dtype], x.storage)


def view_as_real(x: Tensor) -> Tensor:
    """The reverse of :func:`view_as_complex`: [...] -> [..., 2].

    Example:
        >>> view_as_real(Tensor((3, 4), complex128))
        Tensor([3, 4, 2], float64)
    """
    if not x.is_contiguous():
        raise ValueError(f"view_as_real of {x}")
    return Tensor((*x.shape, 2), {complex64: float32, complex128: float64}[x.dtype], x.storage)


def embedding(indices: Tensor, weight: Tensor) -> Tensor:
    """Rows of a table: [...], [rows, D] -> [..., D]. Of the table only the gathered rows are read.

    Example:
        >>> from modelmeter.nn import int64, trace_function
        >>> record = trace_function(embedding, Tensor((2, 5), int64), Tensor((1000, 8), float32))
        >>> record.outputs.shape, record.ops[0].bytes_read
        ((2, 5, 8), 400)
    """
    output = (*indices.shape, weight.shape[-1])
    gathered = prod(output, start=1) * weight.dtype.itemsize
    read = indices.numel() * indices.dtype.itemsize + gathered
    return launch(
        "embedding",
        "copy",
        (weight, indices),
        output,
        weight.dtype,
        bytes_read=read,
        weight_bytes_read=weight_bytes([indices]) + (gathered if weight.is_weight else 0),
    )
