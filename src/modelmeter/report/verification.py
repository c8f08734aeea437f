"""The result of a verification as a table or JSON. Takes plain documents, so that it needs no PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from modelmeter.report.output import Output

#: Most failures that a table lists; JSON has all.
MOST_FAILURES = 20

#: What the numbers of a section are.
TITLES = {"flops": "FLOPs of one forward", "run_flops": "FLOPs of the whole run", "params": "parameters"}


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


def _section(rows: Mapping[tuple[Any, ...], int]) -> Table:
    lines = [
        (f"{path} ({copies}x)" if copies > 1 else path, f"{analytic:,}", f"{reference:,}", _difference(difference))
        for (path, analytic, reference, difference), copies in rows.items()
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


def _sections(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], dict[tuple[Any, ...], int]]:
    """Rows by check, model, workload and quantity, without those that are zero on both sides.

    Those that differ only in the numbers of their path are counted together.
    """
    sections: dict[tuple[str, ...], dict[tuple[Any, ...], int]] = {}
    for row in rows:
        if row["analytic"] or row["reference"]:
            path = ".".join("*" if part.isdigit() else part for part in row["id"].split("."))
            folded = sections.setdefault((row["check"], row["model"], row["workload"], row["quantity"]), {})
            key = (path, row["analytic"], row["reference"], row["rel_diff"])
            folded[key] = folded.get(key, 0) + 1
    return sections
