"""Every formula, once: what each kernel of PyTorch counts, allocates and moves.

``flops`` follows ``torch.utils.flop_counter`` (2 per multiply-add of matrix products, convolutions and
attention). ``vector_flops`` is the rest: one per arithmetic step on an element, a transcendental function
counting as one.
"""

from modelmeter.nn.functional.activations import (
    absolute,
    clamp,
    clamp_min,
    cos,
    exp,
    gelu,
    leaky_relu,
    log,
    minimum,
    neg,
    rsqrt,
    silu,
    sin,
    tanh,
    where,
)
from modelmeter.nn.functional.copies import (
    arange,
    cat,
    diag_embed,
    embedding,
    empty_like,
    full_like,
    linspace,
    new_ones,
    new_zeros,
    ones_like,
    pad,
    replication_pad1d,
    stack,
    upsample_nearest_exact,
    zeros_like,
)
from modelmeter.nn.functional.factorizations import qr
from modelmeter.nn.functional.norms import layer_norm, normalize, rms_norm, weight_norm
from modelmeter.nn.functional.products import conv, linear, matmul_flops, scaled_dot_product_attention
from modelmeter.nn.functional.reductions import mean, sum, vector_norm

__all__ = [
    "absolute",
    "arange",
    "cat",
    "clamp",
    "clamp_min",
    "conv",
    "cos",
    "diag_embed",
    "embedding",
    "empty_like",
    "exp",
    "full_like",
    "gelu",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linspace",
    "log",
    "matmul_flops",
    "mean",
    "minimum",
    "neg",
    "new_ones",
    "new_zeros",
    "normalize",
    "ones_like",
    "pad",
    "qr",
    "replication_pad1d",
    "rms_norm",
    "rsqrt",
    "scaled_dot_product_attention",
    "silu",
    "sin",
    "stack",
    "sum",
    "tanh",
    "upsample_nearest_exact",
    "vector_norm",
    "weight_norm",
    "where",
    "zeros_like",
]
