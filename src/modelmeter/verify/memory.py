"""Live bytes and bytes moved of every call, against the allocation tracker on the real classes.

The closed forms are held against what a tracker sees of diffusers' and transformers' classes, at full size
on ``meta``: the peak, the kernel and the module that run then, the features that a VAE keeps between its
chunks, and the bytes that each operator reads and writes. Where only equal integers pass, every kernel is
compared, in the order they run, so that the first that differs is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from diffusers import ModelMixin

from modelmeter.api import Model
from modelmeter.nn import Body, Cache, Dim, Op, Tensor, evaluate, trace
from modelmeter.policy import Policy
from modelmeter.stage import Call, Forward, Reference, Stage
from modelmeter.traffic import Sums, Traffic, merged, over_times, overall
from modelmeter.verify.allocations import Tracked, keep_in_fp32, track
from modelmeter.verify.compare import Check, Progress, Row, match
from modelmeter.verify.reference import Calls, build
from modelmeter.verify.settings import Tolerance

#: The pipeline whose forwards are compared.
IMPLEMENTATION = "diffusers"
#: What of the traffic of an operator is compared.
MOVED = ("bytes_read", "weight_bytes_read", "bytes_written")


class Kernel(NamedTuple):
    """A kernel, as far as it is compared; live bytes are those above weights and inputs."""

    path: str
    name: str
    live: Dim
    bytes_read: Dim
    weight_bytes_read: Dim
    bytes_written: Dim


@dataclass(frozen=True, slots=True)
class Seen:
    """What the tracker saw of one call.

    Args:
        kernels: in the order they ran.
        cache_bytes: of the features that a VAE kept, at most.
    """

    kernels: tuple[Kernel, ...]
    cache_bytes: int


class Trackers:
    """The tracked classes of a run: each built once, each call run once.

    Args:
        progress: told what is about to run.
    """

    def __init__(self, progress: Progress = lambda _: None) -> None:
        self._progress = progress
        self._modules: dict[str, torch.nn.Module] = {}
        self._seen: dict[tuple[str, str, bool], Seen] = {}

    def call(
        self, place: str, reference: Reference, inputs: Mapping[str, Any], *, decomposed_rms_norm: bool = False
    ) -> Seen:
        """One call of a real class, on inputs of these shapes, strides and dtypes."""
        given = repr([(name, value, getattr(value, "strides", None)) for name, value in inputs.items()])
        key = repr(reference), given, decomposed_rms_norm
        if key not in self._seen:
            self._progress(f"{place}: {reference.name}")
            if key[0] not in self._modules:
                self._modules[key[0]] = loaded(reference)
            module = self._modules[key[0]]
            self._seen[key] = seen(module, reference, inputs, decomposed_rms_norm=decomposed_rms_norm)
        return self._seen[key]


def loaded(reference: Reference) -> torch.nn.Module:
    """The real class on meta, its weights in the dtypes in which its package loads them.

    Source: ``_keep_in_fp32_modules``, which diffusers goes by in any dtype and transformers in float16 only
    (``PreTrainedModel._keep_in_fp32_modules``).
    """
    module, dtype = build(reference), getattr(torch, reference.dtype)
    if isinstance(module, ModelMixin) or dtype == torch.float16:
        keep_in_fp32(module, dtype)
        return module
    return module.to(dtype)


def seen(
    module: torch.nn.Module, reference: Reference, inputs: Mapping[str, Any], *, decomposed_rms_norm: bool = False
) -> Seen:
    """One tracked call of a class of :func:`loaded`, on inputs of these shapes, strides and dtypes."""
    tensors = {name: _meta(value) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    cached: list[int] = []

    def measure(_module: Any, _args: Any, kwargs: Mapping[str, Any], _output: Any) -> None:
        storages = {x.untyped_storage()._cdata: x.untyped_storage() for x in _tensors(kwargs.get("feat_cache"))}
        cached.append(sum(storage.nbytes() for storage in storages.values()))

    children = [child for name, child in module.named_children() if name in ("encoder", "decoder")]
    handles = [child.register_forward_hook(measure, with_kwargs=True) for child in children]
    try:
        calls = Calls(module, reference.method, 1)
        tracked = track(calls, decomposed_rms_norm=decomposed_rms_norm, **tensors)
    finally:
        for handle in handles:
            handle.remove()
    return Seen(tuple(_kernels(tracked)), max(cached, default=0))


def _meta(tensor: Tensor) -> torch.Tensor:
    shape: Any = tensor.shape
    strides: Any = tensor.strides
    return torch.empty_strided(shape, strides, dtype=getattr(torch, tensor.dtype.name), device="meta")


def _tensors(slots: Iterable[object] | None) -> list[torch.Tensor]:
    return [slot for slot in slots or () if isinstance(slot, torch.Tensor)]


def _kernels(tracked: Tracked) -> Iterator[Kernel]:
    for k in tracked.kernels:
        path = k.path.removeprefix("module").removeprefix(".")
        yield Kernel(path, k.name, k.live, k.bytes_read, k.weight_bytes_read, k.bytes_written)


# -- the analytic side --------------------------------------------------------------------------------------------


def as_diffusers(model: Model) -> Model:
    """The model as diffusers runs it; one whose transformer diffusers does not have, as it is."""
    if IMPLEMENTATION not in model.pipeline.references(model.config)["transformer"]:
        return model
    return replace(model, config={**model.config, "implementation": IMPLEMENTATION}, _forms={})


def analytic_kernels(model: Model, stage: Stage, call: Call) -> Iterator[Kernel]:
    """Every kernel of a call, in the order they run, each forward traced on integers."""
    for forward in call.forwards:
        module = model.components[stage.component].entry(forward.label)
        for time in range(forward.times):
            inputs: dict[str, Any] = {**module.inputs(**_sizes(forward, time))}
            yield from _unrolled(trace(module, **inputs).body, "", 0)


def _sizes(forward: Forward, time: int) -> dict[str, int]:
    """Sizes of one of the times, which grow evenly."""
    first, last = forward.ends
    return {name: size + time * (last[name] - size) // max(forward.times - 1, 1) for name, size in first.items()}


def _unrolled(body: Body, path: str, live: Dim) -> Iterator[Kernel]:
    for item in body.items:
        if isinstance(item, Op):
            moved = item.bytes_read, item.weight_bytes_read, item.bytes_written
            yield Kernel(path, item.name, live + item.live, *moved)
        else:
            yield from _unrolled(item.body, f"{path}.{item.name}" if path else item.name, live + item.live)


def cache_bytes(model: Model, stage: Stage, call: Call) -> int:
    """Bytes of the features that a VAE keeps between its chunks, at most."""
    largest = 0
    for forward in call.forwards:
        inputs = model.components[stage.component].entry(forward.label).inputs(**forward.dims)
        for cache in inputs.values():
            if isinstance(cache, Cache):
                largest = max(largest, evaluate(cache.nbytes, {}))
    return largest


# -- both ---------------------------------------------------------------------------------------------------------


def memory(model: Model, workload: str, trackers: Trackers, tolerance: Tolerance) -> Iterator[Check]:
    """One check for each different call of each stage that diffusers has a class for."""
    model = as_diffusers(model)
    references = model.pipeline.references(model.config)
    for stage in model.plan(model.workload(workload)).stages:
        reference = references[stage.id].get(IMPLEMENTATION)
        for call in stage.calls if reference else ():
            assert reference is not None
            yield _check(model, workload, stage, call, reference, trackers, tolerance)


def _check(
    model: Model,
    workload: str,
    stage: Stage,
    call: Call,
    reference: Reference,
    trackers: Trackers,
    tolerance: Tolerance,
) -> Check:
    inputs = model.components[stage.component].entry(reference.method).inputs(**call.dims)
    decomposed = Policy.of(model.config).rms_norm == "decomposed"
    tracked = trackers.call(f"{model.id} {stage.id}", reference, inputs, decomposed_rms_norm=decomposed)
    matched = match(_analytic(model, stage, call), _reference(stage, tracked))
    peak, place = _peak(model, stage, call, tracked)
    rows = [(f"{stage.id}:{name}", ours, theirs) for name, ours, theirs in matched.pairs]
    rows += [(f"{stage.path(peak.path)}:{peak.name}", evaluate(peak.live, {}), place)]
    where = f"{model.id} {workload} {stage.id}"
    different = () if not (tolerance.equal and call.in_order) else _first_different(model, stage, call, tracked)
    return Check(
        kind="memory",
        reference=f"{IMPLEMENTATION}, tracked",
        tolerance=tolerance,
        rows=tuple(Row(model.id, workload, stage.id, id, "bytes", ours, theirs) for id, ours, theirs in rows),
        missing=tuple(f"{where}:{name}" for name in matched.missing),
        extra=tuple(f"{where}:{name}" for name in matched.extra),
        broken_laws=tuple(f"{model.id} {workload} {line}" for line in different),
    )


def _analytic(model: Model, stage: Stage, call: Call) -> dict[str, int]:
    """Numbers of a call from its closed forms."""
    parts: list[Sums] = []
    peaks = []
    for forward in call.forwards:
        form = model.compiled(stage, forward)
        first, last = (form.traffic(dims) for dims in forward.ends)
        parts.append(over_times(first, last, forward.times))
        peaks.append(form.peak(forward.dims).live)
    sums = merged(parts)
    by_op: dict[str, Traffic] = {}
    for key, traffic in sums.items():
        by_op[key.op] = by_op.get(key.op, Traffic()) + traffic
    found = {"peak_bytes": max(peaks), "cache_bytes": cache_bytes(model, stage, call)}
    found |= {name: getattr(overall(sums), name) for name in MOVED}
    found |= {f"{name}.{op}": getattr(traffic, name) for name in MOVED for op, traffic in by_op.items()}
    return {name: evaluate(value, {}) for name, value in found.items()}


def _reference(stage: Stage, tracked: Seen) -> dict[str, int]:
    """The same numbers from the kernels that ran."""
    found: Counter[str] = Counter()
    for kernel in tracked.kernels:
        for name in MOVED:
            for place in (name, f"{name}.{kernel.name}"):
                found[place] += evaluate(getattr(kernel, name), {})
    peak = max((evaluate(kernel.live, {}) for kernel in tracked.kernels), default=0)
    return {"peak_bytes": peak, "cache_bytes": tracked.cache_bytes, **found}


def _peak(model: Model, stage: Stage, call: Call, tracked: Seen) -> tuple[Kernel, int]:
    """The analytic peak, and the most that is alive in the reference when that module runs that operator."""
    found = [model.compiled(stage, forward).peak(forward.dims) for forward in call.forwards]
    peak = max(found, key=lambda each: evaluate(each.live, {}))
    alive = (k.live for k in tracked.kernels if (k.path, k.name) == (peak.path, peak.op))
    return Kernel(peak.path, peak.op, peak.live, 0, 0, 0), max((evaluate(live, {}) for live in alive), default=0)


def _first_different(model: Model, stage: Stage, call: Call, tracked: Seen) -> Iterator[str]:
    """The first kernel that is not that of the reference, in words."""
    for number, (ours, theirs) in enumerate(zip_longest(analytic_kernels(model, stage, call), tracked.kernels), 1):
        if ours != theirs:
            yield f"{stage.id}: kernel {number} is {_words(stage, ours)}; in the reference {_words(stage, theirs)}"
            return


def _words(stage: Stage, kernel: Kernel | None) -> str:
    if kernel is None:
        return "none"
    weights = f" ({kernel.weight_bytes_read:,} of weights)" if kernel.weight_bytes_read else ""
    return (
        f"{kernel.name} in {stage.path(kernel.path)}: {kernel.live:,} bytes alive, "
        f"{kernel.bytes_read:,} read{weights}, {kernel.bytes_written:,} written"
    )
