"""The real pipelines of diffusers against the plans: they agree, and every way to be wrong shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import diffusers
import pytest
import torch
import transformers

import modelmeter as mm
from modelmeter.api import Model
from modelmeter.errors import InputError, UnavailableError
from modelmeter.models import registry
from modelmeter.stage import Plan, Stage
from modelmeter.verify import pipelines as verify_pipelines
from modelmeter.verify.compare import Check
from modelmeter.verify.pipelines import pipelines, small, tiny, varied
from modelmeter.verify.real_pipelines import asked, build
from modelmeter.verify.settings import Tolerance

EQUAL = Tolerance(0, require_equal=True)
TEXT_TO_VIDEO = {"text_encoder", "transformer", "vae_decode"}
EXPERTS = TEXT_TO_VIDEO | {"transformer_2"}
IMAGE_TO_VIDEO = TEXT_TO_VIDEO | {"image_encoder", "vae_encode"}
#: What the variations of each model run between them.
STAGES = {
    "wan2.1-t2v-1.3b": TEXT_TO_VIDEO,
    "wan2.1-t2v-14b": TEXT_TO_VIDEO,
    "wan2.1-i2v-14b-480p": IMAGE_TO_VIDEO,
    "wan2.1-i2v-14b-720p": IMAGE_TO_VIDEO,
    "wan2.1-flf2v-14b": IMAGE_TO_VIDEO,
    "wan2.1-vace-1.3b": TEXT_TO_VIDEO | {"vae_encode"},
    "wan2.1-vace-14b": TEXT_TO_VIDEO | {"vae_encode"},
    "wan2.2-t2v-a14b": EXPERTS,
    "wan2.2-i2v-a14b": EXPERTS | {"vae_encode"},
    "wan2.2-ti2v-5b": TEXT_TO_VIDEO | {"vae_encode"},
    "wan2.2-animate-14b": IMAGE_TO_VIDEO,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Kernels this small only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checks(model: Model, workload: str = "official-480p", *, variations: bool = False) -> list[Check]:
    """All checks of a model at a workload."""
    return list(pipelines(model, workload, EQUAL, variations=variations))


def failures(model: Model, workload: str = "official-480p") -> tuple[str, ...]:
    """Why the check of a preset fails."""
    (check,) = checks(model, workload)
    return check.failures


@pytest.mark.parametrize("model", STAGES)
def test_every_call_of_the_real_pipeline_is_planned(model: str) -> None:
    """The real pipeline makes the calls of the plan, with their shapes and as often, whatever is changed about it."""
    found = [*checks(mm.load(model), variations=True), *checks(mm.load(model), "wan2-1-512p")]
    assert [line for check in found for line in check.failures] == []
    assert {row.stage for check in found for row in check.rows} == STAGES[model]
    assert all(row.reference for check in found for row in check.rows)


def test_what_is_varied_decides_about_calls() -> None:
    """Guidance, one frame, rounded frames, two videos, the shift, the task, reference images and clips all vary."""
    changes = [
        change
        for name in STAGES
        for change in varied(mm.load(name).config, small(mm.load(name).config, mm.load(name).workload()))
    ]
    assert set(changes) == {
        "guidance_scale=1.0",
        "guidance_scale=5.0",
        "num_frames=1",
        "num_frames=5",
        "num_frames=8",
        "batch_size=2",
        "num_inference_steps=40",
        "num_inference_steps=40, flow_shift=12.0",
        "task=i2v",
        "num_reference_images=2",
        "num_clips=2",
    }


@pytest.mark.parametrize("model", ["wan2.1-i2v-14b-480p", "wan2.2-ti2v-5b"])
def test_tiles_change_no_call_of_the_pipeline(model: str) -> None:
    """Where the VAE runs tile by tile, the pipeline calls it as before."""
    (tiled,), (whole,) = checks(mm.load(model, "vae_tiling=true")), checks(mm.load(model))
    assert (tiled.failures, tiled.rows) == ((), whole.rows)


def test_models_that_differ_in_what_is_made_tiny_run_once() -> None:
    """The two sizes of a model share the runs of one real pipeline."""
    list(pipelines(mm.load("wan2.1-t2v-1.3b"), "official-480p", EQUAL))
    ran = verify_pipelines.recorded.cache_info().misses
    list(pipelines(mm.load("wan2.1-t2v-14b"), "official-480p", EQUAL))
    assert verify_pipelines.recorded.cache_info().misses == ran


# -- every way to be wrong ---------------------------------------------------------------------------------------


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Model]:
    """Load a model whose plans are changed."""

    def changed(name: str, edit: Callable[[Plan], Plan], *overrides: str) -> Model:
        model = mm.load(name, *overrides)
        right = model.pipeline
        wrong = replace(right, plan=lambda config, video: edit(right.plan(config, video)))
        monkeypatch.setitem(registry.PIPELINES, model.config["pipeline"], wrong)
        return model

    return changed


def with_stage(plan: Plan, id: str, edit: Callable[[Stage], Stage | None]) -> Plan:
    """The plan with one stage edited, or left out."""
    stages = [edit(stage) if stage.id == id else stage for stage in plan.stages]
    assert stages != list(plan.stages)
    return replace(plan, stages=tuple(stage for stage in stages if stage is not None))


def times(stage: Stage, factor: float) -> Stage:
    """The stage with its calls made more or less often."""
    return replace(stage, calls=tuple(replace(call, times=int(call.times * factor)) for call in stage.calls))


def sized(stage: Stage, **dims: int) -> Stage:
    """The stage with other sizes."""
    return replace(stage, calls=tuple(replace(call, dims={**call.dims, **dims}) for call in stage.calls))


def test_a_dropped_guidance_pass_shows(change: Callable[..., Model]) -> None:
    """Half of the transformer's calls is a failure that names the transformer and both counts."""
    model = change("wan2.1-t2v-1.3b", lambda plan: with_stage(plan, "transformer", lambda stage: times(stage, 0.5)))
    (line,) = failures(model)
    assert "official-480p transformer(" in line
    assert "calls analytic 5, reference 10" in line


