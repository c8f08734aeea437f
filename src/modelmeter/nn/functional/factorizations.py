"""Kernels that take a matrix apart."""

from __future__ import annotations

from modelmeter.nn.tensor import Tensor, launch
from modelmeter.nn.tracing import Spec


def qr(x: Tensor) -> Tensor:
    """The orthonormal factor Q of a tall matrix: [M, N] -> [M, N]; the triangular R is written too, and dropped.

    FlopCounterMode has no formula for it, so it counts no FLOPs: 4 N^2 (M - N / 3) steps, by Householder
    reflections and half of them to form Q. Source: Golub and Van Loan, Matrix Computations, 5.2.

    Example:
        >>> from modelmeter.nn import float32, trace_function
        >>> op = trace_function(qr, Tensor((12, 3), float32)).ops[0]
        >>> [spec.shape for spec in op.outputs], op.flops, op.vector_flops
        ([(12, 3), (3, 3)], 0, 396)
    """
    rows, columns = x.shape
    strides = (1, rows)  # column after column, as LAPACK leaves it
    steps = 4 * columns * columns * (3 * rows - columns) // 3
    triangle = Spec((columns, columns), x.dtype)
    return launch(
        "linalg_qr", "factorization", (x,), x.shape, x.dtype, strides=strides, scratch=(triangle,), vector_flops=steps
    )
