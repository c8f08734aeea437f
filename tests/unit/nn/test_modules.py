"""Calls of modules on shapes: what is shared, what is refused, and what a trace says of each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from modelmeter.memory import peaks
from modelmeter.nn import (
    Body,
    Linear,
    Module,
    ModuleList,
    Op,
    Parameter,
    RMSNorm,
    Tensor,
    float32,
    functional,
    trace,
    trace_function,
)

ROW = 4 * 6  # bytes of a row of x
X = Tensor((5, 6), float32)
IMAGE, KERNEL = Tensor((2, 4, 6, 8), float32), Parameter((3, 4, 2, 2), float32)


class Function(Module):
    """A module that is one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        """Whatever the function does."""
        return self.function(*tensors)


class Calls(Module):
    """A module that calls its only part as a function says."""

    def __init__(self, part: Module, function: Callable[..., Any]) -> None:
        self.part = part
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        """Calls of the part."""
        return self.function(self.part, *tensors)


def ops(body: Body) -> list[Op]:
    """The operators of a module and of all that it calls, in order."""
    return [op for item in body.items for op in ([item] if isinstance(item, Op) else ops(item.body))]


# -- tensors that stay ---------------------------------------------------------------------------------------


def test_a_tensor_that_is_kept_is_an_error() -> None:
    """A tensor that outlives the call that made it, and is no output, is named with its bytes."""
    kept: list[Tensor] = []

    def keeps(x: Tensor) -> Tensor:
        kept.append(x + 1.0)
        return x * 2.0

    root = Calls(Function(keeps), lambda part, x: part(x))
    with pytest.raises(RuntimeError, match=f"^part left {10 * ROW} bytes alive .* {5 * ROW}: something kept a tensor"):
        trace(root, X)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 1.0,
        lambda x: (x + 1.0)[:2],
        lambda x: [x + 1.0, {"not": "a tensor"}, None, x],
        lambda x: (lambda y: (y, y[1:], y.transpose(0, 1)))(x + 1.0),
        lambda x: x[:1],
    ],
)
def test_outputs_are_not_kept(function: Callable[[Tensor], Any]) -> None:
    """Outputs, views of them and views of inputs are what a call may leave, and each storage counts once."""
    trace(Calls(Function(function), lambda part, x: part(x)), X)


# -- equal calls ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memo", [True, False])
def test_the_same_tensor_twice_is_another_call_than_two_tensors(memo: bool) -> None:
    """A kernel reads the same tensor once and two tensors each: calls that differ in this alone share nothing."""

    def calls(part: Module, x: Tensor, y: Tensor) -> None:
        for pair in ((x, x), (x, y), (x, x.view(5, 6)), (y, y), (y, x)):
            part(*pair)

    record = trace(Calls(Function(lambda x, y: x + y), calls), X, Tensor(X.shape, float32), memo=memo)
    assert [op.bytes_read for op in ops(record.body)] == [5 * ROW, 10 * ROW, 10 * ROW, 5 * ROW, 10 * ROW]


@pytest.mark.parametrize("memo", [True, False])
def test_an_output_is_on_the_storage_of_the_argument_that_it_views(memo: bool) -> None:
    """Arguments on one storage and arguments on two are different calls, since an output views one of them."""

    def calls(part: Module, x: Tensor) -> tuple[Tensor, ...]:
        whole = x + 1.0
        one, other = x[:2] + 1.0, x[2:4] + 1.0
        return part(whole[:2], whole[2:4]), whole, part(one[:2], other[:2]), one

    record = trace(Calls(Function(lambda x, y: x[:1]), calls), X, memo=memo)
    for view, whole in (record.outputs[:2], record.outputs[2:]):
        assert view.storage is whole.storage


def test_equal_calls_share_their_record() -> None:
    """Calls on equal layouts run once, also on other tensors and by an equal module elsewhere."""
    layers = ModuleList([Linear(6, 6), Linear(6, 6), Linear(6, 6, bias=False)])

    def through(part: Any, x: Tensor) -> Tensor:
        for layer in part:
            x = layer(x)
        return x

    first, second, third = [call.body for call in trace(Calls(layers, through), X).body.calls]
    assert first is second
    assert second is not third


# -- whose module is called ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["other", "first2"])
def test_a_module_that_is_not_its_own_cannot_be_called(name: str) -> None:
    """A module calls what is below it; a path that merely begins alike is not below."""
    outside = Linear(6, 6)

    class Root(Module):
        def __init__(self) -> None:
            self.first = Function(lambda x: outside(x))
            setattr(self, name, outside)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x)

    with pytest.raises(RuntimeError, match=f"first calls {name}, which is not one of its own modules"):
        trace(Root(), X)


