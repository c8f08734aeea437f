"""The allocation tracker of real modules: lifetimes, traffic, and what it replaces meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from modelmeter.verify.allocations import keep_in_fp32, track

ROW = 4 * 6  # bytes of a row of x


class Function(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Whatever the function does."""
        return self.function(*tensors)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("function", "kernels"),
    [
        (lambda x: x.T[:, None].expand(6, 3, 5)[..., 1:], []),
        (lambda x: x.unsqueeze_(0), []),
        (lambda x: x + 1, [("add", 5 * ROW, 5 * ROW)]),
        (lambda x: x + x, [("add", 5 * ROW, 5 * ROW)]),
        (lambda x: x[1:3] + 1, [("add", 2 * ROW, 2 * ROW)]),
        (lambda x: x[:1].expand(5, 6) + x, [("add", 6 * ROW, 5 * ROW)]),
        (lambda x: x.add_(1), [("add_", 5 * ROW, 5 * ROW)]),
        (lambda x: x.fill_(1), [("fill_", 0, 5 * ROW)]),
        (lambda x: x[:2].copy_(x[2:4]), [("copy_", 2 * ROW, 2 * ROW)]),
        (lambda x: x.new_zeros(2, 6), [("new_zeros", 0, 2 * ROW)]),
        (lambda x: torch.empty_like(x), [("empty_like", 0, 0)]),
        (lambda x: x.new_empty(2), [("new_empty", 0, 0)]),
        (lambda x: torch.add(x, 1, out=torch.empty_like(x)), [("empty_like", 0, 0), ("add", 5 * ROW, 5 * ROW)]),
        (
            lambda x: F.embedding(torch.arange(2, device="meta"), x),
            [("arange", 0, 16), ("embedding", 16 + 2 * ROW, 2 * ROW)],
        ),
        (lambda x: F.rms_norm(x, (6,)), [("_fused_rms_norm", 5 * ROW, 5 * ROW + 5 * 4)]),
    ],
)
def test_kernels_move_bytes_by_one_convention(
    function: Callable[..., Any], kernels: list[tuple[str, int, int]]
) -> None:
    """Inputs once, outputs once, views and empty storages for nothing."""
    tracked = track(Function(function), meta(5, 6))
    assert [(k.name, k.bytes_read, k.bytes_written) for k in tracked.kernels] == kernels


def test_live_bytes_follow_the_lifetimes_of_python() -> None:
    """A local variable holds its storage until it is overwritten; a temporary dies with its use."""

    def function(x: torch.Tensor) -> torch.Tensor:
        held = x + 1
        y = (held * 2).exp()
        held = None
        return y[:1].neg()

    tracked = track(Function(function), meta(5, 6))
    assert [(k.name, k.live) for k in tracked.kernels] == [
        ("add", 5 * ROW),
        ("mul", 10 * ROW),
        ("exp", 15 * ROW),
        ("neg", 6 * ROW),
    ]
    assert (tracked.peak_bytes, tracked.live_bytes) == (15 * ROW, ROW)


def test_weights_inputs_and_tensors_made_before_do_not_count() -> None:
    """Only what the forward allocates is live, also where it hands out a view of something older."""
    older = meta(7, 7)
    tracked = track(Function(lambda x: (older[0], x[0])), meta(5, 6))
    assert tracked.live_bytes == tracked.peak_bytes == 0


def test_kernels_carry_the_path_of_the_module_that_ran_them() -> None:
    """The innermost call names the kernel, a repeated call too."""
    layer = torch.nn.Linear(6, 6, device="meta")
    model = torch.nn.Sequential(layer, torch.nn.Sequential(torch.nn.GELU()), layer)
    assert [(k.name, k.path) for k in track(model, meta(5, 6)).kernels] == [
        ("addmm", "0"),
        ("gelu", "1.0"),
        ("addmm", "0"),
    ]


