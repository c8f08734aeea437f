"""Data types of tensors, named as in PyTorch, with the bytes that one element takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class DType(NamedTuple):
    """A PyTorch dtype: its name, the bytes of one element, and whether it holds floating-point numbers.

    Example:
        >>> bfloat16.itemsize, str(bfloat16)
        (2, 'bfloat16')
    """

    name: str
    itemsize: int
    rank: int
    """Order of promotion: the result of two dtypes has the higher rank (``torch.promote_types``)."""

    def __str__(self) -> str:
        return self.name


bool_ = DType("bool", 1, 0)
int8 = DType("int8", 1, 2)
int64 = DType("int64", 8, 5)
uint64 = DType("uint64", 8, 5)
float16 = DType("float16", 2, 10)
bfloat16 = DType("bfloat16", 2, 10)
float32 = DType("float32", 4, 12)
float64 = DType("float64", 8, 13)
complex64 = DType("complex64", 8, 22)
complex128 = DType("complex128", 16, 23)


def promote(dtypes: Iterable[DType]) -> DType:
    """The dtype of a result, as ``torch.promote_types``: bfloat16 with float16 gives float32.

    Example:
        >>> str(promote([bfloat16, float32])), str(promote([bfloat16, float16]))
        ('float32', 'float32')
    """
    result, *others = dtypes
    for dtype in others:
        if dtype.rank > result.rank:
            result = dtype
        elif dtype.rank == result.rank and dtype != result:
            result = float32
    return result
