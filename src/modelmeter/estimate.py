"""The answer: FLOPs and parameters of a workload, in total, by stage, and for every module."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any

from modelmeter.compiled import CompiledForward, inclusive
from modelmeter.errors import choice, with_type
from modelmeter.footprint import Memory, memory
from modelmeter.nn import float32
from modelmeter.policy import Policy, implementation, loading
from modelmeter.stage import Component, Forward, Plan, Stage
from modelmeter.traffic import NodeTraffic, Sums, merged, over_times
from modelmeter.weights import Weights
from modelmeter.workload import Geometry, Workload

CONVENTIONS = (
    "1 multiply-add = 2 FLOPs",
    "flops: what PyTorch's FlopCounterMode counts (mm, addmm, bmm, baddbmm, convolution, scaled dot-product attention)",
    "norms, activations, softmax, modulation and biases are not in flops",
    "flops of a node include its submodules; own_flops do not; both over all calls of the run",
    "bytes moved: every kernel of eager PyTorch reads each distinct operand once and writes each result once; views "
    "move nothing, no cache is modelled; fused: only matrix products, convolutions and attention touch memory",
)


@dataclass(frozen=True, slots=True)
class Node:
    """A module in the run, or the sum of several that a pattern names.

    Args:
        flops: over the whole run, submodules included.
        own_flops: over the whole run, submodules excluded.
    """

    id: str
    parent: str | None
    kind: str
    calls: int
    flops: int
    own_flops: int
    flops_by_kind: Mapping[str, int]
    params: int


@dataclass(frozen=True, slots=True)
class StageRun:
    """A stage with the closed forms of its forwards."""

    stage: Stage
    forwards: tuple[tuple[Forward, int, CompiledForward], ...]
    """What is traced, how often it runs over the whole stage, and its closed forms."""

    @property
    def flops(self) -> int:
        """FLOPs of the stage over the whole run."""
        return sum(times * form.flops(forward.dims) for forward, times, form in self.forwards)

    @property
    def calls(self) -> int:
        """How often the pipeline calls the component."""
        return sum(call.times for call in self.stage.calls)

    @property
    def params(self) -> int:
        """Parameters of the modules that the stage runs."""
        return self.forwards[0][2].module.params

    def weights_bytes(self, loaded: Mapping[str, Weights]) -> int:
        """Bytes of the weights of the modules that the stage runs."""
        by_module = loaded[self.stage.component].by_module
        return sum(by_module.get(path, 0) for path, _ in self.forwards[0][2].module.named_modules())

    def nodes(self, component: str) -> Iterator[Node]:
        """Every module of the stage, the stage itself, which is a ``component``, first."""
        own: dict[str, dict[str, int]] = {}
        calls: dict[str, int] = {}
        for forward, times, form in self.forwards:
            for path, counts in form.own_flops(forward.dims).items():
                total = own.setdefault(path, {})
                for kind, flops in counts.items():
                    total[kind] = total.get(kind, 0) + times * flops
            for node in form.nodes:
                calls[node.path] = calls.get(node.path, 0) + times * len(node.bodies)
        forms = self.forwards[0][2].nodes
        flops_by_kind = inclusive(forms, own)
        for path, parent, kind, params, _ in forms:
            yield Node(
                id=self.stage.path(path),
                parent=None if parent is None else self.stage.path(parent),
                kind=kind if path else component,
                calls=calls[path] if path else self.calls,
                flops=sum(flops_by_kind[path].values()),
                own_flops=sum(own[path].values()),
                flops_by_kind=flops_by_kind[path],
                params=params,
            )

    def traffic(self) -> Iterator[tuple[str, NodeTraffic]]:
        """What every module of the stage moves over the whole run, by id."""
        parts: dict[str, list[Sums]] = {}
        for forward, times, form in self.forwards:
            first, last = (form.own_traffic(dims) for dims in forward.ends)
            for path in last:
                parts.setdefault(path, []).extend(map(over_times, first[path], last[path], repeat(times)))
        own = {path: merged(sums) for path, sums in parts.items()}
        for path, sums in inclusive(self.forwards[0][2].nodes, own).items():
            yield self.stage.path(path), NodeTraffic(own[path], sums)


@dataclass(frozen=True)
class Estimate:
    """What a workload costs on a model.

    Args:
        model: id of the model.
        config: its composed configuration.
        plan: what runs.
        components: class and parameters of each component by id.
        modules: the components themselves.
        loaded: gives their weights in bytes.

    Raises:
        InputError: a look-up of a node that is not there.

    Example:
        >>> import modelmeter as mm
        >>> estimate = mm.load("wan2.1-t2v-1.3b").estimate(num_inference_steps=1, guidance_scale=1)
        >>> estimate.flops == sum(stage.flops for stage in estimate.stages)
        True
    """

    model: str
    source: str
    config: Mapping[str, Any]
    plan: Plan
    components: Mapping[str, tuple[str, int]]
    runs: tuple[StageRun, ...]
    modules: Mapping[str, Component]
    loaded: Callable[[], Mapping[str, Weights]]

    @cached_property
    def memory(self) -> Memory:
        """Bytes of weights and at the peak under the policy of the configuration; computed when first asked for.

        Example:
            >>> import modelmeter as mm
            >>> memory = mm.load("wan2.1-t2v-1.3b", "precision=bf16").estimate().memory
            >>> [stage.id for stage in memory.stages], memory.peak_bytes > memory.weights_bytes
            (['text_encoder', 'transformer', 'vae_decode'], True)
        """
        return self.memory_under(Policy.of(self.config))

    def memory_under(self, policy: Policy) -> Memory:
        """Bytes under another policy with the same precisions, of which the forwards and the weights depend."""
        parts = [(run.stage, run.forwards, self.modules[run.stage.component]) for run in self.runs]
        at_start = loading(self.config, "transformer_on_device") == "from_start"
        sizes = self.geometry.latent_frames, self.geometry.latent_height, self.geometry.latent_width
        return memory(
            parts,
            policy,
            self.loaded(),
            latents=(self.workload.batch_size, self.config["vae"]["z_dim"], *sizes),
            from_start=("transformer",) if at_start else (),
            undivided_bytes=self._undivided_bytes,
        )

    @property
    def _undivided_bytes(self) -> int:
        """Bytes of the timesteps of all tokens, which the official code embeds before it divides the tokens.

        Every device holds the whole of what it takes its part of: ``e`` and the six of ``e0`` in float32.
        Source: ``sp_dit_forward`` in wan/distributed/sequence_parallel.py of Wan2.2 at 42bf4cf.
        """
        if implementation(self.config) != "official" or loading(self.config, "timesteps") != "per_token":
            return 0
        width: int = self.config["transformer"]["dim"]
        return self.workload.batch_size * self.geometry.tokens * 7 * width * float32.itemsize

    @cached_property
    def node_weights(self) -> Mapping[str, int]:
        """Bytes of the weights of every module, submodules included, by the id of its node."""
        loaded = self.loaded()
        return {
            run.stage.path(node.path): (
                loaded[run.stage.component].by_node[node.path] if node.path else run.weights_bytes(loaded)
            )
            for run in self.runs
            for node in run.forwards[0][2].nodes
        }

    @cached_property
    def flops(self) -> int:
        """FLOPs of all modelled stages over the whole run."""
        return sum(run.flops for run in self.runs)

    @property
    def params(self) -> int:
        """Distinct parameters of the loaded components."""
        return sum(params for _, params in self.components.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the reader has to know beside the numbers."""
        missing = self.plan.not_modelled
        partial = (f"totals leave out what is not modelled: {', '.join(missing)}",) if missing else ()
        return (*self.plan.warnings, *partial)

    @property
    def workload(self) -> Workload:
        """The workload that really runs."""
        return self.plan.workload

    @property
    def geometry(self) -> Geometry:
        """Latent sizes and tokens."""
        return self.plan.geometry

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every module of every stage, parents before children."""
        return tuple(node for run in self.runs for node in run.nodes(self.components[run.stage.component][0]))

    @cached_property
    def traffic(self) -> Mapping[str, NodeTraffic]:
        """What every module moves over the whole run, by the id of its node; computed when first asked for."""
        return {path: traffic for run in self.runs for path, traffic in run.traffic()}

    @property
    def stages(self) -> tuple[Node, ...]:
        """The stages, as nodes without a parent."""
        return tuple(node for node in self.nodes if node.parent is None)

    def __getitem__(self, path: str) -> Node:
        """The node of a path below the stages; ``*`` stands for one part of a path, or some of its letters.

        What a star matches is summed; modules of different classes together are of the kind ``several``.
        """
        if not isinstance(path, str):
            raise choice("node", with_type(path), [node.id for node in self.stages])
        parts = path.split(".")
        found = [node for node in self.nodes if _matches(node.id.split("."), parts)]
        if not found:
            raise choice("node", path, _candidates(self.nodes, parts))
        if len(found) == 1:
            return found[0]
        by_kind: dict[str, int] = {}
        for node in found:
            for kind, flops in node.flops_by_kind.items():
                by_kind[kind] = by_kind.get(kind, 0) + flops
        return Node(
            id=path,
            parent=None,
            kind=found[0].kind if len({node.kind for node in found}) == 1 else "several",
            calls=sum(node.calls for node in found),
            flops=sum(node.flops for node in found),
            own_flops=sum(node.own_flops for node in found),
            flops_by_kind=by_kind,
            params=sum(node.params for node in found),
        )


def _matches(parts: list[str], pattern: list[str]) -> bool:
    return len(parts) == len(pattern) and all(
        re.fullmatch(".*".join(map(re.escape, wanted.split("*"))), part)
        for part, wanted in zip(parts, pattern, strict=True)
    )


def _candidates(nodes: tuple[Node, ...], parts: list[str]) -> list[str]:
    """What a mistyped path may have meant: the children of the longest part of it that exists."""
    for depth in range(len(parts) - 1, -1, -1):
        above = {node.id for node in nodes if _matches(node.id.split("."), parts[:depth])}
        if above or depth == 0:
            prefix = ".".join(parts[:depth])
            names = dict.fromkeys(
                node.id.rpartition(".")[2] for node in nodes if (node.parent in above if above else node.parent is None)
            )
            return [f"{prefix}.{name}" if prefix else name for name in names]
    return []
