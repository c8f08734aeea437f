"""Wan2.2 Animate: what was measured, every module and kernel of the real class, and what must fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import WanAnimateTransformer3DModel as Real
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import modelmeter as mm
from modelmeter import nn
from modelmeter.api import Model
from modelmeter.compiled import compile_forward
from modelmeter.models.wan2_2 import animate_pipeline, face_encoder, motion_encoder
from modelmeter.models.wan2_2.animate import ANIMATE_KEEP_IN_FP32, WanAnimateTransformer3DModel
from modelmeter.verify import flop_counter
from modelmeter.verify.allocations import keep_in_fp32, track
from modelmeter.verify.flop_counter import count, parameters
from modelmeter.verify.pipelines import planned, small, tiny
from modelmeter.verify.real_pipelines import asked, build, video_of
from modelmeter.verify.reference import arguments
from modelmeter.verify.run import verify

ID = "wan2.2-animate-14b"
META = torch.device("meta")

#: FLOPs of one forward of a clip of 77 and of 81 frames, measured with FlopCounterMode on diffusers 0.42.1 and (77
#: frames) on the official WanAnimateModel, torch 2.13, on meta.
FORWARDS = [
    (77, 480, 832, 1_717_020_687_525_888),
    (77, 720, 1280, 6_607_140_014_450_688),
    (81, 480, 832, 1_842_499_932_719_104),
    (81, 720, 1280, 7_155_193_139_759_104),
]
#: FLOPs of modules in one forward of 77 frames, from the same measurements: at 480x832 and at 720x1280.
MODULES = {
    "patch_embedding": (48_306_585_600, 111_476_736_000),
    "pose_patch_embedding": (20_447_232_000, 47_185_920_000),
    "condition_embedder": (52_898_693_120, 52_898_693_120),
    "condition_embedder.image_embedder": (4_210_688_000, 4_210_688_000),
    "motion_encoder": (3_024_576_636_928, 3_024_576_636_928),
    "face_encoder": (3_292_528_640, 3_292_528_640),
    "blocks.0": (42_156_342_476_800, 163_507_078_758_400),
    "blocks.0.attn1": (28_849_766_400_000, 132_905_041_920_000),
    "blocks.0.attn2": (4_031_711_641_600, 9_198_503_526_400),
    "blocks.0.ffn": (9_274_864_435_200, 21_403_533_312_000),
    "face_adapter.0": (3_449_499_648_000, 7_945_986_048_000),
    "proj_out": (21_469_593_600, 49_545_216_000),
}
#: FLOPs by operator of one forward of 77 frames at 480x832, and at 720x1280.
BY_KIND = {
    "conv": (3_095_589_525_504, 3_185_498_363_904),
    "linear": (814_080_724_701_184 + 31_539_200, 1_874_244_302_147_584 + 31_539_200),
    "attention": (899_844_341_760_000, 4_729_710_182_400_000),
}
#: Parameters by part, counted on both classes.
PARAMS = {
    "": 17_274_816_884,
    "rope": 0,
    "patch_embedding": 742_400,
    "pose_patch_embedding": 332_800,
    "condition_embedder": 240_259_840,
    "motion_encoder": 22_736_436,
    "face_encoder": 17_842_176,
    "blocks": 16_153_538_560,
    "blocks.0": 403_838_464,
    "face_adapter": 839_026_688,
    "norm_out": 0,
    "proj_out": 327_744,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Kernels as small as those of the real pipeline only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- what was measured -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "height", "width", "flops"), FORWARDS)
def test_a_forward_costs_what_was_measured(frames: int, height: int, width: int, flops: int) -> None:
    """One forward of a clip costs what both implementations' classes were measured to cost."""
    for implementation in ("official", "diffusers"):
        model = mm.load(ID, f"implementation={implementation}")
        estimate = model.estimate(num_frames=frames, height=height, width=width, num_inference_steps=1)
        assert estimate["transformer"].flops == flops
        assert estimate["transformer"].params == PARAMS[""]


@pytest.mark.parametrize(("place", "preset"), [(0, "official-480p"), (1, "official-720p")])
def test_modules_and_kinds_cost_what_was_measured(place: int, preset: str) -> None:
    """Every part that was measured, and every kind of operator, has the measured FLOPs; together they are all."""
    estimate = mm.load(ID).estimate(workload=preset, num_inference_steps=1)
    for path, flops in MODULES.items():
        assert estimate[f"transformer.{path}"].flops == flops[place]
    by_kind = estimate["transformer"].flops_by_kind
    assert {kind: flops for kind, flops in by_kind.items() if flops} == {k: v[place] for k, v in BY_KIND.items()}
    assert estimate["transformer.motion_encoder"].own_flops == 31_539_200


