"""Analytic against reference: rows, relative difference, and what makes a verification fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, TypeAlias

from modelmeter.verify.settings import Tolerance
from modelmeter.workload import finite

#: Told in words what is about to be measured.
Progress: TypeAlias = Callable[[str], None]
#: Between kinds of reference of one check.
AND = " + "


@dataclass(frozen=True, slots=True)
class Row:
    """One number of one module, from both sides."""

    model: str
    workload: str
    stage: str
    id: str
    quantity: str
    """``flops`` of one forward, ``run_flops`` of a whole run, ``params``, ``calls`` of a component, or ``bytes``."""
    analytic: int
    reference: int

    @property
    def rel_diff(self) -> float:
        """Relative difference to the reference."""
        return rel_diff(self.analytic, self.reference)

    def __str__(self) -> str:
        return (
            f"{self.model} {self.workload} {self.id}: {self.quantity} analytic {shown(self.analytic)}, "
            f"reference {shown(self.reference)}, relative difference {shown(self.rel_diff)}"
        )


def rel_diff(analytic: float, reference: float) -> float:
    """``|analytic - reference| / |reference|``; infinite where only the reference is zero or one is not finite.

    Example:
        >>> rel_diff(101, 100), rel_diff(0, 0), rel_diff(1, 0), rel_diff(1, float("nan"))
        (0.01, 0.0, inf, inf)
    """
    if finite(analytic) is None or finite(reference) is None:
        return inf
    if analytic == reference:
        return 0.0
    return inf if reference == 0 else abs(analytic - reference) / abs(reference)


def shown(value: float) -> str:
    """An integer with separators, a difference with three digits.

    Example:
        >>> shown(1234567), shown(0.012345), shown(0.0)
        ('1,234,567', '0.0123', '0')
    """
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison: passed only if something was compared and all of it agrees.

    Args:
        kind: ``layers``, ``end2end``, ``core``, ``pipelines`` or ``memory``.
        reference: what the numbers are held against; several as :func:`joined` puts them.
        tolerance: what passes.
        rows: modules on both sides, with their numbers.
        missing: non-zero modules of the reference that the analytic side does not have.
        extra: non-zero modules of the analytic side that the reference does not have.
        uncounted_ops: operators of the reference that ran without a FLOP formula.
        broken_laws: what had to hold between numbers and does not.
    """

    kind: str
    reference: str
    tolerance: Tolerance
    rows: tuple[Row, ...]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    uncounted_ops: tuple[str, ...] = ()
    broken_laws: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it failed, one line each; empty where it passed."""
        # first what only one side has, since numbers differ for it
        found = [f"missing: {node}, which the reference runs" for node in self.missing]
        found += [f"extra: {node}, which the reference does not run" for node in self.extra]
        found += [str(row) for row in self.rows if not self.tolerance.accepts(row.rel_diff)]
        found += [f"uncounted operator: {op} ran without a FLOP formula" for op in self.uncounted_ops]
        found += self.broken_laws
        if not self.rows:
            found.append("nothing was compared")
        elif not any(row.analytic or row.reference for row in self.rows):
            found.append("only zeros were compared")
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Checks that ran, in order, up to the first that failed.

    Args:
        versions: of the packages that the references come from.
        not_applicable: pairs of model and workload that the model cannot run, and why.
    """

    checks: tuple[Check, ...]
    versions: Mapping[str, str]
    not_applicable: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it failed, one line each; empty where it passed."""
        if not self.checks:
            return ("nothing was compared",)
        return tuple(line for check in self.checks for line in check.failures)

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing failed."""
        return not self.failures

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows of all checks."""
        return tuple(row for check in self.checks for row in check.rows)

    def document(self) -> dict[str, Any]:
        """The JSON document of the contract; an infinite difference is the text ``inf``."""
        largest = max((row.rel_diff for row in self.rows), default=0.0)
        return {
            "passed": self.passed,
            "accepted": joined(str(check.tolerance) for check in self.checks),
            "reference": joined(kind for check in self.checks for kind in check.reference.split(AND)),
            "versions": dict(self.versions),
            "compared": len(self.rows),
            "compared_nonzero": sum(1 for row in self.rows if row.analytic or row.reference),
            "max_rel_diff": _json_number(largest),
            "missing": [node for check in self.checks for node in check.missing],
            "extra": [node for check in self.checks for node in check.extra],
            "uncounted_ops": list(dict.fromkeys(op for check in self.checks for op in check.uncounted_ops)),
            "broken_laws": [law for check in self.checks for law in check.broken_laws],
            "not_applicable": list(self.not_applicable),
            "rows": [_document(check, row) for check in self.checks for row in check.rows],
        }


def _document(check: Check, row: Row) -> dict[str, Any]:
    return {
        "check": check.kind,
        "model": row.model,
        "workload": row.workload,
        "stage": row.stage,
        "id": row.id,
        "quantity": row.quantity,
        "analytic": row.analytic,
        "reference": row.reference,
        "rel_diff": _json_number(row.rel_diff),
    }


def joined(words: Iterable[str]) -> str:
    """Words in one, each once.

    Example:
        >>> joined(["diffusers", "modules", "diffusers"])
        'diffusers + modules'
    """
    return AND.join(dict.fromkeys(words))


def _json_number(value: float) -> float | str:
    return value if isfinite(value) else "inf"


@dataclass(frozen=True, slots=True)
class Matched:
    """Two maps of numbers by path, matched by name."""

    pairs: tuple[tuple[str, int, int], ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]


def match(analytic: Mapping[str, int], reference: Mapping[str, int]) -> Matched:
    """Pairs of the paths that both have; paths that one lacks count only where their number is not zero.

    Example:
        >>> match({"a": 1, "b": 2, "c": 0}, {"a": 1, "d": 3, "e": 0})
        Matched(pairs=(('a', 1, 1),), missing=('d',), extra=('b',))
    """
    return Matched(
        tuple((path, analytic[path], reference[path]) for path in analytic if path in reference),
        tuple(path for path, value in reference.items() if value and path not in analytic),
        tuple(path for path, value in analytic.items() if value and path not in reference),
    )
