"""Shapes and strides, and what PyTorch makes of them: views, slices, broadcasting, layouts of results.

Everything holds for integers and for formulas; where a formula leaves the answer open, it raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

from modelmeter.nn.polynomial import SMALLEST_SYMBOL, Dim, at_least

Shape: TypeAlias = tuple[Dim, ...]


def contiguous_strides(shape: Shape) -> Shape:
    """Row-major strides in elements.

    Example:
        >>> contiguous_strides((2, 3, 4))
        (12, 4, 1)
    """
    strides: list[Dim] = []
    step: Dim = 1
    for size in reversed(shape):
        strides.append(step)
        step = step * size
    return tuple(reversed(strides))


def extent(index: slice, size: Dim) -> Dim:
    """Number of elements that a slice takes of ``size``.

    Example:
        >>> extent(slice(1, None, 2), 8), extent(slice(-2, None), 8)
        (4, 2)
    """
    start, stop = _from_start(index.start, 0, size), _from_start(index.stop, size, size)
    step: int = index.step or 1
    length = stop - start
    return length if step == 1 else (length + step - 1) // step if isinstance(length, int) else length // step


def _from_start(bound: Dim | None, default: Dim, size: Dim) -> Dim:
    """A bound of a slice counted from the start: a negative one counts from the end."""
    if bound is None:
        return default
    return size + bound if isinstance(bound, int) and bound < 0 else bound


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape of an element-by-element result; only a literal 1 is repeated.

    Example:
        >>> broadcast([(2, 1, 4), (3, 1)])
        (2, 3, 4)
    """
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        kept = [size for size in sizes if size != 1]
        if any(size != kept[0] for size in kept):
            raise ValueError(f"shapes do not broadcast: {[list(shape) for shape in shapes]}")
        result.append(kept[0] if kept else 1)
    return tuple(result)


