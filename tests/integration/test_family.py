"""The whole family: totals as measured, every transformer against its real class, and what must fail."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel, WanVACETransformer3DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modelmeter as mm
from modelmeter.compiled import compile_forward
from modelmeter.models.common import vae
from modelmeter.models.wan2_1 import official
from modelmeter.models.wan2_1.transformer import KEEP_IN_FP32, Wan2_1DiTModel
from modelmeter.models.wan2_1.vace import WanVACETransformer3DModel as AnalyticVACE
from modelmeter.models.wan2_2.pipeline import expert_steps, timesteps
from modelmeter.nn import Body, Op, bfloat16, trace
from modelmeter.verify.allocations import keep_in_fp32, track
from modelmeter.verify.flop_counter import count, parameters
from modelmeter.verify.reference import arguments
from modelmeter.verify.run import verify

META = torch.device("meta")

#: FLOPs of whole runs of the vendor's defaults, summed from forwards of the real classes that were measured with
#: torch 2.13, diffusers 0.42.1 and transformers 5.23 on meta: model, preset, further keys, total.
RUNS: list[tuple[str, str, dict[str, Any], int]] = [
    ("wan2.1-t2v-1.3b", "official-480p", {}, 28_585_220_429_561_856),
    ("wan2.1-t2v-14b", "official-480p", {}, 168_122_069_971_091_456),
    ("wan2.1-t2v-14b", "official-720p", {}, 652_992_567_022_616_576),
    ("wan2.1-t2v-14b", "official-t2i", {}, 11_580_239_731_752_960),
    ("wan2.1-i2v-14b-480p", "official-480p", {}, 135_359_225_413_446_656),
    ("wan2.1-i2v-14b-480p", "official-480p-16x9", {}, 128_589_915_961_134_080),
    ("wan2.1-i2v-14b-720p", "official-720p", {}, 524_270_671_781_620_736),
    ("wan2.1-flf2v-14b", "official-720p", {}, 656_780_792_090_679_296),
    ("wan2.1-vace-1.3b", "official-480p", {}, 43_312_914_770_804_736),
    ("wan2.1-vace-1.3b", "official-480p", {"num_reference_images": 2}, 50_477_970_089_558_016),
    ("wan2.1-vace-14b", "official-480p", {}, 203_573_834_990_862_336),
    ("wan2.1-vace-14b", "official-480p", {"num_reference_images": 2}, 233_888_612_515_823_616),
    ("wan2.1-vace-14b", "official-720p", {}, 787_818_674_249_957_376),
    ("wan2.2-t2v-a14b", "official-480p", {}, 135_523_342_800_633_856),
    ("wan2.2-t2v-a14b", "official-720p", {}, 524_759_285_758_590_976),
    ("wan2.2-i2v-a14b", "official-480p", {}, 135_689_239_462_199_296),
    ("wan2.2-i2v-a14b", "official-720p", {}, 525_145_914_417_381_376),
    ("wan2.2-ti2v-5b", "official-720p", {}, 54_086_305_542_864_896),
    ("wan2.2-ti2v-5b", "official-720p", {"task": "i2v"}, 54_090_521_840_091_136),
    ("wan2.2-animate-14b", "official-720p", {}, 133_492_862_215_556_096),
]
#: One forward of the diffusion transformer at 480x832 and 720x1280 (704x1280 with 121 frames), and its parameters,
#: from the same measurements.
FORWARDS = [
    ("wan2.1-i2v-14b-480p", (), 1_686_376_373_944_320, 6_540_497_070_981_120, 16_394_878_784),
    ("wan2.1-flf2v-14b", (), 1_694_355_627_704_320, 6_557_495_618_437_120, 16_395_536_704),
    ("wan2.1-vace-1.3b", (), 427_003_737_145_344, 1_880_534_158_147_584, 2_153_972_032),
    ("wan2.1-vace-14b", (), 2_029_612_939_345_920, 7_864_064_181_534_720, 17_337_592_896),
    ("wan2.2-t2v-a14b", (), 1_690_478_764_359_680, 6_551_379_724_206_080, 14_288_491_584),
    ("wan2.2-t2v-a14b", ("implementation=diffusers",), 1_678_370_283_192_320, 6_523_436_592_005_120, 14_288_491_584),
    ("wan2.2-i2v-a14b", (), 1_690_505_601_351_680, 6_551_441_655_726_080, 14_288_901_184),
    ("wan2.2-i2v-a14b", ("implementation=diffusers",), 1_678_397_120_184_320, 6_523_498_523_525_120, 14_288_901_184),
    ("wan2.2-ti2v-5b", (), None, 520_654_782_726_144, 4_999_787_712),
]


@pytest.mark.parametrize(("name", "preset", "keys", "total"), RUNS)
def test_whole_runs_cost_what_was_measured(name: str, preset: str, keys: dict[str, Any], total: int) -> None:
    """The vendor's defaults cost, over all stages, what the real classes were measured to cost."""
    estimate = mm.load(name).estimate(workload=preset, **keys)
    assert estimate.flops == total
    assert estimate.plan.not_modelled == ()


