"""Predictions against published run times: the figures of docs/validation-time.md hold."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    """A module of the folder validation, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "validation" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


run_times = script("run_times")
run_times_page = script("run_times_page")
DETERMINED = [row for row in run_times.rows() if "device" in row.settings and row.gpus == 1 and row.determined]

SEVERAL = [row for row in run_times.rows() if "device" in row.settings and row.gpus > 1 and row.determined]


def median_and_ninetieth(errors: Mapping[str, float]) -> tuple[float, float]:
    """In percent, nearest rank."""
    _, median, ninetieth, *_ = run_times_page.figures(errors.values())
    return float(median.removesuffix(" %")), float(ninetieth.removesuffix(" %"))


def test_single_gpu_rows_with_determined_settings_are_met() -> None:
    """Over 40 rows: median error at most 3 %, 90th percentile at most 10 %."""
    assert len(DETERMINED) > 40
    median, ninetieth = median_and_ninetieth(run_times.errors(DETERMINED, run_times.constants()))
    assert (median <= 3, ninetieth <= 10) == (True, True), (median, ninetieth)


def test_hardly_a_constant_of_a_wan_run_is_needed() -> None:
    """No Wan run decides a constant but the VAE's convolutions: median at most 5 %, 90th percentile at most 15 %."""
    errors = run_times.errors(DETERMINED, run_times.constants("published"))
    median, ninetieth = median_and_ninetieth(errors)
    assert (median <= 5, ninetieth <= 15) == (True, True), (median, ninetieth)


def test_a_source_is_predicted_from_the_others() -> None:
    """Constants fitted without the source that is predicted: median at most 4 %, 90th percentile at most 12 %."""
    median, ninetieth = median_and_ninetieth(run_times.leave_one_source_out(DETERMINED))
    assert (median <= 4, ninetieth <= 12) == (True, True), (median, ninetieth)


def test_rows_on_several_gpus_are_met() -> None:
    """Over 30 rows that do not contradict each other: median at most 4 %, 90th percentile at most 12 %."""
    assert len(SEVERAL) > 30
    median, ninetieth = median_and_ninetieth(run_times.errors(SEVERAL, run_times.constants()))
    assert (median <= 4, ninetieth <= 12) == (True, True), (median, ninetieth)


def test_what_devices_send_is_worth_its_place() -> None:
    """Without it, and with an Nth of the time on N devices, the same rows are met worse."""
    full = median_and_ninetieth(run_times.errors(SEVERAL, run_times.constants()))
    for spoiled in (run_times_page.without(SEVERAL, ("link",)), run_times_page.ideal_scaling(SEVERAL)):
        median, ninetieth = median_and_ninetieth(spoiled)
        assert (median > 1.5 * full[0], ninetieth > 1.5 * full[1]) == (True, True), (median, ninetieth)


def test_every_row_that_is_not_counted_says_why() -> None:
    """Each row has a source and settings, and those left out a reason of their own."""
    rows = run_times.rows()
    assert all(row.source and row.seconds > 0 for row in rows)
    assert all(row.settings["not_determined"] for row in rows if not row.determined)


@pytest.mark.slow
def test_the_page_is_what_the_rows_give() -> None:
    """docs/validation-time.md is the output of its command."""
    assert run_times_page.page() == run_times_page.PAGE.read_text(encoding="utf-8")
