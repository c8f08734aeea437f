"""Live bytes and bytes moved of a real PyTorch module, kernel by kernel, on ``meta``: no GPU and no memory.

A storage counts from the kernel that makes it until PyTorch frees it; a weak reference tells when. Weights
and inputs count nowhere. What cannot be seen from a dispatcher does not count either: workspaces of cuDNN
and cuBLAS, and what the CUDA allocator rounds up or keeps.

Attention, RMS norm (unless it is to run step by step) and the bias of linear layers run as on a GPU, see
:mod:`modelmeter.verify.fused`.

Bytes moved, one convention for every kernel: each distinct input is read once (an expanded dimension once,
a slice by its elements), each output is written once; views and ``empty`` move nothing; what only fills
reads nothing; an in-place kernel reads and writes its target; an embedding reads the rows it gathers. No
cache is modelled.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modelmeter.verify.flop_counter import module_calls
from modelmeter.verify.fused import bias_in_place, fused_attention, fused_rms_norm

#: In-place kernels that overwrite their target without reading it.
OVERWRITING = frozenset({"copy_", "fill_", "zero_"})
#: Kernels whose tensor arguments give only a shape, a dtype or a device.
FILLING = frozenset(
    {"full_like", "new_full", "new_ones", "new_zeros", "ones_like", "rand_like", "randn_like", "zeros_like"}
)


class Operand(NamedTuple):
    """Shape and dtype of a tensor; the dtype by its name, such as ``bfloat16``."""

    shape: tuple[int, ...]
    dtype: str


class Kernel(NamedTuple):
    """One kernel that ran: an operator that allocated, or wrote to a tensor."""

    name: str
    """The ATen operator without namespace and overload, such as ``addmm``; others keep their namespace."""
    path: str
    """Path of the innermost module whose call was running."""
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    bytes_read: int
    bytes_written: int
    live: int
    """Bytes alive right after the kernel, above weights and inputs, all its outputs included."""
    weight_bytes_read: int
    """Of the bytes read those of weights and buffers, or of views of them."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """What one forward of a real module ran and held.

    Attributes:
        kernels: in the order they ran.
        outputs: what the module returned.
        live_bytes: alive after the forward, the outputs included.
    """

    kernels: tuple[Kernel, ...]
    outputs: Any
    live_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The most bytes alive at once, above weights and inputs; the outputs count."""
        return max((kernel.live for kernel in self.kernels), default=0)

    @property
    def bytes_read(self) -> int:
        """Bytes read by all kernels."""
        return sum(kernel.bytes_read for kernel in self.kernels)

    @property
    def weight_bytes_read(self) -> int:
        """Bytes of weights and buffers that all kernels read."""
        return sum(kernel.weight_bytes_read for kernel in self.kernels)

    @property
    def bytes_written(self) -> int:
        """Bytes written by all kernels."""
        return sum(kernel.bytes_written for kernel in self.kernels)


def track(module: torch.nn.Module, /, *args: Any, decomposed_rms_norm: bool = False, **kwargs: Any) -> Tracked:
    """Run ``module(*args, **kwargs)`` once without gradients on ``meta`` and record its kernels.

    Attention runs as the fused kernel that a GPU would take, RMS norm as one kernel that also writes the
    inverse root of every row, and a bias that is added on its own is added in place.

    Args:
        decomposed_rms_norm: RMS norm runs step by step instead, as PyTorch itself decomposes it.

    Raises:
        ValueError: a weight, buffer or argument is not on ``meta``, where results would be computed (and be
            wrong: the replaced functions compute nothing).
        NotImplementedError: attention with fewer key heads than query heads.

    Example:
        >>> tracked = track(torch.nn.Linear(4, 8, device="meta"), torch.empty(3, 4, device="meta"))
        >>> tracked.kernels[0].name, tracked.peak_bytes, tracked.bytes_read
        ('addmm', 96, 208)
    """
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    weights = [*module.parameters(), *module.buffers()]
    for tensor in (*given, *weights):
        if tensor.device.type != "meta":
            raise ValueError(f"tracking takes tensors on meta, not {list(tensor.shape)} on {tensor.device}")
    tracker = _Tracker(given, weights)
    calls = module_calls(module, tracker.entered, tracker.left)
    norm = nullcontext() if decomposed_rms_norm else fused_rms_norm(tracker.rms_norm)
    with torch.no_grad(), calls, bias_in_place(), fused_attention(), norm, tracker:
        outputs = module(*args, **kwargs)
    tracker.release()
    return Tracked(tuple(tracker.kernels), outputs, tracker.live)