@pytest.mark.parametrize(("name", "overrides", "small", "large", "params"), FORWARDS)
def test_forwards_cost_what_was_measured(
    name: str, overrides: tuple[str, ...], small: int | None, large: int, params: int
) -> None:
    """One forward of every diffusion transformer costs what the real class was measured to cost."""
    model = mm.load(name, *overrides)
    for preset, flops in (("official-480p", small), ("official-720p", large)):
        if flops is not None:
            stage = model.estimate(workload=preset)["transformer"]
            assert stage.flops == flops * stage.calls
            assert stage.params == params


def test_every_module_of_every_component_is_equal() -> None:
    """At the official 480p size, every module of every component of the family equals the real class at full size."""
    names = ["wan2.1-i2v-14b-480p", "wan2.1-flf2v-14b", "wan2.1-vace-1.3b", "wan2.1-vace-14b"]
    names += ["wan2.2-t2v-a14b", "wan2.2-i2v-a14b", "wan2.2-ti2v-5b", "wan2.2-animate-14b"]
    result = verify([mm.load(name) for name in names], ("layers",), workload="official-480p")
    assert result.failures == ()
    assert {row.model for row in result.rows} == set(names)
    assert {row.stage for row in result.rows} == {
        *("text_encoder", "image_encoder", "vae_encode", "transformer", "transformer_2", "vae_decode")
    }


def test_the_image_encoder_runs_31_or_32_layers() -> None:
    """The official code runs 31 of the 32 layers of CLIP, diffusers all; both were measured."""
    official = mm.load("wan2.1-i2v-14b-480p").estimate()["image_encoder"]
    diffusers = mm.load("wan2.1-i2v-14b-480p", "implementation=diffusers").estimate()["image_encoder"]
    assert (official.flops, diffusers.flops) == (324_143_836_160, 334_587_658_240)
    assert official.params == diffusers.params == 630_766_080


def test_the_negative_prompt_is_encoded_without_guidance_only_officially() -> None:
    """Without guidance diffusers encodes one prompt; the official code always both."""
    for implementation, calls in (("official", 2), ("diffusers", 1)):
        model = mm.load("wan2.1-t2v-14b", f"implementation={implementation}")
        assert model.estimate(guidance_scale=1)["text_encoder"].calls == calls
        assert model.estimate(guidance_scale=5)["text_encoder"].calls == 2


def test_experts_share_the_steps_as_the_shift_of_the_implementation_says() -> None:
    """At its own shift each implementation gives the experts the steps that its scheduler was measured to give."""
    for name, overrides, steps in [
        ("wan2.2-t2v-a14b", [], (26, 14)),
        ("wan2.2-i2v-a14b", [], (15, 25)),
        ("wan2.2-t2v-a14b", ["implementation=diffusers"], (13, 27)),
        ("wan2.2-i2v-a14b", ["implementation=diffusers"], (11, 29)),
    ]:
        estimate = mm.load(name, *overrides).estimate()
        assert (estimate["transformer"].calls, estimate["transformer_2"].calls) == tuple(2 * n for n in steps)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.sampled_from([1.0, 2.0, 3.0, 5.0, 7.5, 8.0, 12.0, 16.0]), st.sampled_from([0.875, 0.9]))
