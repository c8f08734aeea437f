"""Published peaks of device memory, and what the memory fold says of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import modelmeter as mm
from modelmeter.api import Model
from modelmeter.compiled import compile_forward
from modelmeter.footprint import Memory, highest_peak, input_bytes
from modelmeter.models.common.vae import AutoencoderKLWan, decode_call, encode_call
from modelmeter.policy import DTYPES, Policy
from modelmeter.stage import Call, Stage
from modelmeter.weights import weights

HERE = Path(__file__).parent
GIB = 2**30
#: Keys of a policy that the forwards depend on.
FORWARDS = ("implementation", "precision", "vae_precision", "rms_norm", "vae_tiling")
#: Pixels of a side for each latent of the VAE of Wan2.1.
STRIDE = 8


@dataclass(frozen=True)
class Row:
    """A published peak and the policy under which it is compared."""

    source: str
    values: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Of the row."""
        return str(self.values["id"])

    @property
    def gib(self) -> float:
        """The published peak."""
        return float(self.values["gib"])

    @property
    def counted(self) -> bool:
        """Whether the figure is held to a bound."""
        return "not_counted" not in self.values

    @property
    def policy(self) -> Mapping[str, Any] | None:
        """Keys of the configuration; ``None`` where too little is known."""
        return self.values.get("policy")


@cache
def rows() -> tuple[Row, ...]:
    """Every published peak."""
    document = yaml.safe_load((HERE / "peaks.yaml").read_text(encoding="utf-8"))
    return tuple(Row(group["source"], values) for group in document for values in group["rows"])


@cache
def _model(name: str, words: tuple[str, ...]) -> Model:
    return mm.load(name, *words)


def memory(row: Row, workspace: str) -> Memory:
    """What the memory fold says of a row; models are made once for what changes their forwards."""
    assert row.policy is not None
    policy = {**row.policy, "workspace": workspace}
    words = tuple(f"{key}={str(value).lower()}" for key, value in policy.items() if key in FORWARDS)
    height, width = row.values["size"]
    keys = {key: row.values[key] for key in ("task",) if key in row.values}
    model = _model(row.values["model"], words)
    estimate = model.estimate(num_frames=row.values["frames"], height=height, width=width, **keys)
    return estimate.memory_under(Policy.of({**model.config, **policy}))


def error(row: Row, workspace: str) -> float:
    """What is predicted over what was published, less one."""
    return memory(row, workspace).peak_bytes / GIB / row.gib - 1


def workspace_of(row: Row) -> str:
    """The workspace that is stated for a row; the default without."""
    return str(row.values.get("workspace", "input"))


# -- the VAE alone -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VaeRow:
    """A measured call of the VAE on one frame."""

    call: str
    height: int
    width: int
    gib: float


@cache
def vae_document() -> Mapping[str, Any]:
    """Source, settings and rows."""
    document: Mapping[str, Any] = yaml.safe_load((HERE / "vae_peaks.yaml").read_text(encoding="utf-8"))
    return document


def vae_rows() -> tuple[VaeRow, ...]:
    """Every measured call."""
    return tuple(VaeRow(**row) for row in vae_document()["rows"])


def vae_bytes(row: VaeRow) -> int:
    """Weights, input and the most that is alive, workspaces included."""
    vae = _vae(vae_document()["precision"])
    make = decode_call if row.call == "decode" else encode_call
    call: Call = make(1, 1, row.height // STRIDE, row.width // STRIDE, 1)
    forwards = [(part, 1, compile_forward(vae.entry(part.label), part.dims)) for part in call.forwards]
    stage = Stage(id=row.call, component="vae", calls=(call,))
    live, _ = highest_peak(forwards, vae_document()["workspace"])
    return weights(vae).total + input_bytes(stage, vae) + live


@cache
def _vae(precision: str) -> AutoencoderKLWan:
    vae = AutoencoderKLWan()
    vae.to(DTYPES[precision])
    return vae
