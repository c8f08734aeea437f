"""Hold published run times against predictions, and write the page docs/validation-time.md.

Run: python validation/run_times_page.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from run_times import COVERS, Row, errors, leave_one_source_out, predicted, rows, without_wan

from modelmeter.rates import constants

PAGE = Path(__file__).parent.parent / "docs" / "validation-time.md"
FIGURES = ("rows", "median", "90th percentile", "worst", "within 5 %", "within 10 %")
COLUMNS = ("row", "model", "size", "steps", "device", "code", "attention", "covers", "measured", "predicted", "error")


def figures(found: Iterable[float]) -> tuple[str, ...]:
    """Number of rows, median, 90th percentile (nearest rank) and worst, and how many lie within 5 and 10 %."""
    sizes = sorted(abs(error) for error in found)
    if not sizes:
        return ("0", "-", "-", "-", "-", "-")
    ninetieth = sizes[-(-9 * len(sizes) // 10) - 1]
    errors = [f"{100 * size:.1f} %" for size in (median(sizes), ninetieth, sizes[-1])]
    within = [f"{100 * sum(size <= limit for size in sizes) / len(sizes):.0f} %" for limit in (0.05, 0.10)]
    return (str(len(sizes)), *errors, *within)


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table."""
    rows = [" | ".join(str(cell) for cell in line) for line in lines]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {row} |" for row in rows), ""]


def grouped(chosen: Sequence[Row], found: Mapping[str, float], key: Callable[[Row], str]) -> list[str]:
    """The figures by device, implementation, ..."""
    names = sorted({key(row) for row in chosen})
    return table(
        ("", *FIGURES), [(name, *figures(found[row.id] for row in chosen if key(row) == name)) for name in names]
    )


def size(row: Row) -> str:
    """Model and resolution."""
    return f"{row.settings['model']}, {row.settings['workload']['height']} rows"


def one_utilisation(chosen: Sequence[Row]) -> dict[str, float]:
    """Errors of one number for all: FLOPs over the peak, times the factor that fits best."""
    ideal = {}
    for row in chosen:
        prediction, _ = predicted(row, constants())
        covered = COVERS.get(row.settings["covers"])
        steps = row.settings["workload"]["num_inference_steps"] if row.settings["covers"] == "step" else 1
        flops = sum(stage.flops for stage in prediction.stages if covered is None or stage.id in covered)
        ideal[row.id] = flops / steps / prediction.settings.device.peak_flops["bf16"]
    factor = median(row.seconds / ideal[row.id] for row in chosen)
    return {row.id: factor * ideal[row.id] / row.seconds - 1 for row in chosen}


def without(chosen: Sequence[Row], resources: Sequence[str]) -> dict[str, float]:
    """Errors where some seconds are left out."""
    return {
        row.id: sum(s for name, s in predicted(row, constants())[1].items() if name not in resources) / row.seconds - 1
        for row in chosen
    }


def transformer_alone(chosen: Sequence[Row]) -> dict[str, float]:
    """Errors where only the transformer is counted in whole runs."""
    found = {}
    for row in chosen:
        covers = row.settings["covers"]
        counted = "transformer" if covers in ("run", "transformer+vae_decode") else covers
        found[row.id] = sum(predicted(row, constants(), covers=counted)[1].values()) / row.seconds - 1
    return found


def one_kernel(chosen: Sequence[Row]) -> dict[str, float]:
    """Errors where every attention kernel is taken for FlashAttention-2."""
    found = {}
    for row in chosen:
        kernel = "rocm" if row.settings["attention"] == "rocm" else "fa2"
        found |= errors([row], constants(), attention=kernel)
    return found


def ideal_scaling(chosen: Sequence[Row]) -> dict[str, float]:
    """Errors where N devices take an Nth of the time of one."""
    alone = errors(chosen, constants(), gpus=1, parallel={})
    return {row.id: (1 + alone[row.id]) / row.gpus - 1 for row in chosen}


def layout(row: Row) -> str:
    """Devices and how they divide the work."""
    return ", ".join(f"{key} {ranks}" for key, ranks in row.settings.get("parallel", {}).items())


def several_gpus(every: Sequence[Row]) -> list[str]:
    """The section on rows that ran on several devices."""
    chosen = [row for row in every if row.determined]
    found = errors(every, constants())
    ours = {row.id: found[row.id] for row in chosen}
    return [
        "## Several GPUs",
        "",
        "Rows that do not contradict each other. The constants of the links were fitted to most of them, no other was.",
        "",
        *table(
            ("model", *FIGURES),
            [
                ("full", *figures(ours.values())),
                ("nothing sent between devices", *figures(without(chosen, ("link",)).values())),
                ("N devices take an Nth of the time of one", *figures(ideal_scaling(chosen).values())),
            ],
        ),
        *grouped(chosen, ours, lambda row: f"{row.gpus} devices"),
        *grouped(chosen, ours, lambda row: row.settings["device"]),
        *grouped(chosen, ours, lambda row: row.group),
        "p015, p023, p047 and p055, eight devices in the table of the Wan2.1 README, are slower than the model, while",
        "its rows on two and four devices and every row of Wan2.2 on eight are met. The cause is not known; they are",
        "counted.",
        "",
        *listed(chosen, found),
        "### Rows on several GPUs that are not counted, and why",
        "",
        *listed([row for row in every if not row.determined], found, why=True),
    ]


