"""Autocast against PyTorch's own on CUDA, which runs without a GPU on tensors that only claim to be there.

A ``FakeTensor`` on ``cuda:0`` takes the path through the dispatcher that a tensor on a GPU takes, autocast
included. A tensor on ``meta`` does not: there autocast does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modelmeter import nn
from modelmeter.nn import functional

#: Names of operators that run no kernel.
VIEWS = {"t", "view", "_unsafe_view", "permute", "transpose", "expand", "unsqueeze", "device"}


class Row(NamedTuple):
    """One call on our functions and on PyTorch's, and its operands as dtype and shape."""

    name: str
    operands: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]


def same(name: str, operands: str, run: Callable[..., Any]) -> Row:
    """A row whose expression reads the same on both sides."""
    return Row(name, operands, run, run)


WEIGHTED = "f32: 5 3 4, f32: 6 4, f32: 6"
ROWS = [
    Row("linear", WEIGHTED, functional.linear, F.linear),
    Row("linear, half", "bf16: 5 4, bf16: 6 4, bf16: 6", functional.linear, F.linear),
    Row("linear, no bias", "f16: 5 4, f32: 6 4", functional.linear, F.linear),
    Row("linear, double", "f64: 5 4, f64: 6 4", functional.linear, F.linear),
    Row(
        "conv",
        "f32: 1 2 3 4 4, f32: 5 2 1 2 2, f32: 5",
        lambda x, w, b: functional.conv(x, w, b, stride=(1, 2, 2)),
        lambda x, w, b: F.conv3d(x, w, b, stride=(1, 2, 2)),
    ),
    Row(
        "layer norm",
        "bf16: 5 4, bf16: 4, bf16: 4",
        lambda x, w, b: functional.layer_norm(x, 4, w, b),
        lambda x, w, b: F.layer_norm(x, (4,), w, b),
    ),
    Row(
        "layer norm, no weights",
        "f32: 5 4",
        lambda x: functional.layer_norm(x, 4, None, None),
        lambda x: F.layer_norm(x, (4,)),
    ),
    Row("sum", "bf16: 5 4", lambda x: functional.sum(x, 1), lambda x: x.sum(1)),
    Row("vector norm", "bf16: 5 4 3", lambda x: functional.normalize(x, 1), lambda x: F.normalize(x, dim=1)),
    Row(
        "upsample",
        "bf16: 1 2 3 4",
        lambda x: functional.upsample_nearest_exact(x, 2),
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    ),
    Row(
        "mean",
        "bf16: 5 4",
        lambda x: functional.mean(x, -1, keepdim=True),
        lambda x: x.mean(-1, keepdim=True),
    ),
    Row("cat", "bf16: 5 4, f32: 5 4", lambda x, y: functional.cat([x, y], 0), lambda x, y: torch.cat([x, y])),
    Row("stack", "bf16: 5 4, f32: 5 4", lambda x, y: functional.stack([x, y], 0), lambda x, y: torch.stack([x, y])),
    Row(
        "einsum of one tensor",
        "f32: 5 4 3",
        lambda x: functional.exp(functional.einsum("abc->cab", x)),
        lambda x: torch.exp(torch.einsum("abc->cab", x)),
    ),
    same("power", "bf16: 5 4", lambda x: x**2),
    same("power of a number", "bf16: 5 4", lambda x: 10.0**x),
    same("power, double", "f64: 5 4", lambda x: x**2),
    same("power, whole numbers", "i64: 5 4", lambda x: x**2),
    same("arithmetic promotes by itself", "bf16: 5 4, f32: 4", lambda x, y: (x * y + 1) / x - y),
]
#: Functions of every element, by PyTorch's name.
UNARY = {
    name: getattr(functional, {"abs": "absolute"}.get(name, name))
    for name in ("abs", "cos", "exp", "gelu", "log", "neg", "rsqrt", "silu", "sin", "tanh")
}
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64", "i64": "int64"}


class Kernel(NamedTuple):
    """A kernel as it is compared: name, operands in any order, and the first result."""

    name: str
    inputs: list[tuple[tuple[int, ...], str]]
    output: tuple[tuple[int, ...], str]


def parsed(operands: str) -> list[tuple[str, list[int]]]:
    """Dtype and shape of every operand."""
    pairs = (text.split(": ") for text in operands.split(", "))
    return [(DTYPES[dtype], [int(n) for n in shape.split()]) for dtype, shape in pairs]


def ours(run: Callable[..., Any], operands: str, dtype: str | None) -> list[Kernel]:
    """The kernels of our side."""

    def under(*tensors: nn.Tensor) -> nn.Tensor:
        with nn.autocast(None if dtype is None else getattr(nn, dtype)):
            return run(*tensors)

    tensors = [nn.Tensor(shape, getattr(nn, name)) for name, shape in parsed(operands)]
    return [
        Kernel(
            op.name,
            sorted((_rows(spec.shape), str(spec.dtype)) for spec in op.inputs),
            (_rows(op.outputs[0].shape), str(op.outputs[0].dtype)),
        )
        for op in nn.trace_function(under, *tensors).ops
    ]


class _Kernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name not in VIEWS:
            operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            first = tree_leaves(result)[0]
            self.found.append(Kernel(name, sorted(map(_spec, operands)), _spec(first)))
        return result


