"""Tensors that have a shape, a dtype and a storage, but no data.

Views follow PyTorch's stride rules, so that whether ``reshape`` copies comes out as it does there. A
storage counts as live until the last tensor that refers to it is gone: Python's own lifetimes, which are
those of eager PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from types import EllipsisType
from typing import TypeAlias

from modelmeter.nn.dtype import DType, float16, float32
from modelmeter.nn.polynomial import Dim, at_least
from modelmeter.nn.tracing import Op, Spec, Trace, current_trace

Shape: TypeAlias = tuple[Dim, ...]
Scalar: TypeAlias = int | float
Index: TypeAlias = int | slice | EllipsisType | None


class Storage:
    """Bytes that live as long as something refers to them; without a trace they count nowhere."""

    __slots__ = ("nbytes", "trace")

    def __init__(self, nbytes: Dim, trace: Trace | None = None) -> None:
        self.nbytes = nbytes
        self.trace = trace
        if trace is not None:
            trace.live = trace.live + nbytes

    def __del__(self) -> None:
        if self.trace is not None:
            self.trace.live = self.trace.live - self.nbytes


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


class Tensor:
    """A tensor on shapes.

    Args:
        shape: sizes, each an ``int`` or a polynomial.
        dtype: element type.
        storage: what it views; without one, a storage that counts nowhere (an input or a weight).
        strides: in elements; ``None`` means contiguous.

    Raises:
        ValueError: shapes that do not fit, as PyTorch would raise.

    Example:
        >>> x = Tensor((2, 6, 4), float32)
        >>> x.unflatten(1, (3, -1)).transpose(1, 2).shape
        (2, 2, 3, 4)
    """

    __slots__ = ("_strides", "dtype", "shape", "storage")

    def __init__(
        self, shape: Iterable[Dim], dtype: DType, storage: Storage | None = None, strides: Shape | None = None
    ) -> None:
        self.shape: Shape = tuple(shape)
        self.dtype = dtype
        self._strides = strides
        self.storage = storage if storage is not None else Storage(self.numel() * dtype.itemsize)

    # -- shape ------------------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def strides(self) -> Shape:
        return contiguous_strides(self.shape) if self._strides is None else self._strides

    def numel(self) -> Dim:
        return prod(self.shape, start=1)

    @property
    def spec(self) -> Spec:
        return Spec(self.shape, self.dtype)

    def is_contiguous(self) -> bool:
        return self._strides is None or _same_layout(self.shape, self._strides, contiguous_strides(self.shape))

    def __repr__(self) -> str:
        return f"Tensor({list(self.shape)}, {self.dtype})"

    # -- views: no kernel, no bytes ---------------------------------------------------------------------

    def _view(self, shape: Shape, strides: Shape | None) -> Tensor:
        return Tensor(shape, self.dtype, self.storage, strides)

    def permute(self, *dims: int) -> Tensor:
        strides = self.strides
        return self._view(tuple(self.shape[d] for d in dims), tuple(strides[d] for d in dims))

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        dims = list(range(self.ndim))
        dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
        return self.permute(*dims)

    def unsqueeze(self, dim: int) -> Tensor:
        dim %= self.ndim + 1
        strides = self.strides
        after: Dim = strides[dim] * self.shape[dim] if dim < self.ndim else 1
        return self._view(
            (*self.shape[:dim], 1, *self.shape[dim:]),
            None if self._strides is None else (*strides[:dim], after, *strides[dim:]),
        )

    def squeeze(self, dim: int) -> Tensor:
        dim %= self.ndim
        if self.shape[dim] != 1:
            return self
        strides = self._strides
        return self._view(
            self.shape[:dim] + self.shape[dim + 1 :],
            None if strides is None else strides[:dim] + strides[dim + 1 :],
        )

    def expand(self, *shape: Dim) -> Tensor:
        strides = tuple(
            stride if size == wanted else 0
            for size, wanted, stride in zip(self.shape, shape, self.strides, strict=True)
        )
        return self._view(shape, strides)

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Tensor:
        """Slices, integers, ``None`` and one ``...``. Bounds are the caller's: only the extent matters here."""
        entries = list(index) if isinstance(index, tuple) else [index]
        used = sum(entry is not None and entry is not Ellipsis for entry in entries)
        at = entries.index(Ellipsis) if Ellipsis in entries else len(entries)
        entries[at : at + 1] = [slice(None)] * (self.ndim - used)
        shape: list[Dim] = []
        strides: list[Dim] = []
        dims = iter(zip(self.shape, self.strides, strict=True))
        for entry in entries:
            if entry is None:
                shape.append(1)
                strides.append(0)
                continue
            size, stride = next(dims)
            if isinstance(entry, slice):
                shape.append(_extent(entry, size))
                strides.append(stride * (entry.step or 1))
        return self._view(tuple(shape), tuple(strides))

    def split(self, sizes: Sequence[Dim], dim: int) -> tuple[Tensor, ...]:
        dim %= self.ndim
        if sum(sizes) != self.shape[dim]:
            raise ValueError(f"split sizes {list(sizes)} do not add up to {self.shape[dim]}")
        return tuple(self._view((*self.shape[:dim], size, *self.shape[dim + 1 :]), self.strides) for size in sizes)

    def chunk(self, chunks: int, dim: int) -> tuple[Tensor, ...]:
        return self.split([self.shape[dim] // chunks] * chunks, dim)

    def unbind(self, dim: int) -> tuple[Tensor, ...]:
        dim %= self.ndim
        size, strides = self.shape[dim], self.strides
        if not isinstance(size, int):
            raise ValueError(f"cannot unbind a dimension of unknown size {size}")
        shape = self.shape[:dim] + self.shape[dim + 1 :]
        return tuple(self._view(shape, strides[:dim] + strides[dim + 1 :]) for _ in range(size))

    def view(self, *shape: Dim) -> Tensor:
        """The same storage in another shape; one size may be -1."""
        wanted = _inferred(self.numel(), shape)
        if self._strides is None:
            return self._view(wanted, None)
        strides = _view_strides(self.shape, self._strides, wanted)
        if strides is None:
            raise ValueError(f"view {list(wanted)} of {self} with strides {list(self._strides)} needs a copy")
        return self._view(wanted, strides)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        start, end = start_dim % self.ndim, end_dim % self.ndim
        if start == end:
            return self
        return self.reshape(*self.shape[:start], prod(self.shape[start : end + 1], start=1), *self.shape[end + 1 :])

    def unflatten(self, dim: int, sizes: Sequence[Dim]) -> Tensor:
        dim %= self.ndim
        return self.view(*self.shape[:dim], *_inferred(self.shape[dim], sizes), *self.shape[dim + 1 :])

    # -- kernels ----------------------------------------------------------------------------------------

    def reshape(self, *shape: Dim) -> Tensor:
        """A view where strides allow it, else a copy."""
        wanted = _inferred(self.numel(), shape)
        if self._strides is None or _view_strides(self.shape, self._strides, wanted) is not None:
            return self.view(*wanted)
        return self._contiguous_copy().view(*wanted)

    def contiguous(self) -> Tensor:
        return self if self.is_contiguous() else self._contiguous_copy()

    def _contiguous_copy(self) -> Tensor:
        return launch("clone", "copy", (self,), self.shape, self.dtype)

    def clone(self) -> Tensor:
        """A copy that keeps the order of dimensions in memory."""
        return launch("clone", "copy", (self,), self.shape, self.dtype, strides=result_strides(self.shape, (self,)))

    def to(self, dtype: DType) -> Tensor:
        if dtype == self.dtype:
            return self
        return launch("_to_copy", "copy", (self,), self.shape, dtype, strides=result_strides(self.shape, (self,)))

    def float(self) -> Tensor:
        return self.to(float32)

    def copy_(self, source: Tensor) -> None:
        """Overwrite in place; the storage stays."""
        launch_in_place("copy_", "copy", self, (source,), reads_target=False)

    def __add__(self, other: Tensor | Scalar) -> Tensor:
        return pointwise("add", self, other)

    def __sub__(self, other: Tensor | Scalar) -> Tensor:
        return pointwise("sub", self, other)

    def __mul__(self, other: Tensor | Scalar) -> Tensor:
        return pointwise("mul", self, other)

    def __truediv__(self, other: Tensor | Scalar) -> Tensor:
        return pointwise("div", self, other)

    __radd__ = __add__
    __rmul__ = __mul__


class Parameter(Tensor):
    """A weight: counted in parameters, never in live bytes."""

    __slots__ = ()


class Buffer(Tensor):
    """A constant of a module: neither a parameter nor live bytes."""

    __slots__ = ()


# -- kernels: what reads operands, writes results and is recorded -------------------------------------------


def launch(
    name: str,
    kind: str,
    inputs: Sequence[Tensor],
    shape: Shape,
    dtype: DType,
    *,
    strides: Shape | None = None,
    scratch: Sequence[Spec] = (),
    flops: Dim = 0,
    vector_flops: Dim = 0,
    bytes_read: Dim | None = None,
    bytes_written: Dim | None = None,
) -> Tensor:
    """Run one kernel: allocate its output (and further outputs that nobody keeps), record it.

    Args:
        scratch: further outputs of the kernel, such as the statistics of a norm; alive during the kernel.
        bytes_read, bytes_written: where the kernel does not touch every element (an embedding, an allocation).
    """
    trace = current_trace()
    output = Tensor(shape, dtype, Storage(prod(shape, start=1) * dtype.itemsize, trace), strides)
    extra = [Storage(_nbytes(spec), trace) for spec in scratch]
    trace.record(
        Op(
            name,
            kind,
            tuple(tensor.spec for tensor in inputs),
            (output.spec, *scratch),
            flops,
            vector_flops,
            _bytes_read(inputs) if bytes_read is None else bytes_read,
            sum((s.nbytes for s in extra), start=output.storage.nbytes) if bytes_written is None else bytes_written,
            0,
        )
    )
    return output


def launch_in_place(name: str, kind: str, target: Tensor, sources: Sequence[Tensor], *, reads_target: bool) -> None:
    """Run one kernel that overwrites ``target`` and allocates nothing."""
    inputs = (target, *sources)
    read = _bytes_read(inputs if reads_target else sources)
    written = target.numel() * target.dtype.itemsize
    arithmetic: Dim = target.numel() if kind == "elementwise" else 0
    specs = tuple(tensor.spec for tensor in inputs)
    current_trace().record(Op(name, kind, specs, (target.spec,), 0, arithmetic, read, written, 0))


#: Kernels whose result is a fraction even of whole numbers.
FRACTIONAL = frozenset({"cos", "div", "exp", "sin"})


def pointwise(name: str, *operands: Tensor | Scalar) -> Tensor:
    """An element-by-element kernel on broadcast operands: one vector FLOP per element of the result.

    Sizes broadcast only from a literal 1, so that formulas never guess.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> trace_function(lambda x: pointwise("add", x, 1.0), Tensor((2, 3), float32)).ops[0].vector_flops
        6
    """
    tensors = tuple(operand for operand in operands if isinstance(operand, Tensor))
    shape = _broadcast([tensor.shape for tensor in tensors])
    dtype = promote(tensor.dtype for tensor in tensors)
    fraction = name in FRACTIONAL or any(isinstance(operand, float) for operand in operands)
    if fraction and dtype.rank < float16.rank:
        dtype = float32
    strides = result_strides(shape, tensors)
    return launch(name, "elementwise", tensors, shape, dtype, strides=strides, vector_flops=prod(shape, start=1))


def promote(dtypes: Iterable[DType]) -> DType:
    """The dtype of a result, as ``torch.promote_types``: bfloat16 with float16 gives float32.

    Example:
        >>> from modelmeter.nn.dtype import bfloat16, float16
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


def result_strides(shape: Shape, operands: Sequence[Tensor]) -> Shape | None:
    """Strides of a fresh element-by-element result: dense, dimensions in the order of the first operand that has one.

    ``None`` means contiguous.

    Source: PyTorch ``TensorIteratorBase::reorder_dimensions`` (aten/src/ATen/TensorIterator.cpp); "like"
    functions and copies follow the same order (``infer_dense_strides``).

    Raises:
        ValueError: the order depends on the value of a symbol.

    Example:
        >>> x = Tensor((2, 3, 8), float32)
        >>> result_strides((2, 4, 3), [x[..., ::2].transpose(1, 2)])
        (12, 1, 4)
    """
    if all(operand._strides is None for operand in operands):
        return None
    along = [_broadcast_strides(operand, shape) for operand in operands]
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
    return None if _same_layout(shape, tuple(strides), contiguous_strides(shape)) else tuple(strides)


def _broadcast_strides(operand: Tensor, shape: Shape) -> Shape:
    """Strides over ``shape``, 0 where the operand is repeated."""
    own = zip(operand.shape, operand.strides, shape[len(shape) - operand.ndim :], strict=True)
    return (0,) * (len(shape) - operand.ndim) + tuple(stride if size == wide else 0 for size, stride, wide in own)


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
    return at_least(larger, smaller, dict.fromkeys(names, 1))


# -- helpers ------------------------------------------------------------------------------------------------


def _nbytes(spec: Spec) -> Dim:
    return prod(spec.shape, start=1) * spec.dtype.itemsize


def _bytes_read(inputs: Sequence[Tensor]) -> Dim:
    """Distinct operands once each, expanded dimensions once."""
    total: Dim = 0
    for i, tensor in enumerate(inputs):
        if any(tensor is earlier for earlier in inputs[:i]):
            continue
        elements: Dim = tensor.numel()
        if tensor._strides is not None:
            elements = prod(
                (n for n, stride in zip(tensor.shape, tensor._strides, strict=True) if stride != 0), start=1
            )
        total = total + elements * tensor.dtype.itemsize
    return total


def _extent(index: slice, size: Dim) -> Dim:
    start, stop = _from_start(index.start, 0, size), _from_start(index.stop, size, size)
    step: int = index.step or 1
    length = stop - start
    return length if step == 1 else (length + step - 1) // step if isinstance(length, int) else length // step


def _from_start(bound: Dim | None, default: Dim, size: Dim) -> Dim:
    """A bound of a slice counted from the start: a negative one counts from the end."""
    if bound is None:
        return default
    return size + bound if isinstance(bound, int) and bound < 0 else bound


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        kept = [size for size in sizes if size != 1]
        if any(size != kept[0] for size in kept):
            raise ValueError(f"shapes do not broadcast: {[list(shape) for shape in shapes]}")
        result.append(kept[0] if kept else 1)
    return tuple(result)


def _inferred(numel: Dim, shape: Sequence[Dim]) -> Shape:
    """``shape`` with a -1 worked out; what does not fit raises."""
    known = prod((size for size in shape if size != -1), start=1)
    wanted = tuple(numel // known if size == -1 else size for size in shape)
    if prod(wanted, start=1) != numel:
        raise ValueError(f"shape {list(shape)} does not hold {numel} elements")
    return wanted


def _same_layout(shape: Shape, left: Shape, right: Shape) -> bool:
    return all(a == b for size, a, b in zip(shape, left, right, strict=True) if size != 1)


def _view_strides(shape: Shape, strides: Shape, wanted: Shape) -> Shape | None:
    """Strides of ``wanted`` over the same storage, or ``None`` where only a copy can have that shape.

    Source: PyTorch ``computeStride`` (aten/src/ATen/TensorUtils.cpp): dimensions that lie behind one
    another in memory form a run; a new dimension must stay within one run.
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
