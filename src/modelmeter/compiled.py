"""A forward compiled once: closed forms of its FLOPs and peak, evaluated exactly in microseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

from modelmeter.flops import Counts, called_paths, own_flops, total_flops
from modelmeter.memory import Peak, peaks
from modelmeter.nn import Body, Dim, evaluate, symbol, trace
from modelmeter.nn.polynomial import SMALLEST_SYMBOL
from modelmeter.roofline import Work, total_works
from modelmeter.stage import Component
from modelmeter.traffic import Sums, evaluated, own_traffic, total_traffic


class NodeForm(NamedTuple):
    """A module of the compiled forward: where it is, and what it runs."""

    path: str
    parent: str | None
    kind: str
    """Class name."""
    params: int
    bodies: tuple[Body, ...]
    """What each of its calls ran; empty for a container that is never called."""


@dataclass(frozen=True)
class CompiledForward:
    """Closed forms of one forward in the sizes of its inputs.

    Args:
        sizes: by name the symbol of a size, which holds from 2 up, or what the forms hold for as it is.
        counts: how often parts of the forward run in these forms.

    Raises:
        ValueError: an evaluation at sizes that the forms do not cover.

    Example:
        >>> from modelmeter.models.wan2_1.transformer import Wan2_1DiTModel
        >>> dims = {"batch": 1, "frames": 3, "rows": 4, "columns": 4, "text_len": 8}
        >>> form = compile_forward(Wan2_1DiTModel(num_layers=1), dims)
        >>> form.flops({**dims, "frames": 5}) > form.flops(dims)
        True
    """

    module: Component
    body: Body
    sizes: Mapping[str, Dim]
    counts: Mapping[str, int]
    _peaks: dict[str, tuple[Peak, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def symbols(self) -> frozenset[str]:
        """Names of the sizes that the forms are in."""
        return frozenset(name for name, size in self.sizes.items() if size == symbol(name))

    @cached_property
    def total(self) -> Counts:
        """Closed form of the FLOPs of the forward by kind."""
        return total_flops(self.body)

    @cached_property
    def flops_form(self) -> Dim:
        """Closed form of the FLOPs of the forward."""
        return sum(self.total.values(), start=0)

    def peak_forms(self, workspace: str = "none") -> tuple[Peak, ...]:
        """The moments that may be the peak at sizes within the bounds; found when first asked for."""
        if workspace not in self._peaks:
            self._peaks[workspace] = peaks(self.body, dict.fromkeys(self.symbols, SMALLEST_SYMBOL), workspace)
        return self._peaks[workspace]

    @cached_property
    def works(self) -> Mapping[Work, int]:
        """The kernels of the forward as the time fold takes them, equal ones counted."""
        return total_works(self.body)

    @cached_property
    def nodes(self) -> tuple[NodeForm, ...]:
        """Every module by path, parents before children."""
        bodies: dict[str, list[Body]] = {}
        for path, body in called_paths(self.body):
            bodies.setdefault(path, []).append(body)
        return tuple(
            NodeForm(
                path,
                path.rpartition(".")[0] if path else None,
                type(module).__name__,
                module.params,
                tuple(bodies.get(path, ())),
            )
            for path, module in self.module.named_modules()
        )

    def flops(self, dims: Mapping[str, int]) -> int:
        """FLOPs of one forward at these sizes."""
        self._check(dims)
        return evaluate(self.flops_form, dims)

    def flops_by_kind(self, dims: Mapping[str, int]) -> dict[str, int]:
        """FLOPs of one forward at these sizes, by kind of operator."""
        self._check(dims)
        return {kind: evaluate(flops, dims) for kind, flops in self.total.items()}

    def own_flops(self, dims: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """FLOPs by kind that every module runs itself in one forward at these sizes, by path."""
        self._check(dims)
        known: dict[Body, dict[str, int]] = {}
        result: dict[str, dict[str, int]] = {}
        for node in self.nodes:
            counts = result[node.path] = {}
            for body in node.bodies:
                if body not in known:
                    known[body] = {kind: evaluate(flops, dims) for kind, flops in own_flops(body).items()}
                for kind, flops in known[body].items():
                    counts[kind] = counts.get(kind, 0) + flops
        return result

    def module_flops(self, dims: Mapping[str, int]) -> dict[str, int]:
        """FLOPs of every module that is called, submodules included, in one forward at these sizes, by path."""
        counts = inclusive(self.nodes, self.own_flops(dims))
        return {node.path: sum(counts[node.path].values()) for node in self.nodes if node.bodies}

    @cached_property
    def total_traffic(self) -> Sums:
        """Closed forms of what the kernels of the forward move."""
        return total_traffic(self.body)

    def traffic(self, dims: Mapping[str, int]) -> Sums:
        """What the kernels of one forward move at these sizes."""
        self._check(dims)
        return evaluated(self.total_traffic, dims)

    def own_traffic(self, dims: Mapping[str, int]) -> dict[str, list[Sums]]:
        """What the kernels that every module runs itself move in each of its calls of one forward, by path."""
        self._check(dims)
        bodies = {body for node in self.nodes for body in node.bodies}
        known = {body: evaluated(own_traffic(body), dims) for body in bodies}
        return {node.path: [known[body] for body in node.bodies] for node in self.nodes}

    def peak(self, dims: Mapping[str, int], workspace: str = "none") -> Peak:
        """The peak of one forward at these sizes, workspaces of convolutions included: bytes, module and operator."""
        self._check(dims)
        found = (peak._replace(live=evaluate(peak.live, dims)) for peak in self.peak_forms(workspace))
        return max(found, key=lambda peak: peak.live)

    def covers(self, dims: Mapping[str, int]) -> bool:
        """Whether the closed forms hold at these sizes."""
        return (
            all(dims[name] >= SMALLEST_SYMBOL for name in self.symbols)
            and all(evaluate(size, dims) == dims[name] for name, size in self.sizes.items())
            and self.module.counts(dims) == self.counts
        )

    def _check(self, dims: Mapping[str, int]) -> None:
        if not self.covers(dims):
            raise ValueError(
                f"sizes {dict(dims)} are outside these closed forms ({dict(self.sizes)}, symbols from 2 up)"
            )


def compile_forward(module: Component, dims: Mapping[str, int]) -> CompiledForward:
    """Trace ``module`` once on formulas: every size is a symbol, but for what the module holds fast.

    Args:
        module: what runs.
        dims: sizes by name.
    """
    sizes, counts = module.sizes(dims), module.counts(dims)
    inputs: dict[str, Any] = {**module.inputs(**sizes), **counts}
    record = trace(module, **inputs)
    return CompiledForward(module, record.body, sizes, counts)


class _Added(Protocol):
    def __add__(self: Number, other: Number, /) -> Number: ...


Key = TypeVar("Key")
Number = TypeVar("Number", bound=_Added)


def inclusive(nodes: Sequence[NodeForm], own: Mapping[str, Mapping[Key, Number]]) -> dict[str, dict[Key, Number]]:
    """Counts by kind of every module with all below it, from what each runs itself."""
    result = {path: dict(counts) for path, counts in own.items()}
    for node in reversed(nodes):  # children come after their parents
        if node.parent is not None:
            above = result[node.parent]
            for kind, count in result[node.path].items():
                above[kind] = above[kind] + count if kind in above else count
    return result
