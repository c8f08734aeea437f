"""The real pipelines of diffusers with tiny random components: the calls that they make, against the plan.

The widths and depths are tiny; strides, patches, channels of the latents and everything else that decides
what a pipeline does are the model's own. What diffusers runs is held against ``implementation=diffusers``.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from modelmeter.api import Model
from modelmeter.config import applied
from modelmeter.errors import InputError, UnavailableError
from modelmeter.models.wan2_2.animate_pipeline import whole_video
from modelmeter.stage import Pipeline, Plan
from modelmeter.verify.compare import Check, Progress, Row, match
from modelmeter.verify.real_pipelines import ANIMATE, CLASSES, VACE, Config, class_name, kind_of, recorded, video_of
from modelmeter.verify.settings import Tolerance
from modelmeter.workload import Workload

#: What decides about calls and shapes stays the model's own; the rest is as small as the classes allow.
TINY: Mapping[str, Mapping[str, Any]] = {
    "transformer": {"num_heads": 2, "dim": 24, "ffn_dim": 32, "freq_dim": 32, "text_dim": 32, "num_layers": 1},
    "vae": {"base_dim": 8, "decoder_base_dim": 8, "num_res_blocks": 1},
    "text_encoder": {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    # the width stays: it is a constant of the diffusion transformer
    "image_encoder": {"intermediate_size": 32, "num_hidden_layers": 1},
}
TINY_VACE_LAYERS = (0,)
#: As small as the motion and the face encoder can be.
TINY_ANIMATE: Mapping[str, Any] = {
    "motion_encoder_size": 16,
    "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
    "motion_style_dim": 8,
    "motion_dim": 4,
    "motion_encoder_dim": 8,
    "face_encoder_hidden_dim": 8,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 1,
}
#: What a configuration says beside the components: models that differ in no more than this run once.
DESCRIPTIVE = (
    *("id", "title", "aliases", "source", "default_workload", "workloads", "workload_keys"),
    *("official", "official_720p", "vendor", "verify_run", "local", "transformer_2"),
)
#: Most of a workload that is kept: a larger one says nothing more about the calls.
MOST = {"batch_size": 2, "text_len": 512, "num_reference_images": 2, "num_clips": 2}
#: Most steps that are run: of one transformer, and of two experts that share them.
FEW_STEPS, MANY_STEPS = 5, 50
#: Frames of a small video, before those by which the count is off 4n + 1; and its sides, in tokens.
FRAMES, ROWS, COLUMNS = 9, 2, 3
#: Tokens of text of the variations.
SHORT_TEXT = 24


def pipelines(
    model: Model,
    workload: str,
    tolerance: Tolerance,
    *,
    variations: bool = True,
    progress: Progress = lambda _: None,
) -> Iterator[Check]:
    """One check of a preset on a small video, and one of each variation of it.

    Every row is one kind of call, with the shapes of its inputs, and how often it was made. Steps, guidance, shift,
    length of the text, reference images and the frames by which the count is off 4n + 1 are those of the
    preset, up to :data:`MOST`.

    Args:
        workload: a preset.
        variations: run those of :func:`varied` too; they do not depend on the preset, so once is enough.
        progress: told what is about to run.

    Raises:
        InputError: a preset that the model does not have or cannot run, or a model without a pipeline in diffusers.
        UnavailableError: a package that the pipelines need is not installed.

    Example:
        >>> import modelmeter as mm
        >>> model = mm.load("wan2.1-t2v-1.3b")
        >>> (check,) = pipelines(model, "wan2-1-ci-tiny", Tolerance(0, require_equal=True), variations=False)
        >>> check.failures, [row.id for row in check.rows][2]
        ((), 'vae_decode(z=1x16x2x4x6)')
    """
    if not available(model):
        raise InputError("pipeline", model.config["pipeline"], f"one that diffusers has: {', '.join(CLASSES)}")
    if importlib.util.find_spec("ftfy") is None:
        raise UnavailableError("package ftfy is not installed; install it with: pip install 'modelmeter-video[verify]'")
    video = small(model.config, model.workload(workload))
    videos = {workload: video}
    if variations:
        videos |= {f"{workload} [{what}]": other for what, other in varied(model.config, video).items()}
    for name, each in videos.items():
        progress(f"{model.id} {name}: {class_name(model.config, each)}")
        yield _check(model, name, each, tolerance)


def available(model: Model) -> bool:
    """Whether diffusers has the pipeline of a model."""
    return model.config["pipeline"] in CLASSES


# -- workloads ---------------------------------------------------------------------------------------------------


def small(config: Config, video: Workload) -> Workload:
    """The same workload on a video of few frames and pixels, its rows and columns unlike.

    ``WanVACEPipeline`` makes one video at a time.

    Example:
        >>> import modelmeter as mm
        >>> model = mm.load("wan2.1-t2v-14b")
        >>> found = small(model.config, model.workload("wan2-1-512p"))
        >>> found.num_frames, found.height, found.width, found.num_inference_steps
        (12, 32, 48, 5)
    """
    most = {**MOST, "num_inference_steps": MANY_STEPS if "boundary" in config else FEW_STEPS}
    least = {key: min(value, limit) for key, limit in most.items() if (value := getattr(video, key)) is not None}
    if CLASSES[config["pipeline"]] == VACE:
        least["batch_size"] = 1
    stride = config["vae"]["scale_factor_spatial"]
    _, p_h, p_w = config["transformer"]["patch_size"]
    frames = video.num_frames if video.num_frames < FRAMES else FRAMES + (video.num_frames - 1) % 4
    sizes = {"num_frames": frames, "height": ROWS * stride * p_h, "width": COLUMNS * stride * p_w}
    return replace(video, **(least | sizes))


def varied(config: Config, video: Workload) -> dict[str, Workload]:
    """A small workload with one thing changed at a time, by what was changed: all that decides about calls."""
    text_len = video.text_len if "image_encoder" in config else SHORT_TEXT
    few = replace(video, num_frames=FRAMES, num_inference_steps=FEW_STEPS, text_len=text_len)
    # a video between two images has one frame and four at least, and so has a clip that begins with the last of another
    fewest = 5 if config["transformer"]["model_type"] == "flf2v" or video.num_clips is not None else 1
    changes: list[dict[str, Any]] = [
        {"guidance_scale": 1.0 if video.guidance_passes == 2 else 5.0},
        {"num_frames": fewest},
        {"num_frames": FRAMES - 1},
    ]
    if CLASSES[config["pipeline"]] != VACE:
        changes.append({"batch_size": 3 - video.batch_size})
    if "boundary" in config:
        # few steps hardly tell one schedule from another
        changes += [{"num_inference_steps": 40}, {"num_inference_steps": 40, "flow_shift": 12.0}]
    if video.task is not None:
        changes.append({"task": "t2v" if video.task == "i2v" else "i2v"})
    if video.num_reference_images is not None:
        changes.append({"num_reference_images": 0 if video.num_reference_images else 2})
    if video.num_clips is not None:
        changes.append({"num_clips": 3 - video.num_clips})
    return {", ".join(f"{key}={value}" for key, value in change.items()): replace(few, **change) for change in changes}


# -- what the plan says ------------------------------------------------------------------------------------------


def tiny(config: Config) -> dict[str, Any]:
    """What decides about the calls of diffusers' pipeline, with components as small as can be."""
    parts = {part: {**config[part], **sizes} for part, sizes in TINY.items() if part in config}
    if "vace_layers" in config["transformer"]:
        parts["transformer"]["vace_layers"] = list(TINY_VACE_LAYERS)
    if CLASSES[config["pipeline"]] == ANIMATE:
        parts["transformer"] |= TINY_ANIMATE
    others = {key: value for key, value in config.items() if key not in DESCRIPTIVE}
    return {**others, "implementation": "diffusers", **parts}