def test_parameters_are_those_of_both_classes() -> None:
    """Every part has the parameters that were counted, and those kept in float32 make the measured bytes."""
    transformer = mm.load(ID).components["transformer"]
    modules = dict(transformer.named_modules())
    assert {path: modules[path].params for path in PARAMS} == PARAMS
    weights = [weight for _, weight in transformer.named_parameters()]
    assert sum(weight.numel() for weight in weights if weight.dtype == nn.float32) == 29_207_040
    assert sum(weight.numel() * weight.dtype.itemsize for weight in weights) == 34_608_047_848


def test_the_vendor_s_default_costs_what_was_measured() -> None:
    """One clip of 77 frames at 720p in 20 steps costs, stage by stage, the sum of what was measured."""
    estimate = mm.load(ID).estimate()
    assert {stage.id: stage.flops for stage in estimate.stages} == {
        "text_encoder": 9_689_446_219_776,
        "image_encoder": 324_143_836_160,
        "vae_encode": 732_279_678_566_400,
        "transformer": 132_142_800_289_013_760,
        "vae_decode": 607_768_657_920_000,
    }
    assert estimate.flops == 133_492_862_215_556_096
    assert (estimate.geometry.latent_frames, estimate.geometry.tokens) == (20, 75_600)
    assert estimate.warnings == ()


@pytest.mark.parametrize(
    ("naive", "frames", "height", "width"),
    [
        (6_016_864_299_909_120, 77, 720, 1280),
        (1_686_376_373_944_320, 81, 480, 832),
        (6_540_497_070_981_120, 81, 720, 1280),
    ],
)
def test_naive_counts_miss_the_reference_frame_and_the_face(naive: int, frames: int, height: int, width: int) -> None:
    """As image to video of as many latent frames it would cost the measured naive counts, which are less."""
    keys = {"height": height, "width": width, "num_inference_steps": 1, "guidance_scale": 1}
    trunk = mm.load("wan2.1-i2v-14b-720p").estimate(num_frames=frames, **keys)["transformer"].flops
    assert trunk == naive < mm.load(ID).estimate(num_frames=77, **keys)["transformer"].flops


# -- clips -------------------------------------------------------------------------------------------------------


def calls(*overrides: str, **keys: Any) -> dict[str, int]:
    """How often every stage calls its component."""
    return {stage.id: stage.calls for stage in mm.load(ID, *overrides).estimate(**keys).stages}


def test_only_the_official_code_encodes_the_character_for_every_clip() -> None:
    """Of three clips each is encoded, denoised and decoded; the character once in diffusers, thrice officially."""
    clips = {"transformer": 60, "vae_decode": 3}
    assert calls(num_clips=3) == {"text_encoder": 2, "image_encoder": 3, "vae_encode": 3 + 6} | clips
    assert calls("implementation=diffusers", num_clips=3) == (
        {"text_encoder": 1, "image_encoder": 1, "vae_encode": 1 + 6} | clips
    )
    (warning,) = mm.load(ID).estimate(num_clips=3).warnings
    assert warning == "num_clips=3: 229 frames in all; two clips share 1 frame"


def test_guidance_doubles_the_forwards_and_nothing_else_is_said() -> None:
    """With guidance a step runs two forwards; without it the official loop runs one, so that no warning is due."""
    assert calls(guidance_scale=5)["transformer"] == 2 * calls()["transformer"]
    assert mm.load(ID).estimate(guidance_scale=1).warnings == ()


