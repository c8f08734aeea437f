"""The FLOPs fold: counts of a trace by kind, for each module and in total."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from modelmeter.nn import Body, Dim

#: FLOPs by kind of operator; kinds that count none are left out.
Counts: TypeAlias = Mapping[str, Dim]


def own_flops(body: Body) -> Counts:
    """FLOPs of the operators that a module runs itself, by kind.

    Example:
        >>> from modelmeter.nn import Linear, Tensor, float32, trace
        >>> own_flops(trace(Linear(4, 8), Tensor((3, 4), float32)).body)
        {'linear': 192}
    """
    counts: dict[str, Dim] = {}
    for op in body.ops:
        if op.flops != 0:
            counts[op.kind] = counts.get(op.kind, 0) + op.flops
    return counts


def distinct_bodies(body: Body) -> Mapping[Body, int]:
    """Every distinct body of a trace with the number of calls that share it, callers before what they call."""
    finished: list[Body] = []
    _visit(body, finished, set())
    times = dict.fromkeys(reversed(finished), 0)
    times[body] = 1
    for caller in times:
        for call in caller.calls:
            times[call.body] += times[caller]
    return times


def _visit(body: Body, finished: list[Body], seen: set[Body]) -> None:
    seen.add(body)
    for call in body.calls:
        if call.body not in seen:
            _visit(call.body, finished, seen)
    finished.append(body)


def total_flops(body: Body) -> Counts:
    """FLOPs of a whole trace by kind.

    Example:
        >>> from modelmeter.nn import Linear, Tensor, float32, trace
        >>> total_flops(trace(Linear(4, 8), Tensor((3, 4), float32)).body)
        {'linear': 192}
    """
    counts: dict[str, Dim] = {}
    for part, times in distinct_bodies(body).items():
        for kind, flops in own_flops(part).items():
            counts[kind] = counts.get(kind, 0) + times * flops
    return counts


def called_paths(body: Body, path: str = "") -> Iterator[tuple[str, Body]]:
    """Every call of a trace by the path of its module below the root, in the order of the calls."""
    yield path, body
    for call in body.calls:
        yield from called_paths(call.body, f"{path}.{call.name}" if path else call.name)
