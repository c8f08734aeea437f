"""The time fold: seconds of a forward, every kernel bound by its arithmetic, its traffic or its launch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from modelmeter.flops import distinct_bodies
from modelmeter.nn import Body, Dim, Op, evaluate
from modelmeter.traffic import FUSED_KINDS

#: Seconds by what they are spent on: ``linear:bfloat16``, ``attention:bfloat16``, ``memory``, ``launches``, ...
Seconds: TypeAlias = Mapping[str, float]


class Work(NamedTuple):
    """Equal kernels of a body, as far as time goes."""

    resource: str | None
    """Whose rate its arithmetic takes, such as ``linear:bfloat16``; ``None`` for a kernel that only moves data."""
    flops: Dim
    bytes_moved: Dim
    scores: Dim
    """Elements of the score matrix of attention, which a kernel that is not fused writes to memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a device sustains.

    Args:
        compute: FLOP/s by resource, such as ``linear:bfloat16``.
        bandwidth: bytes/s of the device's memory.
        launch_seconds: shortest time from one kernel to the next.
        score_bytes: bytes moved for every element of the score matrix; 0 where attention is fused.
    """

    compute: Mapping[str, float]
    bandwidth: float
    launch_seconds: float
    score_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """What one of several ranks runs of a kernel: a part of what depends on the tokens, and all of the rest.

    Args:
        part: tokens of the rank over all tokens.
        rest: sizes of the forward without any token, at which a closed form gives what every rank repeats.
    """

    part: float
    rest: Mapping[str, int]


def own_works(body: Body) -> Mapping[Work, int]:
    """The kernels that a module runs itself, equal ones counted.

    Example:
        >>> from modelmeter.nn import Linear, Tensor, bfloat16, trace
        >>> layer = Linear(4, 8)
        >>> _ = layer.to(bfloat16)
        >>> [work.resource for work in own_works(trace(layer, Tensor((3, 4), bfloat16)).body)]
        ['linear:bfloat16']
    """
    return Counter(_work(op) for op in body.ops)


def total_works(body: Body) -> Mapping[Work, int]:
    """The kernels of a whole trace, equal ones counted."""
    total: Counter[Work] = Counter()
    for part, times in distinct_bodies(body).items():
        for work, count in own_works(part).items():
            total[work] += times * count
    return total


def _work(op: Op) -> Work:
    moved = op.bytes_read + op.bytes_written
    if op.kind not in FUSED_KINDS:
        return Work(None, 0, moved, 0)
    weight = op.inputs[1] if op.kind == "conv" else op.inputs[-1] if op.kind == "linear" else op.inputs[0]
    scores: Dim = 0
    if op.kind == "attention":  # query [B, H, S, E], key [B, H, L, E]
        query, key = op.inputs[0].shape, op.inputs[1].shape
        scores = query[0] * query[1] * query[2] * key[2]
    return Work(f"{op.kind}:{weight.dtype.name}", op.flops, moved, scores)


def kernel_seconds(work: Work, dims: Mapping[str, int], rates: Rates, shard: Shard | None = None) -> tuple[str, float]:
    """What bounds a kernel, and its seconds: the longest of arithmetic, traffic and launch.

    Args:
        shard: the part that one of several ranks runs.

    Raises:
        ValueError: a kernel whose rate is not known.

    Example:
        >>> rates = Rates(compute={"linear:bfloat16": 1e12}, bandwidth=1e9, launch_seconds=1e-6)
        >>> kernel_seconds(Work("linear:bfloat16", 2_000_000_000, 1000, 0), {}, rates)
        ('linear:bfloat16', 0.002)
    """
    traffic = _of_rank(work.bytes_moved, dims, shard) / rates.bandwidth
    bound, seconds = ("memory", traffic) if traffic >= rates.launch_seconds else ("launches", rates.launch_seconds)
    if work.resource is None:
        return bound, seconds
    if work.resource not in rates.compute:
        raise ValueError(f"no rate for {work.resource}")
    compute = _of_rank(work.flops, dims, shard) / rates.compute[work.resource]
    if rates.score_bytes and work.scores != 0:
        compute += rates.score_bytes * _of_rank(work.scores, dims, shard) / rates.bandwidth
    return (work.resource, compute) if compute >= seconds else (bound, seconds)


def _of_rank(form: Dim, dims: Mapping[str, int], shard: Shard | None) -> float:
    whole = evaluate(form, dims)
    if shard is None:
        return whole
    rest = evaluate(form, shard.rest)
    return rest + shard.part * (whole - rest)


def seconds(works: Mapping[Work, int], dims: Mapping[str, int], rates: Rates, shard: Shard | None = None) -> Seconds:
    """Seconds of kernels that run one after another, by what bounds them.

    Args:
        shard: the part of every kernel that one of several ranks runs.

    Example:
        >>> rates = Rates(compute={"linear:bfloat16": 1e12}, bandwidth=1e9, launch_seconds=1e-6)
        >>> seconds({Work(None, 0, 4_000_000, 0): 2, Work(None, 0, 8, 0): 1}, {}, rates)
        {'memory': 0.008, 'launches': 1e-06}
    """
    result: dict[str, float] = {}
    for work, count in works.items():
        bound, single = kernel_seconds(work, dims, rates, shard)
        result[bound] = result.get(bound, 0.0) + count * single
    return result
