"""Speech to video: totals as measured on the official class, and the mirror in plain PyTorch module by module."""

from typing import Any

import pytest
import torch
from diffusers.models.normalization import AdaLayerNorm as RealAdaLayerNorm
from hypothesis import given, settings
from hypothesis import strategies as st

import modelmeter as mm
from modelmeter.compiled import compile_forward
from modelmeter.flops import called_paths, total_flops
from modelmeter.memory import peaks
from modelmeter.models.wan2_2 import s2v_motion
from modelmeter.models.wan2_2.s2v import Wan2_2S2VModel, clip_dims
from modelmeter.models.wan2_2.s2v_audio import AdaLayerNorm
from modelmeter.models.wan2_2.s2v_pipeline import transformer_arguments
from modelmeter.models.wan2_2.scripts.verify._reference_modules_s2v import RefWan2_2S2VModel
from modelmeter.nn import Tensor, bfloat16, float32, trace
from modelmeter.verify.allocations import track
from modelmeter.verify.flop_counter import Counted, count, parameters
from modelmeter.verify.reference import arguments
from modelmeter.verify.run import verify

META = torch.device("meta")
NAME = "wan2.2-s2v-14b"

#: One forward of the official ``WanModel_S2V`` (Wan2.2 at 42bf4cf) on 80 frames, measured with FlopCounterMode: height,
#: width, whether it is the first clip, and FLOPs of linear layers, attention and convolutions.
FORWARDS = [
    (480, 832, True, 824_839_488_143_360, 892_958_736_384_000, 89_172_213_760),
    (480, 832, False, 880_161_519_042_560, 1_022_517_382_348_800, 89_172_213_760),
    (704, 1024, True, 1_487_049_310_863_360, 2_889_669_515_673_600, 139_650_662_400),
    (704, 1024, False, 1_588_034_729_410_560, 3_315_314_196_480_000, 139_650_662_400),
    (704, 1280, True, 1_858_224_243_343_360, 4_507_335_917_568_000, 167_333_068_800),
    (704, 1280, False, 1_984_456_016_527_360, 5_171_852_083_200_000, 167_333_068_800),
]
#: FLOPs of modules of that class at 480x832, first and later clip, from the same measurement.
MODULES = {
    "casual_audio_encoder": (30_965_760_000, 30_965_760_000),
    "patch_embedding": (21_469_593_600, 21_469_593_600),
    "cond_encoder": (20_447_232_000, 20_447_232_000),
    "frame_packer": (18_334_351_360, 18_334_351_360),
    "time_embedding": (110_100_480, 110_100_480),
    "time_projection": (629_145_600, 629_145_600),
    "text_embedding": (48_318_382_080, 48_318_382_080),
    "blocks.0.self_attn": (28_849_766_400_000, 32_549_749_473_280),
    "blocks.0": (41_956_966_400_000, 46_578_983_321_600),
    "blocks.0.cross_attn": (3_832_335_564_800, 4_099_240_099_840),
    "blocks.0.ffn": (9_274_864_435_200, 9_929_993_748_480),
    "audio_injector.injector_adain_layers.0": (2_097_152_000, 2_097_152_000),
    "audio_injector.injector.0": (3_285_237_760_000, 3_285_237_760_000),
    "blocks.1": (41_956_966_400_000, 46_578_983_321_600),
    "head": (20_447_232_000, 20_447_232_000),
}
#: Parameters of that class and of its parts.
PARAMETERS = {
    "": 16_295_755_609,
    "patch_embedding": 332_800,
    "text_embedding": 47_196_160,
    "time_embedding": 27_535_360,
    "time_projection": 157_317_120,
    "blocks": 14_055_772_160,
    "head": 337_984,
    "cond_encoder": 332_800,
    "casual_audio_encoder": 95_051_545,
    "audio_injector": 1_887_928_320,
    "trainable_cond_mask": 15_360,
    "frame_packer": 23_936_000,
}
#: FLOPs of a whole run at 704x1024, first clip and every later one, summed from such measurements, audio left out.
FIRST_CLIP, LATER_CLIP = 351_495_992_416_665_600, 393_487_965_433_102_336