@pytest.mark.parametrize(
    ("dtype", "head_dim", "mask", "kernel"),
    [
        (torch.bfloat16, 128, False, "_scaled_dot_product_flash_attention"),
        (torch.bfloat16, 384, False, "_scaled_dot_product_efficient_attention"),
        (torch.bfloat16, 128, True, "_scaled_dot_product_efficient_attention"),
        (torch.float32, 128, False, "_scaled_dot_product_efficient_attention"),
    ],
)
def test_attention_runs_fused(dtype: torch.dtype, head_dim: int, mask: bool, kernel: str) -> None:
    """No score reaches memory, whatever kernel serves the call."""
    q = meta(1, 2, 1000, head_dim, dtype=dtype)
    bias = meta(1, 1, 1000, 1000, dtype=dtype) if mask else None
    tracked = track(Function(lambda q: F.scaled_dot_product_attention(q, q, q, bias)), q)
    assert [k.name for k in tracked.kernels] == [kernel]
    assert tracked.peak_bytes < 2 * q.numel() * q.element_size()


def test_a_bias_is_added_in_place_where_the_product_does_not_take_it() -> None:
    """Rows that are no matrix in memory are gathered, multiplied, and get their bias in place, as on a GPU."""
    layer = torch.nn.Linear(6, 4, device="meta")
    tracked = track(layer, meta(3, 6, 5).transpose(1, 2))
    assert [kernel.name for kernel in tracked.kernels] == ["clone", "mm", "add_"]
    assert tracked.peak_bytes == 4 * (3 * 5 * 6 + 3 * 5 * 4)
    assert [kernel.name for kernel in track(layer, meta(3, 5, 6)).kernels] == ["addmm"]
    assert F.linear is torch._C._nn.linear


def test_weights_are_told_from_activations() -> None:
    """Of the bytes read those of weights and buffers, also through views and where rows are gathered."""
    layer = torch.nn.Linear(6, 4, device="meta")
    assert [k.weight_bytes_read for k in track(layer, meta(3, 6)).kernels] == [4 * (6 * 4 + 4)]
    words = torch.nn.Embedding(9, 4, device="meta")
    assert [k.weight_bytes_read for k in track(words, meta(3, dtype=torch.int64)).kernels] == [4 * 3 * 4]
    buffer = torch.nn.BatchNorm1d(4, affine=False, device="meta")
    buffer.forward = lambda x: x + buffer.running_mean[:2]
    assert [k.weight_bytes_read for k in track(buffer, meta(3, 2)).kernels] == [8]


def test_pytorch_is_left_as_it_was_even_after_an_error() -> None:
    """Replaced functions, hooks and modes are gone when the forward is over."""
    hooks = torch.nn.modules.module

    def state() -> tuple[object, ...]:
        return (
            F.scaled_dot_product_attention,
            F.rms_norm,
            dict(hooks._global_forward_pre_hooks),
            dict(hooks._global_forward_hooks),
            torch.is_grad_enabled(),
            torch.utils._python_dispatch._get_current_dispatch_mode(),
        )

    before = state()
    with pytest.raises(RuntimeError):
        track(torch.nn.Linear(3, 4, device="meta"), meta(5, 6))
    track(torch.nn.Linear(6, 4, device="meta"), meta(5, 6))
    assert state() == before


def test_tensors_with_data_are_refused() -> None:
    """The replaced functions compute nothing, so real results would be wrong."""
    with pytest.raises(ValueError, match="on cpu"):
        track(torch.nn.Linear(3, 4), meta(5, 3))


def test_modules_named_by_diffusers_stay_in_single_precision() -> None:
    """A whole component of the path must match, and buffers that no checkpoint holds are left alone."""

    class Model(torch.nn.Module):
        _keep_in_fp32_modules = ("norm1",)

        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm10 = torch.nn.LayerNorm(4), torch.nn.LayerNorm(4)
            self.register_buffer("saved", torch.ones(2))
            self.register_buffer("table", torch.ones(2), persistent=False)
            self.register_buffer("steps", torch.ones(2, dtype=torch.int64))

    model = Model()
    keep_in_fp32(model, torch.bfloat16)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "norm1.weight": torch.float32,
        "norm1.bias": torch.float32,
        "norm10.weight": torch.bfloat16,
        "norm10.bias": torch.bfloat16,
        "saved": torch.bfloat16,
        "table": torch.float32,
        "steps": torch.int64,
    }
