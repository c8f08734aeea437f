"""A prediction as a table or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from modelmeter.predict import Prediction
from modelmeter.report.output import Output
from modelmeter.report.units import scaled, share

SCHEMA = "modelmeter.prediction/1"
#: Most modules below the stages that a table lists: those that take longest.
MOST_NODES = 10


def document(prediction: Prediction) -> dict[str, Any]:
    """The JSON document of a prediction: seconds, joules, bytes.

    Example:
        >>> import modelmeter as mm
        >>> from modelmeter.devices import find_device
        >>> from modelmeter.predict import Settings, predict
        >>> model = mm.load("wan2.1-t2v-1.3b")
        >>> found = document(predict(model, model.plan(model.workload()), Settings(device=find_device("4090"))))
        >>> [stage["id"] for stage in found["stages"]]
        ['text_encoder', 'transformer', 'vae_decode']
    """
    return {
        "schema": SCHEMA,
        "model": prediction.model,
        "workload": prediction.plan.workload.values,
        "device": prediction.settings.device.name,
        "engine": prediction.settings.engine,
        "attention": prediction.attention,
        "gpus": prediction.settings.gpus,
        "parallel": asdict(prediction.layout),
        "predicted_seconds": prediction.seconds,
        "range": list(prediction.range),
        "flops": prediction.flops,
        "utilisation": prediction.utilisation,
        "energy_joules": prediction.energy_joules,
        "cost": prediction.cost,
        "stages": [
            {"id": stage.id, "seconds": stage.seconds, "bound": stage.bound, "seconds_by": dict(stage.seconds_by)}
            for stage in prediction.stages
        ],
        "nodes": [{"id": node.id, "seconds": node.seconds, "bound": node.bound} for node in prediction.nodes],
        "peak_bytes": prediction.peak_bytes,
        "assumptions": list(prediction.assumptions),
        "warnings": list(prediction.warnings),
    }


def as_json(prediction: Prediction) -> str:
    """The document as it is."""
    return json.dumps(document(prediction), indent=1, allow_nan=False) + "\n"


def as_table(prediction: Prediction) -> Output:
    """Stages with what bounds them, the modules that take longest, and what was assumed."""
    whole = prediction.seconds
    stages = Table("stage", box=None, pad_edge=False, header_style="bold")
    for name in ("seconds", "share", "FLOP/s"):
        stages.add_column(name, justify="right")
    stages.add_column("bound")
    for stage in prediction.stages:
        rate = scaled(round(stage.flops / stage.seconds), "FLOP/s") if stage.seconds else "-"
        stages.add_row(stage.id, f"{stage.seconds:.2f}", _part(stage.seconds, whole), rate, stage.bound)
    return Group(
        *(Text(line, style="bold" if i == 0 else "") for i, line in enumerate(headline(prediction))),
        Text(""),
        stages,
        Text(""),
        _longest(prediction),
        Text(""),
        *(Text(f"assumed: {line}") for line in prediction.assumptions),
        *(Text(f"warning: {line}", style="yellow") for line in prediction.warnings),
    )


def headline(prediction: Prediction) -> list[str]:
    """The answer, and what it means in FLOP/s, energy and money."""
    low, high = prediction.range
    video, gpus = prediction.plan.workload, prediction.settings.gpus
    device = f"{gpus} x {prediction.settings.device.name}" if gpus > 1 else prediction.settings.device.name
    said = [f"{100 * prediction.utilisation:.1f} % of the bf16 peak"]
    if prediction.energy_joules is not None:
        said.append(f"{prediction.energy_joules / 3600:.1f} Wh at the power limit")
    if prediction.cost is not None:
        said.append(f"cost {prediction.cost:.4f}")
    peak, size = prediction.peak_bytes, prediction.settings.device.memory_bytes
    fits = ""
    if size is not None:
        fits = f" of {size / 2**30:.0f} GiB" + ("" if peak <= size else ": it does not fit; see modelmeter fit")
    return [
        f"{prediction.model} on {device}: {prediction.seconds:.1f} s ({low:.1f} to {high:.1f})",
        f"{video.num_frames} frames of {video.height}x{video.width}, batch {video.batch_size}, "
        f"{video.num_inference_steps} steps, guidance {video.guidance_scale:g}",
        f"{scaled(prediction.flops, 'FLOP')}; {'; '.join(said)}",
        f"peak memory{' on each device' if gpus > 1 else ''} {peak / 2**30:.2f} GiB{fits}",
    ]


def _longest(prediction: Prediction) -> Table:
    """The kinds of modules that take longest, copies taken together."""
    seconds: dict[str, float] = {}
    bounds: dict[str, dict[str, float]] = {}
    for node in prediction.nodes:
        if node.depth:
            name = ".".join("*" if part.isdigit() else part for part in node.id.split("."))
            seconds[name] = seconds.get(name, 0.0) + node.seconds
            by = bounds.setdefault(name, {})
            by[node.bound] = by.get(node.bound, 0.0) + node.seconds
    table = Table("module", box=None, pad_edge=False, header_style="bold")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    table.add_column("bound")
    for name in sorted(seconds, key=lambda name: -seconds[name])[:MOST_NODES]:
        bound = max(bounds[name], key=lambda word: bounds[name][word])
        table.add_row(escape(name), f"{seconds[name]:.2f}", _part(seconds[name], prediction.seconds), bound)
    return table


def _part(seconds: float, whole: float) -> str:
    return share(round(seconds * 1e9), round(whole * 1e9))


FORMATS: Mapping[str, Callable[[Prediction], Output]] = {"table": as_table, "json": as_json}
