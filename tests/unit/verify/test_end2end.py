"""From forwards of the reference to a whole run: scaled, extrapolated from two steps, or really looped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import modelmeter as mm
from modelmeter.verify.end2end import _flops, end2end
from modelmeter.verify.reference import Measured
from modelmeter.verify.settings import Tolerance

SMALL = ["transformer.num_layers=1", "transformer.dim=256", "transformer.num_heads=2", "transformer.ffn_dim=512"]
EQUAL = Tolerance(0, require_equal=True)


class Counted:
    """A reference that counts ``count(times)`` for so many calls in a row, and notes how many it was asked for."""

    kind = "modules"

    def __init__(self, count: Callable[[int], int]) -> None:
        self.count = count
        self.asked: list[int] = []

    def reference(self, *_: object) -> tuple[str, None]:
        """It has everything."""
        return "modules", None

    def call(self, model: object, stage: object, call: object, times: int = 1) -> Measured:
        """So many calls in a row."""
        self.asked.append(times)
        return Measured({"": self.count(times)}, None, ())


def run(count: Callable[[int], int], loop: str, *, steps: int = 5, guidance: float = 1) -> tuple[Any, list[int]]:
    """The check of the transformer of a small model against a reference, and the loops that really ran."""
    model = mm.load("wan2.1-t2v-1.3b", *SMALL)
    plan = model.plan(model.workload("wan2-1-ci-tiny", num_inference_steps=steps, guidance_scale=guidance))
    plan = replace(plan, stages=tuple(stage for stage in plan.stages if stage.id == "transformer"))
    references: Any = Counted(count)
    (check,) = end2end(model, "wan2-1-ci-tiny", plan, references, EQUAL, loop=loop)
    return check, references.asked


def one_forward() -> int:
    """FLOPs of one forward of that transformer."""
    return (
        mm.load("wan2.1-t2v-1.3b", *SMALL)
        .estimate(workload="wan2-1-ci-tiny", num_inference_steps=1, guidance_scale=1)["transformer"]
        .flops
    )


@pytest.mark.parametrize(
    ("loop", "steps", "guidance", "ran"),
    [
        ("none", 5, 1, 1),
        ("none", 5, 5, 1),
        ("short", 1, 1, 1),
        ("short", 2, 1, 2),
        ("short", 5, 1, 2),
        ("short", 5, 5, 4),
        ("full", 5, 1, 5),
        ("full", 5, 5, 10),
    ],
)
def test_a_loop_runs_what_it_says(loop: str, steps: int, guidance: float, ran: int) -> None:
    """Scaling runs one forward, a short loop two steps with all their passes, a full loop all of them."""
    one = one_forward()
    check, asked = run(lambda times: times * one, loop, steps=steps, guidance=guidance)
    assert check.failures == ()
    assert max(asked) == ran
    assert check.rows[-1].id == "total"
    assert check.rows[-1].reference == steps * (2 if guidance > 1 else 1) * one


@pytest.mark.parametrize("loop", ["short", "full"])
def test_a_second_step_that_costs_more_fails(loop: str) -> None:
    """What only a later step adds is seen by the loops that really run it, and not by scaling the first."""
    one = one_forward()

    def count(times: int) -> int:
        return times * one + (times > 1)

    assert run(count, loop)[0].failures
    assert run(count, "none")[0].failures == ()


def test_what_does_not_divide_by_the_steps_equals_nothing() -> None:
    """Two steps that cannot be equal are not rounded to a run that might happen to agree."""
    model = mm.load("wan2.1-t2v-1.3b", *SMALL)
    plan = model.plan(model.workload("wan2-1-ci-tiny", num_inference_steps=5, guidance_scale=1))
    stage = next(stage for stage in plan.stages if stage.id == "transformer")
    for two, five in ((20, 50), (21, 53), (22, 55)):
        references: Any = Counted({1: 10, 2: two}.__getitem__)
        assert _flops(model, plan, stage, stage.calls[0], references, "short") == five