def theirs(run: Callable[..., Any], operands: str, dtype: str | None) -> list[Kernel]:
    """The kernels of PyTorch's side, on tensors that claim to be on a GPU."""
    mode = FakeTensorMode()
    tensors = [
        FakeTensor(mode, torch.empty(shape, dtype=getattr(torch, name), device="meta"), torch.device("cuda:0"))
        for name, shape in parsed(operands)
    ]
    autocast = torch.autocast("cuda", dtype=getattr(torch, dtype or "bfloat16"), enabled=dtype is not None)
    with torch.no_grad(), mode, _Kernels() as kernels, autocast:
        run(*tensors)
    return kernels.found


def _spec(tensor: torch.Tensor) -> tuple[tuple[int, ...], str]:
    return _rows(tuple(tensor.shape)), str(tensor.dtype).removeprefix("torch.")


def _rows(shape: Any) -> tuple[int, ...]:
    """A shape without what a view may change: a linear layer sees [B, S, D] as [B S, D], and weights transposed."""
    sizes = (shape[0] * shape[1], shape[2]) if len(shape) == 3 else shape
    return tuple(sorted(n for n in sizes if n != 1))


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch asks a GPU before it casts, answered."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", None], ids=str)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_kernels_and_casts_are_those_of_pytorch(row: Row, dtype: str | None) -> None:
    """Under autocast to any dtype, and under none, every cast and every kernel has PyTorch's operands and result."""
    expected = theirs(row.theirs, row.operands, dtype)
    assert expected
    assert ours(row.ours, row.operands, dtype) == expected


def test_weights_of_another_dtype_are_cast() -> None:
    """What PyTorch refuses without autocast, half weights for single input, it casts with it."""
    operands = "f32: 5 3 4, bf16: 6 4, bf16: 6"
    for dtype, casts in (("bfloat16", 1), ("float32", 2), ("float16", 3)):
        kernels = ours(functional.linear, operands, dtype)
        assert kernels == theirs(F.linear, operands, dtype)
        assert len(kernels) == casts + 1


def test_the_emulation_really_casts() -> None:
    """The reference of this file is autocast at work: a linear layer casts its input and both weights."""
    names = [kernel.name for kernel in theirs(F.linear, WEIGHTED, "bfloat16")]
    assert names == ["_to_copy", "_to_copy", "_to_copy", "addmm"]


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_elements_cast_where_pytorch_has_a_rule(name: str) -> None:
    """A function of every element casts half precision exactly where PyTorch registers it with autocast on CUDA."""
    kernels = ours(UNARY[name], "bf16: 5 4", "bfloat16")
    assert (len(kernels) == 2) == torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCUDA")


@pytest.mark.parametrize(
    ("run", "real", "casts"),
    [
        (functional.scaled_dot_product_attention, F.scaled_dot_product_attention, 3),
        (lambda q, k, v: functional.rms_norm(q, 4, None), lambda q, k, v: F.rms_norm(q, (4,)), 0),
    ],
    ids=["attention", "rms norm"],
)
def test_fused_kernels_cast_first(run: Callable[..., Any], real: Callable[..., Any], casts: int) -> None:
    """Attention and RMS norm, which PyTorch takes apart without a GPU, begin with the casts of the real ones."""
    operands = "f32: 1 2 3 4, f32: 1 2 5 4, f32: 1 2 5 4"
    kernels = ours(run, operands, "bfloat16")
    assert len(kernels) == casts + 1
    assert kernels[:casts] == theirs(real, operands, "bfloat16")[:casts]
    lowered = operands.replace("f32", "bf16")
    raised = [kernel.name for kernel in ours(run, lowered, "bfloat16")]
    assert raised.count("_to_copy") == (0 if casts else 1)
    assert theirs(real, lowered, "bfloat16")[0].output[1] == "float32"


def test_equal_calls_under_other_autocast_are_other_calls() -> None:
    """A module called with and without autocast in one trace runs what each asks for."""

    class Both(nn.Module):
        def __init__(self) -> None:
            self.linear = nn.Linear(4, 8)

        def forward(self, x: nn.Tensor) -> nn.Tensor:
            y = self.linear(x)
            with nn.autocast(nn.bfloat16):
                z = self.linear(x)
            return y + z

    plain, cast = nn.trace(Both(), nn.Tensor((3, 4), nn.float32)).body.calls
    assert [op.name for op in plain.body.ops] == ["addmm"]
    assert [op.name for op in cast.body.ops] == ["_to_copy", "_to_copy", "_to_copy", "addmm"]


def test_autocast_ends_where_its_block_ends() -> None:
    """After a block, and after an error in one, the surrounding autocast is back."""

    def forward(x: nn.Tensor) -> nn.Tensor:
        with nn.autocast(nn.bfloat16):
            with pytest.raises(ValueError, match="linear"), nn.autocast(nn.float32):
                functional.linear(x, nn.Tensor((5, 3), nn.float32))
            return functional.linear(x, nn.Tensor((5, 4), nn.float32))

    record = nn.trace_function(lambda x: functional.exp(forward(x)), nn.Tensor((3, 4), nn.float32))
    assert [op.name for op in record.ops] == ["_to_copy", "_to_copy", "mm", "exp"]
    assert record.outputs.dtype == nn.bfloat16
