"""Automatic mixed precision, as ``torch.autocast`` on CUDA: which kernels cast their operands, and to what.

Every cast is a kernel of its own, the last operand first (as GCC orders them), and runs at every call: PyTorch
remembers the casts of weights that require a gradient only, and a model in inference has none.

Source: the lists ``AT_FORALL_LOWER_PRECISION_FP`` and ``AT_FORALL_FP32`` of PyTorch
(aten/src/ATen/autocast_mode.h). What they do not name, and all arithmetic, promotes as without autocast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from modelmeter.nn.dtype import DType, bfloat16, float16, float32

if TYPE_CHECKING:
    from modelmeter.nn.tensor import Tensor

#: What is cast: floating point of single precision or less. Source: ``is_autocast_eligible``, ``cached_cast``.
ELIGIBLE = frozenset({float16, bfloat16, float32})
#: Element-by-element kernels that run in float32.
IN_FLOAT32 = frozenset({"exp", "log", "pow", "rsqrt"})

_current: ContextVar[DType | None] = ContextVar("modelmeter_autocast", default=None)


@contextmanager
def autocast(dtype: DType | None) -> Iterator[None]:
    """Run matrix products, convolutions and attention in ``dtype``, norms and powers in float32.

    Args:
        dtype: ``None`` for no autocast, as ``enabled=False``.

    Example:
        >>> from modelmeter.nn import Tensor, functional, trace_function
        >>> def forward(x, weight):
        ...     with autocast(bfloat16):
        ...         return functional.linear(x, weight)
        >>> [op.name for op in trace_function(forward, Tensor((3, 4), float32), Tensor((8, 4), float32)).ops]
        ['_to_copy', '_to_copy', 'mm']
    """
    token = _current.set(dtype)
    try:
        yield
    finally:
        _current.reset(token)


def current_autocast() -> DType | None:
    """The dtype of the innermost :func:`autocast`; it decides what a module runs."""
    return _current.get()


def lowered(tensor: Tensor) -> Tensor:
    """An operand of a matrix product: in the dtype of the autocast, or as it is."""
    dtype = _current.get()
    return tensor if dtype is None or tensor.dtype not in ELIGIBLE else tensor.to(dtype)


def raised(tensor: Tensor) -> Tensor:
    """An operand of a kernel that runs in float32 under autocast, or as it is."""
    return tensor if _current.get() is None or tensor.dtype not in ELIGIBLE else tensor.to(float32)
