"""The table of a verification: which rows share a line, and how many failures it lists."""

from __future__ import annotations

from typing import Any

from modelmeter.cli import plain
from modelmeter.report.verification import MOST_FAILURES, as_table
from modelmeter.verify.compare import Check, Row, Verification
from modelmeter.verify.settings import Tolerance


def table(numbers: dict[str, int | tuple[int, int]], failures: list[str] | None = None) -> list[list[str]]:
    """Words of the lines below the header for these rows; a number alone stands on both sides."""
    rows = tuple(
        Row("model", "workload", "stage", path, "flops", *(value if isinstance(value, tuple) else (value, value)))
        for path, value in numbers.items()
    )
    check = Check(kind="layers", reference="diffusers", tolerance=Tolerance(0, require_equal=True), rows=rows)
    result = Verification(checks=(check,), versions={})
    lines = plain(as_table(result.document(), failures or [])).splitlines()
    assert lines[0] == "layers: model workload: FLOPs of one forward"
    return [line.split() for line in lines[2:]]


def modules(numbers: dict[str, Any]) -> list[str]:
    """What stands before the numbers in each line."""
    lines = table(numbers)
    return [" ".join(line[:-3]) for line in lines[: lines.index([])]]


def test_equal_copies_share_a_line() -> None:
    """Modules of a list that are equal all the way down are one line, with how many they are."""
    one = {"": 10, ".a": 6, ".b": 4}
    numbers = {f"stage.blocks.{i}{path}": value for i in range(12) for path, value in one.items()}
    assert modules({"stage": 120, **numbers}) == [
        "stage",
        "stage.blocks.* (12x)",
        "stage.blocks.*.a (12x)",
        "stage.blocks.*.b (12x)",
    ]


def test_lists_in_lists_multiply() -> None:
    """Copies of copies are counted together."""
    assert modules({f"stage.{i}.x.{j}": 5 for i in range(3) for j in range(4)}) == ["stage.*.x.* (12x)"]


def test_different_modules_of_a_list_keep_their_numbers() -> None:
    """Entries of a list that only happen to cost the same do not share a line if what is below them differs."""
    mlp = {"stage.net.0": 5, "stage.net.0.proj": 5, "stage.net.2": 5}
    assert modules(mlp) == list(mlp)


def test_one_copy_that_differs_is_seen() -> None:
    """A single difference below one copy, on either side, gives every copy its own lines."""
    numbers: dict[str, Any] = {f"stage.{i}{path}": 5 for i in range(3) for path in ("", ".a")}
    for other in ((5, 6), (6, 5), 6):
        assert modules({**numbers, "stage.1.a": other}) == list(numbers)


def test_a_single_entry_is_not_a_copy() -> None:
    """A list of one keeps its number, and zeros on both sides have no line."""
    assert modules({"stage.to_out.0": 5, "stage.to_out.1": 0}) == ["stage.to_out.0"]


def test_the_same_row_from_several_calls_is_counted() -> None:
    """Two calls of a stage with equal numbers are one line, with other numbers two."""
    rows = tuple(Row("model", "workload", "stage", "stage.a", "flops", n, n) for n in (3, 3, 4))
    check = Check(kind="layers", reference="diffusers", tolerance=Tolerance(0, require_equal=True), rows=rows)
    lines = plain(as_table(Verification(checks=(check,), versions={}).document(), [])).splitlines()
    assert [line.split()[:-1] for line in lines[2:4]] == [["stage.a", "(2x)", "3", "3"], ["stage.a", "4", "4"]]


def test_a_table_lists_the_first_failures_and_counts_the_others() -> None:
    """As many failures as fit are listed in order; how many more there are is said, also if it is one."""
    failures = [f"failure-{i}" for i in range(MOST_FAILURES + 1)]
    listed = [line[0] for line in table({"stage": 1}, failures) if line and line[0].startswith("failure-")]
    assert listed == failures[:MOST_FAILURES]
    assert ["and", "1", "more", "failures"] in table({"stage": 1}, failures)
    assert not any("more" in line for line in table({"stage": 1}, failures[:-1]))