def test_frames_that_are_not_rounded_are_faces_all_the_same() -> None:
    """The official code encodes every picture of the face, also those whose frames the VAE drops; diffusers rounds."""
    per_frame = mm.load(ID).estimate(num_inference_steps=1)["transformer.motion_encoder"].flops // 77
    for implementation, faces in (("official", 80), ("diffusers", 81)):
        model = mm.load(ID, f"implementation={implementation}")
        estimate = model.estimate(num_frames=80, num_inference_steps=1)
        assert estimate["transformer.motion_encoder"].flops == faces * per_frame


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"num_clips": 0}, "^num_clips=0: allowed is an integer from 1 to"),
        ({"num_clips": 1.5}, "^num_clips=1.5 "),
        ({"num_frames": 1}, "^num_frames=1: allowed is a clip longer than"),
        ({"text_len": 226}, "^text_len=226: allowed is exactly 512"),
        ({"height": 721}, "nearest: 720 or 736"),
    ],
)
def test_wrong_workloads_are_refused(keys: dict[str, Any], line: str) -> None:
    """What no clip can be is refused in one line that names the key."""
    with pytest.raises(mm.InputError, match=line):
        mm.load(ID).estimate(**keys)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("transformer.num_layers=7", "a multiple of inject_face_latents_blocks = 5"),
        ("transformer.motion_encoder_size=500", "one of 4, 8, 16"),
        ("transformer.motion_dim=0", "an integer from 1"),
        ("transformer.in_dim=35", "an even number from 6 up"),
        ("transformer.patch_size=[2,2,2]", "1 frame"),
    ],
)
def test_wrong_sizes_are_refused(override: str, line: str) -> None:
    """Sizes that the real class cannot have are refused when the model is loaded."""
    with pytest.raises(mm.InputError, match=line):
        mm.load(ID, override)


def test_other_models_have_no_clips() -> None:
    """The number of clips is a key of models that generate clips."""
    with pytest.raises(mm.InputError, match="num_clips"):
        mm.load("wan2.1-t2v-14b", "num_clips=2")


