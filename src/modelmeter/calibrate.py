"""Fitting constants of the time model to measured runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelmeter.rates import Constants

#: How strongly a constant is held where it starts: 10 % off weighs as much as 1 % in one row.
PRIOR = 0.1
#: Rows further off than this are no longer pulled at in full: one contradicting row shall not decide a constant.
OUTLIER = 0.05
ROUNDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A measured run and how its predicted seconds divide.

    Args:
        seconds: as measured.
        by_constant: predicted seconds by the constant that decides them.
        other: predicted seconds that no free constant decides.
        weight: 1 for a run, less for one of several that are the same.
    """

    seconds: float
    by_constant: Mapping[str, float]
    other: float
    weight: float = 1.0


def fitted(observations: Sequence[Observation], start: Constants, free: Sequence[str]) -> dict[str, float]:
    """The constants that fit the observations best, the others as they were.

    A rate in the denominator makes seconds linear in its inverse: weighted least squares of relative errors,
    repeated with less weight for outliers, each constant held near its start.

    Args:
        start: the constants under which the observations were predicted.
        free: names of those that may change.

    Example:
        >>> start = {"rate": 10.0}
        >>> runs = [Observation(seconds=20.0, by_constant={"rate": 10.0}, other=0.0)] * 50
        >>> round(fitted(runs, start, ["rate"])["rate"], 2)
        5.0
    """
    import numpy as np

    used = [name for name in free if any(name in row.by_constant for row in observations)]
    if not used:
        return dict(start)
    matrix = np.array([[row.by_constant.get(name, 0.0) / row.seconds for name in used] for row in observations])
    target = np.array([1 - row.other / row.seconds for row in observations])
    weights = np.array([row.weight for row in observations])
    slowness = np.ones(len(used))  # inverse of a constant, as a multiple of its start
    for _ in range(ROUNDS):
        error = np.abs(matrix @ slowness - target)
        scale = weights * np.minimum(1.0, OUTLIER / np.maximum(error, 1e-12))
        left = matrix.T @ (scale[:, None] * matrix) + PRIOR**2 * np.eye(len(used))
        right = matrix.T @ (scale * target) + PRIOR**2 * np.ones(len(used))
        slowness = np.linalg.solve(left, right)
    return {**start, **{name: start[name] / float(factor) for name, factor in zip(used, slowness, strict=True)}}
