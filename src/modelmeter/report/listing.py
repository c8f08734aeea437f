"""The lists of models, of workload presets and of devices."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from modelmeter.api import load
from modelmeter.config import registry
from modelmeter.devices import devices
from modelmeter.report.output import Output

MODEL_COLUMNS = ("id", "title", "aliases")
VERBOSE_COLUMNS = (*MODEL_COLUMNS, "source", "components", "params", "default_workload", "vendor_defaults")
DEVICE_COLUMNS = ("device", "aliases", "memory_gib", "bandwidth_tb_s", "bf16_tflops", "fp8_tflops", "verified")
#: Keys of a workload by the heads of their columns; what a model has no value for stays empty.
WORKLOAD_KEYS = {
    "batch": "batch_size",
    "frames": "num_frames",
    "height": "height",
    "width": "width",
    "steps": "num_inference_steps",
    "text": "text_len",
    "guidance": "guidance_scale",
    "shift": "flow_shift",
    "clips": "num_clips",
    "references": "num_reference_images",
    "task": "task",
}
WORKLOAD_COLUMNS = ("workload", "model", *WORKLOAD_KEYS)


def list_models(format: str) -> Output:
    """Every model with its names."""
    rows = [(entry.id, entry.title, " ".join(entry.aliases)) for entry in registry()]
    return _listed(MODEL_COLUMNS, rows, format)


def list_models_verbose(format: str) -> Output:
    """Every model with where it comes from, what it is made of, and what the vendor runs when nothing is asked for."""
    rows = []
    for entry in registry():
        model = load(entry.id)
        components: Any = {name: module.params for name, module in model.components.items()}
        params, vendor = sum(components.values()), model.config["vendor"]
        if format == "table":
            components, vendor = ", ".join(components), " ".join(f"{key}={value}" for key, value in vendor.items())
        own = entry.id, entry.title, " ".join(entry.aliases), model.source
        rows.append((*own, components, params, model.config["default_workload"], vendor))
    return _listed(VERBOSE_COLUMNS, rows, format)


def list_workloads(format: str) -> Output:
    """Every preset; the models where a vendor preset depends on the model."""
    found: dict[tuple[object, ...], list[str]] = {}
    for entry in registry():
        model = load(entry.id)
        for name in model.presets:
            values = model.workload(name).values
            shown = tuple(values.get(key, "") for key in WORKLOAD_KEYS.values())
            found.setdefault((name, *shown), []).append(entry.id)
    everywhere = len(registry())
    rows = [
        (name, "all" if len(models) == everywhere else " ".join(models), *values)
        for (name, *values), models in found.items()
    ]
    return _listed(WORKLOAD_COLUMNS, rows, format)


def list_devices(format: str) -> Output:
    """Every device with its main figures; what is not known stays empty."""
    rows = [
        (
            device.name,
            " ".join(device.aliases),
            _in_units(device.memory_bytes, 2**30),
            _in_units(device.memory_bandwidth, 1e12),
            _in_units(device.peak_flops.get("bf16"), 1e12),
            _in_units(device.peak_flops.get("fp8"), 1e12),
            "yes" if device.verified and not device.unverified_fields else "partly" if device.verified else "no",
        )
        for device in devices()
    ]
    return _listed(DEVICE_COLUMNS, rows, format)


def _in_units(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.4g}"


def _listed(columns: Sequence[str], rows: Sequence[Sequence[object]], format: str) -> Output:
    if format == "json":
        return json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=1) + "\n"
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(
            *(f"{cell:,}" if name == "params" else str(cell) for name, cell in zip(columns, row, strict=True))
        )
    return table


LISTINGS: Mapping[str, Callable[[str], Output]] = {
    "models": list_models,
    "workloads": list_workloads,
    "devices": list_devices,
}