def dims_of(height: int, width: int, first: bool) -> dict[str, int]:
    """Sizes of a clip of 80 frames."""
    return clip_dims(num_frames=80, rows=height // 16, columns=width // 16, text_len=512, drop_motion_frames=first)


@pytest.fixture(scope="module")
def model() -> mm.Model:
    """The model as shipped."""
    return mm.load(NAME)


def transformer(model: mm.Model) -> Wan2_2S2VModel:
    """Its transformer."""
    found = model.components["transformer"]
    assert isinstance(found, Wan2_2S2VModel)
    return found


# -- as measured --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "first", "linear", "attention", "conv"), FORWARDS)
def test_a_forward_costs_what_was_measured(
    model: mm.Model, height: int, width: int, first: bool, linear: int, attention: int, conv: int
) -> None:
    """At three sizes the first and a later clip cost, by kind of operator, what the official class was measured at."""
    dims = dims_of(height, width, first)
    form = compile_forward(transformer(model), dims)
    assert form.flops_by_kind(dims) == {"linear": linear, "attention": attention, "conv": conv}
    estimate = model.estimate(height=height, width=width, num_clips=1 if first else 2)
    first_flops = sum(next(row for row in FORWARDS if row[:3] == (height, width, True))[3:])
    later = 0 if first else linear + attention + conv
    assert estimate["transformer"].flops == 80 * (first_flops + later)


@pytest.mark.parametrize("first", [True, False])
def test_modules_cost_what_was_measured(model: mm.Model, first: bool) -> None:
    """At 480x832 the modules of the official class cost what they were measured at."""
    dims = dims_of(480, 832, first)
    found = compile_forward(transformer(model), dims).module_flops(dims)
    assert {path: found[path] for path in MODULES} == {path: both[not first] for path, both in MODULES.items()}


def test_the_parts_have_the_parameters_of_the_official_class(model: mm.Model) -> None:
    """The official class, its every part, and the audio encoder have the measured numbers of parameters."""
    modules = dict(transformer(model).named_modules())
    assert {path: modules[path].params for path in PARAMETERS} == PARAMETERS
    assert sum(PARAMETERS[path] for path in PARAMETERS if path) == PARAMETERS[""]
    assert model.components["audio_encoder"].params == 315_471_521


def test_a_run_costs_what_was_measured(model: mm.Model) -> None:
    """At 704x1024 the first clip, and each of the next two, add what was measured, apart from the audio."""
    runs = [model.estimate(height=704, width=1024, num_clips=clips) for clips in (1, 2, 3)]
    flops = [run.flops - run["audio_encoder"].flops for run in runs]
    assert flops == [FIRST_CLIP, FIRST_CLIP + LATER_CLIP, FIRST_CLIP + 2 * LATER_CLIP]
    # 5 and 10 seconds, measured on the real class
    assert [run["audio_encoder"].flops for run in runs[:2]] == [185_492_971_520, 383_887_339_520]
    assert [run["vae_encode"].calls for run in runs] == [4, 5, 6]
    assert [run["vae_decode"].calls for run in runs] == [1, 2, 3]
    assert runs[0].plan.not_modelled == ()


@settings(max_examples=20, deadline=None)
@given(
    clips=st.integers(1, 50),
    frames=st.integers(4, 200),
    sides=st.tuples(st.integers(4, 90), st.integers(4, 90)),
    batch=st.integers(1, 3),
    scale=st.sampled_from([1.0, 4.5]),
)
def test_every_later_clip_adds_the_same(
    clips: int, frames: int, sides: tuple[int, int], batch: int, scale: float
) -> None:
    """However many clips there are, the next one adds what the second adds, and every video as much as one."""
    keys: dict[str, Any] = {"num_frames": frames, "height": 16 * sides[0], "width": 16 * sides[1]}
    keys |= {"guidance_scale": scale, "num_inference_steps": 2}
    small = mm.load(NAME, *SHALLOW)
    one, two, some, more = (
        small.estimate(**keys, num_clips=number, batch_size=batch) for number in (1, 2, clips, clips + 1)
    )
    for stage in ("transformer", "vae_encode", "vae_decode"):
        assert more[stage].flops - some[stage].flops == two[stage].flops - one[stage].flops > 0
        assert one[stage].flops == batch * small.estimate(**keys)[stage].flops
    assert (
        one["text_encoder"].flops == some["text_encoder"].flops == batch * small.estimate(**keys)["text_encoder"].flops
    )
    assert one["transformer"].calls == batch * 2 * (2 if scale > 1 else 1)


# -- the mirror ---------------------------------------------------------------------------------------------------

SHALLOW = ["transformer.num_layers=2", "text_encoder.num_layers=1", "vae.base_dim=8", "vae.decoder_base_dim=8"]
SHALLOW += ["audio_encoder.num_hidden_layers=1"]


def compare(config: dict[str, Any], dims: dict[str, int]) -> Counted:
    """FLOPs and parameters of every module of both are equal; what the mirror has not costs nothing."""
    ours = Wan2_2S2VModel(**config)
    with META:
        mirror = RefWan2_2S2VModel(**config)
    counted = count(mirror, **arguments(mirror, ours.inputs(**dims), META))
    assert counted.uncounted_ops == ()
    found = compile_forward(ours, dims).module_flops(dims)
    assert {path: flops for path, flops in found.items() if flops} == {k: v for k, v in counted.flops.items() if v}
    params = params_of(ours)
    assert {path: n for path, n in params.items() if n} == {k: v for k, v in parameters(mirror).items() if v}
    assert counted.flops[""] > 0
    return counted


@pytest.mark.parametrize("first", [True, False])
def test_the_mirror_is_equal_at_full_size(model: mm.Model, first: bool) -> None:
    """At full size every module of the mirror in plain PyTorch runs the FLOPs and holds the parameters of ours."""
    counted = compare(transformer_arguments(model.config), dims_of(480, 832, first))
    assert sum(flops > 0 for flops in counted.flops.values()) > 500


small = st.fixed_dictionaries(
    {
        "patch_size": st.just((1, 2, 2)),
        "in_dim": st.integers(1, 20),
        "ffn_dim": st.integers(1, 60),
        "freq_dim": st.integers(1, 20).map(lambda n: 2 * n),
        "text_dim": st.integers(1, 40),
        "out_dim": st.integers(1, 20),
        "num_layers": st.integers(1, 5),
        "cond_dim": st.integers(1, 20),
        "audio_dim": st.integers(1, 20),
        "num_audio_token": st.integers(1, 5),
        "audio_inject_layers": st.lists(st.integers(0, 6), min_size=1, unique=True),
        "motion_frames": st.integers(0, 25).map(lambda n: (4 * n + 1, n + 1)),
    }
)
heads = st.tuples(st.integers(1, 3), st.integers(2, 5).map(lambda n: 4 * n))
clips = st.fixed_dictionaries(
    {
        "num_frames": st.integers(4, 90),
        "rows": st.integers(4, 40),
        "columns": st.integers(4, 40),
        "text_len": st.integers(1, 600),
        "drop_motion_frames": st.booleans(),
    }
)


def check(config: dict[str, Any], head: tuple[int, int], clip: dict[str, Any]) -> None:
    """One configuration at one clip; motion is packed from 19 latent frames."""
    frames = max(config["motion_frames"][1], sum(s2v_motion.ZIP_FRAME_BUCKETS))
    sizes = {"num_heads": head[0], "dim": head[0] * head[1], "motion_frames": (4 * frames - 3, frames)}
    compare({**config, **sizes}, clip_dims(**clip))


@settings(max_examples=40, deadline=None)
@given(config=small, head=heads, clip=clips)
def test_random_configurations(config: dict[str, Any], head: tuple[int, int], clip: dict[str, Any]) -> None:
    """40 random small configurations at random clips equal the mirror in every module."""
    check(config, head, clip)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(config=small, head=heads, clip=clips)
def test_many_random_configurations(config: dict[str, Any], head: tuple[int, int], clip: dict[str, Any]) -> None:
    """500 random small configurations at random clips equal the mirror in every module."""
    check(config, head, clip)


@settings(max_examples=30, deadline=None)
@given(clip=clips, other=clips)
def test_formulas_give_the_numbers(clip: dict[str, Any], other: dict[str, Any]) -> None:
    """Closed forms compiled at one clip give, wherever they hold, what a trace on integers gives: FLOPs and peak."""
    ours = Wan2_2S2VModel(dim=32, num_heads=2, ffn_dim=24, num_layers=3, text_dim=8, audio_dim=6)
    ours.to(bfloat16)
    form = compile_forward(ours, clip_dims(**clip))
    for dims in (clip_dims(**clip), clip_dims(**other)):
        if not form.covers(dims):
            continue
        body = trace(ours, memo=False, **ours.inputs(**dims)).body
        expected: dict[str, int] = {}
        for path, call in called_paths(body):
            expected[path] = expected.get(path, 0) + sum(total_flops(call).values())
        assert form.module_flops(dims) == expected
        (peak,) = peaks(body, {})
        assert form.peak(dims).live == peak.live > 0


def test_the_adaptive_norm_is_that_of_diffusers() -> None:
    """The norm before an injector runs, kernel by kernel, what diffusers' class runs, which the official code uses."""
    ours = AdaLayerNorm(24, 64)
    with META:
        real = RealAdaLayerNorm(24, output_dim=64, chunk_dim=1)
    body = trace(ours, Tensor((5, 7, 32), float32), Tensor((5, 24), float32)).body
    found = [op.name for call in body.calls for op in call.body.ops], [op.name for op in body.ops]
    tracked = track(real, torch.empty(5, 7, 32, device="meta"), temb=torch.empty(5, 24, device="meta")).kernels
    assert found[0] == [kernel.name for kernel in tracked if kernel.path]
    assert found[1] == [kernel.name for kernel in tracked if not kernel.path]
    assert params_of(ours) == parameters(real)


def params_of(module: Any) -> dict[str, int]:
    """Parameters of every module by path."""
    return {path: child.params for path, child in module.named_modules()}


# -- refused, and said --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["implementation=diffusers"], "^implementation=diffusers: allowed is official"),
        (["transformer.patch_size=[1,4,2]"], r"^transformer.patch_size=\[1, 4, 2\]: allowed is \[1, 2, 2\]"),
        (["transformer.enable_framepack=false"], "^transformer.enable_framepack=False"),
        (["transformer.audio_inject_layers=[3,3]"], "^transformer.audio_inject_layers="),
        (["transformer.dim=402", "transformer.num_heads=3"], "^transformer.dim=402"),
        (["transformer.dim=160"], "^transformer.dim=160: allowed is at least 240, 6 for each head"),
        (["transformer.freq_dim=7"], "^transformer.freq_dim=7"),
        (["transformer.audio_dim=0"], "^transformer.audio_dim=0"),
        (["audio_encoder.hidden_size=1000"], "^audio_encoder.hidden_size=1000: allowed is a multiple of"),
        (
            ["audio_encoder.hidden_size=96", "audio_encoder.num_conv_pos_embedding_groups=5"],
            "conv_pos_embedding_groups",
        ),
        (["audio_encoder.conv_stride=[5,2]"], "^audio_encoder.conv_stride="),
        (["num_clips=0"], "^num_clips=0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_model_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    """diffusers' implementation, and sizes that no such model can have, are refused when the model is loaded."""
    with pytest.raises(mm.InputError, match=message):
        mm.load(NAME, *overrides)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_frames": 3}, "^num_frames=3: allowed is at least 4"),
        ({"height": 48}, "^height=48: allowed is at least 64"),
        ({"width": 648}, "^width=648: allowed is a multiple of 16 for this model; nearest: 640 or 656"),
    ],
)
def test_clips_that_cannot_run_are_refused(model: mm.Model, keys: dict[str, Any], message: str) -> None:
    """Fewer frames than a latent frame holds, and sides that the patches do not fit into, are refused."""
    with pytest.raises(mm.InputError, match=message):
        model.estimate(**keys)


