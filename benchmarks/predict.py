"""How long a prediction takes once a model is compiled, beside an estimate of the same workload.

Run: python benchmarks/predict.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import modelmeter as mm
from modelmeter.config import registry
from modelmeter.devices import find_device
from modelmeter.errors import InputError
from modelmeter.predict import Settings, predict
from modelmeter.stage import Plan


def main() -> None:
    """One line a model: milliseconds of the first prediction and of those after it, and their ratio to an estimate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=20)
    repeat = parser.parse_args().repeat
    settings = Settings(device=find_device("h100"), attention="fa3")
    print(f"{'model':24} {'first ms':>10} {'warm ms':>9} {'x estimate':>11}")
    for entry in registry():
        model = mm.load(entry.id)
        try:
            plan = model.plan(model.workload())
            first = timed(predict, model, plan, settings)
        except InputError as error:
            print(f"{entry.id:24} {error}")
            continue
        warm = median(timed(predict, model, plan, settings) for _ in range(repeat))
        estimate = median(timed(flops, model, plan) for _ in range(repeat))
        print(f"{entry.id:24} {1e3 * first:10.1f} {1e3 * warm:9.3f} {warm / estimate:11.1f}")


def flops(model: mm.Model, plan: Plan) -> int:
    """What a prediction is held against: the FLOPs of the same plan."""
    return model.estimated(plan).flops


def timed(run: Callable[..., object], *arguments: object) -> float:
    """Seconds of one call."""
    start = perf_counter()
    run(*arguments)
    return perf_counter() - start


if __name__ == "__main__":
    main()