def test_a_module_outside_the_traced_one_cannot_be_called() -> None:
    """A module that no attribute leads to has no path, and is named by its class."""
    with pytest.raises(RuntimeError, match="^a Linear is called that is no part of the traced module"):
        trace_function(lambda x: Linear(6, 6)(x), X)


# -- arithmetic that is no matrix product --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # LAYER_NORM_STEPS per element, and one each for weight and bias
        (lambda x: functional.layer_norm(x, 6, None, None), 5 * 30),
        (lambda x: functional.layer_norm(x, 6, Tensor((6,), float32), None), 6 * 30),
        (lambda x: functional.layer_norm(x, 6, Tensor((6,), float32), Tensor((6,), float32)), 7 * 30),
        # RMS_NORM_STEPS per element, and one for the weight
        (lambda x: functional.rms_norm(x, 6, None), 3 * 30),
        (lambda x: functional.rms_norm(x, 6, Tensor((6,), float32)), 4 * 30),
        # SOFTMAX_STEPS per score: 2 videos of 5 heads, 3 rows by 1 column
        (
            lambda x: functional.scaled_dot_product_attention(
                Tensor((2, 5, 3, 8), float32), Tensor((2, 5, 1, 8), float32), Tensor((2, 5, 1, 8), float32)
            ),
            6 * 2 * 5 * 3 * 1,
        ),
        # one addition per element of the output where there is a bias
        (lambda x: functional.linear(x, Parameter((7, 6), float32), Parameter((7,), float32)), 5 * 7),
        (lambda x: functional.linear(x, Parameter((7, 6), float32)), 0),
        (lambda x: functional.conv(IMAGE, KERNEL, Parameter((3,), float32), stride=(2, 2)), 2 * 3 * 3 * 4),
        (lambda x: functional.conv(IMAGE, KERNEL, stride=(2, 2)), 0),
        # one per element of the broadcast result
        (lambda x: x + 1.0, 30),
        (lambda x: x[:, None] * x[None], 5 * 5 * 6),
        (lambda x: functional.gelu(x), 30),
        (lambda x: functional.silu(x[:2]), 12),
        # copies compute nothing
        (lambda x: functional.cat([x, x], dim=0), 0),
        (lambda x: functional.pad(x, (0, 1)), 0),
        (lambda x: x.transpose(0, 1).contiguous(), 0),
        (lambda x: functional.arange(7), 0),
        (lambda x: x.copy_(x), 0),
        (lambda x: functional.empty_like(x), 0),
    ],
)
def test_vector_flops_are_counted_by_hand(function: Callable[[Tensor], Any], expected: int) -> None:
    """Each kernel counts the steps that its constant names, for every element it computes."""
    assert [op.vector_flops for op in trace_function(function, X).ops] == [expected]


@pytest.mark.parametrize(
    ("shapes", "dim"),
    [(((5, 6), (5, 7)), 0), (((5, 6), (4, 6)), 1), (((5, 6), (5, 6, 1)), 0), (((5, 6), (6,)), 0)],
)
def test_only_what_fits_is_concatenated(shapes: tuple[tuple[int, ...], ...], dim: int) -> None:
    """Sizes other than the one along which tensors are joined must be equal."""
    tensors = [Tensor(shape, float32) for shape in shapes]
    with pytest.raises(ValueError, match=f"^cat along {dim} of "):
        trace(Function(lambda *parts: functional.cat(parts, dim)), *tensors)


# -- where the peak is ---------------------------------------------------------------------------------------


def test_the_peak_names_the_module_and_the_operator_that_run_then() -> None:
    """The path of the peak leads through every module around it to the one that runs the operator."""

    class Inner(Module):
        def __init__(self) -> None:
            self.norm = RMSNorm(6)
            self.wide = Linear(6, 600)

        def forward(self, x: Tensor) -> Tensor:
            self.wide(self.norm(x))
            return x + 1.0

    class Outer(Module):
        def __init__(self) -> None:
            self.blocks = ModuleList([RMSNorm(6), Inner()])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    (peak,) = peaks(trace(Outer(), X).body, {})
    assert (peak.path, peak.op) == ("blocks.1.wide", "addmm")
    # x of the first block, its norm, and the wide output
    assert peak.live == 5 * ROW + 5 * ROW + 5 * 600 * 4
    (own,) = peaks(trace(Function(lambda x: x + 1.0), X).body, {})
    assert (own.path, own.op, own.live) == ("", "add", 5 * ROW)
