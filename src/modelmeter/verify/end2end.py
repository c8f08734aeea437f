"""A whole run: every stage over all steps and guidance passes, in total."""

from __future__ import annotations

from collections.abc import Iterator

from modelmeter.api import Model
from modelmeter.stage import Call, Plan, Stage
from modelmeter.verify.compare import Check, Row, joined
from modelmeter.verify.reference import References
from modelmeter.verify.settings import Tolerance

#: Steps that a short loop really runs.
SHORT_STEPS = 2


def end2end(
    model: Model, workload: str, plan: Plan, references: References, tolerance: Tolerance, *, loop: str
) -> Iterator[Check]:
    """One check of all stages and of their total."""
    found = {stage.id: references.reference(model, stage) for stage in plan.stages}
    kinds = [kind for kind, _ in filter(None, found.values())]
    analytic = {run.stage.id: run.flops for run in model.runs(plan) if found[run.stage.id]}
    reference = dict.fromkeys(analytic, 0)
    uncounted: list[str] = []
    for stage in plan.stages:
        if stage.id not in reference:
            continue
        for call in stage.calls:
            uncounted += references.call(model, stage, call).uncounted_ops
            reference[stage.id] += _flops(model, plan, stage, call, references, loop)
    rows = [Row(model.id, workload, stage, stage, "run_flops", analytic[stage], reference[stage]) for stage in analytic]
    total = Row(model.id, workload, "total", "total", "run_flops", sum(analytic.values()), sum(reference.values()))
    yield Check(
        kind="end2end",
        reference=joined(kinds),
        tolerance=tolerance,
        rows=(*rows, total),
        uncounted_ops=tuple(dict.fromkeys(uncounted)),
    )


def _flops(model: Model, plan: Plan, stage: Stage, call: Call, references: References, loop: str) -> int:
    """FLOPs of all times that a call is made."""
    if loop == "none":
        return call.times * references.call(model, stage, call).flops[""]
    if loop == "full" or call.times <= SHORT_STEPS * plan.workload.guidance_passes:
        return references.call(model, stage, call, call.times).flops[""]
    ran = SHORT_STEPS * plan.workload.guidance_passes
    # exact where every call counts the same, which the loop shows by dividing without a remainder
    flops, remainder = divmod(references.call(model, stage, call, ran).flops[""] * call.times, ran)
    return flops + bool(remainder)