def inferred(numel: Dim, shape: Sequence[Dim]) -> Shape:
    """``shape`` with a -1 worked out.

    Raises:
        ValueError: the shape holds another number of elements.

    Example:
        >>> inferred(12, (3, -1))
        (3, 4)
    """
    known = prod((size for size in shape if size != -1), start=1)
    wanted = tuple(numel // known if size == -1 else size for size in shape)
    if prod(wanted, start=1) != numel:
        raise ValueError(f"shape {list(shape)} does not hold {numel} elements")
    return wanted


def same_layout(shape: Shape, left: Shape, right: Shape) -> bool:
    """Whether two strides place every element alike; those of dimensions of size 1 do not matter."""
    return all(a == b for size, a, b in zip(shape, left, right, strict=True) if size != 1)


def view_strides(shape: Shape, strides: Shape, wanted: Shape) -> Shape | None:
    """Strides of ``wanted`` over the same storage, or ``None`` where only a copy can have that shape.

    Source: PyTorch ``computeStride`` (aten/src/ATen/TensorUtils.cpp): dimensions that lie behind one
    another in memory form a run; a new dimension must stay within one run.

    Example:
        >>> view_strides((2, 3), (1, 2), (6,)) is None, view_strides((2, 3), (3, 1), (6,))
        (True, (1,))
    """
    if not shape:
        return contiguous_strides(wanted)
    runs: list[tuple[Dim, Dim]] = []  # (elements, stride of the innermost), innermost first
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if runs and (size == 1 or stride == runs[-1][0] * runs[-1][1]):
            runs[-1] = (runs[-1][0] * size, runs[-1][1])
        else:
            runs.append((size, stride))
    result: list[Dim] = []
    left = list(wanted)
    for elements, step in runs:
        filled: Dim = 1
        while left and (left[-1] == 1 or filled != elements):
            result.append(filled * step)
            filled = filled * left.pop()
            if not _divides(filled, elements):
                return None
    return tuple(reversed(result))


def _divides(part: Dim, whole: Dim) -> bool:
    try:
        return (whole // part) * part == whole
    except ValueError:  # no polynomial quotient
        return False


def result_strides(shape: Shape, operands: Sequence[tuple[Shape, Shape]]) -> Shape | None:
    """Strides of a fresh element-by-element result: dense, dimensions in the order of the first operand that has one.

    Args:
        operands: shape and strides of each.

    Returns:
        ``None`` where the result is contiguous.

    Source: PyTorch ``TensorIteratorBase::reorder_dimensions`` (aten/src/ATen/TensorIterator.cpp); "like"
    functions and copies follow the same order (``infer_dense_strides``).

    Raises:
        ValueError: the order depends on the value of a symbol.

    Example:
        >>> result_strides((2, 4, 3), [((2, 4, 3), (24, 2, 8))])
        (12, 1, 4)
    """
    along = [_broadcast_strides(*operand, shape) for operand in operands]
    order = list(reversed(range(len(shape))))  # innermost first
    # An insertion sort that passes over ties, as PyTorch's does: the order of ties follows from its steps.
    for i in range(1, len(order)):
        place = i
        for j in reversed(range(i)):
            comparison = _compare_dims(order[j], order[place], shape, along)
            if comparison < 0:
                break
            if comparison > 0:
                order[j], order[place] = order[place], order[j]
                place = j
    strides: list[Dim] = [1] * len(shape)
    step: Dim = 1
    for dim in order:
        strides[dim] = step
        step = step * shape[dim]
    return None if same_layout(shape, tuple(strides), contiguous_strides(shape)) else tuple(strides)


def suggested_strides(shape: Shape, operand: tuple[Shape, Shape]) -> Shape | None:
    """Strides of a fresh image or video that has its channels last in memory if, and only if, the operand has.

    Args:
        operand: shape and strides.

    Returns:
        ``None`` where the result is contiguous.

    Source: PyTorch ``suggest_memory_format`` and ``is_channels_last_strides_2d_s4`` (c10/core/MemoryFormat.h).

    Raises:
        ValueError: the layout depends on the value of a symbol.

    Example:
        >>> suggested_strides((1, 3, 4, 4), ((1, 3, 2, 2), (12, 1, 6, 3)))
        (48, 1, 12, 3)
    """
    rank = len(shape)
    if rank not in (4, 5) or not _channels_last(*operand):
        return None
    order = (0, *range(2, rank), 1)
    dense = contiguous_strides(tuple(shape[dim] for dim in order))
    strides = [dense[order.index(dim)] for dim in range(rank)]
    return tuple(strides)


def _channels_last(shape: Shape, strides: Shape) -> bool:
    if strides[1] == 0 or same_layout(shape, strides, contiguous_strides(shape)):
        return False
    smallest: Dim = 0
    for dim in (1, *reversed(range(2, len(shape))), 0):
        if not _surely_at_least(strides[dim], smallest):
            if _surely_at_least(smallest, strides[dim]):
                return False
            raise ValueError(f"which of the strides {strides[dim]} and {smallest} is larger depends on the sizes")
        if dim == 0 and smallest == strides[1]:
            return False
        smallest = strides[dim] * shape[dim]
    return True


def _broadcast_strides(own: Shape, strides: Shape, shape: Shape) -> Shape:
    """Strides over ``shape``, 0 where the operand is repeated."""
    missing = len(shape) - len(own)
    sizes = zip(own, strides, shape[missing:], strict=True)
    return (0,) * missing + tuple(stride if size == wide else 0 for size, stride, wide in sizes)


def _compare_dims(inner: int, outer: int, shape: Shape, along: Sequence[Shape]) -> int:
    """Negative where ``inner`` lies inside ``outer`` in memory, positive where outside, 0 where no operand tells."""
    for strides in along:
        left, right = strides[inner], strides[outer]
        if left == 0 or right == 0:
            continue
        if left == right:  # one of the two has size 1, and goes inside
            if shape[outer] == 1 and shape[inner] != 1:
                return 1
            continue
        if _surely_at_least(right, left):
            return -1
        if _surely_at_least(left, right):
            return 1
        raise ValueError(f"which of the strides {left} and {right} is larger depends on the sizes")
    return 0


def _surely_at_least(larger: Dim, smaller: Dim) -> bool:
    if isinstance(larger, int) and isinstance(smaller, int):
        return larger >= smaller
    names = {n for value in (larger, smaller) if not isinstance(value, int) for term in value.terms for n in term}
    return at_least(larger, smaller, dict.fromkeys(names, SMALLEST_SYMBOL))
