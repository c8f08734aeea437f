"""Where a reference runs: on meta as a whole, on a real device with the weights of one module in memory at a time."""

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
    """Refuse a run that cannot fit: the largest weights, the activations, and the scores of attention on a CPU.

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
    weights = max(module.own_params for _, module in form.module.named_modules())
    scores = _largest_scores(form, dims) if device.type == "cpu" else 0
    # the forms are those of half precision, the reference is not
    return ITEMSIZE * (weights + SCORES_ALIVE * scores) + ITEMSIZE // 2 * evaluate(form.peak(dims).live, dims)


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


@contextmanager
def placed(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Let a module that was built on meta run on ``device``; weights get memory only while what holds them runs.

    Weights are not initialised: what is counted does not depend on them. On a CPU attention is taken apart
    into matrix products, since the fused kernel there has no FLOP formula.
    """
    if device.type == "meta":
        yield
        return
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(attention_as_matrix_products())
        for holder in module.modules():
            weights = _Weights(holder, device)
            stack.callback(weights.empty)  # a run that fails inside a module leaves none filled
            if holder is not module:
                stack.callback(holder.register_forward_pre_hook(lambda _module, _args, w=weights: w.fill()).remove)
                stack.callback(holder.register_forward_hook(lambda _module, _args, _out, w=weights: w.empty()).remove)
        _Weights(module, device).fill()  # a method of the root may be called, which no hook sees
        yield


class _Weights:
    """The weights and buffers that a module holds itself, on meta or with memory."""

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self.module = module
        self.device = device
        self.weights = {name: weight for name, weight in module._parameters.items() if weight is not None}
        self.buffers = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}

    def fill(self) -> None:
        """Give them memory; buffers are zero, since some are indices."""
        for name, weight in self.weights.items():
            memory = torch.empty_like(weight, device=self.device)
            self.module._parameters[name] = torch.nn.Parameter(memory, requires_grad=False)
        for name, buffer in self.buffers.items():
            self.module._buffers[name] = torch.zeros_like(buffer, device=self.device)

    def empty(self) -> None:
        """Back to meta, as they were built."""
        self.module._parameters.update(self.weights)
        self.module._buffers.update(self.buffers)


def attention_as_matrix_products() -> Any:
    """The kernel of scaled dot-product attention whose parts FlopCounterMode counts."""
    return torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
