"""Laws between the numbers of a model, which need no reference and no PyTorch.

They catch wiring errors: a module that is configured but never called, counts that are shared wrongly,
totals that leave something out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from modelmeter.api import Model
from modelmeter.compiled import CompiledForward
from modelmeter.errors import InputError
from modelmeter.nn import Body, trace
from modelmeter.stage import Forward, Plan, Stage
from modelmeter.verify.compare import Check, Row
from modelmeter.verify.settings import Tolerance
from modelmeter.workload import BOUNDS, Workload

#: Largest step between two sizes that run: the largest stride of a VAE (16) times the largest patch (64).
LARGEST_STEP = 1024


def core(model: Model, workload: str, plan: Plan, tolerance: Tolerance) -> Iterator[Check]:
    """One check of the laws for a workload."""
    rows: list[Row] = []
    broken: list[str] = []
    for stage in plan.stages:
        forms = [(forward, model.compiled(stage, forward)) for forward, _ in stage.forwards]
        for forward, form in forms:
            rows += _sublayers(model.id, workload, stage, forward, form)
        broken += _uncalled(f"{model.id} {workload}", stage, [form for _, form in forms])
    rows += _parameters(model, workload, plan)
    rows += _scaled(model, workload, plan.workload)
    broken += _not_monotonic(model, workload, plan.workload)
    yield Check(kind="core", reference="laws", tolerance=tolerance, rows=tuple(rows), broken_laws=tuple(broken))


def _sublayers(model: str, workload: str, stage: Stage, forward: Forward, form: CompiledForward) -> Iterator[Row]:
    """Every module costs the sum of its operators: closed forms against a trace on integers that shares nothing."""
    inputs: dict[str, Any] = {**form.module.inputs(**forward.dims)}
    record = trace(form.module, memo=False, **inputs)
    summed: dict[str, int] = {}
    _add_up(record.body, [""], summed)
    for path, flops in form.module_flops(forward.dims).items():
        yield Row(model, workload, stage.id, stage.path(path), "flops", flops, summed.pop(path))
    for path, flops in summed.items():
        yield Row(model, workload, stage.id, stage.path(path), "flops", 0, flops)


def _add_up(body: Body, paths: list[str], summed: dict[str, int]) -> None:
    """Add the FLOPs of every operator to its module and to all modules around it."""
    for path in paths:
        summed.setdefault(path, 0)
    for op in body.ops:
        assert isinstance(op.flops, int)
        for path in paths:
            summed[path] += op.flops
    for call in body.calls:
        _add_up(call.body, [*paths, f"{paths[-1]}.{call.name}".lstrip(".")], summed)


def _uncalled(place: str, stage: Stage, forms: list[CompiledForward]) -> Iterator[str]:
    """Every weight is held by a module that runs in one of the forwards, but for those that are said to be idle.

    Layers between frames have nothing to do where there is one: then nothing is said.
    """
    if all(call.dims.get("frames") == 1 for call in stage.calls):
        return
    root = forms[0].module
    called = {node.path for form in forms for node in form.nodes if node.bodies}
    used = {id(weight) for path, module in root.named_modules() if path in called for weight in module.own_weights()}
    for path, module in root.named_modules():
        idle = any(path == name or path.startswith(f"{name}.") for name in root.idle)
        if not idle and any(id(weight) not in used for weight in module.own_weights()):
            yield f"{place} {stage.path(path)}: has {module.own_params:,} parameters and is never called"


def _parameters(model: Model, workload: str, plan: Plan) -> Iterator[Row]:
    """The parameters of a component are those of all its weights, each counted once."""
    stages = {stage.component: stage.id for stage in plan.stages}
    for component, module in model.components.items():
        sizes = [weight.numel() for _, weight in module.named_parameters()]
        total = sum(size for size in sizes if isinstance(size, int))
        stage = stages.get(component, component)
        yield Row(model.id, workload, stage, stage, "params", module.params, total)


def _scaled(model: Model, workload: str, video: Workload) -> Iterator[Row]:
    """Twice the steps or the videos are twice the transformer; every step costs the same."""
    for key in ("num_inference_steps", "batch_size") if _steps_are_alike(model) else ("batch_size",):
        value = getattr(video, key)
        # where twice as many are out of bounds, half as many are doubled
        base = value if 2 * value <= BOUNDS[key][1] else value // 2
        once, twice = (_transformer_flops(model, replace(video, **{key: times * base})) for times in (1, 2))
        yield Row(model.id, workload, "transformer", f"transformer [2 x {key}]", "run_flops", twice, 2 * once)


def _steps_are_alike(model: Model) -> bool:
    """Not where experts of different sizes share the steps of a local model, or one of them is not modelled."""
    return "transformer_2" not in model.config and not any(
        name.startswith("transformer") for name in model.not_modelled
    )


def _not_monotonic(model: Model, workload: str, video: Workload) -> Iterator[str]:
    """More frames, rows or columns cost more: the next larger size, or the next smaller at the end of the range."""
    place = f"{model.id} {workload} transformer"
    experts = [stage for stage in model.plan(video).stages if stage.id.startswith("transformer")]
    if not any(call.times for stage in experts for call in stage.calls):
        return  # of a local model only the expert that has none of the few steps is there
    for key in ("num_frames", "height", "width"):
        other = _next(model, video, key, 1) or _next(model, video, key, -1)
        if other is None:
            yield f"{place}: no other {key} than {getattr(video, key)} runs, so that nothing is known of more or less"
            continue
        smaller, larger = sorted((video, other), key=lambda size: int(getattr(size, key)))
        if _transformer_flops(model, larger) <= _transformer_flops(model, smaller):
            yield f"{place}: {key}={getattr(larger, key)} costs no more than {getattr(smaller, key)}"


def _next(model: Model, video: Workload, key: str, direction: int) -> Workload | None:
    """The next size in a direction that runs and gives another number of tokens, if there is one."""
    tokens = model.plan(video).geometry.tokens
    for step in range(1, LARGEST_STEP + 1):
        with suppress(InputError):
            other = replace(video, **{key: getattr(video, key) + direction * step})
            if model.plan(other).geometry.tokens != tokens:
                return other
    return None


def _transformer_flops(model: Model, video: Workload) -> int:
    """FLOPs of the diffusion transformers over a run."""
    return sum(run.flops for run in model.runs(model.plan(video)) if run.stage.id.startswith("transformer"))
