"""Ring 2: every operator of ``modelmeter.nn`` against the PyTorch operator it stands for, on ``meta``.

A row is one expression over a namespace of functions and some operands. It runs twice: on our namespace
and tensors, and on PyTorch's.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

from modelmeter import nn
from modelmeter.nn import functional
from modelmeter.nn.polynomial import Dim, evaluate, symbol
from modelmeter.verify import allocations, flop_counter

Numbers = Mapping[str, int]
#: Before tracking replaces it by one kernel: on meta it runs step by step.
STEP_BY_STEP = F.rms_norm

OURS = SimpleNamespace(**vars(nn) | vars(functional))
#: PyTorch's side, where a call is written otherwise. What is replaced while tracking is looked up when it runs.
THEIRS = SimpleNamespace(
    **vars(torch)
    | vars(F)
    | {
        "conv": lambda x, w, b=None, **options: getattr(F, f"conv{w.ndim - 2}d")(x, w, b, **options),
        "scaled_dot_product_attention": lambda *args: F.scaled_dot_product_attention(*args),
        "layer_norm": lambda x, size, weight, bias: F.layer_norm(x, (size,), weight, bias),
        "rms_norm": lambda x, size, weight: F.rms_norm(x, (size,), weight),
        "zeros": lambda shape, dtype: torch.zeros(shape, dtype=dtype, device="meta"),
        "ones": lambda shape, dtype: torch.ones(shape, dtype=dtype, device="meta"),
        "decomposed_rms_norm": lambda x, size, weight: STEP_BY_STEP(x, (size,), weight, 1e-6),
        "weight_norm": lambda v, g: torch._weight_norm(v, g, v.ndim - 1),
        "upsample_nearest_exact": lambda x, scale: F.interpolate(x, scale_factor=scale, mode="nearest-exact"),
        "vector_norm": lambda x, dim: torch.linalg.vector_norm(x, dim=dim, keepdim=True),
        "replication_pad1d": lambda x, padding: F.pad(x, padding, mode="replicate"),
        "qr": lambda x: torch.linalg.qr(x)[0],
        "normalize": lambda x, dim: F.normalize(x, dim=dim),
        "new_ones": lambda like, shape: like.new_ones(shape),
        "new_zeros": lambda like, shape: like.new_zeros(shape),
        "linspace": lambda start, end, steps: torch.linspace(start, end, steps, device="meta"),
        "arange": lambda length, dtype=torch.float32: torch.arange(length, dtype=dtype, device="meta"),
    }
)


class Row(NamedTuple):
    """An expression and its operands: shapes of letters (sizes that vary) and numbers, float32 where not said."""

    name: str
    operands: str
    run: Callable[..., Any]


UNARY = ("gelu", "silu", "exp", "sin", "cos", "tanh", "log", "rsqrt", "absolute", "leaky_relu", "neg")
#: Every arithmetic operator that our tensors define, so that a new one gets its rows by itself.
ARITHMETIC = [
    name
    for name in vars(nn.Tensor)
    if name.startswith("__") and hasattr(operator, name.strip("_").removeprefix("r")) and name != "__getitem__"
]


def arithmetic(name: str) -> list[Row]:
    """Rows of one arithmetic operator, over broadcasts, layouts and promotions."""

    def on(x: Any, y: Any) -> Any:
        return getattr(x, name)(y)

    rows = [
        Row("number", "B S 64", lambda f, x: on(x, 2.5)),
        Row("number, half", "bf16: B S 64", lambda f, x: on(x, 2.5)),
        Row("number, gaps", "B 64 S 8", lambda f, x: on(x.transpose(1, 2)[..., ::2], 2)),
        Row("whole numbers by a fraction", "i64: B S", lambda f, x: on(x, 0.5)),
        Row("whole numbers", "i64: B S", lambda f, x: on(x, 2)),
    ]
    if not name.startswith("__r"):
        rows += [
            Row("equal shapes", "B S 64, B S 64", lambda f, x, y: on(x, y)),
            Row("itself", "B S 64", lambda f, x: on(x, x)),
            Row("half by single", "bf16: B S 64, B S 64", lambda f, x, y: on(x, y)),
            Row("half by half", "bf16: B S 64, f16: B S 64", lambda f, x, y: on(x, y)),
            Row("whole by single", "i64: B 1, B S", lambda f, x, y: on(x, y)),
            Row("broadcast right", "B S 64, B 1 64", lambda f, x, y: on(x, y)),
            Row("broadcast left", "64, bf16: B S 64", lambda f, x, y: on(x, y)),
            Row("broadcast both", "B 1 64, 1 S 1", lambda f, x, y: on(x, y)),
            Row("transposed both", "B S 64, B S 64", lambda f, x, y: on(x.transpose(1, 2), y.transpose(1, 2))),
            Row("transposed left", "B S 64, B 64 S", lambda f, x, y: on(x.transpose(1, 2), y)),
            Row("transposed right", "B S 64, B 64 S", lambda f, x, y: on(x, y.transpose(1, 2))),
            Row("transposed by vector", "B 64 S, 64", lambda f, x, y: on(x.transpose(1, 2), y)),
            Row("vector by transposed", "B 64 S, 64", lambda f, x, y: on(y, x.transpose(1, 2))),
            Row("heads first", "B S 4 64, 1 1 S 64", lambda f, x, y: on(x.transpose(1, 2), y)),
            Row("rotary", "bf16: B S 4 64, 1 S 1 64", lambda f, x, y: on(x[..., 0::2], y[..., 1::2])),
            Row("gaps, heads first", "B S 4 64, 1 1 S 32", lambda f, x, y: on(x.transpose(1, 2)[..., ::2], y)),
            Row("expanded", "B 1 64, B S 64", lambda f, x, y: on(x.expand(*y.shape), y)),
        ]
    return [Row(f"{name}, {row.name}", row.operands, row.run) for row in rows]


def unary(name: str) -> list[Row]:
    """Rows of a function of every element."""

    def on(f: Any, x: Any) -> Any:
        return getattr(f, name)(x)

    return [
        Row(name, "B S 64", on),
        Row(f"{name}, half", "bf16: B S 64", on),
        Row(f"{name}, transposed", "B S 64", lambda f, x: on(f, x.transpose(1, 2))),
        Row(f"{name}, gaps, transposed", "B S 64", lambda f, x: on(f, x[..., ::2].transpose(0, 2))),
    ]


def heads_behind(f: Any, q: Any, k: Any, v: Any) -> Any:
    """Attention on tensors whose heads lie behind the rows in memory, as a projection leaves them."""
    return f.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))


def frames(x: Any) -> Any:
    """The frames of a video [1, C, T, H, W] as images [T, C, H, W], channels and frames as they lie in memory."""
    return x.permute(0, 2, 1, 3, 4).reshape(x.shape[2], x.shape[1], *x.shape[3:])


ROWS = [
    Row("linear", "B S 64, 96 64, 96", lambda f, x, w, b: f.linear(x, w, b)),
    Row("linear, half", "bf16: B S 64, bf16: 96 64, bf16: 96", lambda f, x, w, b: f.linear(x, w, b)),
    Row("linear, no bias", "B S 64, 96 64", lambda f, x, w: f.linear(x, w)),
    Row("linear, rows", "B 64, 96 64, 96", lambda f, x, w, b: f.linear(x, w, b)),
    Row("linear, four dimensions", "B S L 64, 96 64, 96", lambda f, x, w, b: f.linear(x, w, b)),
    Row("linear, transposed rows", "64 S, 96 64, 96", lambda f, x, w, b: f.linear(x.transpose(0, 1), w, b)),
    Row("conv", "B 16 S 8 12, 32 16 1 2 2, 32", lambda f, x, w, b: f.conv(x, w, b, stride=(1, 2, 2))),
    Row("conv, overlapping", "B 4 L 8 12, 6 4 3 3 3", lambda f, x, w: f.conv(x, w, stride=(1, 1, 1))),
    Row("conv, half", "bf16: B 4 6 8 12, bf16: 6 4 2 2 2", lambda f, x, w: f.conv(x, w, stride=(2, 2, 2))),
    Row("conv, last", "B L 8 4, 6 4 3 3, 6", lambda f, x, w, b: f.conv(x.permute(0, 3, 1, 2), w, b, stride=(1, 1))),
    Row("conv, two dimensions", "B 4 9 13, 6 4 3 3, 6", lambda f, x, w, b: f.conv(x, w, b, stride=(2, 2))),
    Row("conv, one dimension", "B 4 L, 6 4 3", lambda f, x, w: f.conv(x, w, stride=(1,))),
    Row("conv, groups", "B 12 L, 6 4 3, 6", lambda f, x, w, b: f.conv(x, w, b, stride=(1,), padding=2, groups=3)),
    Row("conv, more than fits", "B 4 14 L, 6 4 4 1", lambda f, x, w: f.conv(x, w, stride=(4, 1))),
    Row("attention, half", "bf16: B 3 S 64, bf16: B 3 L 64", lambda f, q, k: f.scaled_dot_product_attention(q, k, k)),
    Row("attention, single", "B 3 S 64, B 3 L 64", lambda f, q, k: f.scaled_dot_product_attention(q, k, k)),
    Row("attention, heads behind", "f16: B S 3 64, f16: B L 3 64, f16: B L 3 64", heads_behind),
    Row("attention, single, heads behind", "B S 3 64, B L 3 64, B L 3 64", heads_behind),
    Row("attention, wide heads", "bf16: B 1 S 384", lambda f, q: f.scaled_dot_product_attention(q, q, q)),
    Row("attention, widest heads of flash", "bf16: B 1 S 256", lambda f, q: f.scaled_dot_product_attention(q, q, q)),
    Row("attention, heads past flash", "bf16: B 1 S 257", lambda f, q: f.scaled_dot_product_attention(q, q, q)),
    Row(
        "attention, mask",
        "bf16: B 3 S 64, bf16: B 3 L 64, bf16: B 3 S L",
        lambda f, q, k, m: f.scaled_dot_product_attention(q, k, k, m),
    ),
    Row(
        "attention, mask for every sample",
        "B 3 S 64, B 3 L 64, 1 3 S L",
        lambda f, q, k, m: f.scaled_dot_product_attention(q, k, k, m),
    ),
    Row("attention, narrow values", "B S 3 64, B L 3 64, B L 3 32", heads_behind),
    Row("layer norm", "B S 64", lambda f, x: f.layer_norm(x, 64, None, None)),
    Row("layer norm, weights", "B S 64, 64, 64", lambda f, x, w, b: f.layer_norm(x, 64, w, b)),
    Row("layer norm, no bias", "B S 64, 64", lambda f, x, w: f.layer_norm(x, 64, w, None)),
    Row("layer norm, half", "bf16: B S 64, bf16: 64, bf16: 64", lambda f, x, w, b: f.layer_norm(x, 64, w, b)),
    Row("layer norm, transposed", "B 64 S", lambda f, x: f.layer_norm(x.transpose(1, 2), 64, None, None)),
    Row("zeros, whole numbers", "B S", lambda f, x: f.zeros((1, x.shape[1]), f.int64)),
    Row("ones, whole numbers", "B S", lambda f, x: f.ones((1, x.shape[1]), f.int64)),
    Row("sum", "B S 64", lambda f, x: f.sum(x, 1, keepdim=False)),
    Row("sum, kept", "B S 64", lambda f, x: f.sum(x, -1, keepdim=True)),
    Row("fill_", "B S 64", lambda f, x: (x[:, 1:].fill_(1), x)[1]),
    Row("weight norm", "6 4 8, 1 1 8", lambda f, v, g: f.weight_norm(v, g)),
    Row("weight norm, half", "bf16: 6 4 8, bf16: 1 1 8", lambda f, v, g: f.weight_norm(v, g)),
    Row("rms norm", "B S 64, 64", lambda f, x, w: f.rms_norm(x, 64, w)),
    Row("rms norm, no weight", "B S 64", lambda f, x: f.rms_norm(x, 64, None)),
    Row("rms norm, steps", "B S 64, 64", lambda f, x, w: f.decomposed_rms_norm(x, 64, w)),
    Row("rms norm, steps, half", "bf16: B S 64, bf16: 64", lambda f, x, w: f.decomposed_rms_norm(x, 64, w)),
    Row("rms norm, half", "bf16: B S 64, bf16: 64", lambda f, x, w: f.rms_norm(x, 64, w)),
    Row("exp, sin and cos of whole numbers", "i64: B S", lambda f, x: f.exp(x) * f.sin(x) * f.cos(x)),
    Row(
        "logarithm, root, tangent and absolute of whole numbers",
        "i64: B S",
        lambda f, x: f.log(x) * f.rsqrt(x) * f.tanh(x) * f.absolute(x),
    ),
    Row("minimum", "i64: B S, i64: B S", lambda f, x, y: f.minimum(x, y)),
    Row("minimum, transposed", "B S 64, B 64 S", lambda f, x, y: f.minimum(x.transpose(1, 2), y)),
    Row("where", "B S 64, B S 64", lambda f, x, y: f.where(x > 0, x, y)),
    Row("where, whole numbers by single", "i64: B S, B S", lambda f, x, y: f.where(x < 1, x, y)),
    Row("where, number", "bf16: B S 64", lambda f, x: f.where(x > 0, x, -1e9)),
    Row("where, whole numbers by a fraction", "i64: B S", lambda f, x: f.where(x > 0, x, 0.5)),
    Row("where, whole numbers", "i64: B S", lambda f, x: f.where(x > 0, x, 7)),
    Row(
        "where, table of heads",
        "B 1 S S, bf16: S S 3",
        lambda f, x, y: f.where(x > 0, y.permute(2, 0, 1).unsqueeze(0), -1e9),
    ),
    Row("mean", "B S 64", lambda f, x: f.mean(x, -1, keepdim=True)),
    Row("mean, half", "bf16: B S 64", lambda f, x: f.mean(x, -1, keepdim=True)),
    Row("mean, of the middle", "B S 64", lambda f, x: f.mean(x, 1, keepdim=False)),
    Row("mean, transposed", "B 64 S", lambda f, x: f.mean(x.transpose(1, 2), -1, keepdim=True)),
    Row("embedding", "i64: B S, 100 8", lambda f, x, w: f.embedding(x, w)),
    Row("embedding, half, table", "i64: S L, bf16: 32 6", lambda f, x, w: f.embedding(x, w)),
    Row("embedding, transposed", "i64: S L, 32 6", lambda f, x, w: f.embedding(x.transpose(0, 1), w)),
    Row("full_like", "i64: B S", lambda f, x: f.full_like(x, 7)),
    Row("full_like, transposed", "bf16: B S 64", lambda f, x: f.full_like(x.transpose(1, 2), 0.5)),
    Row("cat", "B S 64, B L 64", lambda f, x, y: f.cat([x, y], dim=1)),
    Row("cat, last", "bf16: B S 64", lambda f, x: f.cat([x, x], dim=-1)),
    Row("cat, expanded", "B 1 64, B S 64", lambda f, x, y: f.cat([x.expand(*y.shape), y], dim=0)),
    Row("cat, one transposed", "B 64 S, B L 64", lambda f, x, y: f.cat([x.transpose(1, 2), y], dim=1)),
    Row("cat, transposed", "B 64 S, B 64 L", lambda f, x, y: f.cat([x.transpose(1, 2), y.transpose(1, 2)], dim=1)),
    Row("cat, promoted", "bf16: B S 64, B L 64", lambda f, x, y: f.cat([x, y], dim=1)),
    Row("stack, promoted", "B S 64, bf16: B S 64", lambda f, x, y: f.stack([x, y], dim=1)),
    Row("einsum of one", "B S 64", lambda f, x: f.exp(f.einsum("abc->cab", x))),
    Row(
        "product of complex numbers",
        "f64: B S 32 2, 1 S 1 2",
        lambda f, x, y: f.view_as_real(f.view_as_complex(x) * f.view_as_complex(y)),
    ),
    Row("pad", "B S", lambda f, x: f.pad(x, (0, 1))),
    Row("pad, three dimensions", "bf16: B 4 S 8 8", lambda f, x: f.pad(x, (1, 1, 1, 1, 2, 0))),
    Row("pad, by nothing", "B S 8", lambda f, x: f.pad(x, (0, 0, 0, 0))),
    Row("pad, transposed", "B S 64", lambda f, x: f.pad(x.transpose(1, 2), (1, 0))),
    Row("ones", "bf16: B S 64", lambda f, x: f.new_ones(x, (x.shape[1], 3))),
    Row("zeros", "B S 64", lambda f, x: f.new_zeros(x, (x.shape[0], 3, 64))),
    Row("arange", "B", lambda f, x: f.arange(128) * x[:1]),
    Row("arange, of a size", "B S", lambda f, x: f.arange(x.shape[1])),
    Row("arange, whole numbers", "B", lambda f, x: f.arange(7, f.int64)),
    Row("linspace", "B", lambda f, x: f.linspace(0.0, 1.0, 128) * x[:1]),
    Row("ones_like", "bf16: B S 64", lambda f, x: f.ones_like(x)),
    Row("ones_like, transposed", "B S 64", lambda f, x: f.ones_like(x.transpose(1, 2))),
    Row("repeat", "B S 64", lambda f, x: x.repeat(3, 1, 2)),
    Row("repeat, once", "B S 64", lambda f, x: x.repeat(1, 1, 1)),
    Row("repeat, a size", "B 3 S, B", lambda f, x, y: x[:1].repeat(y.shape[0], 1, 1)),
    Row("repeat, transposed", "bf16: B S 64", lambda f, x: x.transpose(1, 2).repeat(1, 2, 1)),
    Row("empty_like", "bf16: B S 64", lambda f, x: f.empty_like(x)),
    Row("empty_like, transposed", "B S 64", lambda f, x: f.empty_like(x.transpose(1, 2))),
    Row("empty_like, gaps", "B S 64", lambda f, x: f.empty_like(x[..., ::2].transpose(1, 2))),
    Row("empty_like, expanded", "B 1 64, B S 64", lambda f, x, y: f.empty_like(x.expand(*y.shape))),
    Row("to", "B S 64", lambda f, x: x.to(f.bfloat16)),
    Row("to, of whole numbers", "i64: B", lambda f, x: x.to(f.float64)),
    Row("to, transposed", "B S 64", lambda f, x: x.transpose(1, 2).to(f.bfloat16)),
    Row("to, gaps", "B S 64", lambda f, x: x[..., ::2].transpose(0, 1).to(f.bfloat16)),
    Row("to, expanded", "B 1 64, B S 64", lambda f, x, y: x.expand(*y.shape).to(f.bfloat16)),
    Row("float", "bf16: B S 64", lambda f, x: x.float()),
    Row("float, unneeded", "B S 64", lambda f, x: f.exp(x.float())),
    Row("clone", "B S 64", lambda f, x: x.clone()),
    Row("clone, transposed", "B S 64", lambda f, x: x.transpose(1, 2).clone()),
    Row("clone, slice", "B 4 S 8 8", lambda f, x: x[:, :, -2:].clone()),
    Row("contiguous", "B S 64", lambda f, x: x.transpose(1, 2).contiguous()),
    Row("contiguous, unneeded", "B S 64", lambda f, x: f.exp(x.contiguous())),
    Row("contiguous, expanded", "B 1 64, B S 64", lambda f, x, y: x.expand(*y.shape).contiguous()),
    Row("reshape", "B S 64", lambda f, x: x.transpose(1, 2).reshape(x.shape[0], -1)),
    Row("flatten", "B 16 S 8", lambda f, x: x.permute(0, 3, 2, 1).flatten(0, 2)),
    Row("copy_", "B S 64, B S 64", lambda f, x, y: (x.copy_(y), x)[1]),
    Row("copy_, gaps, cast", "bf16: B S 64, B S 32", lambda f, x, y: (x[..., 0::2].copy_(y), x)[1]),
    Row("copy_, expanded", "B S 64, B 1 64", lambda f, x, y: (x.copy_(y.expand(*x.shape)), x)[1]),
    Row("add_", "i64: B S, i64: B S", lambda f, x, y: (x.add_(y), x)[1]),
    Row("add_, gaps, broadcast", "bf16: B S 64, bf16: 32", lambda f, x, y: (x[..., 0::2].add_(y), x)[1]),
    Row("clamp_", "bf16: B S 64", lambda f, x: (x[..., 0::2].clamp_(-1.0, 1.0), x)[1]),
    Row("add_, itself", "B S", lambda f, x: (x.add_(x), x)[1]),
    Row("temporaries die with their last use", "B S 64", lambda f, x: (f.gelu(x * 2.0) + x).to(f.bfloat16)),
    *(row for name in UNARY for row in unary(name)),
    *(row for name in ARITHMETIC for row in arithmetic(name)),
    # what a VAE runs
    Row("conv, padded", "B 4 S 12, 6 4 3 3, 6", lambda f, x, w, b: f.conv(x, w, b, stride=(1, 1), padding=1)),
    Row("conv, padded, strided", "B 4 9 13, 6 4 3 3", lambda f, x, w: f.conv(x, w, stride=(2, 2), padding=2)),
    Row("conv, frames as samples", "1 4 S 8 12, 6 4 1 1", lambda f, x, w: f.conv(frames(x), w, stride=(1, 1))),
    Row("stack", "B S 64, B S 64", lambda f, x, y: f.stack([x, y], dim=1)),
    Row("stack, last", "bf16: B S 64", lambda f, x: f.stack([x, x], dim=-1)),
    Row("stack, transposed", "B S 64, B 64 S", lambda f, x, y: f.stack([x.transpose(1, 2), y], dim=0)),
    Row("stack, views", "B 2 4 S 8 8", lambda f, x: f.stack([x[:, 0], x[:, 1]], dim=3)),
    Row("pad, by nothing, transposed", "B 4 S 8 8", lambda f, x: f.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, 0))),
    Row("pad, channels last", "B S 12 4", lambda f, x: f.pad(x.permute(0, 3, 1, 2), (0, 1, 0, 1))),
    Row("pad, channels last, video", "B S 8 12 4", lambda f, x: f.pad(x.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 2, 0))),
    Row("upsample, channels last", "B S 12 4", lambda f, x: f.upsample_nearest_exact(x.permute(0, 3, 1, 2), 2)),
    Row("upsample, columns first", "B 4 S 12", lambda f, x: f.upsample_nearest_exact(x.transpose(2, 3), 2)),
    Row("upsample", "B 4 S 12", lambda f, x: f.upsample_nearest_exact(x, 2)),
    Row("upsample, half, three times", "bf16: B 4 8 L", lambda f, x: f.upsample_nearest_exact(x, 3)),
    Row("upsample, frames as samples", "1 4 S 8 12", lambda f, x: f.upsample_nearest_exact(frames(x), 2)),
    Row("zeros_like", "bf16: B S 64", lambda f, x: f.zeros_like(x)),
    Row("zeros_like, transposed", "B S 64", lambda f, x: f.zeros_like(x.transpose(1, 2))),
    Row("clamp", "B S 64", lambda f, x: f.clamp(x, -1.0, 1.0)),
    Row("clamp, half, transposed", "bf16: B S 64", lambda f, x: f.clamp(x.transpose(1, 2), -30.0, 20.0)),
    Row("clamp, whole numbers by fractions", "i64: B S", lambda f, x: f.clamp(x, 0.5, 1.5)),
    Row("clamp_min", "B S 64", lambda f, x: f.clamp_min(x, 1e-12)),
    Row("clamp_min, half, half of the channels", "bf16: B 8 S", lambda f, x: f.clamp_min(x.chunk(2, dim=1)[1], 0.5)),
    Row("vector norm", "B 64 S", lambda f, x: f.vector_norm(x, 1)),
    Row("vector norm, last", "bf16: B S 64", lambda f, x: f.vector_norm(x, -1)),
    Row("vector norm, transposed", "B 4 S 8 8", lambda f, x: f.vector_norm(x.transpose(1, 2), 1)),
    Row("normalize", "B 64 S", lambda f, x: f.normalize(x, 1)),
    Row("normalize, transposed", "B 4 S 8 8", lambda f, x: f.normalize(x.transpose(1, 2), 2)),
    Row("mean, of one", "B 1 S 8", lambda f, x: f.mean(x, 1, keepdim=False)),
    Row("repeat_interleave", "B 4 S 8 8", lambda f, x: x.repeat_interleave(2, dim=1)),
    Row("repeat_interleave, once", "B 4 S 8 8", lambda f, x: x.repeat_interleave(1, dim=1)),
    # what the motion and face encoders of Animate run
    Row(
        "conv, channel by channel",
        "B 6 S 12, 6 1 4 4",
        lambda f, x, w: f.conv(x, w, stride=(1, 1), padding=2, groups=6),
    ),
    Row(
        "conv, one kernel for every channel",
        "B 6 S 12, 4 4",
        lambda f, x, w: f.conv(x, w[None, None].expand(6, 1, 4, 4), stride=(1, 1), padding=1, groups=6),
    ),
    Row("conv, groups", "B 6 S 12, 8 3 3 3, 8", lambda f, x, w, b: f.conv(x, w, b, stride=(1, 1), groups=2)),
    Row("conv, one dimension, strided", "2 4 9, 6 4 3, 6", lambda f, x, w, b: f.conv(x, w, b, stride=(2,))),
    Row("conv, channels by frames", "B S 4, 6 4 3", lambda f, x, w: f.conv(x.permute(0, 2, 1), w, stride=(1,))),
    Row("replication pad", "B 4 S", lambda f, x: f.replication_pad1d(x, (2, 0))),
    Row("replication pad, half", "bf16: B 4 S", lambda f, x: f.replication_pad1d(x, (1, 3))),
    Row("replication pad, transposed", "B S 4", lambda f, x: f.replication_pad1d(x.permute(0, 2, 1), (2, 0))),
    Row("diagonal matrices", "B 5", lambda f, x: f.diag_embed(x)),
    Row("diagonal matrices, half, transposed", "bf16: 5 S", lambda f, x: f.diag_embed(x.transpose(0, 1))),
    Row("qr", "12 5", lambda f, x: f.qr(x)),
    Row("qr, double, square", "f64: 5 5", lambda f, x: f.qr(x)),
    Row("qr, then a product", "B S 5, 12 5", lambda f, x, y: f.linear(x, f.qr(y))),
    Row("sum", "B S 64", lambda f, x: f.sum(x, 1)),
    Row("sum, half, last", "bf16: B S 64", lambda f, x: f.sum(x, -1)),
    Row("sum, transposed", "B S 64", lambda f, x: f.sum(x.transpose(1, 2), 1)),
    Row("repeat, by sizes", "1 1 1 64, B S", lambda f, x, y: x.repeat(*y.shape, 1, 1)),
    Row("repeat_interleave, transposed, last", "bf16: B 4 S", lambda f, x: x.transpose(1, 2).repeat_interleave(3, -1)),
]

SIZES = ({"B": 1, "S": 6, "L": 5}, {"B": 2, "S": 5, "L": 4}, {"B": 2, "S": 32760, "L": 512})
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f64": "float64", "i64": "int64"}


#: Methods of ``Tensor`` that launch nothing: those that make views (see test_views.py) and those that tell.
VIEWS = {
    *("permute", "transpose", "unsqueeze", "squeeze", "expand", "split", "chunk", "unbind", "view", "unflatten"),
    *("numel", "is_contiguous"),
}


class Kernel(NamedTuple):
    """What one kernel is compared by."""

    name: str
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    bytes_read: Dim
    bytes_written: Dim
    live: Dim


class Result(NamedTuple):
    """What a row is compared by."""

    shape: Sequence[Dim]
    strides: Sequence[Dim]
    dtype: str
    flops: Dim
    kernels: list[Kernel]


def parsed(operands: str, sizes: Mapping[str, Dim]) -> list[tuple[str, list[Dim]]]:
    """Dtype and sizes of every operand."""
    found = []
    for operand in operands.split(", "):
        dtype, _, shape = operand.rpartition(": ")
        found.append((DTYPES.get(dtype, "float32"), [int(n) if n.isdigit() else sizes[n] for n in shape.split()]))
    return found


def ours(row: Row, sizes: Mapping[str, Dim]) -> Result:
    """The row on our tensors; sizes are numbers or symbols."""
    operands = [nn.Tensor(shape, getattr(nn, dtype)) for dtype, shape in parsed(row.operands, sizes)]
    record = nn.trace_function(lambda *tensors: row.run(OURS, *tensors), *operands)
    kernels = [Kernel(op.name, op.inputs, op.outputs, op.bytes_read, op.bytes_written, op.live) for op in record.ops]
    out = record.outputs
    return Result(out.shape, out.strides, str(out.dtype), sum((op.flops for op in record.ops), start=0), kernels)


class Expression(torch.nn.Module):
    """The row as a module of PyTorch."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.run = row.run

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The row on PyTorch's namespace."""
        return self.run(THEIRS, *tensors)