def test_what_the_official_code_would_do_otherwise_is_said(model: mm.Model) -> None:
    """Sizes that the official code would change, frames that it drops, and how much audio is counted, are said."""
    said = " | ".join(model.estimate(num_frames=82, height=480, width=832, text_len=100, num_clips=3).warnings)
    assert "num_frames=82: a clip has 80 frames" in said
    assert "height=480: the official code makes sizes multiples of 64" in said
    assert "width=832" not in said
    assert "text_len=100: the official code pads every prompt to 512 tokens" in said
    assert "audio: 15.375 s, as long as the clips" in said
    assert len(model.estimate().warnings) == 1


def test_tokens_are_those_of_the_largest_clip(model: mm.Model) -> None:
    """Geometry tells 20 latent frames; tokens count the reference, and packed motion where a clip comes before."""
    one, two = (model.estimate(height=480, width=832, num_clips=clips).geometry for clips in (1, 2))
    assert (one.latent_frames, one.tokens, two.tokens) == (20, 32_760, 35_074)


# -- verification -------------------------------------------------------------------------------------------------


def shallow() -> mm.Model:
    """A shallow model with two clips."""
    return mm.load(NAME, *SHALLOW, "num_clips=2")


def test_a_shallow_model_passes_all() -> None:
    """Layers, whole run and laws pass; the pipeline, which diffusers does not have, is said not to be compared."""
    result = verify([shallow()], ("layers", "end2end", "core", "pipelines"), workload="wan2-1-ci-tiny")
    assert result.failures == ()
    assert {row.stage for row in result.rows if row.quantity == "flops"} == {
        *("text_encoder", "audio_encoder", "vae_encode", "transformer", "vae_decode")
    }
    assert any(NAME in line and "pipelines" in line for line in result.not_applicable)


def test_pipelines_alone_are_refused() -> None:
    """Asked for alone, the comparison of a pipeline that diffusers does not have is an error, not a pass."""
    with pytest.raises(mm.InputError, match="^pipeline=Wan2_2SpeechToVideoPipeline"):
        verify([shallow()], ("pipelines",), workload="wan2-1-ci-tiny")


def test_a_broken_number_of_packed_frames_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer packed frames than the mirror has cannot pass, and the module that packs them is named."""
    monkeypatch.setattr(s2v_motion, "ZIP_FRAME_BUCKETS", (1, 2, 12))
    result = verify([shallow()], ("layers",), workload="wan2-1-512p", reference="modules")
    assert any("transformer.frame_packer: flops" in line for line in result.failures)
