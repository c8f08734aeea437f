"""What a pipeline runs, as plain numbers: stages, their forwards, and how often each runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelmeter.nn import Dim, Module, symbol
from modelmeter.workload import Geometry, Workload


class Component(Module):
    """A module that a stage runs: it can make its own inputs."""

    #: Paths of modules that hold weights and are not meant to run.
    idle: tuple[str, ...] = ()
    #: Sizes that closed forms hold as the number that they are: what divisions leave over, and settings.
    literals: tuple[str, ...] = ()

    def inputs(self, **dims: Dim) -> Mapping[str, Any]:
        """What ``forward`` takes, by name, for the sizes of a :class:`Forward`: tensors, sizes, settings."""
        raise NotImplementedError(f"{type(self).__name__} has no inputs")

    def sizes(self, dims: Mapping[str, int]) -> dict[str, Dim]:
        """The sizes of a :class:`Forward` as closed forms take them: symbols, but 1 and ``literals`` stay as they are.

        A component whose sizes depend on one another says here how.
        """
        fixed = {name: size for name, size in dims.items() if size == 1 or name in self.literals}
        return {name: fixed.get(name, symbol(name)) for name in dims}

    def counts(self, dims: Mapping[str, int]) -> dict[str, int]:
        """Numbers that ``forward`` takes beside the tensors, where their sizes are formulas: how often a part runs."""
        return {}

    def entry(self, label: str) -> Component:
        """What a :class:`Forward` of that label runs: this module, or a part of it with the same paths."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A part of a call that is traced at once, on inputs of given sizes.

    Args:
        dims: sizes by name, as the ``inputs`` of what runs takes them.
        times: how often it runs within the call.
        label: what runs, for components that run several things.
        first: sizes the first of the times, where they grow evenly from there to ``dims``.
    """

    dims: Mapping[str, int]
    times: int = 1
    label: str = "forward"
    first: Mapping[str, int] | None = None

    @property
    def ends(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Sizes the first and the last of the times."""
        return (self.dims if self.first is None else self.first), self.dims


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a component by the pipeline.

    Args:
        forwards: what runs in one call; a VAE runs several, chunk by chunk.
        times: how often the pipeline makes the call.
        dims: sizes of the whole input.
        in_order: the forwards follow one another as in the call; otherwise they are its parts in another order.
    """

    forwards: tuple[Forward, ...]
    times: int
    dims: Mapping[str, int]
    in_order: bool = True


def single(dims: Mapping[str, int], times: int) -> Call:
    """A call that is one forward."""
    return Call(forwards=(Forward(dims=dims),), times=times, dims=dims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the pipeline: one component (diffusers' name) and the calls made of it."""

    id: str
    component: str
    calls: tuple[Call, ...]

    @property
    def forwards(self) -> tuple[tuple[Forward, int], ...]:
        """Every forward and how often it runs over the whole stage."""
        return tuple((forward, call.times * forward.times) for call in self.calls for forward in call.forwards)

    def path(self, below: str) -> str:
        """The id of a module of the component in reports: its path below the stage."""
        return f"{self.id}.{below}" if below else self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything one workload runs, and what the model leaves out.

    Args:
        workload: what really runs, after rounding.
        not_modelled: ids of the stages that run but are not counted.
    """

    workload: Workload
    geometry: Geometry
    stages: tuple[Stage, ...]
    not_modelled: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """A real class that a component can be compared with.

    Args:
        package, name: where the class is; after a dot of the name comes the part of it that runs.
        arguments: what it is built with.
        method: what is called; its inputs are those of the component's ``entry`` of that name.
        aliases: part of a path in the analytic model, and the part of the reference's path that answers for it.
        dtype: what its weights are loaded in, but for those that the class itself keeps in float32.
        repository: of the vendor, where the class is in a checkout of it and not in a package that is installed.
    """

    package: str
    name: str
    arguments: Mapping[str, Any]
    aliases: Mapping[str, str] = field(default_factory=dict)
    method: str = "forward"
    dtype: str = "float32"
    repository: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The transformer blocks of a forward: how many, their width D, and the inner width of their feed-forward."""

    count: int
    width: int
    inner_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What a family tells about itself: its components, and what it runs for a workload.

    Args:
        components: builds the modules by component id from a configuration.
        plan: the stages of a workload under a configuration.
        references: for each component the real classes that it can be verified against, by kind.
        blocks: how many transformer blocks a forward runs, their width and inner width, where engines that fuse
            elementwise kernels are known to run them.
    """

    components: Callable[[Mapping[str, Any]], dict[str, Component]]
    plan: Callable[[Mapping[str, Any], Workload], Plan]
    references: Callable[[Mapping[str, Any]], dict[str, dict[str, Reference]]]
    blocks: Callable[[Mapping[str, Any]], Blocks] | None = None
