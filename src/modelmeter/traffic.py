"""The traffic fold: what kernels read and write, apart by what they are, and in sum.

One convention, that of eager PyTorch: every kernel reads each distinct operand once and writes each result
once; views and allocations move nothing, and no cache is modelled. Under fusion only what multiplies
matrices touches memory (:data:`FUSED_KINDS`): the least that any engine moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from modelmeter.flops import distinct_bodies
from modelmeter.nn import Body, Dim, Op, evaluate

#: Kinds of kernels that still touch memory when all else is fused into them.
FUSED_KINDS = frozenset({"linear", "conv", "attention"})


class Kernels(NamedTuple):
    """What the kernels of a sum have in common."""

    kind: str
    """Such as ``linear``, ``attention``, ``norm``, ``elementwise`` or ``copy``."""
    op: str
    """The ATen operator, such as ``addmm``."""
    dtype: str
    """Of the result, such as ``bfloat16``."""


class Traffic(NamedTuple):
    """What kernels do and move, added up; ``+`` adds."""

    kernels: Dim = 0
    """How many run."""
    flops: Dim = 0
    vector_flops: Dim = 0
    weight_bytes_read: Dim = 0
    """Of weights and constants of modules."""
    activation_bytes_read: Dim = 0
    bytes_written: Dim = 0

    def __add__(self, other: Traffic) -> Traffic:  # type: ignore[override]
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def bytes_read(self) -> Dim:
        """Bytes read, of weights and of activations."""
        return self.weight_bytes_read + self.activation_bytes_read

    @property
    def bytes_moved(self) -> Dim:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written


#: Sums by what the kernels have in common.
Sums: TypeAlias = Mapping[Kernels, Traffic]


def own_traffic(body: Body) -> Sums:
    """What the kernels that a module runs itself move.

    Example:
        >>> from modelmeter.nn import Linear, Tensor, float32, trace
        >>> sums = own_traffic(trace(Linear(4, 8), Tensor((3, 4), float32)).body)
        >>> [(key.op, moved.weight_bytes_read, moved.bytes_written) for key, moved in sums.items()]
        [('addmm', 160, 96)]
    """
    return _summed((_key(op), _of(op), 1) for op in body.ops)


def total_traffic(body: Body) -> Sums:
    """What all kernels of a trace move.

    Example:
        >>> from modelmeter.nn import Linear, Tensor, float32, trace
        >>> overall(total_traffic(trace(Linear(4, 8), Tensor((3, 4), float32)).body)).bytes_moved
        304
    """
    return _summed(
        (key, traffic, times)
        for part, times in distinct_bodies(body).items()
        for key, traffic in own_traffic(part).items()
    )


def overall(sums: Sums, kinds: Iterable[str] | None = None) -> Traffic:
    """The sum of all kernels, or of those of some kinds.

    Example:
        >>> copy, product = Kernels("copy", "clone", "float32"), Kernels("linear", "mm", "float32")
        >>> sums = {copy: Traffic(bytes_written=8), product: Traffic(bytes_written=2)}
        >>> overall(sums).bytes_moved, overall(sums, FUSED_KINDS).bytes_moved
        (10, 2)
    """
    wanted = None if kinds is None else frozenset(kinds)
    chosen = (traffic for key, traffic in sums.items() if wanted is None or key.kind in wanted)
    return sum(chosen, start=Traffic())


def evaluated(sums: Sums, dims: Mapping[str, int]) -> Sums:
    """Sums at given sizes."""
    return {key: Traffic(*(evaluate(value, dims) for value in traffic)) for key, traffic in sums.items()}


def over_times(first: Sums, last: Sums, times: int) -> Sums:
    """Sums of ``times`` runs that grow evenly from the first to the last, whose kernels are the same.

    Example:
        >>> cat = Kernels("copy", "cat", "float32")
        >>> overall(over_times({cat: Traffic(bytes_written=4)}, {cat: Traffic(bytes_written=12)}, 3)).bytes_moved
        24
    """
    return {key: Traffic(*map(lambda a, b: times * (a + b) // 2, first[key], last[key])) for key in last}


def merged(sums: Iterable[Sums]) -> Sums:
    """Several sums as one."""
    return _summed((key, traffic, 1) for each in sums for key, traffic in each.items())


@dataclass(frozen=True, slots=True)
class NodeTraffic:
    """What a module moves over a whole run.

    Args:
        own: by its own kernels.
        inclusive: by those of its submodules too.
    """

    own: Sums
    inclusive: Sums

    @property
    def total(self) -> Traffic:
        """All kernels, each reading and writing memory as eager PyTorch does."""
        return overall(self.inclusive)

    @property
    def fused(self) -> Traffic:
        """Only the kernels that touch memory when all else is fused into them."""
        return overall(self.inclusive, FUSED_KINDS)

    @property
    def intensity(self) -> float | None:
        """FLOPs for each byte moved; ``None`` where nothing moves."""
        return _intensity(self.total, self.total)

    @property
    def fused_intensity(self) -> float | None:
        """FLOPs for each byte moved under fusion; ``None`` where nothing moves."""
        return _intensity(self.total, self.fused)


def _intensity(work: Traffic, moving: Traffic) -> float | None:
    assert isinstance(work.flops, int)
    assert isinstance(moving.bytes_moved, int)
    return work.flops / moving.bytes_moved if moving.bytes_moved else None


def _key(op: Op) -> Kernels:
    return Kernels(op.kind, op.name, op.outputs[0].dtype.name)


def _of(op: Op) -> Traffic:
    activations = op.bytes_read - op.weight_bytes_read
    return Traffic(1, op.flops, op.vector_flops, op.weight_bytes_read, activations, op.bytes_written)


def _summed(parts: Iterable[tuple[Kernels, Traffic, int]]) -> Sums:
    sums: dict[Kernels, Traffic] = {}
    for key, traffic, times in parts:
        more = traffic if times == 1 else Traffic(*(times * value for value in traffic))
        sums[key] = sums[key] + more if key in sums else more
    return sums
