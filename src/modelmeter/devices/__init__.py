"""Devices: what an accelerator can hold, compute and move, one YAML file each, every figure with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from modelmeter.errors import InputError, choice, shown

#: Precisions of peak rates.
PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp8", "fp4", "int8")
#: Most bytes of a device file, and the largest number in one; far above any device.
LARGEST_FILE = 65_536
LARGEST_NUMBER = 1e15
#: Keys that say where figures come from; they are kept as they are.
REMARKS = ("aliases", "conflicts", "memory_bytes_source", "memory_type", "note", "sources", "unverified_fields")
WORDS = ("name", "vendor", "architecture", "form_factor")
NUMBERS = ("memory_gb", "memory_bytes", "memory_bandwidth_tb_s", "tdp_w")
RATES = ("peak_dense_tflops", "peak_dense_tflops_alt", "achievable_matmul_tflops")
LINKS = ("interconnect", "host_link")
KEYS = (*WORDS, *NUMBERS, *RATES, "attention_kernel_tflops", *LINKS, "verified", *REMARKS)

Rates = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An accelerator in SI base units: bytes, bytes per second, FLOP per second, watts; ``None`` is not known.

    Args:
        memory_bytes: what the driver reports as total; else the label read as GiB.
        peak_flops: dense, without sparsity, by precision, accumulation in fp32.
        peak_flops_alt: other modes of the matrix units, such as accumulation in fp16.
        matmul_flops: the best matrix product that was measured, by precision.
        attention_flops: measured attention by kernel and sequence length, head_dim 128, non-causal.
        link_bandwidth: to other devices, in one direction.
        host_bandwidth: to the host, in one direction.
        verified: whether the main figures were read in a source; ``unverified_fields`` lists those that were not.
    """

    name: str
    aliases: tuple[str, ...] = ()
    vendor: str | None = None
    architecture: str | None = None
    form_factor: str | None = None
    memory_bytes: int | None = None
    memory_bandwidth: float | None = None
    peak_flops: Rates = field(default_factory=dict)
    peak_flops_alt: Rates = field(default_factory=dict)
    matmul_flops: Rates = field(default_factory=dict)
    attention_flops: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    link_type: str | None = None
    link_bandwidth: float | None = None
    host_type: str | None = None
    host_bandwidth: float | None = None
    tdp_watts: float | None = None
    verified: bool = False
    unverified_fields: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    note: str | None = None


@cache
def devices() -> tuple[Device, ...]:
    """Every shipped device, by name.

    Example:
        >>> [device.name for device in devices() if device.architecture == "Hopper"][:2]
        ['h100-80gb-pcie', 'h100-80gb-sxm']
    """
    files = [file for file in resources.files(__name__).iterdir() if file.name.endswith(".yaml")]
    found = (_device(_document(file.name, file.read_bytes()), file.name) for file in files)
    return tuple(sorted(found, key=lambda device: device.name))


def find_device(name: str) -> Device:
    """The device of that name, alias or unique prefix; or of a file of one's own.

    Args:
        name: such as ``h100``, ``h100-80gb-sxm``, ``rtx-4090`` or ``my-device.yaml``.

    Raises:
        InputError: no such device, a file that cannot be read, or a bad value in it.

    Example:
        >>> find_device("h100").name, find_device("4090").memory_bytes
        ('h100-80gb-sxm', 25769803776)
    """
    if name.endswith((".yaml", ".yml")):
        return read_device(Path(name))
    word = name.lower()
    for device in devices():
        if word == device.name or word in device.aliases:
            return device
    starting = [device for device in devices() if word and device.name.startswith(word)]
    if len(starting) == 1:
        return starting[0]
    raise choice("device", name, [device.name for device in starting or devices()])


def read_device(path: Path) -> Device:
    """A device of one's own: the keys of the shipped files, of which ``name`` and a memory size are needed.

    Raises:
        InputError: a file that cannot be read or is no such file, an unknown key, or a bad value.
    """
    try:
        if not path.is_file():
            raise InputError("device", path, "a name, or an existing YAML file")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        if isinstance(error, InputError):
            raise
        raise InputError("device", path, "a YAML file that can be read") from None
    device = _device(_document(path.name, data), path.name)
    if device.memory_bytes is None:
        raise InputError("memory_gb", "nothing", f"a number (in {shown(path.name)})")
    return device


