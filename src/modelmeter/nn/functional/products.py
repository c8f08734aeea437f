"""Matrix products, convolutions and attention: the kernels that count FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from modelmeter.nn.autocast import lowered
from modelmeter.nn.dtype import bfloat16, bool_, float16, float32, int64, uint64
from modelmeter.nn.polynomial import Dim, floor_divide
from modelmeter.nn.tensor import Tensor, launch, launch_in_place, like
from modelmeter.nn.tracing import Spec

#: Per attention score: scale, running maximum, subtract it, exponential, sum, divide.
SOFTMAX_STEPS = 6


def matmul_flops(batch: Dim, m: Dim, k: Dim, n: Dim) -> Dim:
    """FLOPs of ``batch`` products [m, k] @ [k, n]: two per multiply-add.

    Source: ``torch.utils.flop_counter.bmm_flop``.

    Example:
        >>> matmul_flops(1, 2, 3, 4)
        48
    """
    return 2 * batch * m * k * n


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: [..., in], [out, in], [out] -> [..., out].

    Example:
        >>> from modelmeter.nn import trace_function
        >>> w, b = Tensor((5, 3), float32), Tensor((5,), float32)
        >>> trace_function(linear, Tensor((2, 3), float32), w, b).ops[0].flops
        60
    """
    out_features, in_features = weight.shape
    if x.shape[-1] != in_features:
        raise ValueError(f"linear of {in_features} features got {x}")
    bias, weight, x = None if bias is None else lowered(bias), lowered(weight), lowered(x)
    if x.ndim > 2 and not x.is_contiguous():
        return _gathered_linear(x, weight, bias)
    rows = x.numel() // in_features
    output = launch(
        "mm" if bias is None else "addmm",
        "linear",
        (x, weight) if bias is None else (bias, x, weight),
        (rows, out_features),
        x.dtype,
        flops=matmul_flops(1, rows, in_features, out_features),
        vector_flops=0 if bias is None else rows * out_features,
    )
    return output.view(*x.shape[:-1], out_features)


def _gathered_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As :func:`linear` where the rows are no matrix in memory: a copy that is one, the product, the bias in place.

    Source: ``at::linear`` and ``should_fold`` (aten/src/ATen/native/Linear.cpp, LinearAlgebra.cpp).
    """
    output = linear(x.contiguous(), weight)
    if bias is not None:
        launch_in_place("add_", "elementwise", output, (bias,), reads_target=True)
    return output


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """Convolution: [B, Cin, *sizes], [Cout, Cin / groups, *kernel] -> [B, Cout, *positions].

    A position is a place where the kernel fits: (size + 2 * padding - kernel) // stride + 1 along each
    dimension. The positions are the rows of a matrix product over the kernel and the Cin of a group; what the
    kernel multiplies with the padding counts as all else.

    Source: ``torch.utils.flop_counter.conv_flop_count``.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> x, w = Tensor((1, 4, 9, 9), float32), Tensor((8, 4, 3, 3), float32)
        >>> trace_function(lambda: conv(x, w, stride=(1, 1))).ops[0].flops
        28224
    """
    out_channels, in_channels, *kernel = weight.shape
    if x.shape[1] != in_channels * groups:
        raise ValueError(f"convolution of {in_channels * groups} channels got {x}")
    bias, weight, x = None if bias is None else lowered(bias), lowered(weight), lowered(x)
    sizes = [_positions(n + 2 * padding, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    batch, positions = x.shape[0], prod(sizes, start=1)
    return launch(
        "convolution",
        "conv",
        (x, weight) if bias is None else (x, weight, bias),
        (batch, out_channels, *sizes),
        x.dtype,
        flops=matmul_flops(batch, positions, prod(kernel, start=in_channels), out_channels),
        vector_flops=0 if bias is None else batch * positions * out_channels,
    )


def _positions(size: Dim, kernel: Dim, stride: int) -> Dim:
    """Places where a kernel fits."""
    return floor_divide(size - kernel, stride) + 1


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Fused attention: [B, H, S, D], [B, H, L, D], [B, H, L, V] -> [B, H, S, V]; scores never reach memory.

    The flash kernel serves half precision up to 256 channels a head, the memory-efficient one the rest and
    all that has a mask. Both also write the log-sum-exp or random state that a backward pass would need.

    Args:
        mask: what is added to the scores, of the shape [B, H, S, L] or one that expands to it.

    Raises:
        NotImplementedError: a mask of truth values, which PyTorch first turns into numbers.

    Source: ``torch.utils.flop_counter.sdpa_flop_count``; outputs of
    ``aten._scaled_dot_product_flash_attention`` and ``aten._scaled_dot_product_efficient_attention``.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> q = Tensor((1, 2, 10, 64), bfloat16)
        >>> trace_function(scaled_dot_product_attention, q, q, q).ops[0].flops
        51200
    """
    batch, heads, rows, head_dim = query.shape
    columns, value_dim = value.shape[2:]
    if mask is not None and mask.dtype == bool_:
        raise NotImplementedError(f"attention with a mask of truth values: {mask}")
    value, key, query = lowered(value), lowered(key), lowered(query)
    added = () if mask is None else (lowered(mask).expand(batch, heads, rows, columns),)
    inputs = (query, key, value, *added)
    half = query.dtype in (float16, bfloat16)
    flash = mask is None and half and isinstance(head_dim, int) and head_dim <= 256
    if flash:
        name = "_scaled_dot_product_flash_attention"
        scratch = (Spec((batch, heads, rows), float32), Spec((2,), uint64), Spec((), uint64))
    else:
        name = "_scaled_dot_product_efficient_attention"
        scratch = (Spec((batch, heads, 0), float32), Spec((), int64), Spec((), int64))
    # The flash kernel keeps the layout of the query; the other always puts the heads behind the rows.
    behind = Tensor((batch, rows, heads, value_dim), query.dtype).transpose(1, 2)
    return launch(
        name,
        "attention",
        inputs,
        behind.shape,
        query.dtype,
        strides=like(query.shape, query) if flash else behind.strides,
        scratch=scratch,
        flops=_attention_flops(batch * heads, rows, head_dim, columns, value_dim),
        vector_flops=(SOFTMAX_STEPS if mask is None else SOFTMAX_STEPS + 1) * batch * heads * rows * columns,
    )


