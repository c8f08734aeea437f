"""Published run times, and what the model of time says of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import modelmeter as mm
from modelmeter.calibrate import Observation, fitted
from modelmeter.devices import find_device
from modelmeter.parallel import Parallel
from modelmeter.predict import Prediction, Settings, predict
from modelmeter.rates import Constants, constants

HERE = Path(__file__).parent
#: Constants that leave-one-source-out refits: what Wan runs decided.
FREE = tuple(
    name
    for name in constants("published")
    if name.startswith(("linear", "fa2", "fa3", "cudnn", "sage2", "rocm")) and name != "linear_of_peak"
)
#: Stages that a row covers; a run covers all.
COVERS: Mapping[str, tuple[str, ...]] = {
    "transformer": ("transformer", "transformer_2"),
    "transformer+vae_decode": ("transformer", "transformer_2", "vae_decode"),
    "step": ("transformer", "transformer_2"),
    **{stage: (stage,) for stage in ("text_encoder", "image_encoder", "vae_encode", "vae_decode")},
}
#: Keys of the configuration that a row may set.
CONFIG = ("implementation", "rms_norm", "precision", "vae_precision", "offload", "text_encoder_device")


@dataclass(frozen=True)
class Row:
    """A published run time and the settings under which it is predicted."""

    id: str
    source: str
    seconds: float
    settings: Mapping[str, Any]

    @property
    def gpus(self) -> int:
        """How many devices ran."""
        return int(self.settings.get("gpus", 1))

    @property
    def determined(self) -> bool:
        """Whether what decides the time is stated, or follows from the source's code."""
        return "not_determined" not in self.settings

    @property
    def group(self) -> str:
        """Whose code ran, and how."""
        words = (self.settings["implementation"], self.settings["engine"])
        return " ".join(words) if words[1] != "fused" else "fused engine"


def rows() -> list[Row]:
    """Every row of run_times.yaml that is predicted."""
    sources = yaml.safe_load((HERE / "run_times.yaml").read_text(encoding="utf-8"))
    return [
        Row(row["id"], source["source"], row["seconds"], row)
        for source in sources
        for row in source["rows"]
        if row["covers"] != "run_and_load"
    ]


@cache
def model_of(name: str, overrides: tuple[str, ...]) -> mm.Model:
    """A model under the settings of a row, made once."""
    return mm.load(name, *overrides)


def predicted(row: Row, values: Constants, **changes: Any) -> tuple[Prediction, dict[str, float]]:
    """The prediction for a row, and the seconds it covers by the constant that decides them."""
    settings = {**row.settings, **changes}
    overrides = tuple(f"{key}={settings[key]}" for key in CONFIG if key in settings)
    model = model_of(settings["model"], overrides)
    asked = Settings(
        device=find_device(settings["device"]),
        engine=settings["engine"],
        attention=settings["attention"],
        gpus=settings.get("gpus", 1),
        parallel=Parallel(**settings.get("parallel", {})),
        constants=values,
    )
    prediction = predict(model, model.plan(model.workload(**settings["workload"])), asked)
    covered = COVERS.get(settings["covers"])
    per = settings["workload"]["num_inference_steps"] if settings["covers"] == "step" else 1
    spent: dict[str, float] = {}
    for stage in prediction.stages:
        if covered is None or stage.id in covered:
            for resource, seconds in stage.seconds_by.items():
                name = prediction.origins.get(resource, resource)
                spent[name] = spent.get(name, 0.0) + seconds / per
    return prediction, spent


def errors(chosen: Sequence[Row], values: Constants, **changes: Any) -> dict[str, float]:
    """Relative error of every row, by id."""
    return {row.id: sum(predicted(row, values, **changes)[1].values()) / row.seconds - 1 for row in chosen}


def without_wan() -> Constants:
    """The published constants, the convolutions of the VAE at the rate of matrix products: no Wan run decides any."""
    values = constants("published")
    part = {"conv_of_datasheet_peak": values["linear_of_datasheet_peak"], "conv_at_most_tflops": float("inf")}
    return {**values, **part}


def refitted(training: Sequence[Row]) -> Constants:
    """Constants fitted to some rows, from where no Wan run was used."""
    start = constants("published")
    observations = []
    for row in training:
        spent = predicted(row, start)[1]
        free = {name: seconds for name, seconds in spent.items() if name in FREE}
        same = sum(other.source == row.source and twin(other, row) for other in training)
        observations.append(
            Observation(
                seconds=row.seconds, by_constant=free, other=sum(spent.values()) - sum(free.values()), weight=1 / same
            )
        )
    return fitted(observations, start, FREE)


def twin(a: Row, b: Row) -> bool:
    """Whether two rows are the same run, as far as is known."""
    keys = ("model", "device", "gpus", "parallel", "workload", "engine", "attention", "implementation", "covers")
    return all(a.settings.get(key) == b.settings.get(key) for key in keys)


def leave_one_source_out(chosen: Sequence[Row]) -> dict[str, float]:
    """Errors of every source under constants fitted without it."""
    found: dict[str, float] = {}
    for source in dict.fromkeys(row.source for row in chosen):
        values = refitted([row for row in chosen if row.source != source])
        found |= errors([row for row in chosen if row.source == source], values)
    return found