def test_a_dropped_negative_prompt_shows(change: Callable[..., Model]) -> None:
    """One encoded prompt where two are needed is a failure that names the text encoder."""
    model = change("wan2.1-t2v-1.3b", lambda plan: with_stage(plan, "text_encoder", lambda stage: times(stage, 0.5)))
    (line,) = failures(model)
    assert "text_encoder(" in line
    assert "calls analytic 1, reference 2" in line


def test_an_expert_with_other_steps_shows(change: Callable[..., Model]) -> None:
    """Steps that move from one expert to the other are failures that name both."""

    def moved(plan: Plan) -> Plan:
        high, low = (stage for stage in plan.stages if stage.id.startswith("transformer"))
        plan = with_stage(plan, high.id, lambda stage: replace(stage, calls=low.calls))
        return with_stage(plan, low.id, lambda stage: replace(stage, calls=high.calls))

    named = [line.split("(")[0].split()[-1] for line in failures(change("wan2.2-t2v-a14b", moved), "wan2-1-512p")]
    assert named == ["transformer", "transformer_2"]


@pytest.mark.parametrize("name", ["wan2.2-t2v-a14b", "wan2.2-i2v-a14b"])
def test_the_schedule_of_the_official_code_shows(name: str) -> None:
    """Steps that are split by the official schedule are one off in the real pipeline, whatever the preset."""
    model = mm.load(name)
    differences = model.config["differences"]
    official = {**differences["first_sigma"], "diffusers": differences["first_sigma"]["official"]}
    other = replace(model, config={**model.config, "differences": {**differences, "first_sigma": official}})
    failing = {check.rows[0].workload: check.failures for check in checks(other, "wan2-1-ci-tiny", variations=True)}
    lines = failing["wan2-1-ci-tiny [num_inference_steps=40]"]
    assert ["transformer(" in lines[0], "transformer_2(" in lines[1], len(lines)] == [True, True, 2]
    assert not any(failures for workload, failures in failing.items() if "_steps=40]" not in workload)