def theirs(row: Row, sizes: Numbers) -> Result:
    """The row on PyTorch's tensors, through both primitives of verification."""
    operands = [
        torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for dtype, shape in parsed(row.operands, sizes)
    ]
    counted = flop_counter.count(Expression(row), *operands)
    assert counted.uncounted_ops == ()
    tracked = allocations.track(Expression(row), *operands)
    kernels = [Kernel(k.name, k.inputs, k.outputs, k.bytes_read, k.bytes_written, k.live) for k in tracked.kernels]
    out = tracked.outputs
    return Result(tuple(out.shape), out.stride(), str(out.dtype).removeprefix("torch."), counted.flops[""], kernels)


def numbers(result: Result, sizes: Numbers) -> Result:
    """The result in plain integers, without what means nothing: strides along 1, order and transposition of inputs."""

    def at(value: Dim) -> int:
        return evaluate(value, sizes)

    shape = tuple(map(at, result.shape))
    strides = [at(stride) for size, stride in zip(shape, result.strides, strict=True) if size != 1]
    kernels = [
        Kernel(
            kernel.name,
            sorted((prod(map(at, s)), str(dtype)) for s, dtype in kernel.inputs) if at(kernel.bytes_read) else [],
            [(tuple(map(at, s)), str(dtype)) for s, dtype in kernel.outputs if 0 not in s],
            *map(at, kernel[3:]),
        )
        for kernel in result.kernels
    ]
    return Result(shape, strides, result.dtype, at(result.flops), kernels)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_operator_costs_what_pytorch_runs(row: Row, sizes: Numbers) -> None:
    """Output, FLOPs, kernels, bytes read, written and alive equal those of the PyTorch operator on meta."""
    expected = numbers(theirs(row, sizes), sizes)
    assert expected.kernels
    assert numbers(ours(row, sizes), sizes) == expected


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_formula_gives_the_numbers_of_an_operator(row: Row) -> None:
    """The record on symbols, evaluated at sizes of two and more, is the record on those sizes."""
    formulas = ours(row, {name: symbol(name) for name in SIZES[0]})
    for sizes in SIZES[1:]:
        assert numbers(formulas, sizes) == numbers(ours(row, sizes), sizes)