def test_timesteps_are_those_of_the_real_scheduler(steps: int, shift: float, boundary: float) -> None:
    """The schedule and the split between experts equal those of diffusers' scheduler."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )
    scheduler.set_timesteps(steps)
    assert timesteps(steps, shift, 1.0) == scheduler.timesteps.tolist()
    high = int((scheduler.timesteps >= boundary * 1000).sum())
    assert expert_steps(steps, shift, boundary, 1.0) == (high, steps - high)


def test_wrong_uses_of_a_model_are_refused() -> None:
    """Keys that a model does not have, and sizes that it cannot run, are named."""
    with pytest.raises(mm.InputError, match="num_reference_images"):
        mm.load("wan2.1-t2v-14b", "num_reference_images=1")
    with pytest.raises(mm.InputError, match="^task=v2v: allowed is one of t2v, i2v"):
        mm.load("wan2.2-ti2v-5b", "task=v2v")
    with pytest.raises(mm.InputError, match="^text_len=226: allowed is exactly 512"):
        mm.load("wan2.1-i2v-14b-480p").estimate(text_len=226)
    with pytest.raises(mm.InputError, match="^num_frames=1: allowed is at least 5"):
        mm.load("wan2.1-flf2v-14b").estimate(num_frames=1)
    with pytest.raises(mm.InputError, match="nearest: 704 or 736"):
        mm.load("wan2.2-ti2v-5b").estimate(height=720)


def test_dropped_frames_are_said() -> None:
    """Where the VAE encoder takes fewer frames than asked for, a warning says how many it drops."""
    warnings = mm.load("wan2.1-vace-1.3b").estimate(num_frames=84).warnings
    assert any("drops the last 3" in warning for warning in warnings)


# -- every transformer against its real class --------------------------------------------------------------------

Made = tuple[Wan2_1DiTModel, torch.nn.Module, dict[str, int]]

small = st.fixed_dictionaries(
    {
        "num_attention_heads": st.integers(1, 3),
        "attention_head_dim": st.integers(3, 20).map(lambda n: 2 * n),
        "in_channels": st.integers(1, 40),
        "out_channels": st.integers(1, 40),
        "text_dim": st.integers(1, 60),
        "freq_dim": st.integers(2, 60),
        "ffn_dim": st.integers(1, 150),
        "num_layers": st.integers(2, 4),
    }
)
sizes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "frames": st.integers(1, 12),
        "rows": st.integers(1, 20),
        "columns": st.integers(1, 20),
        "text_len": st.integers(1, 300),
    }
)


def image_model(config: dict[str, Any], at: dict[str, int], tokens: int, positions: bool) -> Made:
    """A model that conditions on images, with or without positions of two."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    images = {"image_dim": 24, "added_kv_proj_dim": width, "pos_embed_seq_len": 2 * tokens if positions else None}
    with META:
        real = WanTransformer3DModel(**config, **images)
    return Wan2_1DiTModel(**config, **images), real, {**at, "text_len": 512, "image_tokens": tokens}


def i2v(config: dict[str, Any], at: dict[str, int], tokens: int) -> Made:
    """Image tokens beside the text."""
    return image_model(config, at, tokens, False)


def flf2v(config: dict[str, Any], at: dict[str, int], tokens: int) -> Made:
    """Two images as one sequence with positions."""
    return image_model(config, at, tokens, True)


def per_token(config: dict[str, Any], at: dict[str, int], tokens: int) -> Made:
    """A timestep for every token."""
    with META:
        real = WanTransformer3DModel(**config)
    return Wan2_1DiTModel(**config, expand_timesteps=True), real, at


def vace(config: dict[str, Any], at: dict[str, int], tokens: int) -> Made:
    """A second stack of blocks."""
    layers = {"vace_layers": [0, config["num_layers"] - 1], "vace_in_channels": tokens}
    with META:
        real = WanVACETransformer3DModel(**config, **layers)
    return AnalyticVACE(**config, **layers), real, at