def test_an_expert_without_a_step_is_not_called(change: Callable[..., Model]) -> None:
    """One step is the high-noise expert's: the check passes without the other, and fails where it has a call."""
    (check,) = checks(mm.load("wan2.2-t2v-a14b"), "wan2-1-ci-tiny")
    assert (check.failures, {row.stage for row in check.rows}) == ((), TEXT_TO_VIDEO)

    def called(plan: Plan) -> Plan:
        high = next(stage for stage in plan.stages if stage.id == "transformer")
        return with_stage(plan, "transformer_2", lambda stage: replace(stage, calls=high.calls))

    (line,) = failures(change("wan2.2-t2v-a14b", called), "wan2-1-ci-tiny")
    assert line.startswith("extra: wan2.2-t2v-a14b wan2-1-ci-tiny transformer_2(")


@pytest.mark.parametrize(
    ("model", "stage", "dims", "planned", "real"),
    [
        ("wan2.1-i2v-14b-480p", "vae_encode", {"frames": 1}, "x=1x3x1x32x48", "x=1x3x9x32x48"),
        ("wan2.1-i2v-14b-480p", "vae_decode", {"frames": 2}, "z=1x16x2x4x6", "z=1x16x3x4x6"),
        ("wan2.1-i2v-14b-480p", "transformer", {"image_tokens": 256}, "image=1x256x1280", "image=1x257x1280"),
        ("wan2.1-flf2v-14b", "image_encoder", {"batch": 1}, "values=1x3x224x224", "values=2x3x224x224"),
        ("wan2.1-vace-1.3b", "transformer", {"frames": 4}, "hidden_states=1x96x4x4x6", "hidden_states=1x96x3x4x6"),
        ("wan2.1-t2v-1.3b", "text_encoder", {"text_len": 226}, "input_ids=1x226", "input_ids=1x512"),
        ("wan2.2-ti2v-5b", "transformer", {"columns": 2}, "timestep=1x12", "timestep=1x18"),
    ],
)
def test_a_wrong_size_shows(
    change: Callable[..., Model], model: str, stage: str, dims: dict[str, int], planned: str, real: str
) -> None:
    """A size that the real pipeline does not use is a call too many and one too few, both shapes named."""
    wrong = change(model, lambda plan: with_stage(plan, stage, lambda found: sized(found, **dims)))
    missing, extra = failures(wrong)
    assert missing.startswith(f"missing: {model} official-480p {stage}(")
    assert extra.startswith(f"extra: {model} official-480p {stage}(")
    assert real in missing
    assert planned in extra


@pytest.mark.parametrize("stage", sorted(IMAGE_TO_VIDEO))
def test_a_stage_left_out_shows(change: Callable[..., Model], stage: str) -> None:
    """Every stage that runs and is not planned is missing by name."""
    (line,) = failures(change("wan2.1-i2v-14b-480p", lambda plan: with_stage(plan, stage, lambda _: None)))
    assert line.startswith(f"missing: wan2.1-i2v-14b-480p official-480p {stage}(")


def test_a_stage_that_does_not_run_shows(change: Callable[..., Model]) -> None:
    """A stage that is planned and does not run is extra by name."""
    encode = next(stage for stage in mm.load("wan2.1-i2v-14b-480p").estimate().plan.stages if stage.id == "vae_encode")
    (line,) = failures(change("wan2.1-t2v-1.3b", lambda plan: replace(plan, stages=(*plan.stages, encode))))
    assert line.startswith("extra: wan2.1-t2v-1.3b official-480p vae_encode(")


