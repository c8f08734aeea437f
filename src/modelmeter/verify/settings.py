"""How a verification runs: device and tolerances, from the configuration or for one run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from sys import float_info
from typing import Any

from modelmeter.errors import InputError
from modelmeter.workload import finite

#: Kinds of reference that come with packages; without a choice the first that a component has.
INSTALLED = ("diffusers", "modules")
#: The kind that runs code from a path of the user, and only when asked for.
OFFICIAL = "official"
REFERENCES = (*INSTALLED, OFFICIAL)
#: How the reference gets from one forward to a run: by scaling, two steps extrapolated, or all steps.
LOOPS = ("none", "short", "full")
#: Longer numbers than Python reads name no device either.
DEVICE = re.compile(r"meta|cpu|cuda(:[0-9]{1,1000})?")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What passes: at most a relative difference, and where asked for, only equal integers.

    Example:
        >>> str(Tolerance(0.05, require_equal=True)), str(Tolerance(0.05, require_equal=False))
        ('equal', 'within 0.05')
    """

    accept_rel_diff: float
    require_equal: bool

    def accepts(self, rel_diff: float) -> bool:
        """Whether a relative difference passes; what is not a number never does."""
        return rel_diff == 0 or (not self.require_equal and rel_diff <= self.accept_rel_diff)

    @property
    def equal(self) -> bool:
        """Whether only equal integers pass."""
        return self.require_equal or self.accept_rel_diff == 0

    def __str__(self) -> str:
        return "equal" if self.equal else f"within {self.accept_rel_diff:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Device of the reference, and the tolerance.

    Args:
        device: ``meta``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    device: str
    tolerance: Tolerance


def settings(
    config: Mapping[str, Any], what: str, *, device: str | None = None, accept_rel_diff: float | None = None
) -> Settings:
    """The settings of a kind of verification, from ``verify_run`` of a composed configuration.

    Args:
        what: ``layers``, ``end2end``, ``core``, ``memory``; any other kind has the default tolerance.
        device: instead of the configured one.
        accept_rel_diff: instead of the configured tolerance and of ``require_equal``.

    Raises:
        InputError: a device or a tolerance that cannot be.

    Example:
        >>> from modelmeter.config import compose, find
        >>> config = compose(find("wan2.1-t2v-14b"))
        >>> str(settings(config, "layers").tolerance), str(settings(config, "layers", accept_rel_diff=0.01).tolerance)
        ('equal', 'within 0.01')
    """
    configured = config["verify_run"]
    device = configured["device"] if device is None else device
    if not (isinstance(device, str) and DEVICE.fullmatch(device)):
        raise InputError("device", device, "meta, cpu, cuda or cuda:N")
    if accept_rel_diff is None:
        return Settings(
            device=device,
            tolerance=Tolerance(
                configured["accept_rel_diff"].get(what, configured["accept_rel_diff"]["default"]),
                require_equal=configured["require_equal"],
            ),
        )
    accepted = finite(accept_rel_diff)
    if accepted is None or not 0 <= accepted <= float_info.max:
        raise InputError("accept-rel-diff", accept_rel_diff, "a finite number from 0 up")
    return Settings(device=device, tolerance=Tolerance(float(accepted), require_equal=False))
