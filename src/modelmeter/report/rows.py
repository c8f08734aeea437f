"""Nodes as rows of a table: equal copies folded into one, to a depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from modelmeter.estimate import Node

Children: TypeAlias = dict[str | None, list[Node]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    Args:
        id: path, ``*`` where equal copies are folded.
        parent: id of the row that holds this one.
        depth: number of modules above it.
        copies: how many nodes the row stands for; counts are their sum.
        weights_bytes: of the module and all below it.
    """

    id: str
    parent: str
    depth: int
    kind: str
    copies: int
    calls: int
    params: int
    flops: int
    own_flops: int
    weights_bytes: int


def folded(nodes: Sequence[Node], weights: Mapping[str, int] = MappingProxyType({})) -> list[Row]:
    """Rows of all nodes that are called, parents before children; equal modules of a list share their rows.

    Args:
        weights: bytes of the weights of each node by id.

    Example:
        >>> import modelmeter as mm
        >>> rows = folded(mm.load("wan2.1-t2v-1.3b").estimate().nodes)
        >>> [row.copies for row in rows if row.id == "transformer.blocks.*"]
        [30]
    """
    children: Children = {}
    for node in nodes:
        children.setdefault(node.parent, []).append(node)
    rows = (row for root in children.get(None, []) for row in _rows(root, root.id, "", 0, 1, children, weights))
    return list(rows)


def _rows(
    node: Node, id: str, parent: str, depth: int, copies: int, children: Children, weights: Mapping[str, int]
) -> Iterator[Row]:
    yield Row(
        id,
        parent,
        depth,
        node.kind,
        copies,
        copies * node.calls,
        copies * node.params,
        copies * node.flops,
        copies * node.own_flops,
        copies * weights.get(node.id, 0),
    )
    yield from _rows_below(node, id, id, depth + 1, copies, children, weights)


def _rows_below(
    node: Node, id: str, parent: str, depth: int, copies: int, children: Children, weights: Mapping[str, int]
) -> Iterator[Row]:
    below = children.get(node.id, [])
    if len(below) > 1 and len({_shape(child, children) for child in below}) == 1:
        yield from _rows(below[0], f"{id}.*", parent, depth, copies * len(below), children, weights)
        return
    for child in below:
        name = f"{id}.{child.id.rpartition('.')[2]}"
        if child.calls:
            yield from _rows(child, name, parent, depth, copies, children, weights)
        else:  # a list of modules is only a part of their names
            yield from _rows_below(child, name, parent, depth, copies, children, weights)


def _shape(node: Node, children: Children) -> tuple[object, ...]:
    """What makes a copy equal: numbered, and the same counts all the way down."""
    name = node.id.rpartition(".")[2]
    below = tuple((child.id.rpartition(".")[2], _shape(child, children)) for child in children.get(node.id, []))
    numbered = "#" if name.isdigit() else name
    return numbered, node.kind, node.calls, node.params, node.flops, node.own_flops, below


def to_depth(rows: Sequence[Row], depth: int) -> list[Row]:
    """Rows down to ``depth`` modules below the stage, without those that have neither FLOPs nor parameters."""
    return [row for row in rows if row.depth <= depth and (row.flops or row.params)]


def top(rows: Sequence[Row], count: int) -> list[Row]:
    """The rows with the most FLOPs of their own, largest first; ties keep their order."""
    return sorted((row for row in rows if row.own_flops), key=lambda row: -row.own_flops)[:count]