def flash_attn_varlen(query: Tensor, key: Tensor, value: Tensor, *, batch: Dim) -> Tensor:
    """Attention of the ``flash-attn`` package on samples behind one another, all of one length.

    [B S, H, E], [B L, H, E], [B L, H, V] -> [B S, H, V]; the kernel also writes the log-sum-exp of every row.

    Source: ``flash_attn_varlen_func``, which the official Wan code calls; no autocast reaches into it.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> q = Tensor((10, 2, 64), bfloat16)
        >>> trace_function(lambda: flash_attn_varlen(q, q, q, batch=1)).ops[0].flops
        51200
    """
    query, key, value = (_heads_first(tensor, batch) for tensor in (query, key, value))
    _, heads, rows, head_dim = query.shape
    columns, value_dim = value.shape[2:]
    output = launch(
        "flash_attn::_flash_attn_varlen_forward",
        "attention",
        (query, key, value),
        (batch * rows, heads, value_dim),
        query.dtype,
        scratch=(Spec((heads, batch * rows), float32),),
        flops=_attention_flops(batch * heads, rows, head_dim, columns, value_dim),
        vector_flops=SOFTMAX_STEPS * batch * heads * rows * columns,
    )
    return output


def _heads_first(tensor: Tensor, batch: Dim) -> Tensor:
    """[B S, H, E] -> [B, H, S, E], a view."""
    return tensor.unflatten(0, (batch, -1)).transpose(1, 2)


def _attention_flops(batch: Dim, rows: Dim, head_dim: Dim, columns: Dim, value_dim: Dim) -> Dim:
    """Scores [S, E] @ [E, L], then values [S, L] @ [L, V], for every head of every sample."""
    return matmul_flops(batch, rows, head_dim, columns) + matmul_flops(batch, rows, columns, value_dim)


def einsum(equation: str, x: Tensor) -> Tensor:
    """The dimensions of one tensor in another order, a view: ``"ab->ba"``. Autocast casts it all the same.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> trace_function(lambda x: einsum("abc->cab", x), Tensor((2, 3, 4), float32)).outputs.shape
        (4, 2, 3)
    """
    given, wanted = equation.split("->")
    return lowered(x).permute(*(given.index(letter) for letter in wanted))
