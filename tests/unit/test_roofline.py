"""The time fold: each kernel takes the longest of its arithmetic, its traffic and its launch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.nn import Linear, Module, Tensor, bfloat16, functional, trace
from modelmeter.roofline import Rates, Work, kernel_seconds, own_works, seconds, total_works

RATES = Rates(
    compute={"linear:bfloat16": 1e12, "attention:bfloat16": 1e12}, bandwidth=1e9, launch_seconds=1e-6, score_bytes=0
)


class Block(Module):
    """A product, an activation and attention, the product twice."""

    def __init__(self) -> None:
        self.linear = Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, S, 8] -> [B, H, S, 8]."""
        x = functional.gelu(self.linear(self.linear(x)))
        return functional.scaled_dot_product_attention(x, x, x)


def block() -> Block:
    """In bfloat16."""
    made = Block()
    made.to(bfloat16)
    return made


def test_the_longest_of_three_bounds_a_kernel() -> None:
    """Arithmetic, traffic and launch each bound the kernel in which they take longest, alone."""
    work = Work("linear:bfloat16", 4_000_000_000, 1000, 0)
    assert kernel_seconds(work, {}, RATES) == ("linear:bfloat16", 0.004)
    assert kernel_seconds(work._replace(flops=8, bytes_moved=3_000_000), {}, RATES) == ("memory", 0.003)
    assert kernel_seconds(work._replace(flops=8, bytes_moved=8), {}, RATES) == ("launches", 1e-6)


def test_a_kernel_without_a_rate_is_refused() -> None:
    """Arithmetic of a dtype without a rate raises instead of taking no time."""
    with pytest.raises(ValueError, match="no rate for conv:float32"):
        kernel_seconds(Work("conv:float32", 8, 8, 0), {}, RATES)


def test_scores_cost_traffic_only_where_they_reach_memory() -> None:
    """Attention that is not fused adds the bytes of its scores: 8 for each of B*H*S*S."""
    (work,) = [work for work in own_works(trace(block(), Tensor((2, 3, 5, 8), bfloat16)).body) if work.scores != 0]
    assert work.scores == 2 * 3 * 5 * 5
    slow = replace(RATES, compute={"attention:bfloat16": 1e3}, score_bytes=8)
    fused = kernel_seconds(work, {}, replace(slow, score_bytes=0))[1]
    assert kernel_seconds(work, {}, slow)[1] == pytest.approx(fused + 8 * 150 / 1e9)


def test_every_kernel_counts() -> None:
    """A module's own kernels and those of its submodules, called twice, are all in the total."""
    body = trace(block(), Tensor((1, 2, 4, 8), bfloat16)).body
    resources = sorted(str(work.resource) for work, count in total_works(body).items() for _ in range(count))
    assert resources == ["None", "attention:bfloat16", "linear:bfloat16", "linear:bfloat16"]


@given(st.integers(1, 50), st.floats(1e9, 1e15), st.floats(1e9, 1e13))
def test_faster_hardware_never_takes_longer(times: int, flops_per_second: float, bandwidth: float) -> None:
    """More FLOP/s or more bandwidth never lengthen a run, and equal kernels add up."""
    works = {Work("linear:bfloat16", 10**10, 10**7, 0): times, Work(None, 0, 10**6, 0): 1}
    slow = Rates(compute={"linear:bfloat16": flops_per_second}, bandwidth=bandwidth, launch_seconds=5e-6)
    fast = replace(slow, compute={"linear:bfloat16": 2 * flops_per_second})
    wide = replace(slow, bandwidth=2 * bandwidth)
    whole = sum(seconds(works, {}, slow).values())
    assert sum(seconds(works, {}, fast).values()) <= whole
    assert sum(seconds(works, {}, wide).values()) <= whole
    once = sum(seconds({work: 1 for work in works}, {}, slow).values())
    rest = sum(seconds({Work("linear:bfloat16", 10**10, 10**7, 0): times - 1}, {}, slow).values())
    assert whole == pytest.approx(once + rest)