def test_a_reference_image_that_is_not_encoded_shows(change: Callable[..., Model]) -> None:
    """Encoding the control video but not the reference images is a failure that names the shape of an image."""
    model = change(
        "wan2.1-vace-1.3b",
        lambda plan: with_stage(plan, "vae_encode", lambda stage: replace(stage, calls=stage.calls[:1])),
        "num_reference_images=2",
    )
    assert failures(model) == (
        "missing: wan2.1-vace-1.3b official-480p vae_encode(x=1x3x1x32x48): 2 calls, which the reference runs",
    )


def test_frames_that_are_not_rounded_show(change: Callable[..., Model]) -> None:
    """A plan that keeps 12 frames promises another video than the real pipeline gives."""
    wrong = change("wan2.1-t2v-1.3b", lambda plan: replace(plan, workload=replace(plan.workload, num_frames=12)))
    missing, extra = failures(wrong, "wan2-1-512p")
    assert "vae_decode.video(1x13x3x32x48)" in missing
    assert "vae_decode.video(1x12x3x32x48)" in extra


def test_a_plan_of_nothing_fails(change: Callable[..., Model]) -> None:
    """A plan without stages does not pass for want of something to compare."""
    model = change("wan2.1-t2v-1.3b", lambda plan: replace(plan, stages=()))
    assert len(failures(model)) == len(TEXT_TO_VIDEO)


def test_a_model_that_the_real_pipeline_cannot_run_fails() -> None:
    """What the real pipeline refuses is a failure with its own words, not a traceback and not a pass."""
    (*_, line) = failures(mm.load("wan2.1-t2v-1.3b", "transformer.out_dim=8"))
    assert line.startswith("wan2.1-t2v-1.3b official-480p: WanPipeline cannot run it: ")


def test_vace_makes_one_video() -> None:
    """The real pipeline refuses two prompts, so a batch is cut to one video for it and for no other."""
    model = mm.load("wan2.1-vace-1.3b")
    video = small(model.config, model.workload(batch_size=2))
    assert video.batch_size == 1
    assert small(mm.load("wan2.1-t2v-1.3b").config, replace(video, batch_size=3)).batch_size == 2
    config = tiny(model.config)
    pipe = build(config, replace(video, flow_shift=3.0), Counter())
    with pytest.raises(ValueError, match="list of prompts"):
        pipe(**asked(config, video) | {"prompt": ["one", "two"]})


# -- around it ---------------------------------------------------------------------------------------------------


def test_the_packages_are_left_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    """Random numbers, threads and logging are as before, and nothing is printed."""
    model = mm.load("wan2.1-t2v-1.3b")
    verify_pipelines.recorded.cache_clear()

    def state() -> Sequence[object]:
        logging = diffusers.utils.logging.get_verbosity(), transformers.logging.get_verbosity()
        return torch.get_rng_state().tolist(), torch.get_num_threads(), torch.is_grad_enabled(), logging

    before = state()
    assert failures(model, "wan2-1-ci-tiny") == ()
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_progress_names_the_pipeline() -> None:
    """What is about to run is told by model, workload and class."""
    told: list[str] = []
    list(pipelines(mm.load("wan2.2-ti2v-5b"), "wan2-1-ci-tiny", EQUAL, progress=told.append))
    assert told[0] == "wan2.2-ti2v-5b wan2-1-ci-tiny: WanPipeline"
    assert "wan2.2-ti2v-5b wan2-1-ci-tiny [task=i2v]: WanImageToVideoPipeline" in told


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ftfy, which diffusers' pipelines call, is absent, one line says so."""
    monkeypatch.setattr(verify_pipelines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="ftfy is not installed"):
        failures(mm.load("wan2.1-t2v-1.3b"))


def test_a_model_without_a_pipeline_in_diffusers_is_refused() -> None:
    """A model whose pipeline diffusers does not have is refused, not passed."""
    model = mm.load("wan2.1-t2v-1.3b")
    other = replace(model, config={**model.config, "pipeline": "SomePipeline"})
    assert not verify_pipelines.available(other)
    with pytest.raises(InputError, match="pipeline=SomePipeline"):
        failures(other)
