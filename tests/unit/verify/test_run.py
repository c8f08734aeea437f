"""Which checks run, on which workloads, up to which failure; the laws stand for any kind of check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import modelmeter as mm
from modelmeter.errors import InputError
from modelmeter.verify import layers, run
from modelmeter.verify.compare import Check, Row
from modelmeter.verify.run import verify

SMALL = [
    *("transformer.num_layers=1", "transformer.dim=256", "transformer.num_heads=2", "transformer.ffn_dim=512"),
    "text_encoder.num_layers=1",
]
PRESETS = list(mm.load("wan2.1-t2v-1.3b").presets)


def model(*overrides: str, name: str = "wan2.1-t2v-1.3b") -> mm.Model:
    """A small transformer."""
    return mm.load(name, *SMALL, *overrides)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The models and workloads that are checked, instead of checking them; ``wan2-1-720p`` fails."""
    found: list[tuple[str, str]] = []

    def noted(model: mm.Model, workload: str, plan: Any, tolerance: Any) -> Iterator[Check]:
        found.append((model.id, workload))
        row = Row(model.id, workload, "transformer", "transformer", "flops", 1, 2 if workload == "wan2-1-720p" else 1)
        yield Check(kind="core", reference="laws", tolerance=tolerance, rows=(row,))

    monkeypatch.setattr(run, "core", noted)
    return found


def test_the_first_failure_ends_the_run(ran: list[tuple[str, str]]) -> None:
    """Nothing runs after the check that fails: no further preset and no further model."""
    result = verify([model(), model(name="wan2.1-t2v-14b")], ["core"])
    assert [workload for _, workload in ran] == PRESETS[: PRESETS.index("wan2-1-720p") + 1]
    assert {name for name, _ in ran} == {"wan2.1-t2v-1.3b"}
    assert len(result.checks) == len(ran)
    assert len(result.failures) == 1


def test_what_passes_runs_to_the_end(ran: list[tuple[str, str]]) -> None:
    """Every model is checked at the workload that is named."""
    result = verify([model(), model(name="wan2.1-t2v-14b")], ["core"], workload="wan2-1-512p")
    assert ran == [("wan2.1-t2v-1.3b", "wan2-1-512p"), ("wan2.1-t2v-14b", "wan2-1-512p")]
    assert result.passed


def test_a_preset_of_the_overrides_is_the_one_that_runs(ran: list[tuple[str, str]]) -> None:
    """``workload=`` given as an override names what is verified, unless it is named for the run."""
    verify([model("workload=wan2-1-512p")], ["core"])
    verify([model("workload=wan2-1-512p")], ["core"], workload="official-480p")
    assert [workload for _, workload in ran] == ["wan2-1-512p", "official-480p"]
    with pytest.raises(InputError, match="^height=720: allowed is a multiple of 32"):
        verify([model("workload=official-720p", "height=720", "transformer.patch_size=[1,4,2]", "width=640")], ["core"])


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("workload", {"workload": ""}),
        ("workload", {"workload": 1}),
        ("device", {"device": ""}),
        ("device", {"device": 1}),
        ("reference", {"reference": ""}),
        ("reference", {"reference": "foo"}),
        ("loop", {"loop": ""}),
        ("accept-rel-diff", {"accept_rel_diff": "x"}),
        ("accept-rel-diff", {"accept_rel_diff": True}),
        ("accept-rel-diff", {"accept_rel_diff": 10**400}),
        ("verification", {"kinds": ["laws"]}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_every_word_is_checked_before_anything_runs(
    field: str, words: dict[str, Any], ran: list[tuple[str, str]]
) -> None:
    """A word that means nothing is refused, also where the kinds of checks that run have no use for it."""
    with pytest.raises(InputError, match=f"^{field}="):
        verify([model()], **{"kinds": ["core"], **words})
    assert ran == []


def test_a_size_that_no_preset_can_run_is_said_once(ran: list[tuple[str, str]]) -> None:
    """Where every preset is refused for the same reason, that reason alone is the error."""
    with pytest.raises(InputError) as error:
        verify([model("height=17")], ["core"])
    assert str(error.value) == "height=17: allowed is a multiple of 16 for this model; nearest: 16 or 32"
    with pytest.raises(InputError, match="^model=.*a preset that it can run; .*height=256.*height=512.*height=720"):
        verify([model("width=640", "transformer.patch_size=[1,24,2]")], ["core"])


def test_parameters_are_compared_at_the_first_workload_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not depend on the workload, so each model has them once."""
    asked: list[tuple[str, str]] = []

    def noted(model: mm.Model, workload: str, *_: Any, with_params: bool) -> Iterator[Check]:
        if with_params:
            asked.append((model.id, workload))
        yield from ()

    monkeypatch.setattr(layers, "layers", noted)
    models = [model(), model(name="wan2.1-t2v-14b")]
    verify(models, ["layers"])
    assert asked == [(each.id, next(iter(each.presets))) for each in models]
    asked.clear()
    verify(models, ["layers"], workload="official-480p")
    assert asked == [(each.id, "official-480p") for each in models]