# -- the real class ----------------------------------------------------------------------------------------------


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Small arguments of the class."""
    heads, channels = draw(st.integers(1, 3)), 2 * draw(st.integers(3, 20))
    latents, every = draw(st.integers(1, 20)), draw(st.integers(1, 3))
    side = draw(st.sampled_from([4, 8, 16, 32]))
    sides = [s for s in (4, 8, 16, 32) if s <= side]
    widths = {
        "out_channels": st.integers(1, 40),
        "text_dim": st.integers(1, 60),
        "freq_dim": st.integers(2, 60),
        "ffn_dim": st.integers(1, 150),
        "image_dim": st.integers(1, 30),
        "motion_style_dim": st.integers(2, 20),
        "motion_dim": st.integers(2, 8),
        "motion_encoder_dim": st.integers(8, 20),
        "face_encoder_hidden_dim": st.integers(2, 20),
        "face_encoder_num_heads": st.integers(1, 4),
        "motion_encoder_batch_size": st.integers(1, 9),
    }
    return {
        "patch_size": (1, draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "num_attention_heads": heads,
        "attention_head_dim": channels,
        "added_kv_proj_dim": heads * channels,
        "in_channels": 2 * latents + 4,
        "latent_channels": latents,
        "inject_face_latents_blocks": every,
        "num_layers": every * draw(st.integers(1, 2)),
        "cross_attn_norm": draw(st.booleans()),
        "motion_encoder_size": side,
        "motion_encoder_channel_sizes": {str(s): draw(st.integers(2, 10)) for s in sides},
        **{name: draw(strategy) for name, strategy in widths.items()},
    }


@st.composite
def clips(draw: st.DrawFn) -> dict[str, int]:
    """Sizes of a forward on a clip of any number of frames."""
    faces = draw(st.integers(2, 40))
    return {
        "batch": draw(st.integers(1, 3)),
        "frames": (faces - 1) // 4 + 2,
        "rows": draw(st.integers(1, 20)),
        "columns": draw(st.integers(1, 20)),
        "text_len": 512,
        "image_tokens": draw(st.integers(1, 40)),
        "face_frames": faces,
    }


def real_class(config: dict[str, Any]) -> torch.nn.Module:
    """The real class on meta."""
    with META:
        return Real(**config)


def compare(config: dict[str, Any], at: dict[str, int]) -> None:
    """FLOPs and parameters of every module are equal, from closed forms and from a trace on numbers."""
    ours, real = WanAnimateTransformer3DModel(**config), real_class(config)
    counted = count(real, **arguments(real, ours.inputs(**at), META))
    assert counted.uncounted_ops == ()
    form = compile_forward(ours, at)
    assert form.covers(at)
    assert form.module_flops(at) == counted.flops
    assert {path: module.params for path, module in ours.named_modules()} == parameters(real)
    assert counted.flops["motion_encoder"] > 0 < counted.flops["face_adapter.0"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=configurations(), at=clips())
def test_random_configurations(config: dict[str, Any], at: dict[str, int]) -> None:
    """25 random small configurations at random sizes equal the real class in every module."""
    compare(config, at)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=configurations(), at=clips())
def test_many_random_configurations(config: dict[str, Any], at: dict[str, int]) -> None:
    """500 random small configurations at random sizes equal the real class in every module."""
    compare(config, at)


SMALL: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "added_kv_proj_dim": 64,
    "ffn_dim": 96,
    "num_layers": 4,
    "inject_face_latents_blocks": 2,
    "text_dim": 48,
    "image_dim": 24,
    "motion_encoder_size": 16,
    "motion_encoder_channel_sizes": {"4": 5, "8": 6, "16": 7},
    "motion_style_dim": 10,
    "motion_dim": 4,
    "motion_encoder_dim": 12,
    "face_encoder_hidden_dim": 6,
    "face_encoder_num_heads": 2,
}
Kernel = tuple[str, str, Any, Any, Any]


def sizes_of(batch: int, faces: int) -> dict[str, int]:
    """Sizes of a small forward with that many pictures of the face."""
    frames = (faces - 1) // 4 + 2
    grid = {"batch": batch, "frames": frames, "rows": 4, "columns": 6}
    return {**grid, "text_len": 512, "image_tokens": 17, "face_frames": faces}


def unrolled(body: nn.Body, path: str = "", live: Any = 0) -> Iterator[Kernel]:
    """Every kernel of a call in the order they run: name, module, live bytes, bytes read and written."""
    for item in body.items:
        if isinstance(item, nn.Op):
            yield item.name, path, live + item.live, item.bytes_read, item.bytes_written
        else:
            yield from unrolled(item.body, f"{path}.{item.name}" if path else item.name, live + item.live)


def both(precision: str, at: dict[str, int]) -> tuple[list[Kernel], list[Kernel], WanAnimateTransformer3DModel]:
    """Our kernels, the tracked ones of the real class, and our model."""
    ours, real = WanAnimateTransformer3DModel(**SMALL), real_class(SMALL)
    ours.to(getattr(nn, precision), keep_in_fp32=ANIMATE_KEEP_IN_FP32)
    keep_in_fp32(real, getattr(torch, precision))
    inputs = ours.inputs(**at)
    tensors = {
        name: torch.empty(tuple(map(int, map(str, x.shape))), dtype=getattr(torch, x.dtype.name), device=META)
        for name, x in inputs.items()
    }
    tracked = [(k.name, k.path, k.live, k.bytes_read, k.bytes_written) for k in track(real, **tensors).kernels]
    return list(unrolled(nn.trace(ours, **inputs).body)), tracked, ours


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("batch", "faces"), [(1, 13), (1, 17), (1, 16), (1, 1), (1, 5), (2, 13), (2, 14), (2, 3), (3, 8)]
)
def test_kernel_by_kernel(precision: str, batch: int, faces: int) -> None:
    """Every kernel, its module, the bytes alive after it and those it moves are those of the real class.

    Pictures of the face fill one call of the motion encoder or several, the last of them whole, in part, or by one.
    """
    at = sizes_of(batch, faces)
    ours, tracked, model = both(precision, at)
    assert ours == tracked
    assert len(tracked) > 300
    assert compile_forward(model, at).peak(at).live == max(live for _, _, live, _, _ in tracked)


def test_a_closed_form_holds_for_one_number_of_face_batches() -> None:
    """Kernels on symbols, evaluated, are those on numbers; where the motion encoder runs oftener, the form refuses."""
    model, at = WanAnimateTransformer3DModel(**SMALL), sizes_of(2, 13)
    form = compile_forward(model, at)
    other = {**at, "rows": 7, "columns": 3, "batch": 1}
    for sizes in (at, {**at, "rows": 7, "columns": 3}):
        numbers = list(unrolled(nn.trace(model, memo=False, **model.inputs(**sizes)).body))
        evaluated = [
            (name, path, *(nn.evaluate(value, sizes) for value in values))
            for name, path, *values in unrolled(form.body)
        ]
        assert evaluated == numbers
    assert not form.covers(other)
    assert not form.covers({**at, "frames": 9, "face_frames": 29})
    assert not form.covers({**at, "face_frames": 14})
    with pytest.raises(ValueError, match="outside these closed forms"):
        form.flops({**at, "face_frames": 14})


@given(faces=st.integers(2, 50).map(lambda n: 4 * n + 1), batch=st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_flops_do_not_depend_on_how_faces_are_batched(faces: int, batch: int) -> None:
    """The closed form of the FLOPs is the same for any number of calls of the motion encoder."""
    model = WanAnimateTransformer3DModel(**SMALL)
    forms = [compile_forward(model, sizes_of(batch, each)) for each in (faces, 77)]
    assert forms[0].total == forms[1].total


# -- the real pipeline -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["animate", "replace"])
@pytest.mark.parametrize("shared", [1, 5])
def test_both_modes_and_both_overlaps_make_the_same_calls(mode: str, shared: int) -> None:
    """To replace somebody, or to begin a clip with five frames of another, costs a clip no other calls."""
    model = mm.load(ID, "implementation=diffusers")
    video = small(model.config, model.workload("official-480p", num_clips=2))
    video = replace(video, num_frames=13, num_inference_steps=1)
    plan = model.plan(video)
    config, made = tiny(model.config), Counter[str]()
    pipe = build(config, plan.workload, made)
    given = asked(config, video)
    frames = 2 * (13 - shared) + shared
    driving = [Image.new("RGB", (40, 24))] * frames
    given |= {"mode": mode, "prev_segment_conditioning_frames": shared, "pose_video": driving, "face_video": driving}
    if mode == "replace":
        given |= {"background_video": driving, "mask_video": driving}
    with torch.random.fork_rng(devices=[]):
        result = pipe(**given).frames
    assert tuple(result.shape) == (1, frames, 3, video.height, video.width)
    expected = planned(model.pipeline, config, plan)
    del expected[video_of((1, animate_pipeline.whole_video(plan.workload), 3, video.height, video.width))]
    assert made == expected


# -- broken on purpose -------------------------------------------------------------------------------------------

SHALLOW = ["transformer.num_layers=5", "text_encoder.num_layers=1", "image_encoder.num_hidden_layers=1"]
NARROW = [
    "transformer.dim=64",
    "transformer.num_heads=2",
    "transformer.ffn_dim=64",
    "transformer.motion_encoder_size=32",
]
VAE = ["vae.base_dim=8", "vae.decoder_base_dim=8"]


def failures(*kinds: str) -> tuple[str, ...]:
    """What a verification of a shallow model finds."""
    model: Model = mm.load(ID, *SHALLOW, *NARROW, *VAE)
    return verify([model], kinds or ("layers",), workload="wan2-1-512p").failures


def test_a_shallow_model_passes() -> None:
    """Nothing broken: the verifications that the next tests break pass."""
    assert failures("layers", "end2end", "core") == ()


def forgetting_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """No latent frame of the character."""
    monkeypatch.setattr(animate_pipeline, "REFERENCE_FRAMES", 0)


def blurring_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blur of three taps."""
    monkeypatch.setattr(motion_encoder, "BLUR_TAPS", 3)


