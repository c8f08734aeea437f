"""An estimate as text: table, Markdown, JSON, CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from io import StringIO
from typing import TypeAlias

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from modelmeter.estimate import CONVENTIONS, Estimate
from modelmeter.ops import OpRow, op_rows
from modelmeter.report.document import document
from modelmeter.report.output import Output
from modelmeter.report.rows import Row, folded, to_depth, top
from modelmeter.report.units import scaled, share

COLUMNS = ("module", "class", "calls", "params", "weights", "peak", "FLOPs", "share")


def selected(estimate: Estimate, *, depth: int, count: int | None) -> list[Row]:
    """The rows of a table: to a depth, or the ``count`` with the most FLOPs of their own."""
    rows = folded(estimate.nodes, estimate.node_weights)
    return to_depth(rows, depth) if count is None else top(rows, count)


def cells(row: Row, estimate: Estimate, *, own: bool) -> tuple[str, ...]:
    """The texts of a row; ``own`` shows the FLOPs without submodules. Only stages have a peak."""
    peaks = {stage.id: scaled(stage.peak_bytes, "B") for stage in estimate.memory.stages}
    flops = row.own_flops if own else row.flops
    name = row.id if own else "  " * row.depth + row.id.removeprefix(f"{row.parent}.")
    if row.copies > 1 and (own or row.id.endswith(".*")):
        name += f" ({row.copies}x)"
    sizes = scaled(row.params, ""), scaled(row.weights_bytes, "B"), peaks.get(row.id, "")
    return name, row.kind, f"{row.calls:,}", *sizes, scaled(flops, "FLOP"), share(flops, estimate.flops)


def headline(estimate: Estimate) -> list[str]:
    """Model, workload and total, one line each."""
    video, sizes = estimate.workload, estimate.geometry
    whose = f" ({estimate.config['implementation']} implementation)" if "implementation" in estimate.config else ""
    missing = f"; not modelled: {', '.join(estimate.plan.not_modelled)}" if estimate.plan.not_modelled else ""
    return [
        f"{estimate.model}{whose}",
        f"{video.num_frames} frames of {video.height}x{video.width}, batch {video.batch_size}, "
        f"{video.num_inference_steps} steps, guidance {video.guidance_scale:g}, {video.text_len} text tokens "
        f"-> {sizes.tokens:,} video tokens",
        f"total {scaled(estimate.flops, 'FLOP')} = {estimate.flops:,} FLOPs; "
        f"{scaled(estimate.params, '')} parameters = {estimate.params:,}{missing}",
        memory_line(estimate),
    ]


def memory_line(estimate: Estimate) -> str:
    """What fits where: weights, the peak on a device, and under which policy."""
    memory, policy = estimate.memory, estimate.memory.policy
    where = f"{policy.gpus} devices" if policy.gpus > 1 else "one device"
    host = f", {scaled(memory.host_bytes, 'B')} of weights in host memory" if memory.host_bytes else ""
    return (
        f"memory: {scaled(memory.weights_bytes, 'B')} of weights, peak {scaled(memory.peak_bytes, 'B')} "
        f"in {memory.largest.id} on {'each of ' if policy.gpus > 1 else ''}{where}{host} "
        f"(precision {policy.precision}, offload {policy.offload}, workspace {policy.workspace})"
    )


def as_table(estimate: Estimate, *, depth: int, count: int | None) -> Output:
    """A Rich table under the headline, warnings below."""
    lines = [cells(row, estimate, own=count is not None) for row in selected(estimate, depth=depth, count=count)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(COLUMNS):
        number = i >= 2
        widest = max(len(name), *(len(line[i]) for line in lines)) if number else None
        table.add_column(name, justify="right" if number else "left", no_wrap=True, min_width=widest)
    for line in lines:
        table.add_row(*(escape(cell) for cell in line))
    notes = [Text(f"warning: {warning}", style="yellow") for warning in estimate.warnings]
    title, *rest = headline(estimate)
    return Group(Text(title, style="bold"), *(Text(line) for line in rest), Text(""), table, *notes)


def as_markdown(estimate: Estimate, *, depth: int, count: int | None) -> str:
    """A Markdown table under the headline."""
    title, *rest = headline(estimate)
    lines = [f"**{title}**", "", *rest, "", f"| {' | '.join(COLUMNS)} |", "|---|---|---:|---:|---:|---:|---:|---:|"]
    for row in selected(estimate, depth=depth, count=count):
        name, *others = cells(row, estimate, own=count is not None)
        indent = len(name) - len(name.lstrip())
        lines.append("| " + " | ".join([f"{'&nbsp;' * indent}`{name.strip()}`", *others]) + " |")
    lines += ["", *(f"> warning: {warning}" for warning in estimate.warnings)] if estimate.warnings else []
    return "\n".join(lines) + "\n"


def as_json(estimate: Estimate, *, depth: int, count: int | None) -> str:
    """The whole document; depth and count do not shorten it."""
    return json.dumps(document(estimate), indent=1, allow_nan=False) + "\n"


def as_csv(estimate: Estimate, *, depth: int, count: int | None) -> str:
    """Every node with exact integers, one column per kind of operator; depth and count do not shorten it."""
    kinds = sorted({kind for node in estimate.nodes for kind in node.flops_by_kind})
    moved = ["weight_bytes_read", "activation_bytes_read", "bytes_written"]
    fixed = ["id", "parent", "kind", "calls", "params", "weights_bytes", "flops", "own_flops"]
    header = [*fixed, *(f"flops.{kind}" for kind in kinds), *moved]
    weights = estimate.node_weights
    records = (
        [node.id, node.parent or "", node.kind, node.calls, node.params, weights[node.id], node.flops, node.own_flops]
        + [node.flops_by_kind.get(kind, 0) for kind in kinds]
        + [getattr(estimate.traffic[node.id].total, name) for name in moved]
        for node in estimate.nodes
    )
    return csv_text(header, records)


def as_ops_csv(estimate: Estimate, *, depth: int, count: int | None) -> str:
    """Every kernel with its shapes and exact integers; depth and count do not shorten it."""
    names = [field.name for field in fields(OpRow)]
    records = ([getattr(row, name) for name in names] for row in op_rows(estimate))
    return csv_text(names, ([("" if cell is None else cell) for cell in record] for record in records))


#: What LaTeX reads as more than a letter.
LATEX_ESCAPES = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", ">": r"\textgreater{}"}
)


def as_latex(estimate: Estimate, *, depth: int, count: int | None) -> str:
    """A table for a paper, with booktabs; what it counts, and the version that counted, stand in the caption."""
    title, *rest = headline(estimate)
    notes = [title, *rest, *CONVENTIONS[:2], f"ModelMeter {version('modelmeter-video')}", *estimate.warnings]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{'. '.join(notes).translate(LATEX_ESCAPES)}.}}",
        r"\begin{tabular}{llrrrrrr}",
        r"\toprule",
        " & ".join(COLUMNS) + r" \\",
        r"\midrule",
    ]
    for row in selected(estimate, depth=depth, count=count):
        name, *others = cells(row, estimate, own=count is not None)
        indent = rf"\hspace{{{row.depth}em}}" if count is None else ""
        escaped = [text.strip().translate(LATEX_ESCAPES) for text in (name, *others)]
        lines.append(indent + " & ".join(escaped) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def csv_text(header: Sequence[object], records: object) -> str:
    """CSV with a header line and Unix line ends."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(records)  # type: ignore[arg-type]
    return buffer.getvalue()


Formatter: TypeAlias = Callable[..., Output]

FORMATS: Mapping[str, Formatter] = {
    "table": as_table,
    "markdown": as_markdown,
    "latex": as_latex,
    "json": as_json,
    "csv": as_csv,
    "ops-csv": as_ops_csv,
}
