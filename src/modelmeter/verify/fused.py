"""Attention, RMS norm and linear layers as the kernels that a GPU runs, for modules on ``meta``.

Three functions of PyTorch take a path on ``meta`` that no GPU takes: attention would write all its scores, RMS
norm would run as several kernels in float32, and a linear layer that gathers its rows first would not add
its bias in place. Callers look the functions up in ``torch.nn.functional`` when they run, so they are
replaced there, for as long as a context lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

aten = torch.ops.aten

#: Most channels of a head that the flash kernels take. Source: ``sdp_utils.cpp``, ``check_head_dim_size_flash``.
FLASH_MAX_HEAD_DIM = 256


@contextmanager
def fused_attention() -> Iterator[None]:
    """Let ``torch.nn.functional.scaled_dot_product_attention`` run as the fused kernel of a GPU.

    Half precision without a mask and with heads of up to 256 channels goes to the flash kernel, all else to
    the memory-efficient one.
    """
    with _replaced("scaled_dot_product_attention", _fused_attention):
        yield


@contextmanager
def fused_rms_norm(implementation: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Let ``torch.nn.functional.rms_norm``, which ``torch.nn.RMSNorm`` calls, be ``implementation``."""
    with _replaced("rms_norm", implementation):
        yield


@contextmanager
def bias_in_place() -> Iterator[None]:
    """Let ``torch.nn.functional.linear`` add a bias in place where the product does not take it.

    Under a dispatch mode and on ``meta`` PyTorch adds it out of place, for the sake of tensor subclasses.

    Source: ``isTensorSubclassLike`` in ``at::linear`` (aten/src/ATen/native/Linear.cpp).
    """
    original = functional.linear

    def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if bias is None or input.ndim <= 2 or input.is_contiguous():
            return original(input, weight, bias)
        return original(input, weight).add_(bias)

    with _replaced("linear", linear):
        yield


@contextmanager
def _replaced(name: str, function: Callable[..., Any]) -> Iterator[None]:
    original = getattr(functional, name)
    setattr(functional, name, function)
    try:
        yield
    finally:
        setattr(functional, name, original)


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        raise NotImplementedError("attention with fewer key heads than query heads")
    half = query.dtype in (torch.float16, torch.bfloat16)
    if half and attn_mask is None and query.shape[-1] <= FLASH_MAX_HEAD_DIM:
        flash = aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]  # type: ignore[no-any-return]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale)[0]  # type: ignore[no-any-return]
