"""Verification per layer: every module of the real class by name, FLOPs and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from modelmeter.api import Model
from modelmeter.errors import InputError
from modelmeter.stage import Forward, Plan, Reference, Stage
from modelmeter.verify.compare import Row, Verification, joined, match
from modelmeter.verify.reference import Measured, build, measure, versions

Progress = Callable[[str], None]


def verify_layers(
    models: Sequence[Model], workload: str | None, *, accept_rel_diff: float = 0.0, progress: Progress = lambda _: None
) -> Verification:
    """Compare every module of every stage with the real class, at full size on the meta device.

    Args:
        models: models with their overrides.
        workload: a preset; without one every preset, those that a model cannot run left out and listed.
        accept_rel_diff: largest relative difference that passes.
        progress: told what is measured.

    Raises:
        InputError: the model cannot run the named preset, or none of its presets.
        UnavailableError: the reference is not installed.
    """
    references = _References(progress)
    parts = []
    for model in models:
        names = [workload] if workload else list(model.presets)
        plans: dict[str, Plan] = {}
        refused: list[str] = []
        for name in names:
            try:
                plans[name] = model.plan(model.workload(name))
            except InputError as error:
                if workload:
                    raise
                refused.append(f"{model.id} {name}: {error}")
        if not plans:
            raise InputError("model", model.id, f"a model with a preset that it can run; {'; '.join(refused)}")
        weighed: set[str] = set()  # parameters do not depend on the workload: once for each component
        for name, plan in plans.items():
            for stage in plan.stages:
                for forward in stage.forwards:
                    with_params = stage.component not in weighed
                    weighed.add(stage.component)
                    part = _compare(model, name, stage, forward, references, accept_rel_diff, with_params=with_params)
                    parts.append(part)
                    if not part.passed:  # fail fast: the next forward is not measured
                        return joined(parts)
        parts.append(_verification((), accept_rel_diff, not_applicable=tuple(refused)))
    return joined(parts)


def _compare(
    model: Model,
    workload: str,
    stage: Stage,
    forward: Forward,
    references: _References,
    accept: float,
    *,
    with_params: bool,
) -> Verification:
    measured = references.measured(model, stage, forward)
    form = model.compiled(stage.component, forward)
    flops = match(form.module_flops(forward.dims), measured.counted.flops)
    modules = form.module.named_modules() if with_params else ()
    params = match({path: module.params for path, module in modules}, measured.params if with_params else {})
    rows = [
        Row(model.id, workload, stage.id, _id(stage.id, path), quantity, analytic, reference)
        for quantity, matched in (("flops", flops), ("params", params))
        for path, analytic, reference in matched.pairs
    ]
    place = f"{model.id} {workload}"
    return _verification(
        tuple(rows),
        accept,
        missing=tuple(f"{place} {_id(stage.id, path)}" for path in (*flops.missing, *params.missing)),
        extra=tuple(f"{place} {_id(stage.id, path)}" for path in (*flops.extra, *params.extra)),
        uncounted_ops=measured.counted.uncounted_ops,
    )


def _verification(
    rows: tuple[Row, ...],
    accept: float,
    *,
    missing: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
    uncounted_ops: tuple[str, ...] = (),
    not_applicable: tuple[str, ...] = (),
) -> Verification:
    return Verification(
        reference="diffusers",
        versions=versions(),
        rows=rows,
        missing=missing,
        extra=extra,
        uncounted_ops=uncounted_ops,
        not_applicable=not_applicable,
        accept_rel_diff=accept,
    )


def _id(stage: str, path: str) -> str:
    return f"{stage}.{path}" if path else stage


class _References:
    """The real modules of a run, each built once, each forward measured once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._modules: dict[tuple[str, str, str], torch.nn.Module] = {}
        self._measured: dict[tuple[tuple[str, str, str], str], Measured] = {}

    def measured(self, model: Model, stage: Stage, forward: Forward) -> Measured:
        reference: Reference = model.pipeline.reference(model.config)[stage.component]
        arguments: Mapping[str, object] = reference.arguments
        module_key = (reference.package, reference.name, repr(sorted(arguments.items())))
        inputs = model.components[stage.component].inputs(**forward.dims)
        key = (module_key, repr(sorted(inputs.items())))
        if key not in self._measured:
            if module_key not in self._modules:
                self._modules[module_key] = build(reference)
            self._progress(f"{model.id} {stage.id} {forward.label} at {dict(forward.dims)}")
            self._measured[key] = measure(self._modules[module_key], inputs)
        return self._measured[key]
