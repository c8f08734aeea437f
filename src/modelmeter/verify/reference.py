"""The real classes as references: built at full size on the meta device, run once, counted."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from modelmeter.errors import UnavailableError
from modelmeter.nn import Tensor
from modelmeter.stage import Reference
from modelmeter.verify.flop_counter import Counted, count, parameters

#: Packages whose versions a verification states.
PACKAGES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True, slots=True)
class Measured:
    """One forward of a real class: FLOPs by module, and parameters of every module."""

    counted: Counted
    params: Mapping[str, int]


def versions() -> dict[str, str]:
    """Versions of the packages that the references come from; absent ones are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def build(reference: Reference) -> torch.nn.Module:
    """The real module on the meta device: full size, no memory.

    Raises:
        UnavailableError: the package is not installed.
    """
    try:
        package = importlib.import_module(reference.package)
    except ImportError:
        raise UnavailableError(
            f"reference={reference.package}: the package is not installed; "
            "install it with: pip install 'modelmeter-video[verify]'"
        ) from None
    with torch.device("meta"):
        module: torch.nn.Module = getattr(package, reference.name)(**reference.arguments)
    return module.eval()


def measure(module: torch.nn.Module, inputs: Mapping[str, Tensor]) -> Measured:
    """Run a real module once on meta tensors of the given shapes; floating-point inputs have the weights' dtype."""
    weight = next(module.parameters())
    arguments = {
        name: torch.empty(
            tuple(int(str(size)) for size in tensor.shape),
            dtype=weight.dtype
            if getattr(torch, tensor.dtype.name).is_floating_point
            else getattr(torch, tensor.dtype.name),
            device=weight.device,
        )
        for name, tensor in inputs.items()
    }
    with attention_counted(weight.device):
        return Measured(count(module, **arguments), parameters(module))


@contextmanager
def attention_counted(device: torch.device) -> Iterator[None]:
    """Attention as matrix products: on meta it decomposes by itself, elsewhere the math kernel is asked for."""
    if device.type == "meta":
        yield
        return
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield
