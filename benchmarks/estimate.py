"""An estimate against FlopCounterMode on meta, on the same stages, in one run: ``python benchmarks/estimate.py``.

Workloads are all different, so that no forward is counted twice. Both sides give the total FLOPs of one step of the
whole pipeline, and the totals are compared.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

import modelmeter as mm
from modelmeter.stage import Plan
from modelmeter.verify.reference import References

MODEL = "wan2.1-t2v-1.3b"


def workloads(number: int) -> list[dict[str, int]]:
    """Different workloads of one forward each, always the same ones."""
    draw = random.Random(0)
    found: dict[tuple[int, ...], dict[str, int]] = {}
    while len(found) < number:
        frames, height, width = 4 * draw.randint(0, 30) + 1, 16 * draw.randint(8, 60), 16 * draw.randint(8, 80)
        found[frames, height, width] = {
            "num_frames": frames,
            "height": height,
            "width": width,
            "text_len": draw.randint(64, 512),
            "num_inference_steps": 1,
            "guidance_scale": 1,
        }
    return list(found.values())


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call and what it gave."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def counted_run(model: mm.Model, plan: Plan, references: References) -> int:
    """FLOPs of a run, every different call of every stage counted on the real class."""
    return sum(
        call.times * references.call(model, stage, call).flops[""] for stage in plan.stages for call in stage.calls
    )


def cold_start(*command: str, runs: int = 5) -> float:
    """Median seconds of a fresh process, after one that warms the file cache."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    """Measure and print one table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", type=int, default=300, help="number of different workloads")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()

    loading, model = timed(lambda: mm.load(MODEL))
    first, _ = timed(lambda: model.estimate().flops)
    assert all(model.estimate(num_frames=frames).flops for frames in (1, 5))  # compiles both forms that are needed
    asked = workloads(options.workloads)
    ours = [timed(lambda keys=keys: model.estimate(**keys).flops) for keys in asked]

    references = References(None, "meta")
    plans = [model.plan(model.workload(**keys)) for keys in asked]
    theirs = [timed(lambda plan=plan: counted_run(model, plan, references)) for plan in plans]
    for keys, (_, flops), (_, counted) in zip(asked, ours, theirs, strict=True):
        if flops != counted:
            raise SystemExit(f"{keys}: analytic {flops}, counted {counted}")
    report, importing = cold_start("-m", "modelmeter", "report", MODEL), cold_start("-c", "import torch")
    result = {
        "model": MODEL,
        "workloads": len(ours),
        "estimate_us": statistics.median(seconds for seconds, _ in ours) * 1e6,
        "flop_counter_us": statistics.median(seconds for seconds, _ in theirs) * 1e6,
        "ratio": sum(seconds for seconds, _ in theirs) / sum(seconds for seconds, _ in ours),
        "load_ms": loading * 1e3,
        "first_estimate_ms": first * 1e3,
        "report_cold_start_s": report,
        "import_torch_s": importing,
        "cold_start_ratio": report / importing,
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    table = Table("measure", "value", box=None)
    table.add_row("model, different workloads, all totals equal", f"{MODEL}, {len(ours)}")
    table.add_row("estimate, median", f"{result['estimate_us']:.1f} us")
    table.add_row("FlopCounterMode on meta, median", f"{result['flop_counter_us'] / 1e6:.3f} s")
    table.add_row("FlopCounterMode / estimate, sums", f"{result['ratio']:,.0f}")
    table.add_row("load: compose the configuration, build the modules", f"{result['load_ms']:.1f} ms")
    table.add_row("first estimate: trace, compile, evaluate", f"{result['first_estimate_ms']:.1f} ms")
    table.add_row("cold start of modelmeter report, median", f"{report:.2f} s")
    table.add_row("python -c 'import torch', median", f"{importing:.2f} s")
    table.add_row("report / import torch", f"{result['cold_start_ratio']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
