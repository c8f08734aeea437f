"""What one forward leaves for the next: the only state that a forward may change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from modelmeter.nn.polynomial import Dim
from modelmeter.nn.tensor import Storage, Tensor
from modelmeter.nn.tracing import current_trace

Mark = TypeVar("Mark")


class Cache(Generic[Mark]):
    """Slots that the modules of a forward use one after the other, each reading its slot and writing it anew.

    A slot is empty (``None``), or holds a tensor or a mark. The next forward starts at the first slot with
    :func:`resident`.

    Example:
        >>> cache = Cache()
        >>> cache.keep("seen")
        >>> cache.slot is None, cache.slots
        (True, ['seen'])
    """

    __slots__ = ("_at", "slots")

    def __init__(self, slots: list[Tensor | Mark | None] | None = None) -> None:
        self.slots: list[Tensor | Mark | None] = slots if slots is not None else []
        self._at = 0

    @property
    def slot(self) -> Tensor | Mark | None:
        """What the current slot holds."""
        return self.slots[self._at] if self._at < len(self.slots) else None

    def keep(self, value: Tensor | Mark) -> None:
        """Overwrite the current slot and go on to the next; what it held is freed unless others refer to it."""
        self.slots[self._at : self._at + 1] = [value]
        self._at += 1

    @property
    def tensors(self) -> Iterator[Tensor]:
        """The tensors in all slots."""
        return (value for value in self.slots if isinstance(value, Tensor))

    @property
    def nbytes(self) -> Dim:
        """Bytes of the storages behind the tensors."""
        return sum({id(tensor.storage): tensor.storage.nbytes for tensor in self.tensors}.values())


def resident(tensor: Tensor) -> Tensor:
    """A tensor that an earlier forward left: no kernel makes it, but unlike an input it counts as alive.

    Raises:
        RuntimeError: outside a trace.

    Example:
        >>> from modelmeter.nn import float32, functional, trace_function
        >>> trace_function(lambda x: functional.exp(resident(x)), Tensor((2, 3), float32)).ops[0].live
        48
    """
    return Tensor(tensor.shape, tensor.dtype, Storage(tensor.storage.nbytes, current_trace()), tensor._strides)


def resident_cache(cache: Cache[Mark]) -> Cache[Mark]:
    """A cache as an earlier forward left it, at its first slot; its tensors count as alive."""
    return Cache([resident(value) if isinstance(value, Tensor) else value for value in cache.slots])