def planned(family: Pipeline, config: Config, plan: Plan) -> Counter[str]:
    """How often a plan makes each kind of call, on the components of a configuration; and the video that it gives."""
    components, references = family.components(config), family.references(config)
    calls: Counter[str] = Counter()
    for stage in plan.stages:
        method = references[stage.id]["diffusers"].method
        for call in stage.calls:
            inputs = components[stage.component].entry(method).inputs(**call.dims)
            calls[kind_of(stage.id, inputs)] += call.times
    video = plan.workload
    frames = video.num_frames if video.num_clips is None else whole_video(video)
    calls[video_of((video.batch_size, frames, 3, video.height, video.width))] += 1
    return +calls  # without those that are made no time, as of an expert that has no steps


# -- both --------------------------------------------------------------------------------------------------------


def _check(model: Model, workload: str, video: Workload, tolerance: Tolerance) -> Check:
    plan = model.pipeline.plan(applied(model.config, {"implementation": "diffusers"}), video)
    config = tiny(model.config)
    analytic = planned(model.pipeline, config, plan)
    real = recorded(json.dumps(config), replace(video, flow_shift=plan.workload.flow_shift))
    matched = match(analytic, real.calls)
    place = f"{model.id} {workload}"
    refused = (f"{place}: {class_name(config, video)} cannot run it: {real.refused}",) if real.refused else ()
    return Check(
        kind="pipelines",
        reference="diffusers",
        tolerance=tolerance,
        rows=tuple(Row(model.id, workload, _stage(kind), kind, "calls", *both) for kind, *both in matched.pairs),
        missing=tuple(f"{place} {kind}: {real.calls[kind]} calls" for kind in matched.missing),
        extra=tuple(f"{place} {kind}: {analytic[kind]} calls" for kind in matched.extra),
        broken_laws=refused,
    )


def _stage(kind: str) -> str:
    return kind.partition("(")[0].partition(".")[0]
