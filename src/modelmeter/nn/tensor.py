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

from modelmeter.nn.autocast import IN_FLOAT32, raised
from modelmeter.nn.dtype import DType, bool_, float16, float32, promote
from modelmeter.nn.layout import (
    Shape,
    broadcast,
    contiguous_strides,
    extent,
    inferred,
    result_strides,
    same_layout,
    view_strides,
)
from modelmeter.nn.polynomial import Dim
from modelmeter.nn.tracing import Op, Spec, Trace, current_trace

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


class WeightStorage(Storage):
    """Bytes of a weight or a constant of a module, which every view of it reads."""

    __slots__ = ()


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
    #: What a tensor without a given storage is made on.
    storage_class: type[Storage] = Storage

    def __init__(
        self, shape: Iterable[Dim], dtype: DType, storage: Storage | None = None, strides: Shape | None = None
    ) -> None:
        self.shape: Shape = tuple(shape)
        self.dtype = dtype
        self._strides = strides
        self.storage = storage if storage is not None else self.storage_class(self.numel() * dtype.itemsize)

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

    @property
    def is_weight(self) -> bool:
        """Whether this is a weight, a constant of a module, or a view of one."""
        return isinstance(self.storage, WeightStorage)

    def is_contiguous(self) -> bool:
        return self._strides is None or same_layout(self.shape, self._strides, contiguous_strides(self.shape))

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
        dims = list(zip(self.shape, self.strides, strict=True))
        for entry in entries:
            if entry is None:  # as unsqueeze: one step over all that follows
                shape.append(1)
                strides.append(prod(dims[0], start=1) if dims else 1)
                continue
            size, stride = dims.pop(0)
            if isinstance(entry, slice):
                shape.append(extent(entry, size))
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
        wanted = inferred(self.numel(), shape)
        if self._strides is None:
            return self._view(wanted, None)
        strides = view_strides(self.shape, self._strides, wanted)
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
        return self.view(*self.shape[:dim], *inferred(self.shape[dim], sizes), *self.shape[dim + 1 :])

    # -- kernels ----------------------------------------------------------------------------------------

    def reshape(self, *shape: Dim) -> Tensor:
        """A view where strides allow it, else a copy."""
        wanted = inferred(self.numel(), shape)
        if self._strides is None or view_strides(self.shape, self._strides, wanted) is not None:
            return self.view(*wanted)
        return self._contiguous_copy().view(*wanted)

    def contiguous(self) -> Tensor:
        return self if self.is_contiguous() else self._contiguous_copy()

    def _contiguous_copy(self) -> Tensor:
        return launch("clone", "copy", (self,), self.shape, self.dtype)

    def clone(self) -> Tensor:
        """A copy that keeps the order of dimensions in memory."""
        return launch("clone", "copy", (self,), self.shape, self.dtype, strides=like(self.shape, self))

    def to(self, dtype: DType) -> Tensor:
        if dtype == self.dtype:
            return self
        return launch("_to_copy", "copy", (self,), self.shape, dtype, strides=like(self.shape, self))

    def float(self) -> Tensor:
        return self.to(float32)

    def repeat_interleave(self, repeats: int, dim: int) -> Tensor:
        """Every slice along a dimension ``repeats`` times in a row, a copy."""
        dim %= self.ndim
        before, size, after = self.shape[:dim], self.shape[dim], self.shape[dim + 1 :]
        spread = self.unsqueeze(dim + 1).expand(*before, size, repeats, *after)
        return spread._contiguous_copy().view(*before, size * repeats, *after)

    def repeat(self, *times: Dim) -> Tensor:
        """The whole tensor ``times`` in a row along each dimension, a copy: one number a dimension."""
        shape = tuple(size * n for size, n in zip(self.shape, times, strict=True))
        return launch("repeat", "copy", (self,), shape, self.dtype)

    def copy_(self, source: Tensor) -> None:
        """Overwrite in place; the storage stays."""
        launch_in_place("copy_", "copy", self, (source,), reads_target=False)

    def fill_(self, value: Scalar) -> None:
        """One number in every element, in place; the storage stays."""
        launch_in_place("fill_", "copy", self, (), reads_target=False)

    def add_(self, other: Tensor) -> None:
        """Add in place; the storage stays."""
        launch_in_place("add_", "elementwise", self, (other,), reads_target=True)

    def clamp_(self, minimum: Scalar, maximum: Scalar) -> None:
        """Hold every element between two numbers in place; the storage stays."""
        launch_in_place("clamp_", "elementwise", self, (), reads_target=True)

    def __add__(self, other: Tensor | Scalar) -> Tensor:
        return pointwise("add", self, other)

    def __sub__(self, other: Tensor | Scalar) -> Tensor:
        return pointwise("sub", self, other)

    def __mul__(self, other: Tensor | Scalar) -> Tensor:
        return pointwise("mul", self, other)

    def __truediv__(self, other: Tensor | Scalar) -> Tensor:
        return pointwise("div", self, other)

    def __pow__(self, exponent: Tensor | Scalar) -> Tensor:
        return pointwise("pow", self, exponent)

    def __gt__(self, other: Tensor | Scalar) -> Tensor:
        return pointwise("gt", self, other)

    def __lt__(self, other: Tensor | Scalar) -> Tensor:
        return pointwise("lt", self, other)

    def __rsub__(self, other: Scalar) -> Tensor:
        return pointwise("rsub", self, other)

    def __rpow__(self, other: Scalar) -> Tensor:
        return pointwise("pow", self, other)

    __radd__ = __add__
    __rmul__ = __mul__


