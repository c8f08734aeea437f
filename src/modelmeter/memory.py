"""The memory fold: the most bytes alive at once during a forward, above weights and inputs."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from modelmeter.nn import Body, Dim, Op, Spec, at_least


class Peak(NamedTuple):
    """A moment that may be the peak of a forward."""

    live: Dim
    """Bytes alive above weights and inputs."""
    path: str
    """Module that runs then, below the root."""
    op: str


def workspace_bytes(op: Op, workspace: str) -> Dim:
    """Bytes that a kernel takes while it runs and gives back.

    Tensor cores want channels last, so cuDNN copies the operand of a convolution, and often the result back. The
    copies come from PyTorch's allocator. Which ones depends on the version and the device.

    Args:
        workspace: ``none``, ``input`` or ``both``.

    Source: the sizes of the allocations that failed in Wan2.1 issue 161 and Wan2.2 issue 90 (the copy of the input);
    the maxima that InvokeAI pull request 9305 measured for a VAE of this architecture (both).
    """
    if op.kind != "conv" or workspace == "none":
        return 0
    copied = (op.inputs[0], op.outputs[0]) if workspace == "both" else (op.inputs[0],)
    return sum((_nbytes(spec) for spec in copied), start=0)


def _nbytes(spec: Spec) -> Dim:
    return prod(spec.shape, start=spec.dtype.itemsize)


def peaks(body: Body, minimum: Mapping[str, int], workspace: str = "none") -> tuple[Peak, ...]:
    """The moments of a trace of which one is the peak, whatever the sizes from ``minimum`` up.

    On integers there is one. On polynomials a moment is dropped where another is surely at least as high.

    Args:
        minimum: lowest value of each symbol.
        workspace: what convolutions take while they run, see :func:`workspace_bytes`.

    Example:
        >>> from modelmeter.nn import Linear, Tensor, float32, trace
        >>> [p.live for p in peaks(trace(Linear(4, 8), Tensor((3, 4), float32)).body, {})]
        [96]
    """
    return _peaks(body, minimum, workspace, {})


def _peaks(
    body: Body, minimum: Mapping[str, int], workspace: str, known: dict[Body, tuple[Peak, ...]]
) -> tuple[Peak, ...]:
    if body not in known:
        candidates: list[Peak] = []
        for item in body.items:
            if isinstance(item, Op):
                _keep(candidates, Peak(item.live + workspace_bytes(item, workspace), "", item.name), minimum)
                continue
            for peak in _peaks(item.body, minimum, workspace, known):
                path = f"{item.name}.{peak.path}" if peak.path else item.name
                _keep(candidates, Peak(item.live + peak.live, path, peak.op), minimum)
        known[body] = tuple(candidates)
    return known[body]


def _keep(candidates: list[Peak], new: Peak, minimum: Mapping[str, int]) -> None:
    """Add a moment unless an earlier one is as high; drop those that it tops."""
    if any(at_least(old.live, new.live, minimum) for old in candidates):
        return
    candidates[:] = [old for old in candidates if not at_least(new.live, old.live, minimum)]
    candidates.append(new)
