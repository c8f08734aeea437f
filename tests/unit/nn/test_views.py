"""Ring 2: chains of views and copies on our tensors against the same chains on PyTorch's, on ``meta``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelmeter import nn
from modelmeter.verify import allocations

Step = Callable[[Any], Any]

METHODS = (
    *("permute", "transpose", "unsqueeze", "squeeze", "expand", "flatten", "unflatten", "reshape", "slice", "index"),
    *("split", "unbind", "chunk", "contiguous", "clone", "float"),
)


@st.composite
def factorisations(draw: st.DrawFn, size: int) -> list[int]:
    """Sizes whose product is ``size``, some of them 1."""
    sizes = []
    while size > 1 and len(sizes) < 3:
        sizes.append(draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0])))
        size //= sizes[-1]
    return [*sizes, size]


@st.composite
def slices(draw: st.DrawFn, size: int) -> slice:
    """A slice that keeps something, its bounds from either end or left out."""
    start = draw(st.integers(0, size - 1))
    stop = draw(st.integers(start + 1, size))
    return slice(
        draw(st.sampled_from([start, start - size] if start else [0, None])),
        draw(st.sampled_from([stop, stop - size] if stop < size else [stop, None])),
        draw(st.sampled_from([None, 1, 2, 3])),
    )


@st.composite
def steps(draw: st.DrawFn, x: torch.Tensor) -> tuple[str, Step]:
    """One method call that PyTorch takes on ``x``, and how to write it."""
    dim = draw(st.integers(0, x.ndim - 1))
    name = draw(st.sampled_from(METHODS))
    match name:
        case "permute":
            arguments: tuple[Any, ...] = tuple(draw(st.permutations(range(x.ndim))))
        case "transpose":
            arguments = (dim, draw(st.integers(-x.ndim, x.ndim - 1)))
        case "unsqueeze":
            arguments = (draw(st.integers(-x.ndim - 1, x.ndim)),)
        case "squeeze" if x.ndim > 1:
            arguments = (dim,)
        case "expand":
            arguments = tuple(draw(st.integers(1, 3)) if n == 1 else n for n in x.shape)
        case "flatten":
            arguments = (dim, draw(st.integers(dim, x.ndim - 1)))
        case "unflatten":
            arguments = (dim, draw(factorisations(x.shape[dim])))
        case "reshape":
            arguments = tuple(draw(factorisations(x.numel())))
        case "slice":
            index = (slice(None),) * dim + (
                draw(slices(x.shape[dim])),
                *draw(st.sampled_from([(), (...,), (..., None)])),
            )
            return f"[{index}]", lambda t: t[index]
        case "index" if x.ndim > 1:
            at = (slice(None),) * dim + (draw(st.integers(-1, x.shape[dim] - 1)),)
            return f"[{at}]", lambda t: t[at]
        case "split":
            first = draw(st.integers(1, x.shape[dim]))
            sizes = [first, x.shape[dim] - first]
            return f".split({sizes}, {dim})[0]", lambda t: t.split(sizes, dim)[0]
        case "unbind" if x.ndim > 1:
            return f".unbind({dim})[-1]", lambda t: t.unbind(dim)[-1]
        case "chunk" if x.shape[dim] % 2 == 0:
            return f".chunk(2, {dim})[1]", lambda t: t.chunk(2, dim)[1]
        case "contiguous" | "clone" | "float":
            arguments = ()
        case _:
            name, arguments = "contiguous", ()
    return f".{name}{arguments}", lambda t: getattr(t, name)(*arguments)


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[str, Step]]]:
    """A shape and up to seven steps on it."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)))
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    chain = []
    for _ in range(draw(st.integers(1, 7))):
        chain.append(draw(steps(x)))
        x = chain[-1][1](x)
    return shape, chain


class Chain(torch.nn.Module):
    def __init__(self, chain: list[tuple[str, Step]]) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, x: Any) -> Any:
        """The steps, one after the other."""
        for _, step in self.chain:
            x = step(x)
        return x


