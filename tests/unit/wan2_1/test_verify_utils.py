"""Relative difference, tolerance, formatting and enforcement: the one place where a verification decides."""

import json
from dataclasses import replace
from math import inf, isinf, nan, nextafter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.config import compose, find
from modelmeter.errors import InputError
from modelmeter.verify.compare import Check, Row, Verification, joined, match, rel_diff, shown
from modelmeter.verify.settings import Tolerance, settings

CONFIG = compose(find("wan2.1-t2v-14b"))
EQUAL = Tolerance(0.05, require_equal=True)
WITHIN = Tolerance(0.05, require_equal=False)


def row(analytic: float, reference: float) -> Row:
    """A row with these numbers."""
    return Row("model", "workload", "transformer", "transformer.blocks.0", "flops", analytic, reference)  # type: ignore[arg-type]


def check(*rows: Row, tolerance: Tolerance = EQUAL) -> Check:
    """A check with these rows."""
    return Check(kind="layers", reference="diffusers", tolerance=tolerance, rows=rows)


def verification(*checks: Check) -> Verification:
    """A verification of these checks."""
    return Verification(checks=checks, versions={"torch": "2.13.0"})


@pytest.mark.parametrize(
    ("analytic", "reference", "expected"),
    [(100, 100, 0), (101, 100, 0.01), (99, 100, 0.01), (0, 0, 0), (0, 7, 1), (7, 0, inf), (-3, 3, 2)],
)
def test_relative_difference(analytic: int, reference: int, expected: float) -> None:
    """The difference is relative to the reference, and infinite where only the reference is zero."""
    assert rel_diff(analytic, reference) == pytest.approx(expected)


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_what_is_not_finite_differs_infinitely(value: float) -> None:
    """A number that is not finite, on either side, even on both, is an infinite difference and never passes."""
    for analytic, reference in ((1, value), (value, 1), (value, value), (value, 0)):
        assert isinf(rel_diff(analytic, reference))
        assert check(row(analytic, reference), tolerance=Tolerance(1e300, require_equal=False)).failures


@given(st.integers(1, 10**40), st.integers(1, 10**40))
def test_relative_difference_of_any_integers(analytic: int, reference: int) -> None:
    """For integers of any size it is zero exactly where they are equal."""
    assert (rel_diff(analytic, reference) == 0) == (analytic == reference)


@pytest.mark.parametrize(
    ("tolerance", "analytic", "passes"),
    [(EQUAL, 100, True), (EQUAL, 101, False), (WITHIN, 104, True), (WITHIN, 105, True), (WITHIN, 106, False)],
)
def test_enforcement(tolerance: Tolerance, analytic: int, passes: bool) -> None:
    """Equality is asked for on top of the tolerance; without it, the tolerance itself still passes."""
    assert (check(row(analytic, 100), tolerance=tolerance).failures == ()) is passes


def test_a_difference_of_exactly_the_tolerance_passes() -> None:
    """The tolerance is the largest difference that passes, exactly; the next float above fails."""
    assert rel_diff(3, 2) == 0.5
    assert Tolerance(0.5, require_equal=False).accepts(0.5)
    assert not Tolerance(0.5, require_equal=False).accepts(nextafter(0.5, 1))
    assert not Tolerance(0.5, require_equal=False).accepts(nan)


def test_zero_tolerance_is_equality() -> None:
    """A tolerance of 0 is allowed and means equal."""
    zero = settings(CONFIG, "layers", accept_rel_diff=0).tolerance
    assert str(zero) == "equal"
    assert zero.accepts(0)
    assert not zero.accepts(1e-30)


def test_nothing_and_only_zeros_fail() -> None:
    """A check without rows, with zeros only, and a verification without checks have not passed."""
    assert check().failures == ("nothing was compared",)
    assert check(row(0, 0)).failures == ("only zeros were compared",)
    assert verification().failures == ("nothing was compared",)
    assert not verification(check(row(1, 1)), check()).passed
    assert verification(check(row(1, 1))).passed