class Parameter(Tensor):
    """A weight: counted in parameters, never in live bytes."""

    __slots__ = ()
    storage_class = WeightStorage


class Buffer(Tensor):
    """A constant of a module: neither a parameter nor live bytes."""

    __slots__ = ()
    storage_class = WeightStorage


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
    weight_bytes_read: Dim | None = None,
    bytes_written: Dim | None = None,
) -> Tensor:
    """Run one kernel: allocate its output (and further outputs that nobody keeps), record it.

    Args:
        scratch: further outputs of the kernel, such as the statistics of a norm; alive during the kernel.
        bytes_read, weight_bytes_read, bytes_written: where the kernel does not touch every element (an embedding,
            an allocation).
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
            weight_bytes(inputs) if weight_bytes_read is None else weight_bytes_read,
        )
    )
    return output


def launch_in_place(name: str, kind: str, target: Tensor, sources: Sequence[Tensor], *, reads_target: bool) -> None:
    """Run one kernel that overwrites ``target`` and allocates nothing."""
    inputs = (target, *sources)
    operands = inputs if reads_target else sources
    read, weights = _bytes_read(operands), weight_bytes(operands)
    written = target.numel() * target.dtype.itemsize
    arithmetic: Dim = target.numel() if kind == "elementwise" else 0
    specs = tuple(tensor.spec for tensor in inputs)
    current_trace().record(Op(name, kind, specs, (target.spec,), 0, arithmetic, read, written, 0, weights))


#: Kernels whose result is a fraction even of whole numbers.
FRACTIONAL = frozenset({"cos", "div", "exp", "log", "rsqrt", "sin", "tanh"})
#: Kernels whose result is true or false.
COMPARISONS = frozenset({"gt", "lt"})


def pointwise(name: str, *operands: Tensor | Scalar) -> Tensor:
    """An element-by-element kernel on broadcast operands: one vector FLOP per element of the result.

    Sizes broadcast only from a literal 1, so that formulas never guess.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> trace_function(lambda x: pointwise("add", x, 1.0), Tensor((2, 3), float32)).ops[0].vector_flops
        6
    """
    tensors = tuple(operand for operand in operands if isinstance(operand, Tensor))
    if name in IN_FLOAT32:
        tensors = tuple(raised(tensor) for tensor in tensors)
    shape = broadcast([tensor.shape for tensor in tensors])
    dtype = promote(tensor.dtype for tensor in tensors)
    fraction = name in FRACTIONAL or any(isinstance(operand, float) for operand in operands)
    if fraction and dtype.rank < float16.rank:
        dtype = float32
    if name in COMPARISONS:
        dtype = bool_
    strides = like(shape, *tensors)
    return launch(name, "elementwise", tensors, shape, dtype, strides=strides, vector_flops=prod(shape, start=1))


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


def weight_bytes(inputs: Sequence[Tensor]) -> Dim:
    """Of the bytes read those of weights and constants, or of views of them."""
    return _bytes_read([tensor for tensor in inputs if tensor.is_weight])


def like(shape: Shape, *operands: Tensor) -> Shape | None:
    """Strides of a fresh result that keeps the layout of its operands, as copies and element-by-element kernels do."""
    if all(operand._strides is None for operand in operands):
        return None
    return result_strides(shape, [(operand.shape, operand.strides) for operand in operands])
