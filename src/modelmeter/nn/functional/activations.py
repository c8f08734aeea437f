"""Functions of every element; arithmetic and comparisons stand with the operators of ``Tensor``."""

from __future__ import annotations

from modelmeter.nn.dtype import float16, float32
from modelmeter.nn.tensor import Scalar, Tensor, launch, pointwise


def gelu(x: Tensor) -> Tensor:
    """GELU, exact or by tanh, on every element."""
    return pointwise("gelu", x)


def silu(x: Tensor) -> Tensor:
    """SiLU on every element."""
    return pointwise("silu", x)


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU on every element."""
    return pointwise("leaky_relu", x)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent of every element."""
    return pointwise("tanh", x)


def exp(x: Tensor) -> Tensor:
    """Exponential of every element."""
    return pointwise("exp", x)


def log(x: Tensor) -> Tensor:
    """Natural logarithm of every element."""
    return pointwise("log", x)


def rsqrt(x: Tensor) -> Tensor:
    """Inverse square root of every element."""
    return pointwise("rsqrt", x)


def absolute(x: Tensor) -> Tensor:
    """Absolute value of every element."""
    return pointwise("abs", x)


def neg(x: Tensor) -> Tensor:
    """Every element with the other sign."""
    return pointwise("neg", x)


def sin(x: Tensor) -> Tensor:
    """Sine of every element."""
    return pointwise("sin", x)


def cos(x: Tensor) -> Tensor:
    """Cosine of every element."""
    return pointwise("cos", x)


def clamp(x: Tensor, minimum: float, maximum: float) -> Tensor:
    """Every element held between two numbers."""
    return pointwise("clamp", x, minimum, maximum)


def clamp_min(x: Tensor, minimum: float) -> Tensor:
    """Every element held from below."""
    return pointwise("clamp_min", x, minimum)


def minimum(x: Tensor, y: Tensor) -> Tensor:
    """The smaller of two elements."""
    return pointwise("minimum", x, y)


def where(condition: Tensor, x: Tensor, y: Tensor | Scalar) -> Tensor:
    """Elements of ``x`` where the condition holds, of ``y`` elsewhere; a number is first written as a tensor.

    Source: ``where.ScalarOther`` (aten/src/ATen/native/TensorCompare.cpp), which calls ``scalar_tensor``
    and casts ``x``.

    Example:
        >>> from modelmeter.nn import trace_function
        >>> x = Tensor((2, 3), float32)
        >>> [op.name for op in trace_function(lambda: where(x > 0, x, 0.5)).ops]
        ['gt', 'scalar_tensor', 'where']
    """
    if not isinstance(y, Tensor):
        dtype = float32 if isinstance(y, float) and x.dtype.rank < float16.rank else x.dtype
        y = launch("scalar_tensor", "copy", (), (), dtype)
        x = x.to(dtype)
    return pointwise("where", condition, x, y)
