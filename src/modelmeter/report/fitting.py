"""What fits on a device as a table or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from modelmeter.fit import RESERVE_BYTES, Fit, Option, Reach
from modelmeter.report.output import Output

SCHEMA = "modelmeter.fit/1"
COLUMNS = ("precision", "offload", "text encoder", "VAE", "weights", "peak", "in stage", "headroom", "on the host")
REACH = ("precision", "offload", "text encoder", "VAE", "most frames", "largest size")
GIB = 2**30


def document(fit: Fit) -> dict[str, Any]:
    """The JSON document: every option in bytes, and how far the best go.

    Example:
        >>> import modelmeter as mm
        >>> from modelmeter.devices import find_device
        >>> from modelmeter.fit import fit
        >>> document(fit(mm.load("wan2.1-t2v-1.3b", "precision=bf16"), find_device("4090")))["fits"]
        True
    """
    return {
        "schema": SCHEMA,
        "model": fit.model,
        "workload": fit.workload.values,
        "device": fit.device.name,
        "memory_bytes": fit.device.memory_bytes,
        "reserve_bytes": RESERVE_BYTES,
        "fits": bool(fit.fitting),
        "options": [
            {
                "policy": {**option.policy.values, "vae_tiling": option.vae_tiling},
                "weights_bytes": option.memory.weights_bytes,
                "host_bytes": option.memory.host_bytes,
                "peak_bytes": option.memory.peak_bytes,
                "peak_node": option.memory.peak_node,
                "headroom_bytes": option.headroom_bytes,
                "fits": option.fits,
            }
            for option in fit.options
        ],
        "best": [
            {
                "policy": {**option.policy.values, "vae_tiling": option.vae_tiling},
                "num_frames": reach.num_frames,
                "size": {"height": reach.height, "width": reach.width},
            }
            for option, reach in fit.best
        ],
        "warnings": list(fit.warnings),
    }


def as_json(fit: Fit) -> str:
    """The document as it is."""
    return json.dumps(document(fit), indent=1, allow_nan=False) + "\n"


def as_table(fit: Fit) -> Output:
    """The options that are worth their time, how far the best of each precision goes, and how far the rest is off."""
    parts: list[Output] = [Text(line, style="bold" if i == 0 else "") for i, line in enumerate(headline(fit))]
    if fit.fitting:
        parts += [Text(""), _table(COLUMNS, [_cells(option) for option in fit.worthwhile]), Text("")]
        parts += [_table(REACH, [_reach(fit, option, reach) for option, reach in fit.best])]
    slower = len(fit.fitting) - len(fit.worthwhile)
    if slower:
        parts += [Text(""), Text(f"{slower} more fit that need no less than a faster one of their precision")]
    missing = [option for option in fit.options if not option.fits]
    if missing:
        nearest = max(missing, key=lambda option: option.headroom_bytes)
        words = ", ".join(f"{name} {cell}" for name, cell in zip(COLUMNS[:4], _words(nearest), strict=True))
        more = "more" if fit.fitting else "policies"
        line = f"{len(missing)} {more} do not fit; nearest: {words}, short of {_gib(-nearest.headroom_bytes)}"
        parts += [*([] if slower else [Text("")]), Text(line)]
    parts += [Text(f"warning: {line}", style="yellow") for line in fit.warnings]
    return Group(*parts)


def headline(fit: Fit) -> list[str]:
    """The question, and what is usable."""
    video, device = fit.workload, fit.device
    assert device.memory_bytes is not None
    policy = fit.options[0].policy
    count = "" if policy.gpus == 1 else f" (each of {policy.gpus}, weights sharded by FSDP, tokens shared)"
    return [
        f"{fit.model} ({policy.implementation} implementation) on {device.name}{count}",
        f"{video.num_frames} frames of {video.height}x{video.width}, batch {video.batch_size}",
        f"usable {_gib(device.memory_bytes - RESERVE_BYTES)} = {_gib(device.memory_bytes)} less {_gib(RESERVE_BYTES)} "
        "assumed for the CUDA context and the allocator",
    ]


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        number = name in ("weights", "peak", "headroom", "on the host", "most frames")
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _words(option: Option) -> tuple[str, ...]:
    policy = option.policy
    return policy.precision, policy.offload, policy.text_encoder_device, "tiled" if option.vae_tiling else "whole"


def _cells(option: Option) -> tuple[str, ...]:
    memory = option.memory
    sizes = _gib(memory.weights_bytes), _gib(memory.peak_bytes), memory.largest.id, _gib(option.headroom_bytes)
    return *_words(option), *sizes, _gib(memory.host_bytes) if memory.host_bytes else "-"


def _reach(fit: Fit, option: Option, reach: Reach) -> tuple[str, ...]:
    video = fit.workload
    frames = f"{reach.num_frames} at {video.height}x{video.width}"
    return *_words(option), frames, f"{reach.height}x{reach.width} with {video.num_frames} frames"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


FORMATS: Mapping[str, Callable[[Fit], Output]] = {"table": as_table, "json": as_json}
