"""Hold published peaks of device memory against the memory fold, and write the page docs/validation-memory.md.

Run: python validation/peaks_page.py
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median

from peaks import GIB, Row, error, memory, rows, vae_bytes, vae_document, vae_rows, workspace_of

from modelmeter.footprint import WITH_LATENTS
from modelmeter.residency import BLOCKS_IN_FLIGHT, LATENTS_HELD, SHARDED, UNITS_IN_FLIGHT

PAGE = Path(__file__).parent.parent / "docs" / "validation-memory.md"
WORKSPACES = ("none", "input", "both")
COLUMNS = ("row", "model", "size", "policy", "published", "predicted", "in stage", "workspace", "error", "with input")
LISTED = ("row", "model", "framework", "published", "predicted", "policy", "why it is not counted")


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table."""
    cells = [" | ".join(str(cell) for cell in line) for line in lines]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {line} |" for line in cells), ""]


def percent(value: float) -> str:
    """With its sign."""
    return f"{100 * value:+.2f} %"


def figures(name: str, chosen: Sequence[Row], workspace: str | None) -> tuple[str, ...]:
    """How many rows, and how far they are off; each with its stated workspace where none is given."""
    found = sorted(abs(error(row, workspace or workspace_of(row))) for row in chosen)
    within = [f"{sum(size <= limit for size in found)}" for limit in (0.005, 0.02, 0.05)]
    return (name, str(len(found)), f"{100 * median(found):.2f} %", f"{100 * found[-1]:.2f} %", *within)


def policy(row: Row) -> str:
    """The keys that a row sets."""
    assert row.policy is not None
    return ", ".join(f"{key}={str(value).lower()}" for key, value in row.policy.items()) or "defaults"


def size(row: Row) -> str:
    """Frames and pixels."""
    height, width = row.values["size"]
    return f"{row.values['frames']} x {height}x{width}"


def counted(row: Row) -> tuple[str, ...]:
    """A row that is held to a bound."""
    workspace = workspace_of(row)
    found = memory(row, workspace)
    task = f" {row.values['task']}" if "task" in row.values else ""
    return (
        row.id,
        f"{row.values['model']}{task}",
        size(row),
        policy(row),
        f"{row.gib:g}",
        f"{found.peak_bytes / GIB:.2f}",
        found.largest.id,
        workspace,
        percent(error(row, workspace)),
        percent(error(row, "input")),
    )


def listed(row: Row) -> tuple[str, ...]:
    """A row that is only listed."""
    known = row.policy is not None
    return (
        row.id,
        row.values["model"],
        row.values["framework"],
        row.values["as_published"],
        f"{memory(row, 'input').peak_bytes / GIB:.2f} GiB" if known else "-",
        policy(row) if known else "-",
        row.values["not_counted"],
    )


def page() -> str:
    """The whole page."""
    official = [row for row in rows() if row.counted]
    determined = [row for row in official if "5b" not in row.values["model"]]
    others = [row for row in rows() if not row.counted]
    vae = [(row, vae_bytes(row) / GIB) for row in vae_rows()]
    worst = max(abs(found / row.gib - 1) for row, found in vae)
    head = ("workspace", "rows", "median", "worst", "within 0.5 %", "within 2 %", "within 5 %")
    lines = [
        "# Published peaks of device memory against the memory fold",
        "",
        "Written by `python validation/peaks_page.py` from `validation/peaks.yaml` and `validation/vae_peaks.yaml`;",
        "no number on this page is typed by hand. Sizes are GiB; an error is predicted over published, less one.",
        "",
        "## What a peak is made of",
        "",
        "The largest over the stages of: weights on the device under the policy; inputs of the stage; the most that is",
        "alive above them in one forward, a fold over its kernels; copies that convolutions make of their operands",
        f"(`workspace=`); and, in {', '.join(WITH_LATENTS)}, {LATENTS_HELD} tensors of the size of the latents in",
        "float32 that the sampling loop and its solver hold. No term is fitted. What the code of the vendor decides:",
        "",
        "- The official VAE stays on the device, whatever is offloaded; other components leave after they have run.",
        "- On several devices each holds an equal share of "
        + ", ".join(SHARDED)
        + " in the dtype in which they are loaded.",
        "  FSDP never frees the root unit of a component once it has run: what is outside its blocks stays, in bf16.",
        f"  Of the blocks {UNITS_IN_FLIGHT} are gathered at a time. The VAE decodes on one device alone.",
        f"- With `offload=block`, {BLOCKS_IN_FLIGHT} blocks that wait in host memory have room on the device.",
        "",
        "Assumed, and not measured: activations of a transformer divide by the number of devices; where matrices are",
        "quantised, the largest is there once more in bfloat16; adapters are not merged. Left out: the CUDA context,",
        "buffers of communication and of cuBLAS, what the allocator rounds up or cannot use.",
        "",
        "## Convolutions alone: the VAE on a GPU",
        "",
        f"{vae_document()['source']}: {len(vae)} calls on one frame in {vae_document()['precision']}, the largest",
        f"allocation of PyTorch, weights included; `workspace={vae_document()['workspace']}`. Worst error",
        f"{100 * worst:.2f} %.",
        "",
        *table(
            ("call", "size", "published", "predicted", "error"),
            [
                (row.call, f"{row.height}x{row.width}", f"{row.gib:g}", f"{found:.3f}", percent(found / row.gib - 1))
                for row, found in vae
            ],
        ),
        "## Official tables",
        "",
        "The unit and the quantity are not stated there; read as GiB of the largest allocation, N devices differ by an",
        "Nth of the weights. Sizes, frames and flags are those of the README and of the code at that commit; image to",
        "video takes the shape of the README's example image, which for TI2V-5B is a guess. Which copies convolutions",
        "make depends on the device and the version of cuDNN: the column *workspace* was chosen for a table and a",
        "device after seeing its cells, so the errors of the default, `workspace=input`, stand beside. Peaks in the",
        "transformer have no such choice.",
        "",
        *table(
            head,
            [
                *(figures(f"`{word}` everywhere", official, word) for word in WORKSPACES),
                figures("as stated for the table and the device", official, None),
                figures(
                    "as stated, peak in the transformer",
                    [row for row in official if memory(row, workspace_of(row)).largest.id.startswith("transformer")],
                    None,
                ),
                figures("as stated, without TI2V-5B", determined, None),
            ],
        ),
    ]
    for source, group in groupby(official, key=lambda row: row.source):
        lines += [f"### {source}", "", *table(COLUMNS, [counted(row) for row in group])]
    lines += [
        "## Other frameworks",
        "",
        "Listed, held to no bound: most show what the driver or the allocator holds, of which what is allocated is a",
        "part, and run forwards of their own. What is predicted is the nearest policy, with diffusers' forwards, the",
        "VAE in float32 and everything on the device unless the policy says otherwise.",
        "",
        *table(LISTED, [listed(row) for row in others]),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