def _document(where: str, data: bytes) -> Mapping[str, Any]:
    """The mapping in a YAML file: plain values, of bounded size, without aliases that could multiply it."""
    allowed = f"a YAML mapping of plain values, at most {LARGEST_FILE:,} bytes, without aliases"
    if len(data) > LARGEST_FILE:
        raise InputError("device", where, allowed)
    try:
        text = data.decode("utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise InputError("device", where, allowed)
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("device", where, allowed) from None
    if not isinstance(document, dict):
        raise InputError("device", where, allowed)
    for key in document:
        if key not in KEYS:
            raise choice(f"key in {shown(where)}", key, KEYS)
    return document


def _device(document: Mapping[str, Any], where: str) -> Device:
    words = {key: _text(key, document.get(key)) for key in WORDS}
    if not words["name"]:
        raise InputError("name", "nothing", f"the name of the device (in {shown(where)})")
    numbers = {key: _number(key, document.get(key)) for key in NUMBERS}
    gib = None if numbers["memory_gb"] is None else numbers["memory_gb"] * 2**30
    memory = gib if numbers["memory_bytes"] is None else numbers["memory_bytes"]
    bandwidth = numbers["memory_bandwidth_tb_s"]
    verified = document.get("verified", False)
    if not isinstance(verified, bool):
        raise InputError("verified", verified, "true or false")
    peaks, alternatives, matmul = (_rates(key, document.get(key)) for key in RATES)
    (link_type, link), (host_type, host) = (_link(key, document.get(key)) for key in LINKS)
    return Device(
        name=words["name"].lower(),
        aliases=_texts("aliases", document.get("aliases")),
        vendor=words["vendor"],
        architecture=words["architecture"],
        form_factor=words["form_factor"],
        memory_bytes=None if memory is None else int(memory),
        memory_bandwidth=None if bandwidth is None else bandwidth * 1e12,
        peak_flops=peaks,
        peak_flops_alt=alternatives,
        matmul_flops=matmul,
        attention_flops=_attention(document.get("attention_kernel_tflops")),
        link_type=link_type,
        link_bandwidth=link,
        host_type=host_type,
        host_bandwidth=host,
        tdp_watts=numbers["tdp_w"],
        verified=verified,
        unverified_fields=_texts("unverified_fields", document.get("unverified_fields")),
        sources=_texts("sources", document.get("sources")),
        note=_text("note", document.get("note")),
    )


def _number(key: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not _bounded(value):
        raise InputError(key, value, f"a number above 0 and at most {LARGEST_NUMBER:g}")
    return value


def _bounded(value: float) -> bool:
    return value > 0 and value <= LARGEST_NUMBER and isfinite(value)


def _text(key: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InputError(key, value, "text")
    return value


def _texts(key: str, value: object) -> tuple[str, ...]:
    items = [] if value is None else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise InputError(key, value, "a list of texts")
    return tuple(items)


def _mapping(key: str, value: object) -> Mapping[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(key, value, "a mapping")
    return value


def _rates(key: str, value: object) -> Rates:
    """FLOP per second by precision (or mode), what is not known left out."""
    rates = {}
    for name, rate in _mapping(key, value).items():
        if key == "achievable_matmul_tflops" and name in ("source", "note"):
            continue
        if key != "peak_dense_tflops_alt" and name not in PRECISIONS:
            raise choice(key, name, PRECISIONS)
        number = _number(f"{key}.{shown(name)}", rate)
        if number is not None:
            rates[str(name)] = number * 1e12
    return MappingProxyType(rates)


def _attention(value: object) -> Mapping[str, Mapping[int, float]]:
    kernels = {}
    for kernel, rates in _mapping(
        "attention_kernel_tflops.tokens", _mapping("attention_kernel_tflops", value).get("tokens")
    ).items():
        by_length = {}
        for length, rate in _mapping(f"attention_kernel_tflops.{shown(kernel)}", rates).items():
            if isinstance(length, bool) or not isinstance(length, int) or length < 1:
                raise InputError(f"attention_kernel_tflops.{shown(kernel)}", length, "a sequence length")
            number = _number(f"attention_kernel_tflops.{shown(kernel)}.{length}", rate)
            if number is not None:
                by_length[length] = number * 1e12
        kernels[str(kernel)] = MappingProxyType(by_length)
    return MappingProxyType(kernels)


def _link(key: str, value: object) -> tuple[str | None, float | None]:
    """What a link is, and its bytes per second in one direction."""
    link = _mapping(key, value)
    rate = _number(f"{key}.per_direction_gb_s", link.get("per_direction_gb_s"))
    return _text(f"{key}.type", link.get("type")), None if rate is None else rate * 1e9
