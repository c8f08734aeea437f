"""Fitting constants: known ones are found again, unknown ones stay."""

from __future__ import annotations

import random

import pytest

from modelmeter.calibrate import Observation, fitted


def test_true_constants_are_found_again() -> None:
    """Runs made with other constants than the start give those constants back, within the noise and the prior."""
    chance = random.Random(5)
    start, truth = {"linear": 600.0, "attention": 300.0, "unused": 1.0}, {"linear": 750.0, "attention": 240.0}
    rows = []
    for _ in range(200):
        work = {name: chance.uniform(1, 100) for name in truth}
        seconds = sum(amount / truth[name] for name, amount in work.items()) * chance.uniform(0.98, 1.02) + 1
        by = {name: amount / start[name] for name, amount in work.items()}
        rows.append(Observation(seconds=seconds, by_constant=by, other=1.0))
    found = fitted(rows, start, ["linear", "attention", "unused"])
    assert found["linear"] == pytest.approx(750, rel=0.03)
    assert found["attention"] == pytest.approx(240, rel=0.03)
    assert found["unused"] == 1.0


def test_a_contradicting_run_does_not_decide() -> None:
    """One row that is three times off moves the constant by less than 2 %."""
    good = [Observation(seconds=10.0, by_constant={"rate": 10.0}, other=0.0)] * 20
    wrong = Observation(seconds=30.0, by_constant={"rate": 10.0}, other=0.0)
    assert fitted([*good, wrong], {"rate": 1.0}, ["rate"])["rate"] == pytest.approx(1.0, rel=0.02)


def test_nothing_to_fit_changes_nothing() -> None:
    """Without rows that a constant decides, the start comes back."""
    row = Observation(seconds=1.0, by_constant={}, other=1.0)
    assert fitted([row], {"rate": 2.0}, ["rate"]) == {"rate": 2.0}
