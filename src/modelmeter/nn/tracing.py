"""The record of one forward pass: operators in the order they run, and the bytes alive after each.

A module that is called with the same signature and the same argument shapes runs once; later calls share
its :class:`Body`. Bytes are counted from the start of each body, so that a shared body fits every caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from modelmeter.nn.dtype import DType
from modelmeter.nn.polynomial import Dim

if TYPE_CHECKING:
    from modelmeter.nn.modules import Module


class Spec(NamedTuple):
    """Shape and dtype of an operand."""

    shape: tuple[Dim, ...]
    dtype: DType


class Op(NamedTuple):
    """One kernel as it runs: what it computes, moves and leaves alive.

    Numbers, shapes and dtypes only; a tensor kept here would lengthen its own life.
    """

    name: str
    """The ATen operator, such as ``addmm``."""
    kind: str
    """What limits it: ``linear``, ``conv``, ``attention``, ``norm``, ``elementwise``, ``copy``, ..."""
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    flops: Dim
    """What PyTorch's FlopCounterMode counts: 2 per multiply-add of matrix products and convolutions."""
    vector_flops: Dim
    """All other arithmetic, never added to ``flops``."""
    bytes_read: Dim
    bytes_written: Dim
    live: Dim
    """Bytes alive after the operator above those at the start of the module's call."""
    weight_bytes_read: Dim
    """Of the bytes read those of weights and constants."""


class Call(NamedTuple):
    """A module called by another: its name below the caller, and what it ran."""

    name: str
    live: Dim
    """Bytes alive when the call began, above those at the start of the caller's call."""
    body: Body


@dataclass(eq=False, slots=True)
class Body:
    """What one call of a module ran, in order; shared by every equal call."""

    module: str
    """Class name of the module."""
    path: str
    """Path of the module in the traced root (of the first of the equal calls)."""
    items: list[Op | Call] = field(default_factory=list)

    @property
    def ops(self) -> Iterator[Op]:
        """The operators that this module ran itself, not through other modules."""
        return (item for item in self.items if isinstance(item, Op))

    @property
    def calls(self) -> Iterator[Call]:
        """The calls of other modules."""
        return (item for item in self.items if isinstance(item, Call))


class Trace:
    """The state while one forward runs: live bytes, the open bodies, and the memo of finished ones.

    Args:
        names: path of every module in the root by ``id``.
        memo: share equal calls; without it every call runs (same result, slower).
    """

    def __init__(self, names: dict[int, str], *, memo: bool = True) -> None:
        self.live: Dim = 0
        self.names = names
        self.memo: dict[object, tuple[Body, Any]] | None = {} if memo else None
        self.signatures: dict[int, object] = {}
        self.interned: dict[object, int] = {}
        self.roots: list[Body] = []
        self.open: list[tuple[Body, Dim]] = []

    def record(self, op: Op) -> None:
        """Append an operator; its ``live`` is set here."""
        body, start = self.open[-1]
        body.items.append(op._replace(live=self.live - start))

    @contextmanager
    def body(self, module: Module) -> Iterator[Body]:
        """Open the record of a call that really runs."""
        body = Body(type(module).__name__, self._path(module))
        self.open.append((body, self.live))
        try:
            yield body
        finally:
            self.open.pop()

    def _path(self, module: Module) -> str:
        if id(module) not in self.names:
            raise RuntimeError(f"a {type(module).__name__} is called that is no part of the traced module")
        return self.names[id(module)]

    def called(self, body: Body, module: Module, live: Dim) -> None:
        """Append a finished call to the body of its caller, or as the root."""
        if not self.open:
            self.roots.append(body)
            return
        caller, start = self.open[-1]
        name = self._path(module)
        prefix = f"{caller.path}." if caller.path else ""
        if not name.startswith(prefix):
            raise RuntimeError(f"{caller.path or 'the root'} calls {name}, which is not one of its own modules")
        caller.items.append(Call(name.removeprefix(prefix), live - start, body))


_current: ContextVar[Trace] = ContextVar("modelmeter_trace")


def current_trace() -> Trace:
    """The trace in which the running forward records.

    Raises:
        RuntimeError: an operator ran outside a trace.
    """
    try:
        return _current.get()
    except LookupError:
        raise RuntimeError("an operator ran outside a trace: call the module through modelmeter.nn.trace") from None


@contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    """Make ``trace`` the current one; nested and concurrent traces do not see each other."""
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)
