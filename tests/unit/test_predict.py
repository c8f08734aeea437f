"""Predictions: what they are made of, and what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import modelmeter as mm
from modelmeter.cli import main
from modelmeter.config import registry
from modelmeter.devices import find_device
from modelmeter.engine import ENGINES
from modelmeter.predict import Prediction, Settings, predict


def prediction(name: str = "wan2.1-t2v-1.3b", device: str = "h100", **settings: object) -> Prediction:
    """Of the default workload."""
    model = mm.load(name)
    return predict(model, model.plan(model.workload()), Settings(device=find_device(device), **settings))  # type: ignore[arg-type]


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and what was said on standard error."""
    with pytest.raises(SystemExit) as error:
        main(["predict", *arguments])
    assert isinstance(error.value.code, int)
    return error.value.code, capsys.readouterr().err


def test_stages_sum_to_the_prediction() -> None:
    """The seconds of the stages, divided by what they are spent on, add up to the whole."""
    found = prediction("wan2.1-i2v-14b-480p", attention="fa3")
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))
    low, high = found.range
    assert low < found.seconds < high


@pytest.mark.parametrize("engine", ENGINES)
def test_nodes_sum_to_their_stage(engine: str) -> None:
    """The root of a stage holds all its kernels; only what runs beside them is above."""
    found = prediction("wan2.1-t2v-14b", attention="fa2", engine=engine)
    roots = {node.id: node.seconds for node in found.nodes if node.depth == 0}
    assert list(roots) == [stage.id for stage in found.stages]
    for stage in found.stages:
        beside = stage.seconds_by.get("host", 0.0)
        if engine == "eager" or stage.id != "transformer":
            assert roots[stage.id] == pytest.approx(stage.seconds - beside)
        else:
            assert 0 < roots[stage.id] < stage.seconds


def test_flops_are_those_of_the_estimate() -> None:
    """What is predicted is what is counted."""
    found = prediction()
    assert found.flops == mm.load("wan2.1-t2v-1.3b").estimate().flops > 0


def test_engines_that_fuse_are_faster() -> None:
    """Less elementwise traffic takes less time, with the same products and attention."""
    eager, compiled, fused = (prediction(attention="fa2", engine=engine).seconds for engine in ENGINES)
    assert fused <= compiled < eager


WAN = [entry.id for entry in registry() if entry.id.startswith("wan")]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", WAN)
def test_every_wan_model_is_predicted_under_every_engine(name: str, engine: str) -> None:
    """Of all Wan models only S2V, whose elementwise traffic nobody has measured, is refused where an engine fuses."""
    if name == "wan2.2-s2v-14b" and engine != "eager":
        with pytest.raises(mm.InputError, match=f"^engine={engine}: allowed is eager: .* {name}"):
            prediction(name, engine=engine)
        return
    found = prediction(name, engine=engine)
    assert all(stage.seconds > 0 for stage in found.stages)
    assert found.flops > 0


def test_steps_scale_the_transformer_alone() -> None:
    """Twice the steps double the transformer's seconds and leave the other stages."""
    model = mm.load("wan2.1-t2v-1.3b")
    settings = Settings(device=find_device("h100"), attention="fa2")
    few, many = (
        {stage.id: stage.seconds for stage in predict(model, model.plan(video), settings).stages}
        for video in (model.workload(num_inference_steps=10), model.workload(num_inference_steps=20))
    )
    assert many.pop("transformer") == pytest.approx(2 * few.pop("transformer"))
    assert many == few


def test_published_totals_are_met() -> None:
    """560 PFLOPs of a run (arXiv:2506.19852); three forwards are 4 x 4893.2719 TFLOPs (MaxDiffusion's README)."""
    model = mm.load("wan2.1-t2v-14b")
    run = model.estimate(num_frames=69, height=768, width=1280, num_inference_steps=50)
    assert run.flops / 1e15 == pytest.approx(560, rel=1e-3)
    forward = model.estimate(workload="official-720p", num_inference_steps=1, guidance_scale=1)["transformer"]
    assert 3 * forward.flops / 1e12 == pytest.approx(4 * 4893.2719, rel=1e-3)


def test_the_range_is_as_wide_as_the_knowledge() -> None:
    """Named kernel and validated device: narrowest; assumed traffic or an unseen device: wider; no kernel: widest."""
    known = prediction(attention="fa2")
    assumed = prediction(attention="fa2", engine="fused")
    unseen = prediction(attention="fa2", device="5090")
    unnamed = prediction()
    assert known.half_width < assumed.half_width == unseen.half_width < unnamed.half_width
    assert not known.warnings
    assert "not named" in " ".join(unnamed.warnings)


def test_energy_and_cost_follow_from_seconds() -> None:
    """Joules are watts times seconds; the price counts by the hour."""
    found = prediction(attention="fa2", price_per_gpu_hour=3.6)
    assert found.energy_joules == pytest.approx(700 * found.seconds)
    assert found.cost == pytest.approx(found.seconds / 1000)


def test_the_document_has_what_the_contract_names(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON: predicted_seconds, range, stages with seconds and bound, assumptions; no NaN."""
    with pytest.raises(SystemExit) as done:
        main(["predict", "wan2.1-t2v-1.3b", "--device", "4090", "--format", "json"])
    assert done.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert {"predicted_seconds", "range", "stages", "peak_bytes", "assumptions"} <= set(document)
    assert document["predicted_seconds"] == pytest.approx(sum(stage["seconds"] for stage in document["stages"]))
    assert all(stage["bound"] for stage in document["stages"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("wan2.1-t2v-1.3b", "--device", "h1000"), "device=h1000"),
        (("wan2.1-t2v-1.3b", "--device", "4090", "--attention", "fa3"), "attention=fa3"),
        (("wan2.1-t2v-1.3b", "--device", "mi300x", "--attention", "fa2"), "attention=fa2"),
        (("wan2.1-t2v-1.3b", "--device", "h100", "--engine", "fast"), "engine=fast"),
        (("wan2.1-t2v-1.3b", "--device", "tpu-v7x"), "device=tpu-v7x"),
        (("wan2.1-t2v-1.3b", "--device", "h100", "--price", "nan"), "price=nan"),
        (("wan2.1-t2v-1.3b", "--device", "h100", "--price", "0"), "price=0"),
    ],
)
def test_bad_input_ends_with_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    """Unknown devices, kernels that cannot run there, impossible prices: status 2 and one line."""
    status, line = ended(capsys, *arguments)
    assert status == 2
    assert said in line
    assert line.count("\n") == 1


def test_a_prediction_loads_no_heavy_package(tmp_path: Path) -> None:
    """Neither torch nor numpy, pandas, sympy or plotly is needed for an answer."""
    script = (
        "import sys\nfrom modelmeter.cli import main\n"
        "try:\n    main(['predict', 'wan2.1-t2v-1.3b', '--device', 'h100', '-o', 'out.txt'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print([name for name in ('torch', 'numpy', 'pandas', 'sympy', 'plotly') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "out.txt").read_text(encoding="utf-8").startswith("wan2.1-t2v-1.3b on h100")