def keep_in_fp32(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast a diffusers model in place to ``dtype``, but for what it keeps in float32.

    A weight stays (or becomes) float32 when a component of its path is named in ``_keep_in_fp32_modules``.
    Only what a checkpoint holds is cast: buffers that are not saved keep the dtype they were built with.

    Source: diffusers ``load_model_dict_into_meta``, which ``from_pretrained(torch_dtype=...)`` calls.
    """
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if kept.intersection(name.split(".")) else dtype)


# -- the tracker --------------------------------------------------------------------------------------------


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records kernels while it is active; the bytes of what is given and of weights are never live."""

    def __init__(self, given: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.kernels: list[Kernel] = []
        self._path: list[str] = []
        self._known: dict[int, weakref.finalize[..., Any]] = {}
        self._silent = False
        self._weights = frozenset(_storage_key(weight) for weight in weights)
        for tensor in (*given, *weights):
            self._know(tensor, counted=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._silent:
            return func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for tensor in inputs:
            self._know(tensor, counted=False)  # made before the forward began, and held by someone else
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        # Every output, before any of them is counted: two may share one new storage.
        new = [tensor for tensor in outputs if _storage_key(tensor) not in self._known]
        for tensor in new:
            self._know(tensor, counted=True)
        effects = _Effects.of(func, args, kwargs)
        if new or effects.written:
            read = [] if effects.fills else list(_distinct(effects.read))
            gathered = (args[0], sum(_nbytes(tensor) for tensor in outputs)) if effects.gathers else None
            written = 0 if effects.allocates_only else sum(_nbytes(tensor) for tensor in [*new, *effects.written])
            self._record(effects.name, inputs, outputs, read, written, gathered)
        return result

    def entered(self, path: str) -> None:
        """A call of the module at ``path`` begins."""
        self._path.append(path)

    def left(self, path: str) -> None:
        """The call of the module at ``path`` ends."""
        self._path.pop()

    def rms_norm(
        self,
        input: torch.Tensor,
        normalized_shape: Sequence[int],
        weight: torch.Tensor | None = None,
        eps: float | None = None,
    ) -> torch.Tensor:
        """The fused kernel: the normed input in its own dtype, and one float32 of every row."""
        rows = input.shape[: input.ndim - len(normalized_shape)]
        self._silent = True
        try:
            output = torch.empty(input.shape, dtype=input.dtype, device=input.device)
            rstd = torch.empty((*rows, *(1 for _ in normalized_shape)), dtype=torch.float32, device=input.device)
        finally:
            self._silent = False
        inputs = [tensor for tensor in (input, weight) if tensor is not None]
        for tensor in inputs:
            self._know(tensor, counted=False)
        for tensor in (output, rstd):
            self._know(tensor, counted=True)
        read = list(_distinct(inputs))
        self._record("_fused_rms_norm", inputs, [output, rstd], read, _nbytes(output) + _nbytes(rstd))
        return output

    def release(self) -> None:
        """Stop watching the storages that are still alive."""
        for watch in self._known.values():
            watch.detach()
        self._known.clear()

    def _know(self, tensor: torch.Tensor, *, counted: bool) -> None:
        """Count the storage of ``tensor``, unless it is known, until it is freed."""
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes() if counted else 0
        if key in self._known:
            return

        def freed() -> None:
            del self._known[key]  # the address may serve another storage now
            self.live -= nbytes

        self._known[key] = weakref.finalize(storage, freed)
        self.live += nbytes

    def _record(
        self,
        name: str,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        read: Sequence[torch.Tensor],
        written: int,
        gathered: tuple[torch.Tensor, int] | None = None,
    ) -> None:
        """Append a kernel; of a table that it gathers rows from, the bytes of these."""
        path = self._path[-1] if self._path else ""
        sizes = [(tensor, _touched(tensor)) for tensor in read] + ([gathered] if gathered else [])
        whole = sum(size for _, size in sizes)
        weights = sum(size for tensor, size in sizes if _storage_key(tensor) in self._weights)
        operands = _operands(inputs), _operands(outputs)
        self.kernels.append(Kernel(name, path, *operands, whole, written, self.live, weights))


class _Effects(NamedTuple):
    """What an operator does with its arguments, by its schema."""

    name: str
    read: list[torch.Tensor]
    written: list[torch.Tensor]
    fills: bool
    gathers: bool
    allocates_only: bool

    @classmethod
    def of(cls, func: Any, args: Any, kwargs: Any) -> _Effects:
        namespace, _, base = func._schema.name.partition("::")
        name = base if namespace == "aten" else func._schema.name
        read: list[torch.Tensor] = []
        written: list[torch.Tensor] = []
        moves = torch.Tag.inplace_view not in func.tags  # unsqueeze_ and its like change only the shape
        parameters = func._schema.arguments
        given = chain(
            zip(parameters, args, strict=False), ((p, kwargs[p.name]) for p in parameters if p.name in kwargs)
        )
        for parameter, value in given:
            tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
            target = parameter.alias_info is not None and parameter.alias_info.is_write
            if target and moves:
                written += tensors
            if not target or not (parameter.kwarg_only or base in OVERWRITING):
                read += tensors
        gathers = base == "embedding"
        if gathers:
            read = list(args[1:2])  # the indices; of the table only the gathered rows
        allocates = base.removeprefix("new_").startswith("empty")
        return cls(name, read, written, base in FILLING or allocates, gathers, allocates)


def _storage_key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]


def _distinct(tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Each view once: two that cover the same elements of a storage are read once."""
    views = {(_storage_key(t), t.storage_offset(), t.shape, t.stride(), t.dtype): t for t in tensors}
    return iter(views.values())


def _touched(tensor: torch.Tensor) -> int:
    """Bytes of the elements behind a tensor, expanded dimensions once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size for size, stride in sizes if stride != 0 or size == 0) * tensor.element_size()


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _operands(tensors: Sequence[torch.Tensor]) -> tuple[Operand, ...]:
    return tuple(Operand(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in tensors)