@pytest.mark.parametrize("field", ["missing", "extra", "uncounted_ops", "broken_laws"])
def test_every_list_of_findings_fails(field: str) -> None:
    """A missing or extra module, an uncounted operator and a broken law each fail, and are named."""
    bad = replace(check(row(1, 1)), **{field: ("the finding",)})
    assert len(bad.failures) == 1
    assert "the finding" in bad.failures[0]


def test_failures_name_model_workload_node_and_numbers() -> None:
    """A failing row reads as one line with everything needed to look for it."""
    (line,) = check(row(1_010_000, 1_000_000)).failures
    assert line == (
        "model workload transformer.blocks.0: flops analytic 1,010,000, reference 1,000,000, relative difference 0.01"
    )


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (10**15, "1,000,000,000,000,000"), (0.0123456, "0.0123")])
def test_formatting(value: float, text: str) -> None:
    """Integers are exact with separators, differences have three digits."""
    assert shown(value) == text


def test_match_reports_only_what_is_not_zero() -> None:
    """Zero-FLOP modules that one side lacks are no finding; others are."""
    matched = match({"a": 1, "zero": 0, "ours": 5}, {"a": 2, "nought": 0, "theirs": 6})
    assert matched.pairs == (("a", 1, 2),)
    assert matched.missing == ("theirs",)
    assert matched.extra == ("ours",)


def test_the_document_is_json_without_nan() -> None:
    """The document can be written as strict JSON even with infinite differences."""
    document = verification(check(row(7, 0))).document()
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text)["rows"][0]["rel_diff"] == "inf"
    assert json.loads(text)["passed"] is False


def test_the_document_names_every_kind_of_reference_once() -> None:
    """A kind that some checks have alone and others together with another is said once."""
    kinds = ["diffusers", "modules", joined(["diffusers", "modules"]), "laws"]
    document = verification(*(replace(check(row(7, 7)), reference=kind) for kind in kinds)).document()
    assert document["reference"] == "diffusers + modules + laws"


def test_tolerances_have_one_source() -> None:
    """The composed configuration holds 5 % for every kind but memory, by reference to one number, and equality."""
    run = CONFIG["verify_run"]
    assert run["accept_rel_diff"] == {"default": 0.05, "layers": 0.05, "end2end": 0.05, "core": 0.05, "memory": 0.005}
    assert run["require_equal"] is True
    assert run["device"] == "meta"
    for kind in ("layers", "end2end", "core"):
        assert settings(CONFIG, kind).tolerance == EQUAL
        assert settings(CONFIG, kind, accept_rel_diff=0.01).tolerance == Tolerance(0.01, require_equal=False)


@pytest.mark.parametrize("value", [-1.0, nan, inf, 10**400, True, "x", "0.1", [0.1]], ids=lambda value: str(value)[:9])
def test_impossible_tolerances_are_refused(value: Any) -> None:
    """A tolerance that is negative, infinite, undefined, too large for a decimal or no number is bad input."""
    with pytest.raises(InputError, match="^accept-rel-diff="):
        settings(CONFIG, "layers", accept_rel_diff=value)


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "CPU", "", "cuda:-1", "meta:0", "cpu\n", "cuda:٣", 1])
def test_impossible_devices_are_refused(device: Any) -> None:
    """A device other than meta, cpu, cuda and cuda:N is bad input, an empty word too."""
    with pytest.raises(InputError, match="^device="):
        settings(CONFIG, "layers", device=device)


@pytest.mark.parametrize("device", ["meta", "cpu", "cuda", "cuda:0", "cuda:9999", "cuda:" + "9" * 400])
def test_words_for_devices_are_accepted(device: str) -> None:
    """Every number names a device; whether it is there shows where PyTorch is asked."""
    assert settings(CONFIG, "layers", device=device).device == device
