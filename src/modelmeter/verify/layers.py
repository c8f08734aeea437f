"""Every module by name: FLOPs of one call, and parameters."""

from __future__ import annotations

from collections.abc import Iterator

from modelmeter.api import Model
from modelmeter.stage import Call, Plan, Stage
from modelmeter.verify.compare import Check, Row, match
from modelmeter.verify.reference import References
from modelmeter.verify.settings import Tolerance


def layers(
    model: Model, workload: str, plan: Plan, references: References, tolerance: Tolerance, *, with_params: bool
) -> Iterator[Check]:
    """One check for each different call of each stage.

    Args:
        with_params: compare parameters too; they do not depend on the workload, so once is enough.
    """
    for stage in plan.stages:
        found = references.reference(model, stage)
        for number, call in enumerate(stage.calls if found else ()):
            yield _check(model, workload, stage, call, references, tolerance, with_params and number == 0)


def _check(
    model: Model,
    workload: str,
    stage: Stage,
    call: Call,
    references: References,
    tolerance: Tolerance,
    with_params: bool,
) -> Check:
    found = references.reference(model, stage)
    measured = references.call(model, stage, call)
    compared = {"flops": match(model.call_flops(stage, call), measured.flops)}
    if with_params and measured.params is not None:
        modules = model.components[stage.component].named_modules()
        compared["params"] = match({path: module.params for path, module in modules}, measured.params)
    place = f"{model.id} {workload}"
    return Check(
        kind="layers",
        reference=found[0] if found else "",
        tolerance=tolerance,
        rows=tuple(
            Row(model.id, workload, stage.id, stage.path(path), quantity, analytic, reference)
            for quantity, matched in compared.items()
            for path, analytic, reference in matched.pairs
        ),
        missing=(
            *(f"{place} {stage.path(path)}" for matched in compared.values() for path in matched.missing),
            *(f"{place} {stage.id}: {path}" for path in measured.unknown),
        ),
        extra=tuple(f"{place} {stage.path(path)}" for matched in compared.values() for path in matched.extra),
        uncounted_ops=measured.uncounted_ops,
    )