def test_attention_refuses_a_mask_of_truth_values() -> None:
    """A bool mask, which PyTorch turns into numbers by further kernels, is refused, not passed over."""
    q = nn.Tensor((1, 3, 6, 64), nn.bfloat16)
    with pytest.raises(NotImplementedError, match="mask of truth values"):
        nn.trace_function(lambda: functional.scaled_dot_product_attention(q, q, q, nn.Tensor((1, 3, 6, 6), nn.bool_)))


def test_flash_attention_of_several_samples_is_attention() -> None:
    """The kernel of ``flash-attn`` computes and moves what PyTorch's does, but for the random state of 24 bytes."""
    q, k, v = (nn.Tensor((2 * rows, 3, 64), nn.bfloat16) for rows in (10, 7, 7))
    record = nn.trace_function(lambda: functional.flash_attn_varlen(q, k, v, batch=2))
    (packed,) = record.ops
    heads = [nn.Tensor((2, 3, rows, 64), nn.bfloat16) for rows in (10, 7, 7)]
    (plain,) = nn.trace_function(functional.scaled_dot_product_attention, *heads).ops
    assert packed.flops > 0
    assert (packed.flops, packed.vector_flops) == (plain.flops, plain.vector_flops)
    assert (packed.bytes_read, packed.bytes_written) == (plain.bytes_read, plain.bytes_written - 24)
    assert record.outputs.shape == (20, 3, 64)


def test_every_function_on_tensors_has_a_row() -> None:
    """A public function of ``functional`` that takes or returns a tensor cannot go untested."""
    public = {
        name: str(inspect.signature(function))
        for name, function in inspect.getmembers(functional, inspect.isfunction)
        if function.__module__.startswith(functional.__name__) and not name.startswith("_")
    }
    on_tensors = {name for name, signature in public.items() if "Tensor" in signature}
    assert on_tensors
    # a kernel of another package, see test_flash_attention_of_several_samples_is_attention
    assert on_tensors - names_in_rows() == {"flash_attn_varlen"}


def test_every_kernel_of_a_tensor_has_a_row() -> None:
    """A public method of ``Tensor`` that may launch a kernel cannot go untested."""
    methods = {name for name, value in vars(nn.Tensor).items() if inspect.isfunction(value) and name[0] != "_"}
    assert methods >= VIEWS
    assert methods - VIEWS - names_in_rows() == set()
    assert {"__add__", "__sub__", "__mul__", "__truediv__"} <= set(ARITHMETIC)


def names_in_rows() -> set[str]:
    """Functions and methods that the expressions of all rows use."""
    return {*UNARY, *(name for row in ROWS for name in row.run.__code__.co_names)}
