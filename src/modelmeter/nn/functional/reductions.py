"""Kernels that fold a dimension into one number."""

from __future__ import annotations

from math import prod

from modelmeter.nn.autocast import ELIGIBLE, current_autocast
from modelmeter.nn.dtype import DType, float32
from modelmeter.nn.tensor import Tensor, launch


def mean(x: Tensor, dim: int, *, keepdim: bool) -> Tensor:
    """Mean along one dimension: one addition per element, one division per result.

    Example:
        >>> from modelmeter.nn import float32, trace_function
        >>> record = trace_function(lambda x: mean(x, -1, keepdim=True), Tensor((2, 3), float32))
        >>> record.outputs.shape, record.ops[0].vector_flops
        ((2, 1), 8)
    """
    dim %= x.ndim
    kept = (1,) if keepdim else ()
    shape = (*x.shape[:dim], *kept, *x.shape[dim + 1 :])
    size = x.shape[dim]
    return launch("mean", "reduction", (x,), shape, x.dtype, vector_flops=x.numel() + x.numel() // size)


def sum(x: Tensor, dim: int, *, keepdim: bool = False) -> Tensor:
    """Sum along one dimension, which autocast asks for in float32: one addition per element.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> trace_function(lambda x: sum(x, 1, keepdim=False), Tensor((2, 3, 4), float32)).outputs.shape
        (2, 4)
    """
    dim %= x.ndim
    shape = (*x.shape[:dim], *((1,) if keepdim else ()), *x.shape[dim + 1 :])
    return launch("sum", "reduction", (x,), shape, _accumulated(x), vector_flops=x.numel())


def vector_norm(x: Tensor, dim: int) -> Tensor:
    """Root of the sum of squares along one dimension, which stays with size 1.

    Two steps per element, the square and its sum, and a root per result.

    Example:
        >>> from modelmeter.nn import float32, trace_function
        >>> trace_function(vector_norm, Tensor((2, 3, 4), float32), 1).outputs.shape
        (2, 1, 4)
    """
    dim %= x.ndim
    shape = (*x.shape[:dim], 1, *x.shape[dim + 1 :])
    steps = 2 * x.numel() + prod(shape, start=1)
    return launch("linalg_vector_norm", "reduction", (x,), shape, _accumulated(x), vector_flops=steps)


def _accumulated(x: Tensor) -> DType:
    """The dtype of a sum over ``x``: autocast asks for float32, without a cast before."""
    return x.dtype if current_autocast() is None or x.dtype not in ELIGIBLE else float32
