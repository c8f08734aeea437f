"""Functions of every element; the arithmetic of two tensors stands with the operators of ``Tensor``."""

from __future__ import annotations

from modelmeter.nn.tensor import Tensor, pointwise


def gelu(x: Tensor) -> Tensor:
    """GELU, exact or by tanh, on every element."""
    return pointwise("gelu", x)


def silu(x: Tensor) -> Tensor:
    """SiLU on every element."""
    return pointwise("silu", x)


def exp(x: Tensor) -> Tensor:
    """Exponential of every element."""
    return pointwise("exp", x)


def sin(x: Tensor) -> Tensor:
    """Sine of every element."""
    return pointwise("sin", x)


def cos(x: Tensor) -> Tensor:
    """Cosine of every element."""
    return pointwise("cos", x)