KINDS = [i2v, flf2v, per_token, vace]


def compare(make: Callable[..., Made], config: dict[str, Any], at: dict[str, int], tokens: int) -> None:
    """FLOPs and parameters of every module of both are equal."""
    ours, real, dims = make(config, at, tokens)
    counted = count(real, **arguments(real, ours.inputs(**dims), META))
    assert counted.uncounted_ops == ()
    assert compile_forward(ours, dims).module_flops(dims) == counted.flops
    assert {path: module.params for path, module in ours.named_modules()} == parameters(real)
    assert counted.flops[""] > 0


@pytest.mark.parametrize("make", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=small, at=sizes, tokens=st.integers(1, 40))
def test_random_configurations(make: Any, config: dict[str, Any], at: dict[str, int], tokens: int) -> None:
    """25 random small configurations of every kind at random sizes equal the real class in every module."""
    compare(make, config, at, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("make", KINDS)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=small, at=sizes, tokens=st.integers(1, 40))
def test_many_random_configurations(make: Any, config: dict[str, Any], at: dict[str, int], tokens: int) -> None:
    """500 random small configurations of every kind at random sizes equal the real class in every module."""
    compare(make, config, at, tokens)


def flat(body: Body, live: Any = 0) -> list[tuple[str, Any, Any, Any]]:
    """Kernels of a trace in order: name, live bytes, bytes read and written."""
    kernels = []
    for item in body.items:
        if isinstance(item, Op):
            kernels.append((item.name, live + item.live, item.bytes_read, item.bytes_written))
        else:
            kernels += flat(item.body, live + item.live)
    return kernels


@pytest.mark.parametrize("make", KINDS)
def test_kernel_by_kernel(make: Any) -> None:
    """In bfloat16 every kernel, the bytes alive after it, and the bytes it moves are those of the real class."""
    config = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 96, "num_layers": 3, "text_dim": 48}
    ours, real, dims = make(config, {"batch": 1, "frames": 3, "rows": 4, "columns": 6, "text_len": 512}, 17)
    ours.to(bfloat16, keep_in_fp32=KEEP_IN_FP32)
    keep_in_fp32(real, torch.bfloat16)
    inputs = ours.inputs(**dims)
    dtypes = {name: getattr(torch, tensor.dtype.name) for name, tensor in inputs.items()}
    tensors = {
        name: torch.empty(tuple(map(int, map(str, tensor.shape))), dtype=dtypes[name], device=META)
        for name, tensor in inputs.items()
    }
    tracked = [(k.name, k.live, k.bytes_read, k.bytes_written) for k in track(real, **tensors).kernels]
    assert flat(trace(ours, **inputs).body) == tracked
    assert len(tracked) > 200


# -- broken on purpose -------------------------------------------------------------------------------------------

SHALLOW = ["transformer.num_layers=2", "text_encoder.num_layers=1", "vae.base_dim=8", "vae.decoder_base_dim=8"]


def failures(name: str, *kinds: str) -> tuple[str, ...]:
    """What a verification of a shallow model finds."""
    return verify([mm.load(name, *SHALLOW)], kinds or ("layers",), workload="wan2-1-512p").failures


@pytest.mark.parametrize("name", ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p"])
def test_shallow_models_pass(name: str) -> None:
    """Nothing broken: the verifications that the next tests break pass."""
    assert failures(name, "layers", "end2end", "core") == ()


def test_a_broken_chunk_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VAE that runs one chunk too few fails, and its modules are named."""
    chunks = vae._chunks
    monkeypatch.setattr(vae, "_chunks", lambda *given: chunks(*given)[:-1])
    assert any("vae_decode.decoder" in line for line in failures("wan2.1-t2v-1.3b"))


def test_broken_image_tokens_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context that is cut at another token fails, and the cross-attention is named."""
    monkeypatch.setattr(official, "TEXT_TOKENS_WITH_IMAGES", 500)
    assert any("transformer.blocks.0.attn2.add_k_proj" in line for line in failures("wan2.1-i2v-14b-480p"))
