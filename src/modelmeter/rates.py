"""What a device sustains: its peaks and measured kernels, and a few constants that are the same for all devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, TypeAlias

import yaml

from modelmeter.devices import Device, devices
from modelmeter.errors import InputError, choice
from modelmeter.roofline import Rates

#: Peak of the datasheet that answers for a dtype; float32 products run as TF32 where there is one.
PEAKS: Mapping[str, tuple[str, ...]] = {
    "bfloat16": ("bf16",),
    "float16": ("fp16", "bf16"),
    "float32": ("tf32", "fp32"),
}
#: Sets of constants: ``fitted`` ones use published Wan runs, ``published`` ones do not.
CONSTANTS = ("fitted", "published")
#: A value by the name of a constant, such as ``bandwidth_of_datasheet`` or ``fa3.h100-80gb-sxm``.
Constants: TypeAlias = Mapping[str, float]


@cache
def entries() -> Mapping[str, Any]:
    """What ``rates.yaml`` says: constants, attention kernels and where they run, each with its source."""
    text = resources.files("modelmeter").joinpath("rates.yaml").read_text(encoding="utf-8")
    loaded: Mapping[str, Any] = yaml.safe_load(text)
    return loaded


@cache
def constants(which: str = "fitted") -> Constants:
    """All constants of a set by name; what a set has no value for is left out.

    Example:
        >>> constants()["bandwidth_of_datasheet"], constants("published")["fa2.of_chart"]
        (0.9, 1.0)
    """
    found = {name: entry[which] for name, entry in entries()["constants"].items()}
    for kernel, entry in entries()["attention"].items():
        if "of_chart" in entry:
            found[f"{kernel}.of_chart"] = entry["of_chart"][which]
        found |= {f"{kernel}.{device}": rates[which] for device, rates in entry.get("tflops", {}).items()}
    return MappingProxyType({name: value for name, value in found.items() if value is not None})


def attention_kernels() -> tuple[str, ...]:
    """Every attention kernel that has an entry."""
    return tuple(entries()["attention"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """The rates of a device under one attention kernel, and which of them are estimated from a peak alone.

    Args:
        attention: the kernel.
        origins: the constant that decides the rate of a resource, by resource.
        estimated: what has no measurement on this device, in words.
    """

    rates: Rates
    attention: str
    origins: Mapping[str, str]
    estimated: tuple[str, ...]


def sustained(device: Device, attention: str | None = None, values: Constants | None = None) -> Sustained:
    """What a device sustains with an attention kernel; its vendor's usual one without a name.

    Args:
        attention: such as ``fa2``.
        values: other constants than the fitted ones.

    Raises:
        InputError: no such kernel, one that cannot run on the device, or a device whose peaks are not known.

    Example:
        >>> from modelmeter.devices import find_device
        >>> round(sustained(find_device("h100"), "fa3").rates.compute["attention:bfloat16"] / 1e12)
        650
    """
    values = constants() if values is None else values
    kernel = attention if attention is not None else default_attention(device)
    entry = _kernel(device, kernel)
    if device.memory_bandwidth is None:
        raise InputError("device", device.name, "one whose memory bandwidth is known")
    if "bf16" not in device.peak_flops:
        raise InputError("device", device.name, "one whose bf16 peak is known")
    chip = same_chip(device)
    compute: dict[str, float] = {}
    origins: dict[str, str] = {}
    for dtype, names in PEAKS.items():
        peak = next((device.peak_flops[name] for name in names if name in device.peak_flops), None)
        if peak is None:
            continue
        linear, origin = _linear(chip, peak, values)
        conv = min(values["conv_of_datasheet_peak"] * peak, values["conv_at_most_tflops"] * 1e12)
        # fused kernels take half precision; the rest is memory-efficient attention: two products
        for kind, rate in (("linear", linear), ("conv", conv), ("attention", linear)):
            compute[f"{kind}:{dtype}"] = rate
            origins[f"{kind}:{dtype}"] = "conv_of_datasheet_peak" if kind == "conv" else origin
    estimated: tuple[str, ...] = ()
    if kernel != "math":
        rate, origin = _attention(chip, kernel, entry, device.peak_flops["bf16"], values)
        for half in ("bfloat16", "float16"):
            compute[f"attention:{half}"] = rate
            origins[f"attention:{half}"] = origin
        if origin == f"{kernel}.of_peak":
            estimated = (f"{kernel} on {device.name}: a part of the peak, not measured",)
    rates = Rates(
        compute=compute,
        bandwidth=values["bandwidth_of_datasheet"] * device.memory_bandwidth,
        launch_seconds=values["launch_us"] * 1e-6,
        score_bytes=entry.get("score_bytes", 0),
    )
    return Sustained(rates=rates, attention=kernel, origins=origins, estimated=estimated)


def default_attention(device: Device) -> str:
    """The kernel that runs where none is named."""
    usual: Mapping[str, str] = entries()["default_attention"]
    return usual.get(device.vendor or "", "fa2" if device.vendor is None else "math")


def runs_on(kernel: str, device: Device) -> bool:
    """Whether a kernel can run on a device; a device that does not say what it is runs all."""
    entry = entries()["attention"][kernel]
    vendor = device.vendor is None or "vendors" not in entry or device.vendor in entry["vendors"]
    chip = device.architecture is None or "architectures" not in entry or device.architecture in entry["architectures"]
    return vendor and chip


def _kernel(device: Device, name: str) -> Mapping[str, Any]:
    """The entry of a kernel.

    Raises:
        InputError: no such kernel, or one that cannot run on the device.
    """
    able = [kernel for kernel in attention_kernels() if runs_on(kernel, device)]
    if name not in attention_kernels():
        raise choice("attention", name, able)
    if name not in able:
        raise InputError("attention", name, f"a kernel that runs on {device.name}: {', '.join(able)}")
    entry: Mapping[str, Any] = entries()["attention"][name]
    return entry


def same_chip(device: Device) -> Device:
    """The device whose measured rates hold: itself, or one with the same chip."""
    name = entries()["same_chip"].get(device.name, device.name)
    return next((other for other in devices() if other.name == name), device)


def _linear(chip: Device, peak: float, values: Constants) -> tuple[float, str]:
    """Rate of matrix products, and the constant that decides it; other dtypes keep the ratio of the peaks."""
    measured = chip.matmul_flops.get("bf16")
    if measured is None:
        return values["linear_of_datasheet_peak"] * peak, "linear_of_datasheet_peak"
    return values["linear_of_measured_peak"] * measured * peak / chip.peak_flops["bf16"], "linear_of_measured_peak"


def _attention(
    chip: Device, kernel: str, entry: Mapping[str, Any], peak: float, values: Constants
) -> tuple[float, str]:
    """Rate of a fused kernel in half precision, and the constant that decides it."""
    own = f"{kernel}.{chip.name}"
    if own in values:
        return values[own] * 1e12, own
    for chart in entry.get("charts", ()):
        if chart in chip.attention_flops:
            by_length = chip.attention_flops[chart]
            return values[f"{kernel}.of_chart"] * by_length[max(by_length)], f"{kernel}.of_chart"
    return entry["of_peak"] * peak, f"{kernel}.of_peak"
