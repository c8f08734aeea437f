"""Where a reference runs: on meta as a whole, on a real device with one block in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch

from modelmeter.compiled import CompiledForward
from modelmeter.errors import UnavailableError, shown
from modelmeter.flops import distinct_bodies
from modelmeter.nn import Spec, evaluate

#: Bytes of an element of the reference, which is built in float32.
ITEMSIZE = 4
#: Score-sized tensors alive at once in the attention that is taken apart into matrix products.
SCORES_ALIVE = 3


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UnavailableError: it is not there.
    """
    if name.startswith("cuda"):
        index = int(name.partition(":")[2] or 0)
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if index >= found:
            raise UnavailableError(
                f"device={shown(name)}: there {'is' if found == 1 else 'are'} {found} CUDA devices here"
            )
    return torch.device(name)


def check_memory(forms: Sequence[tuple[CompiledForward, Mapping[str, int]]], device: torch.device) -> None:
    """Refuse a run that cannot fit: the largest block, the activations, and the scores of attention on a CPU.

    Args:
        forms: what runs, and at which sizes.

    Raises:
        UnavailableError: less memory is available than the run needs at least.
    """
    if device.type == "meta":
        return
    needed = max(_needed(form, dims, device) for form, dims in forms)
    available = _available(device)
    if needed > available:
        raise UnavailableError(
            f"device={device}: this needs at least {needed / 1e9:,.1f} GB of memory and {available / 1e9:,.1f} GB "
            "are available; device=meta needs none"
        )


def _needed(form: CompiledForward, dims: Mapping[str, int], device: torch.device) -> int:
    block = max(unit.params for unit in _analytic_units(form.module))
    scores = _largest_scores(form, dims) if device.type == "cpu" else 0
    return ITEMSIZE * int(block + SCORES_ALIVE * scores) + evaluate(form.peak(dims).live, dims)


def _largest_scores(form: CompiledForward, dims: Mapping[str, int]) -> int:
    """Elements of the largest matrix of attention scores."""
    attention = (op.inputs for body in distinct_bodies(form.body) for op in body.ops if op.kind == "attention")
    return max((_scores(query, key, dims) for query, key, *_ in attention), default=0)


def _scores(query: Spec, key: Spec, dims: Mapping[str, int]) -> int:
    batch_heads_rows, columns = query.shape[:-1], key.shape[-2]
    return evaluate(prod(batch_heads_rows, start=columns), dims)


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise UnavailableError(f"device={device}: how much memory is available cannot be told on this system")


def _analytic_units(root: Any) -> list[Any]:
    return [child for _, unit in root.named_children() for child in ([*unit] if _is_list(unit) else [unit])]


def _is_list(module: Any) -> bool:
    return type(module).__name__ == "ModuleList"


@contextmanager
def placed(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Let a module that was built on meta run on ``device``; its blocks get memory only while they run.

    Weights are not initialised: what is counted does not depend on them. On a CPU attention is taken apart
    into matrix products, since the fused kernel there has no FLOP formula.
    """
    if device.type == "meta":
        yield
        return
    units = [block for child in module.children() for block in (child.children() if _is_list(child) else [child])]
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(attention_as_matrix_products())
        for unit in units:
            stack.callback(unit.register_forward_pre_hook(lambda block, _: _fill(block, device)).remove)
            stack.callback(unit.register_forward_hook(lambda block, _args, _out: _empty(block)).remove)
            stack.callback(_empty, unit)  # a run that fails inside a block leaves none filled
        stack.enter_context(_own_weights(module, device))
        yield


def attention_as_matrix_products() -> Any:
    """The kernel of scaled dot-product attention whose parts FlopCounterMode counts."""
    return torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)


def _fill(block: torch.nn.Module, device: torch.device) -> None:
    block.to_empty(device=device)


def _empty(block: torch.nn.Module) -> None:
    block.to(device="meta")


@contextmanager
def _own_weights(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Give the weights that the root holds itself memory on ``device``."""
    on_meta = dict(module.named_parameters(recurse=False))
    for name, weight in on_meta.items():
        setattr(module, name, torch.nn.Parameter(torch.empty_like(weight, device=device), requires_grad=False))
    try:
        yield
    finally:
        for name, weight in on_meta.items():
            setattr(module, name, weight)
