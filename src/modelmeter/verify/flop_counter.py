"""FLOPs and parameters of a real PyTorch module, by the path of every module that was called.

The numbers are those of ``torch.utils.flop_counter.FlopCounterMode``. Its own module names start with the
class name of the root, merge modules that are registered twice and leave out modules without FLOPs, so
paths come from ``named_modules()`` here and the counter is only asked for its running total.

An operator without a formula counts as zero there, without a word. Here every operator that ran must
either have a formula or be known to do no matrix product; all others are reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

#: ATen operators that multiply no matrices, by what they do. In-place forms (``add_``) are implied.
WITHOUT_MATRIX_PRODUCTS: dict[str, str] = {
    "views": """
        _reshape_alias _unsafe_view alias as_strided chunk detach diagonal expand lift_fresh narrow permute reshape
        select slice split split_with_sizes squeeze t transpose unbind unfold unsqueeze view view_as_complex
        view_as_real view_dtype
    """,
    "creation": """
        arange bernoulli empty empty_like empty_strided eye full full_like linspace new_empty new_empty_strided new_full
        new_ones new_zeros normal ones ones_like rand randint randn randn_like scalar_tensor uniform zeros
        zeros_like
    """,
    "copies": """
        _to_copy _unsafe_index cat clone constant_pad_nd contiguous copy diag_embed embedding fill flip gather index
        index_put index_select lift masked_fill pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d
        reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d roll scatter
        scatter_add select_scatter slice_scatter split_with_sizes_copy stack tril triu where zero
    """,
    "elementwise": """
        _conj _conj_physical abs add addcdiv addcmul angle atan2 bitwise_and bitwise_not bitwise_or bitwise_xor ceil
        clamp clamp_max clamp_min complex cos div elu eq erf exp exp2 expm1 fill floor floor_divide fmod ge gelu glu
        gt hardswish hardtanh imag isfinite isinf isnan le leaky_relu lerp log log10 log1p log2 log_sigmoid_forward
        logical_and logical_not logical_or logical_xor lt maximum minimum mish mul nan_to_num native_dropout ne neg
        polar pow real reciprocal relu remainder round rsqrt rsub sigmoid sign silu sin softplus sqrt square sub tan
        tanh threshold trunc
    """,
    "reductions": """
        _local_scalar_dense _log_softmax _safe_softmax _softmax all amax amin any argmax argmin argsort bincount
        count_nonzero cummax cumprod cumsum equal is_nonzero linalg_vector_norm logsumexp max mean median min norm prod
        sort std sum topk unique_consecutive unique_dim var var_mean
    """,
    "norms": """
        _fused_rms_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _weight_norm_interface
        native_batch_norm native_group_norm native_layer_norm
    """,
    # Products inside a factorization, which PyTorch does not count either.
    "factorizations": """
        linalg_qr
    """,
    # Weighted sums over a fixed neighbourhood, which PyTorch does not count either.
    "pooling and interpolation": """
        _adaptive_avg_pool2d _adaptive_avg_pool3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa
        _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d avg_pool1d avg_pool2d avg_pool3d
        max_pool2d_with_indices max_pool3d_with_indices upsample_bicubic2d upsample_bilinear2d upsample_linear1d
        upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    """,
}

_ALLOWED = frozenset(name for names in WITHOUT_MATRIX_PRODUCTS.values() for name in names.split())


@dataclass(frozen=True, slots=True)
class Counted:
    """FLOPs of one forward of a real module.

    Attributes:
        flops: by path (``""`` is the root), of every module that was called: all its calls, with all that
            they called. Modules that ran no matrix product are there with 0.
        own: as ``flops``, without what the calls of other modules count; sums to the total.
        by_op: by ATen operator, such as ``aten.addmm``; sums to the total.
        uncounted_ops: operators that ran and are neither counted nor known to need no counting.
    """

    flops: dict[str, int]
    own: dict[str, int]
    by_op: dict[str, int]
    uncounted_ops: tuple[str, ...]


def count(module: torch.nn.Module, /, *args: Any, **kwargs: Any) -> Counted:
    """Run ``module(*args, **kwargs)`` once without gradients and count its FLOPs.

    Kernels that bypass PyTorch's dispatcher (a C extension called directly) cannot be seen.

    Example:
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> count(mlp, torch.empty(3, 4)).flops
        {'': 192, '0': 192, '1': 0}
    """
    counter = FlopCounterMode(display=False)
    seen = _Seen()
    inclusive: Counter[str] = Counter()
    own: Counter[str] = Counter()
    stack: list[_Frame] = []

    def entered(path: str) -> None:
        stack.append(_Frame(path, counter.get_total_flops()))
        inclusive.setdefault(path, 0)
        own.setdefault(path, 0)

    def left(path: str) -> None:
        frame = stack.pop()
        total = counter.get_total_flops() - frame.start
        own[path] += total - frame.children
        if all(path != outer.path for outer in stack):  # a module inside its own call is counted there
            inclusive[path] += total
        if stack:
            stack[-1].children += total

    # The watcher is entered first, so it lies below the counter and sees exactly what the counter runs:
    # after composite operators are taken apart, before anything is hidden inside a kernel.
    with torch.no_grad(), module_calls(module, entered, left), seen, counter:
        module(*args, **kwargs)
    by_op = {str(op): flops for op, flops in counter.get_flop_counts().get("Global", {}).items()}
    uncounted = {str(op) for op in seen.ops if op not in counter.flop_registry and not _needs_no_formula(op)}
    return Counted(dict(inclusive), dict(own), by_op, tuple(sorted(uncounted)))


def parameters(module: torch.nn.Module) -> dict[str, int]:
    """Parameters of every module in ``named_modules()``, with all below it; shared weights count once in each.

    Example:
        >>> parameters(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()))
        {'': 40, '0': 40, '1': 0}
    """
    return {path: sum(weight.numel() for weight in child.parameters()) for path, child in module.named_modules()}


@contextmanager
def module_calls(
    module: torch.nn.Module, entered: Callable[[str], None], left: Callable[[str], None]
) -> Iterator[None]:
    """Report the path of each module below ``module`` when a call of it begins and ends.

    A module that is registered twice has its first path, as in ``named_modules()``. Modules that are not
    below ``module`` are passed over.
    """
    paths = {id(child): path for path, child in module.named_modules()}

    def before(child: torch.nn.Module, _args: Any) -> None:
        if id(child) in paths:
            entered(paths[id(child)])

    def after(child: torch.nn.Module, _args: Any, _output: Any) -> None:
        if id(child) in paths:
            left(paths[id(child)])

    handles = [torch.nn.modules.module.register_module_forward_pre_hook(before)]
    try:
        handles.append(torch.nn.modules.module.register_module_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(slots=True)
class _Frame:
    """A call that runs: its module, the total when it began, and what calls inside it have counted."""

    path: str
    start: int
    children: int = 0


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers every operator that is dispatched."""

    #: Without it PyTorch refuses higher-order operators here, instead of letting them be reported.
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.add(getattr(func, "overloadpacket", func))
        return func(*args, **(kwargs or {}))


def _needs_no_formula(op: Any) -> bool:
    namespace, _, name = str(op).rpartition(".")
    return namespace == "aten" and (name in _ALLOWED or name.removesuffix("_") in _ALLOWED)
