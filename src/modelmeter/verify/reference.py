"""Real classes as references: built at full size on the meta device, run, counted."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from modelmeter.api import Model
from modelmeter.errors import InputError, UnavailableError
from modelmeter.nn import Tensor
from modelmeter.stage import Call, Reference, Stage
from modelmeter.verify.compare import Progress
from modelmeter.verify.device import check_memory, find_device, placed
from modelmeter.verify.flop_counter import count, parameters
from modelmeter.verify.settings import INSTALLED

if TYPE_CHECKING:
    from modelmeter.verify.official import Checkout


@dataclass(frozen=True, slots=True)
class Measured:
    """What a real class counted.

    Args:
        flops: by path of the analytic model, of every module that ran.
        params: by path, of every module; ``None`` where the reference stands in for other weights.
        unknown: modules of the reference for which no path is known.
    """

    flops: Mapping[str, int]
    params: Mapping[str, int] | None
    uncounted_ops: tuple[str, ...]
    unknown: tuple[str, ...] = ()


def build(reference: Reference) -> torch.nn.Module:
    """The real module on the meta device: full size, no memory.

    Raises:
        UnavailableError: the package is not installed.
    """
    try:
        package = importlib.import_module(reference.package)
    except ImportError as error:
        raise UnavailableError(
            f"reference={reference.package}: package {error.name} is not installed; "
            "install it with: pip install 'modelmeter-video[verify]'"
        ) from None
    with torch.device("meta"):
        module: torch.nn.Module = getattr(package, reference.name)(**reference.arguments)
    return module.eval()


class Calls(torch.nn.Module):
    """A method of a module called several times in a row, so that its hooks see the call."""

    def __init__(self, module: torch.nn.Module, method: str, times: int) -> None:
        super().__init__()
        self.module = module
        self.method = method
        self.times = times

    def forward(self, **inputs: Any) -> None:
        """What is called, on its own arguments."""
        call = self.module if self.method == "forward" else getattr(self.module, self.method)
        for _ in range(self.times):
            call(**inputs)


def measure(
    reference: Reference, module: torch.nn.Module, inputs: Mapping[str, Any], device: torch.device, times: int = 1
) -> Measured:
    """Call a module of :func:`build` and count; on a real device with one of its blocks in memory at a time."""
    with placed(module, device):
        counted = count(Calls(module, reference.method, times), **arguments(module, inputs, device))
    # paths below the wrapper; a method is no module call, so the root's count is the wrapper's
    below = {path.removeprefix("module").removeprefix("."): flops for path, flops in counted.flops.items() if path}
    flops = {"": counted.flops[""], **below}
    return Measured(
        {path: flops[aliased(path, reference.aliases)] for path in _expected(flops, reference.aliases)},
        None if reference.aliases else parameters(module),
        counted.uncounted_ops,
    )


def arguments(module: torch.nn.Module, inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Tensors of the given shapes, floating-point ones in the dtype of the weights; all else as it is."""
    weights = next(module.parameters()).dtype
    result = dict(inputs)
    for name, tensor in inputs.items():
        if not isinstance(tensor, Tensor):
            continue
        dtype: torch.dtype = getattr(torch, tensor.dtype.name)
        shape: Any = tensor.shape
        result[name] = torch.zeros(shape, dtype=weights if dtype.is_floating_point else dtype, device=device)
    return result


def aliased(path: str, aliases: Mapping[str, str]) -> str:
    """The path in the reference of a path in the analytic model.

    Example:
        >>> aliased("blocks.3.ffn.net.2", {"ffn.net.2": "ffn.fc2"})
        'blocks.3.ffn.fc2'
    """
    for real, mirror in aliases.items():
        if path == real or path.endswith(f".{real}"):
            return path.removesuffix(real) + mirror
    return path


def _expected(counted: Mapping[str, int], aliases: Mapping[str, str]) -> list[str]:
    """Paths of the analytic model for which the reference has numbers."""
    paths: list[str] = []
    for path in counted:
        real = [path.removesuffix(mirror) + name for name, mirror in aliases.items() if path.endswith(f".{mirror}")]
        paths += real or [path]
    return paths


class References:
    """The references of a run: each class built once, each call measured once.

    Args:
        kind: ``diffusers``, ``modules`` or ``official``; without it the first of those installed that a component has.
        device: where they run.
        progress: told what is about to be measured.
        checkout: of the official code, for the kind ``official``.
    """

    def __init__(
        self,
        kind: str | None,
        device: str,
        progress: Progress = lambda _: None,
        checkout: Checkout | None = None,
    ) -> None:
        self.kind = kind
        self.device = find_device(device)
        self.checkout = checkout
        self._progress = progress
        self._modules: dict[object, torch.nn.Module] = {}
        self._measured: dict[tuple[object, ...], Measured] = {}

    def reference(self, model: Model, stage: Stage) -> tuple[str, Reference] | None:
        """What a stage is compared with and of which kind it is; ``None`` where it has nothing of the asked kind."""
        available = model.pipeline.references(model.config)[stage.id]
        kinds = INSTALLED if self.kind is None else (self.kind,)
        return next(((kind, available[kind]) for kind in kinds if kind in available), None)

    def call(self, model: Model, stage: Stage, call: Call, times: int = 1) -> Measured:
        """A call of a stage's component, really made ``times`` in a row.

        Raises:
            InputError: the stage has no reference of the asked kind.
        """
        found = self.reference(model, stage)
        if found is None:
            raise InputError("reference", self.kind, f"another kind for {stage.id} of {model.id}")
        _, reference = found
        component = model.components[stage.component]
        inputs = component.entry(reference.method).inputs(**call.dims)
        paths: dict[str, list[str]] = {}
        if self.checkout is not None:
            paths["called"] = list(model.call_flops(stage, call))
            paths["named"] = [path for path, _ in component.named_modules()]
        key = (repr(reference), repr(inputs), times, repr(paths))
        if key not in self._measured:
            check_memory([(model.compiled(stage, forward), forward.dims) for forward in call.forwards], self.device)
            self._progress(f"{model.id} {stage.id}: {reference.name}" + (f", {times} calls" if times > 1 else ""))
            if key[0] not in self._modules:
                self._modules[key[0]] = self.checkout.build(reference) if self.checkout else build(reference)
            module = self._modules[key[0]]
            if self.checkout is not None:
                self._measured[key] = self.checkout.measure(reference, module, inputs, times, **paths)
            else:
                self._measured[key] = measure(reference, module, inputs, self.device, times)
        return self._measured[key]
