"""What a device sustains: its peaks and measured kernels, and a few constants that are the same for all devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

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


@cache
def constants() -> Mapping[str, Any]:
    """The constants of ``rates.yaml``, each with its source."""
    text = resources.files("modelmeter").joinpath("rates.yaml").read_text(encoding="utf-8")
    loaded: Mapping[str, Any] = yaml.safe_load(text)
    return loaded


def constant(name: str, which: str = "fitted") -> float:
    """One constant.

    Example:
        >>> constant("bandwidth_of_datasheet")
        0.9
    """
    value: float = constants()[name][which]
    return value


def attention_kernels() -> tuple[str, ...]:
    """Every attention kernel that has an entry."""
    return tuple(constants()["attention"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """The rates of a device under one attention kernel, and which of them are estimated from a peak alone.

    Args:
        attention: the kernel.
        estimated: what has no measurement on this device, in words.
    """

    rates: Rates
    attention: str
    estimated: tuple[str, ...]


def sustained(device: Device, attention: str | None = None, *, which: str = "fitted") -> Sustained:
    """What a device sustains with an attention kernel; its vendor's usual one without a name.

    Args:
        attention: such as ``fa2``.
        which: ``fitted`` or ``published`` constants.

    Raises:
        InputError: no such kernel, one that cannot run on the device, or a device whose peaks are not known.

    Example:
        >>> from modelmeter.devices import find_device
        >>> round(sustained(find_device("h100"), "fa3").rates.compute["attention:bfloat16"] / 1e12)
        650
    """
    kernel = attention if attention is not None else default_attention(device)
    entry = _kernel(device, kernel)
    if device.memory_bandwidth is None:
        raise InputError("device", device.name, "one whose memory bandwidth is known")
    chip = same_chip(device)
    compute: dict[str, float] = {}
    estimated: list[str] = []
    for dtype, names in PEAKS.items():
        peak = next((device.peak_flops[name] for name in names if name in device.peak_flops), None)
        if peak is None:
            continue
        compute[f"linear:{dtype}"] = _linear(chip, peak, dtype, which)
        limit = constant("conv_at_most_tflops", which) * 1e12
        compute[f"conv:{dtype}"] = min(constant("conv_of_datasheet_peak", which) * peak, limit)
        # fused kernels take half precision; the rest is memory-efficient attention, two products
        compute[f"attention:{dtype}"] = compute[f"linear:{dtype}"]
    if "linear:bfloat16" not in compute:
        raise InputError("device", device.name, "one whose bf16 peak is known")
    if kernel != "math":
        rate, measured = _attention(chip, entry, device.peak_flops["bf16"], which)
        compute["attention:bfloat16"] = compute["attention:float16"] = rate
        if not measured:
            estimated.append(f"{kernel} on {device.name}: a part of the peak, not measured")
    rates = Rates(
        compute=compute,
        bandwidth=constant("bandwidth_of_datasheet", which) * device.memory_bandwidth,
        launch_seconds=constant("launch_us", which) * 1e-6,
        score_bytes=entry.get("score_bytes", 0),
    )
    return Sustained(rates=rates, attention=kernel, estimated=tuple(estimated))


def default_attention(device: Device) -> str:
    """The kernel that runs where none is named."""
    usual: Mapping[str, str] = constants()["default_attention"]
    return usual.get(device.vendor or "", "fa2" if device.vendor is None else "math")


def runs_on(kernel: str, device: Device) -> bool:
    """Whether a kernel can run on a device; a device that does not say what it is runs all."""
    entry = constants()["attention"][kernel]
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
    entry: Mapping[str, Any] = constants()["attention"][name]
    return entry


def same_chip(device: Device) -> Device:
    """The device whose measured rates hold: itself, or one with the same chip."""
    name = constants()["same_chip"].get(device.name, device.name)
    return next((other for other in devices() if other.name == name), device)


def _linear(chip: Device, peak: float, dtype: str, which: str) -> float:
    measured = chip.matmul_flops.get("bf16")
    if measured is None:
        return constant("linear_of_datasheet_peak", which) * peak
    # TF32 keeps the ratio of the peaks
    return constant("linear_of_measured_peak", which) * measured * peak / chip.peak_flops["bf16"]


def _attention(chip: Device, entry: Mapping[str, Any], peak: float, which: str) -> tuple[float, bool]:
    """Rate of a fused kernel in half precision, and whether it was measured on this chip."""
    own = entry.get("tflops", {}).get(chip.name, {}).get(which)
    if own is not None:
        return own * 1e12, True
    for chart in entry.get("charts", ()):
        if chart in chip.attention_flops:
            by_length = chip.attention_flops[chart]
            return entry["of_chart"][which] * by_length[max(by_length)], True
    return entry["of_peak"] * peak, False
