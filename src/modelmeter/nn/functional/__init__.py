"""Every formula, once: what each kernel of PyTorch counts, allocates and moves.

``flops`` follows ``torch.utils.flop_counter`` (2 per multiply-add of matrix products, convolutions and
attention). ``vector_flops`` is the rest: one per arithmetic step on an element, a transcendental function
counting as one.
"""

from modelmeter.nn.functional.activations import cos, exp, gelu, silu, sin
from modelmeter.nn.functional.copies import arange, cat, empty_like, pad
from modelmeter.nn.functional.norms import layer_norm, rms_norm
from modelmeter.nn.functional.products import conv, linear, matmul_flops, scaled_dot_product_attention

__all__ = [
    "arange",
    "cat",
    "conv",
    "cos",
    "empty_like",
    "exp",
    "gelu",
    "layer_norm",
    "linear",
    "matmul_flops",
    "pad",
    "rms_norm",
    "scaled_dot_product_attention",
    "silu",
    "sin",
]