def page() -> str:
    """The whole page."""
    everything = [row for row in rows() if "device" in row.settings]
    single = [row for row in everything if row.gpus == 1]
    chosen = [row for row in single if row.determined]
    fitted_errors = errors(single, constants())
    left_out = leave_one_source_out(chosen)
    published = errors(chosen, constants("published"))
    strict = errors(chosen, without_wan())
    errors(chosen, constants(), engine="fused")
    ours = {row.id: fitted_errors[row.id] for row in chosen}
    lines = [
        "# How well predictions of time hold",
        "",
        "Generated by `python validation/run_times_page.py`; do not edit. Every row was measured by others and is",
        "in `validation/run_times.yaml` with its source. Nothing here was measured by this project.",
        "",
        "## One GPU, dense, settings determined",
        "",
        *table(
            ("constants", *FIGURES),
            [
                ("shipped", *figures(ours.values())),
                ("refitted without the source that is predicted", *figures(left_out.values())),
                ("none from a Wan run but the rate of the VAE's convolutions", *figures(published.values())),
                ("that one too the rate of matrix products", *figures(strict.values())),
            ],
        ),
        "A setting is determined where the source states it or its code at that commit does. The shipped constants",
        "were fitted to some of these rows; the second line is the fairer one.",
        "",
        "## What each physical term is worth",
        "",
        "The same rows, without a refit, with one term spoiled.",
        "",
        *table(
            ("model", *FIGURES),
            [
                ("full", *figures(ours.values())),
                ("one attention kernel (fa2) for all", *figures(one_kernel(chosen).values())),
                (
                    "the traffic of a fused engine for all",
                    *figures(errors(chosen, constants(), engine="fused").values()),
                ),
                ("no elementwise traffic, no launches", *figures(without(chosen, ("memory", "launches")).values())),
                ("the transformer alone", *figures(transformer_alone(chosen).values())),
                ("one utilisation for all, the best one", *figures(one_utilisation(chosen).values())),
            ],
        ),
        "What runs beside the transformer is a few percent of most runs, less than the spread of the rows: those terms",
        "show in the rows of single stages below, not in this table.",
        "",
        "## By device, code and model",
        "",
        *grouped(chosen, ours, lambda row: row.settings["device"]),
        *grouped(chosen, ours, lambda row: row.group),
        *grouped(chosen, ours, lambda row: row.settings["attention"]),
        *grouped(chosen, ours, size),
        "## Every row",
        "",
        "Settings in *italics* are inferred from the source's code.",
        "",
        *listed(chosen, fitted_errors),
        "## Rows that are not counted, and why",
        "",
        *listed([row for row in single if not row.determined], fitted_errors, why=True),
        *several_gpus([row for row in everything if row.gpus > 1]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def listed(chosen: Sequence[Row], found: Mapping[str, float], *, why: bool = False) -> list[str]:
    """Rows with their settings, measured and predicted."""
    lines = []
    for row in chosen:
        told, video = row.settings, row.settings["workload"]

        def shown(text: object, *keys: str, row: Row = row) -> str:
            return f"*{text}*" if set(keys) & set(row.settings["inferred"]) else str(text)

        lines.append(
            (
                row.id,
                told["model"],
                shown(f"{video['num_frames']}x{video['height']}x{video['width']}", "num_frames", "height", "width"),
                shown(video["num_inference_steps"], "num_inference_steps"),
                shown(told["device"] if row.gpus == 1 else f"{row.gpus} x {told['device']}, {layout(row)}", "gpu"),
                row.group,
                shown(told["attention"], "attention"),
                told["covers"],
                f"{row.seconds:.4g}",
                f"{row.seconds * (1 + found[row.id]):.4g}",
                f"{100 * found[row.id]:+.1f} %",
                *([told["not_determined"]] if why else []),
            )
        )
    sources = dict.fromkeys(row.source for row in chosen)
    named = [f"- {source}: {', '.join(row.id for row in chosen if row.source == source)}" for source in sources]
    return [*table((*COLUMNS, *(["why"] if why else [])), lines), "Sources:", "", *named, ""]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print("\n".join(PAGE.read_text(encoding="utf-8").splitlines()[:30]))