def looking_less_far_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions over two steps in time."""
    monkeypatch.setattr(face_encoder, "KERNEL_SIZE", 2)
    monkeypatch.setattr(face_encoder, "TIME_CAUSAL_PADDING", (1, 0))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (blurring_less, "transformer.motion_encoder.res_blocks.0.conv2"),
        (looking_less_far_back, "transformer.face_encoder.conv1_local"),
    ],
)
def test_a_broken_module_is_found_and_named(
    change: Callable[[pytest.MonkeyPatch], None], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constant of a module that is not the real one fails, and the module is named."""
    change(monkeypatch)
    assert any(f" {named}: " in line for line in failures())


def test_a_forgotten_reference_frame_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan without the latent frame of the character is not what the real pipeline calls."""
    forgetting_the_reference(monkeypatch)
    lines = verify([mm.load(ID)], ["pipelines"], workload="official-480p").failures
    assert any(line.startswith("missing:") and "transformer(" in line for line in lines)


def test_an_uncounted_factorization_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """QR has no formula in PyTorch: were it not known to need none, the verification would fail for it."""
    monkeypatch.setattr(flop_counter, "_ALLOWED", flop_counter._ALLOWED - {"linalg_qr"})
    assert failures() == ("uncounted operator: aten.linalg_qr ran without a FLOP formula",)
