"""The result of a verification as a table or JSON. Takes plain documents, so that it needs no PyTorch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from modelmeter.report.output import Output

#: Analytic, reference and relative difference.
Numbers: TypeAlias = tuple[int, int, float | str]
#: A path with ``*`` where equal copies share the line, how many they are, and their numbers.
Line: TypeAlias = tuple[str, int, Numbers]

#: Most failures that a table lists; JSON has all.
MOST_FAILURES = 20

#: What the numbers of a section are.
TITLES = {
    "flops": "FLOPs of one forward",
    "run_flops": "FLOPs of the whole run",
    "params": "parameters",
    "calls": "calls",
    "bytes": "bytes of one call",
}


def as_json(document: Mapping[str, Any]) -> str:
    """The document as it is."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def as_table(document: Mapping[str, Any], failures: Sequence[str]) -> Output:
    """Modules by name with analytic and reference numbers; equal copies share a line."""
    sections: list[RenderableType] = []
    for (check, model, workload, quantity), rows in _sections(document["rows"]).items():
        sections += [Text(f"{check}: {model} {workload}: {TITLES[quantity]}", style="bold"), _section(rows), Text("")]
    sections += [Text(f"not applicable: {pair}") for pair in document["not_applicable"]]
    sections += [Text(line, style="red") for line in failures[:MOST_FAILURES]]
    if len(failures) > MOST_FAILURES:
        sections.append(Text(f"and {len(failures) - MOST_FAILURES} more failures", style="red"))
    return Group(*sections, Text(verdict(document), style="bold"))


def _section(rows: Sequence[Line]) -> Table:
    lines = [
        (f"{path} ({copies}x)" if copies > 1 else path, f"{analytic:,}", f"{reference:,}", _difference(difference))
        for path, copies, (analytic, reference, difference) in rows
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("module", no_wrap=True)
    for i, name in enumerate(("analytic", "reference", "rel. diff"), start=1):
        widest = max(len(name), *(len(line[i]) for line in lines))
        table.add_column(name, justify="right", no_wrap=True, min_width=widest)
    for line in lines:
        table.add_row(*(escape(cell) for cell in line))
    return table


def verdict(document: Mapping[str, Any]) -> str:
    """One line: passed or failed, on what, against which versions."""
    result = "passed" if document["passed"] else "FAILED"
    largest = document["max_rel_diff"]
    agreement = "equal" if largest == 0 else f"largest relative difference {_difference(largest)}"
    if document["accepted"] != "equal":
        agreement += f" (accepted: {document['accepted']})"
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return (
        f"{result}: {document['compared']:,} numbers compared, {document['compared_nonzero']:,} of them not zero, "
        f"{agreement}; reference {document['reference']} ({versions})"
    )


def _difference(value: float | str) -> str:
    return value if isinstance(value, str) else "0" if value == 0 else f"{value:.3g}"


def _sections(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], list[Line]]:
    """Lines by check, model, workload and quantity, without those that are zero on both sides."""
    sections: dict[tuple[str, ...], _Branch] = {}
    for row in rows:
        if row["analytic"] or row["reference"]:
            key = (row["check"], row["model"], row["workload"], row["quantity"])
            branch = sections.setdefault(key, _Branch())
            for part in row["id"].split("."):
                branch = branch.below.setdefault(part, _Branch())
            branch.numbers.append((row["analytic"], row["reference"], row["rel_diff"]))
    return {key: list(_lines(root, "", 1)) for key, root in sections.items()}


@dataclass(frozen=True, slots=True)
class _Branch:
    """What stands at a part of a path, and below it."""

    numbers: list[Numbers] = field(default_factory=list)
    below: dict[str, _Branch] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[object, ...]:
        """What makes a copy equal: the same numbers all the way down."""
        return (*self.numbers, *((name, branch.shape) for name, branch in self.below.items()))


def _lines(branch: _Branch, path: str, copies: int) -> Iterator[Line]:
    """Parents before children; modules of a list share their lines where all of them are equal, as in a report."""
    for numbers, times in Counter(branch.numbers).items():
        yield path, copies * times, numbers
    below = branch.below
    if len(below) > 1 and all(map(str.isdigit, below)) and len({child.shape for child in below.values()}) == 1:
        copies, below = copies * len(below), {"*": next(iter(below.values()))}
    for name, child in below.items():
        yield from _lines(child, f"{path}.{name}" if path else name, copies)