def layout(shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Strides of the dimensions larger than 1: nothing lies along the others."""
    return [stride for size, stride in zip(shape, strides, strict=True) if size != 1]


def ours(shape: tuple[int, ...], chain: list[tuple[str, Step]], dtype: nn.DType = nn.bfloat16) -> nn.Record:
    """The chain on our tensor."""
    return nn.trace_function(Chain(chain).forward, nn.Tensor(shape, dtype))


@given(chains())
def test_a_chain_of_views_is_laid_out_and_copied_as_in_pytorch(case: tuple[tuple[int, ...], Any]) -> None:
    """Shape, strides, contiguity and every copy of a random chain of methods equal PyTorch's."""
    shape, chain = case
    expected = allocations.track(Chain(chain), torch.empty(shape, dtype=torch.bfloat16, device="meta"))
    record = ours(shape, chain)
    theirs, x = expected.outputs, record.outputs
    assert x.shape == tuple(theirs.shape)
    assert layout(x.shape, x.strides) == layout(theirs.shape, theirs.stride())
    assert (x.is_contiguous(), x.numel(), x.ndim) == (theirs.is_contiguous(), theirs.numel(), theirs.ndim)
    assert [(op.name, op.bytes_read, op.bytes_written, op.live) for op in record.ops] == [
        (kernel.name, kernel.bytes_read, kernel.bytes_written, kernel.live) for kernel in expected.kernels
    ]


@given(chains(), st.data())
def test_a_view_exists_where_pytorch_has_one(case: tuple[tuple[int, ...], Any], data: st.DataObject) -> None:
    """``view`` gives PyTorch's strides where it gives a view, and raises where PyTorch raises."""
    shape, chain = case
    theirs = Chain(chain)(torch.empty(shape, dtype=torch.bfloat16, device="meta"))
    wanted = data.draw(factorisations(theirs.numel()))
    x = ours(shape, chain).outputs
    try:
        expected = theirs.view(*wanted)
    except RuntimeError:
        with pytest.raises(ValueError, match="needs a copy"):
            x.view(*wanted)
    else:
        assert layout(wanted, x.view(*wanted).strides) == layout(wanted, expected.stride())


@given(chains(), st.data())
def test_a_sum_is_laid_out_as_in_pytorch(case: tuple[tuple[int, ...], Any], data: st.DataObject) -> None:
    """The sum of two operands of any layout, each broadcast, has PyTorch's strides in either order."""
    shape, chain = case
    # Not bfloat16: there torch 2.13 orders ties otherwise on meta than on the CPU.
    theirs = Chain(chain)(torch.empty(shape, dtype=torch.float32, device="meta"))
    x = ours(shape, chain, nn.float32).outputs
    order = data.draw(st.permutations(range(theirs.ndim)))
    partner = [data.draw(st.sampled_from([1, theirs.shape[order.index(d)]])) for d in range(theirs.ndim)]
    y = nn.Tensor(partner, nn.float32).permute(*order)
    other = torch.empty(partner, dtype=torch.float32, device="meta").permute(*order)
    for got, expected in (
        (nn.trace_function(lambda: x + y).outputs, theirs + other),
        (nn.trace_function(lambda: y + x).outputs, other + theirs),
    ):
        assert (got.shape, layout(got.shape, got.strides)) == (
            tuple(expected.shape),
            layout(expected.shape, expected.stride()),
        )


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.view(5, -1),
        lambda x: x.reshape(7, 7),
        lambda x: x.unflatten(0, (4, -1)),
        lambda x: x.split([1, 4], 0),
    ],
)
def test_sizes_that_do_not_fit_are_refused(step: Step) -> None:
    """What PyTorch refuses by its sizes, we refuse too."""
    with pytest.raises(RuntimeError):
        step(torch.empty(6, 8, device="meta"))
    with pytest.raises(ValueError, match=r"does not hold|add up"):
        step(nn.Tensor((6, 8), nn.float32))
