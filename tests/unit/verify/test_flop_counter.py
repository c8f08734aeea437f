"""The counter of real modules: what it counts, and what it must not pass over."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from modelmeter.verify.flop_counter import count, parameters


class Branches(torch.nn.Module):
    """A module that calls a shared submodule by two names, one twice, and computes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.again = self.first
        self.tail = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU())
        self.unused = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two calls of ``first``, one of ``tail``, one product of its own."""
        x = self.tail(self.again(self.first(x)))
        return x @ x.T


class Function(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Whatever the function does."""
        return self.function(*tensors)


@torch.library.custom_op("modelmeter_test::squared", mutates_args=())
def squared(x: torch.Tensor) -> torch.Tensor:
    """A third-party operator that hides a matrix product."""
    return x @ x


def test_paths_are_those_of_named_modules_with_zeros_and_without_the_root_class() -> None:
    """Every called module has its inclusive count, all calls together; what was not called is absent."""
    counted = count(Branches(), torch.empty(3, 4))
    linear, wide, own = 2 * 3 * 4 * 4, 2 * 3 * 4 * 8, 2 * 3 * 8 * 3
    assert counted.flops == {
        "": 2 * linear + wide + own,
        "first": 2 * linear,
        "tail": wide,
        "tail.0": wide,
        "tail.1": 0,
    }
    assert counted.own == {"": own, "first": 2 * linear, "tail": 0, "tail.0": wide, "tail.1": 0}
    assert counted.by_op == {"aten.addmm": 2 * linear + wide, "aten.mm": own}
    assert counted.uncounted_ops == ()


def test_the_total_is_that_of_flop_counter_mode() -> None:
    """Total and counts by module equal those that PyTorch's own counter names by class and path."""
    module = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, device="meta")
    x = torch.empty(2, 5, 16, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    named = counter.get_flop_counts()
    counted = count(module, x)
    assert counted.flops[""] == counter.get_total_flops() > 0
    for path in ("self_attn", "linear1", "linear2"):
        assert counted.flops[path] == sum(named[f"TransformerEncoderLayer.{path}"].values()) > 0


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: F.scaled_dot_product_attention(*[x[None, None]] * 3), "_scaled_dot_product_flash_attention_for_cpu"),
        (lambda x: torch.mv(x, x[0]), "mv"),
        (lambda x: torch.dot(x[0], x[0]), "dot"),
        (lambda x: torch.cdist(x, x), "_cdist_forward"),
        (lambda x: torch.fft.fft(x).real, "_fft_r2c"),
    ],
)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_compute_operator_without_a_formula_is_reported(
    function: Callable[[torch.Tensor], torch.Tensor], operator: str, context: Callable[[], object]
) -> None:
    """What PyTorch counts as zero although it multiplies is named."""
    with context():  # type: ignore[attr-defined]
        counted = count(Function(function), torch.rand(4, 4))
    assert counted.flops == {"": 0}
    assert counted.uncounted_ops == (f"aten.{operator}",)


def test_an_operator_of_another_library_is_reported() -> None:
    """An operator that nobody knows is named, with its namespace."""
    assert count(Function(squared), torch.rand(4, 4)).uncounted_ops == ("modelmeter_test.squared",)


def test_a_failed_forward_leaves_no_hook_or_mode_behind() -> None:
    """After an exception PyTorch is as it was."""
    hooks = torch.nn.modules.module
    before = dict(hooks._global_forward_pre_hooks), dict(hooks._global_forward_hooks)
    with pytest.raises(RuntimeError):
        count(Branches(), torch.empty(3, 5))
    assert (dict(hooks._global_forward_pre_hooks), dict(hooks._global_forward_hooks)) == before
    assert torch.is_grad_enabled()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_parameters_of_every_module_count_a_shared_weight_once() -> None:
    """Each entry of ``named_modules()`` is there, called or not."""
    expected = {"": 20 + 40 + 20, "first": 20, "tail": 40, "tail.0": 40, "tail.1": 0, "unused": 20}
    assert parameters(Branches()) == expected
