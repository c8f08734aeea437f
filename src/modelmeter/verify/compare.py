"""Analytic against reference: rows, relative difference, and what makes a verification fail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One number of one module, from both sides."""

    model: str
    workload: str
    stage: str
    id: str
    quantity: str
    """``flops`` of one forward, or ``params``."""
    analytic: int
    reference: int

    @property
    def rel_diff(self) -> float:
        """Relative difference to the reference."""
        return rel_diff(self.analytic, self.reference)


def rel_diff(analytic: float, reference: float) -> float:
    """``|analytic - reference| / |reference|``; infinite where only the reference is zero or one is not finite.

    Example:
        >>> rel_diff(101, 100), rel_diff(0, 0), rel_diff(1, 0)
        (0.01, 0.0, inf)
    """
    if not (_finite(analytic) and _finite(reference)):
        return inf
    if analytic == reference:
        return 0.0
    return inf if reference == 0 else abs(analytic - reference) / abs(reference)


def _finite(value: float) -> bool:
    return isinstance(value, int) or isfinite(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The result of comparing: passed only if something was compared and all of it agrees.

    Args:
        rows: modules on both sides, with their numbers.
        missing: non-zero modules of the reference that the analytic side does not have.
        extra: non-zero modules of the analytic side that the reference does not have.
        uncounted_ops: operators of the reference that ran without a FLOP formula.
        not_applicable: pairs of model and workload that the model cannot run.
        accept_rel_diff: largest relative difference that passes; 0 asks for equal integers.
    """

    reference: str
    versions: Mapping[str, str]
    rows: tuple[Row, ...]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    uncounted_ops: tuple[str, ...] = ()
    not_applicable: tuple[str, ...] = ()
    accept_rel_diff: float = 0.0

    @property
    def compared_nonzero(self) -> int:
        """Rows in which a number is not zero."""
        return sum(1 for row in self.rows if row.analytic or row.reference)

    @property
    def max_rel_diff(self) -> float:
        """The largest relative difference of any row."""
        return max((row.rel_diff for row in self.rows), default=0.0)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it failed, one line each; empty where it passed."""
        found = [
            f"{row.model} {row.workload} {row.id}: {row.quantity} analytic {row.analytic:,}, "
            f"reference {row.reference:,}, relative difference {row.rel_diff:.3g}"
            for row in self.rows
            if not row.rel_diff <= self.accept_rel_diff
        ]
        found += [f"missing: {node}, which the reference runs" for node in self.missing]
        found += [f"extra: {node}, which the reference does not run" for node in self.extra]
        found += [f"uncounted operator: {op} ran without a FLOP formula" for op in self.uncounted_ops]
        if not self.rows:
            found.append("nothing was compared")
        elif not self.compared_nonzero:
            found.append("only zeros were compared")
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether there is no failure."""
        return not self.failures

    def document(self) -> dict[str, Any]:
        """The JSON document of the contract; an infinite difference is the text ``inf``."""
        return {
            "passed": self.passed,
            "reference": self.reference,
            "versions": dict(self.versions),
            "compared": len(self.rows),
            "compared_nonzero": self.compared_nonzero,
            "max_rel_diff": _json_number(self.max_rel_diff),
            "missing": list(self.missing),
            "extra": list(self.extra),
            "uncounted_ops": list(self.uncounted_ops),
            "not_applicable": list(self.not_applicable),
            "rows": [
                {
                    "model": row.model,
                    "workload": row.workload,
                    "stage": row.stage,
                    "id": row.id,
                    "quantity": row.quantity,
                    "analytic": row.analytic,
                    "reference": row.reference,
                    "rel_diff": _json_number(row.rel_diff),
                }
                for row in self.rows
            ],
        }


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


def joined(parts: Iterable[Verification]) -> Verification:
    """Several verifications as one; they share reference and tolerance."""
    first, *others = parts
    everything = [first, *others]
    return Verification(
        reference=first.reference,
        versions=first.versions,
        rows=tuple(row for part in everything for row in part.rows),
        missing=tuple(node for part in everything for node in part.missing),
        extra=tuple(node for part in everything for node in part.extra),
        uncounted_ops=tuple(dict.fromkeys(op for part in everything for op in part.uncounted_ops)),
        not_applicable=tuple(pair for part in everything for pair in part.not_applicable),
        accept_rel_diff=first.accept_rel_diff,
    )
