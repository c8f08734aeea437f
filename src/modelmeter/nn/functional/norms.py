"""Norms: one pass over the rows for their statistics and one to scale."""

from __future__ import annotations

from modelmeter.nn.autocast import raised
from modelmeter.nn.dtype import float32
from modelmeter.nn.functional.activations import clamp_min, rsqrt
from modelmeter.nn.functional.reductions import mean, vector_norm
from modelmeter.nn.polynomial import Dim
from modelmeter.nn.tensor import Tensor, launch, launch_in_place
from modelmeter.nn.tracing import Spec

#: Per element: subtract the mean, square, scale by the inverse deviation, and two sums for the statistics.
LAYER_NORM_STEPS = 5
#: Per element: square, its sum, scale by the inverse root mean square.
RMS_NORM_STEPS = 3
#: Per element: square, its sum, scale.
WEIGHT_NORM_STEPS = 3
#: What the norm that divides is held to from below. Source: ``torch.nn.functional.normalize``.
SMALLEST_NORM = 1e-12


def layer_norm(x: Tensor, normalized_shape: int, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Layer norm over the last dimension; mean and inverse deviation of every row are written too.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> trace_function(lambda x: layer_norm(x, 8, None, None), Tensor((2, 8), float32)).ops[0].bytes_written
        80
    """
    bias, weight, x = None if bias is None else raised(bias), None if weight is None else raised(weight), raised(x)
    affine = tuple(tensor for tensor in (weight, bias) if tensor is not None)
    statistics = Spec((*x.shape[:-1], 1), float32)
    return launch(
        "native_layer_norm",
        "norm",
        (x, *affine),
        _normalized(x, normalized_shape),
        x.dtype,
        scratch=(statistics, statistics),
        vector_flops=(LAYER_NORM_STEPS + len(affine)) * x.numel(),
    )


def rms_norm(x: Tensor, normalized_shape: int, weight: Tensor | None) -> Tensor:
    """RMS norm over the last dimension as one kernel, which also writes the inverse root of every row.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> trace_function(lambda x: rms_norm(x, 8, None), Tensor((2, 8), float32)).ops[0].name
        '_fused_rms_norm'
    """
    affine = () if weight is None else (raised(weight),)
    x = raised(x)
    return launch(
        "_fused_rms_norm",
        "norm",
        (x, *affine),
        _normalized(x, normalized_shape),
        x.dtype,
        scratch=(Spec((*x.shape[:-1], 1), float32),),
        vector_flops=(RMS_NORM_STEPS + len(affine)) * x.numel(),
    )


def decomposed_rms_norm(x: Tensor, normalized_shape: int, weight: Tensor) -> Tensor:
    """RMS norm over the last dimension step by step, in float32, as PyTorch below 2.8 runs it.

    Source: ``_rms_norm`` of ``torch/_decomp/decompositions.py``; ``rms_norm_symint`` of
    aten/src/ATen/native/layer_norm.cpp.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> x, w = Tensor((2, 8), float32), Tensor((8,), float32)
        >>> [op.name for op in trace_function(lambda: decomposed_rms_norm(x, 8, w)).ops]
        ['pow', 'mean', 'add_', 'rsqrt', 'mul', 'mul']
    """
    _normalized(x, normalized_shape)
    upcasted = x.float()
    inverse = _inverse_root(upcasted)
    result = upcasted * inverse
    result = result * weight
    del upcasted  # freed before the cast back
    return result.to(x.dtype)


def _inverse_root(x: Tensor) -> Tensor:
    """One over the root mean square of every row; the squares live as long as their C++ expression."""
    squares = x**2
    mean_square = mean(squares, -1, keepdim=True)
    launch_in_place("add_", "elementwise", mean_square, (), reads_target=True)  # epsilon
    return rsqrt(mean_square)


def weight_norm(v: Tensor, g: Tensor) -> Tensor:
    """A weight from its directions and lengths: [out, in, K], [1, 1, K] -> [out, in, K].

    One kernel, which also writes the norm of every slice along the last dimension.

    Source: ``torch._weight_norm`` over the last dimension.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> trace_function(weight_norm, Tensor((6, 4, 8), float32), Tensor((1, 1, 8), float32)).ops[0].bytes_written
        800
    """
    return launch(
        "_weight_norm_interface",
        "norm",
        (v, g),
        v.shape,
        v.dtype,
        scratch=(Spec(g.shape, float32),),
        vector_flops=WEIGHT_NORM_STEPS * v.numel(),
    )


def normalize(x: Tensor, dim: int) -> Tensor:
    """Vectors of length 1 along a dimension, as PyTorch runs it: norm, a floor for it, division.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> [op.name for op in trace_function(normalize, Tensor((2, 8), float32), 1).ops]
        ['linalg_vector_norm', 'clamp_min', 'div']
    """
    length = clamp_min(vector_norm(x, dim), SMALLEST_NORM).expand(*x.shape)
    return x / length


def _normalized(x: Tensor, size: int) -> tuple[Dim, ...]:
    if x.shape[-1] != size:
        raise ValueError(f"norm over {size} features got {x}")
    return x.shape
