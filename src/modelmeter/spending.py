"""What the seconds of a stage and of its modules are spent on: kernels, links, and what runs beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from modelmeter.api import Model
from modelmeter.compiled import CompiledForward
from modelmeter.devices import Device
from modelmeter.engine import elementwise_bytes, fuses, host_seconds
from modelmeter.estimate import StageRun
from modelmeter.nn import Body
from modelmeter.parallel import SHARED_MODULES, Link, Parallel, blocks_of, copied_bytes, shard
from modelmeter.policy import implementation
from modelmeter.rates import Constants
from modelmeter.roofline import Rates, Seconds, Work, own_works, seconds, total_works

#: What is spent neither in kernels nor in launches.
HOST_LINK, HOST, LINK = "host_link", "host", "link"
#: Calls of a stage that cost time beside their kernels.
CALL_SECONDS: Mapping[str, str] = {"text_encoder": "text_encoder_call_s", "image_encoder": "image_encoder_call_s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """Under what a stage runs, beside its forwards."""

    device: Device
    engine: str
    rates: Rates
    constants: Constants
    layout: Parallel


def stage_seconds(model: Model, run: StageRun, under: Circumstances) -> Seconds:
    """Seconds of a stage on one rank, by what they are spent on; the other ranks run at the same time."""
    total: dict[str, float] = {}
    for forward, times, form in run.forwards:
        for resource, spent in _forward_seconds(model, run, form, forward.dims, under).items():
            total[resource] = total.get(resource, 0.0) + _times(run, times, under.layout) * spent
    on_cpu = run.stage.id == "text_encoder" and model.config["text_encoder_device"] == "cpu"
    if on_cpu:
        total = {HOST: run.calls * under.constants["text_encoder_on_cpu_call_s"]}
    elif run.stage.id in CALL_SECONDS:
        total[HOST] = run.calls * under.constants[CALL_SECONDS[run.stage.id]]
    moved = 0.0 if on_cpu else host_seconds(model, run, under.device, under.constants, sum(total.values()))
    if moved:
        total[HOST_LINK] = moved
    return total


def node_seconds(run: StageRun, under: Circumstances) -> Iterator[tuple[str, int, int, Seconds]]:
    """Every module that is called, parents first: path, depth, FLOPs, and the seconds of its kernels on one rank."""
    spent: dict[str, dict[str, float]] = {}
    flops: dict[str, int] = {}
    called: set[str] = set()
    for forward, times, form in run.forwards:
        known: dict[tuple[Body, bool], Seconds] = {}
        for path, count in form.module_flops(forward.dims).items():
            flops[path] = flops.get(path, 0) + times * count
        for node in form.nodes:
            own = spent.setdefault(node.path, {})
            shared = _shared(run, node.path)
            for body in node.bodies:
                called.add(node.path)
                if (body, shared) not in known:
                    works = own_works(body)
                    works = _products(works) if fuses(run, under.engine) else works
                    part = shard(under.layout, forward.dims) if shared else None
                    known[body, shared] = seconds(works, forward.dims, under.rates, part)
                for resource, single in known[body, shared].items():
                    own[resource] = own.get(resource, 0.0) + _times(run, times, under.layout) * single
    for path in reversed(spent):  # children come after their parents
        if path:
            above = spent[path.rpartition(".")[0]]
            for resource, single in spent[path].items():
                above[resource] = above.get(resource, 0.0) + single
    for path, by in spent.items():
        if path in called:
            yield path, path.count(".") + 1 if path else 0, flops[path], by


def _forward_seconds(
    model: Model, run: StageRun, form: CompiledForward, dims: Mapping[str, int], under: Circumstances
) -> Seconds:
    several = _transformer(run) and under.layout.ranks > 1
    part = shard(under.layout, dims) if several else None
    total: dict[str, float] = {}
    for shared, works in (_divided(run, form) if part else {False: form.works}).items():
        works = _products(works) if fuses(run, under.engine) else works
        for resource, spent in seconds(works, dims, under.rates, part if shared else None).items():
            total[resource] = total.get(resource, 0.0) + spent
    moved = 0.0
    if fuses(run, under.engine):
        moved = elementwise_bytes(model, dims, under.engine) * (part.part if part else 1.0)
    if several and implementation(model.config) == "official":
        moved += copied_bytes(under.layout, dims, blocks_of(model))
    if moved:
        total["memory"] = total.get("memory", 0.0) + moved / under.rates.bandwidth
    if several:
        params, busy = model.components[run.stage.component].params, sum(total.values())
        link = Link.of(under.device, under.constants)
        waited = link.seconds(under.layout, dims, blocks_of(model), params=params, busy=busy)
        if waited:
            total[LINK] = waited
    return total


def _divided(run: StageRun, form: CompiledForward) -> Mapping[bool, Mapping[Work, int]]:
    """The kernels of a forward that share tokens, and those that every rank runs in full."""
    found: dict[bool, Counter[Work]] = {True: Counter(), False: Counter(own_works(form.body))}
    for call in form.body.calls:
        found[_shared(run, call.name)].update(total_works(call.body))
    return found


def _shared(run: StageRun, path: str) -> bool:
    return _transformer(run) and path.split(".")[0] in SHARED_MODULES


def _transformer(run: StageRun) -> bool:
    return run.stage.component.startswith("transformer")


def _times(run: StageRun, times: int, layout: Parallel) -> float:
    """How often a rank runs a forward: under ``cfg=2`` half as often, since the two of a step run side by side."""
    return times / layout.cfg if _transformer(run) else times


def _products(works: Mapping[Work, int]) -> Mapping[Work, int]:
    return {work: count for work, count in works.items() if work.resource is not None}
