"""Tensors that have a shape, a dtype and a storage, but no data.

Views follow PyTorch's stride rules, so that whether ``reshape`` copies comes out as it does there. A
storage counts as live until the last tensor that refers to it is gone: Python's own lifetimes, which are
those of eager PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from types import EllipsisType
from typing import TypeAlias, Union

from modelmeter.nn.dtype import DType, float32
from modelmeter.nn.polynomial import Dim
from modelmeter.nn.tracing import Op, Spec, Trace, current_trace

Shape: TypeAlias = tuple[Dim, ...]
Scalar: TypeAlias = Union[int, float]
Index: TypeAlias = Union[int, slice, EllipsisType, None]


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
        return self.clone().view(*wanted)

    def contiguous(self) -> Tensor:
        return self if self.is_contiguous() else self.clone()

    def clone(self) -> Tensor:
        """A contiguous copy."""
        return launch("clone", "copy", (self,), self.shape, self.dtype)

    def to(self, dtype: DType) -> Tensor:
        if dtype == self.dtype:
            return self
        return launch("_to_copy", "copy", (self,), self.shape, dtype, strides=dense_strides(self))

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
    full = next((tensor for tensor in tensors if tensor.shape == shape and tensor._strides is not None), None)
    dtype = promote(tensor.dtype for tensor in tensors)
    strides = dense_strides(full) if full is not None else None
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


def dense_strides(like: Tensor) -> Shape | None:
    """Strides that a result "like" this tensor gets: the same order of dimensions if it is dense.

    ``None`` (contiguous) where it has gaps or overlaps.
    """
    if like._strides is None:
        return None
    step: Dim = 1
    left = [d for d, size in enumerate(like.shape) if size != 1]
    while left:
        following = next((d for d in reversed(left) if like._strides[d] == step), None)
        if following is None:
            return None
        step = step * like.shape[following]
        left.remove(following)
    return like._strides


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
    start: Dim = 0 if index.start is None else index.start
    stop: Dim = size if index.stop is None else index.stop
    step: int = index.step or 1
    length = stop - start
    return length if step == 1 else (length + step - 1) // step if isinstance(length, int) else length // step


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
    old = [(size, stride) for size, stride in zip(shape, strides, strict=True) if size != 1]
    runs: list[tuple[Dim, Dim]] = []  # (elements, stride of the innermost)
    for size, stride in reversed(old):
        if runs and stride == runs[-1][0] * runs[-1][1]:
            runs[-1] = (runs[-1][0] * size, runs[-1][1])
        else:
            runs.append((size, stride))
    result: list[Dim] = []
    filled: Dim = 1
    run = 0
    for size in reversed(wanted):
        if run < len(runs) and filled == runs[run][0] and size != 1:
            run, filled = run + 1, 1
        if size == 1 or run == len(runs):
            result.append(filled)
            continue
        result.append(filled * runs[run][1])
        filled = filled * size
        if not _divides(filled, runs[run][0]):
            return None
    return tuple(reversed(result))


def _divides(part: Dim, whole: Dim) -> bool:
    try:
        return (whole // part) * part == whole
    except ValueError:  # no polynomial quotient
        return False
