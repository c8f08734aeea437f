"""Peaks, places of peaks, bytes moved and feature caches as they were measured once on the real classes.

The integers were measured by tracking storages and dispatched operators of the classes of diffusers 0.42.1 and
transformers 5.23 with torch 2.13 on meta, with fused attention and RMS norm. The tests need no PyTorch: they
hold the closed forms alone; ``test_verify_memory.py`` holds them against the classes that are installed.
"""

from __future__ import annotations

from typing import Any

import pytest

import modelmeter as mm
from modelmeter import nn
from modelmeter.compiled import compile_forward
from modelmeter.models.common.image_encoder import CLIPVisionModel
from modelmeter.models.common.text_encoder import UMT5EncoderModel
from modelmeter.models.common.vae import AutoencoderKLWan, decode_call, encode_call
from modelmeter.models.common.vae_tiles import tiled_decode_call, tiled_encode_call
from modelmeter.models.wan2_1.architecture import transformer_arguments
from modelmeter.models.wan2_1.transformer import KEEP_IN_FP32, Wan2_1DiTModel
from modelmeter.nn import Cache
from modelmeter.stage import Call, Component, single
from modelmeter.traffic import Sums, merged, over_times, overall

#: Module and operator at the peak, peak bytes, bytes read and written.
Measured = tuple[str, str, int, int, int]

#: One forward in bfloat16: model, (batch, frames, height, width).
TRANSFORMERS: list[tuple[Any, ...]] = [
    (
        "wan2.1-t2v-1.3b",
        (1, 81, 480, 832),
        "blocks.0.ffn.net.0",
        "gelu",
        1_611_850_752,
        261_841_274_636,
        235_916_155_300,
    ),
    (
        "wan2.1-t2v-1.3b",
        (1, 81, 720, 1280),
        "blocks.0.ffn.net.0",
        "gelu",
        3_717_522_432,
        600_207_374_204,
        544_227_067_300,
    ),
    ("wan2.1-t2v-1.3b", (1, 17, 256, 256), "blocks.0.ffn.net.0", "gelu", 64_545_792, 13_200_627_564, 9_360_891_300),
    ("wan2.1-t2v-1.3b", (2, 17, 256, 256), "blocks.0.ffn.net.0", "gelu", 127_780_864, 23_478_349_176, 18_720_468_392),
    ("wan2.1-t2v-14b", (1, 81, 480, 832), "blocks.0", "mul", 3_729_070_080, 1_088_104_987_404, 962_936_035_908),
    ("wan2.1-t2v-14b", (1, 81, 720, 1280), "blocks.0", "mul", 8_598_435_840, 2_472_156_416_892, 2_221_301_402_628),
    ("wan2.1-t2v-14b", (1, 17, 256, 256), "blocks.0", "mul", 150_927_360, 71_066_250_092, 38_254_856_068),
    ("wan2.1-t2v-14b", (2, 17, 256, 256), "blocks.0", "mul", 300_544_000, 113_392_276_856, 76_508_397_448),
    ("wan2.1-i2v-14b-720p", (1, 81, 480, 832), "blocks.0", "mul", 3_734_333_440, 1_133_131_149_324, 990_326_809_780),
    ("wan2.1-i2v-14b-720p", (1, 81, 720, 1280), "blocks.0", "mul", 8_603_699_200, 2_569_831_225_212, 2_284_060_880_500),
    ("wan2.1-i2v-14b-720p", (1, 17, 256, 256), "blocks.0", "mul", 156_190_720, 77_404_751_212, 39_655_741_940),
    ("wan2.1-i2v-14b-720p", (2, 17, 256, 256), "blocks.0", "mul", 311_070_720, 123_116_408_696, 80_570_097_832),
    ("wan2.1-flf2v-14b", (1, 81, 720, 1280), "blocks.0", "mul", 8_608_962_560, 2_570_381_246_332, 2_284_401_070_372),
    ("wan2.2-i2v-a14b", (1, 81, 720, 1280), "blocks.0", "mul", 8_598_435_840, 2_472_169_332_092, 2_221_301_402_628),
    (
        "wan2.2-ti2v-5b",
        (1, 121, 704, 1280),
        "blocks.0.ffn.net.0",
        "gelu",
        5_450_416_128,
        601_637_603_264,
        525_421_705_632,
    ),
    ("wan2.2-ti2v-5b", (1, 17, 256, 256), "blocks.0.ffn.net.0", "gelu", 67_043_328, 17_437_995_616, 6_452_489_632),
    ("wan2.2-ti2v-5b", (2, 17, 256, 256), "blocks.0.ffn.net.0", "gelu", 133_758_976, 24_834_799_456, 12_904_648_096),
    (
        "wan2.1-vace-1.3b",
        (1, 81, 480, 832),
        "blocks.0.ffn.net.0",
        "gelu",
        3_222_070_302,
        398_614_085_930,
        358_127_888_050,
    ),
    ("wan2.1-vace-14b", (1, 81, 720, 1280), "blocks.0", "mul", 15_565_731_856, 2_992_402_623_372, 2_684_737_791_892),
]
#: What two of them hold, read and write more than was measured, since they were not measured as pipelines run them.
#: I2V: on weights that require no gradients, unlike those that ``from_pretrained`` gives. PyTorch copies text and
#: image tokens, which are views of one context, before it multiplies them with weights that do: in 40 blocks for key
#: and value 2 x (512 + 257) tokens of width 5120. TI2V: on timesteps of their own for each of two videos, where
#: ``WanPipeline`` expands one row of 320 and the forward flattens it, which copies.
MORE = {
    ("wan2.1-i2v-14b-720p", (2, 17, 256, 256)): (0, *2 * [40 * 2 * 2 * (512 + 257) * 5120 * 2]),
    ("wan2.2-ti2v-5b", (2, 17, 256, 256)): (2 * 320 * 4, 320 * 4, 2 * 320 * 4),
}
#: TI2V-5B with one timestep for all tokens, at 704x1280 and 121 frames.
SCALAR_TIMESTEP = ("blocks.0.ffn.net.0", "gelu", 2_265_974_784, 428_043_540_364, 381_172_099_492)
#: Kernels, bytes read and written by operator of one forward of T2V-1.3B at 480x832 and 81 frames: the larger ones.
OPERATORS = {
    "_to_copy": (364, 48_609_060_872, 51_628_772_356),
    "add": (303, 54_549_163_008, 33_413_548_032),
    "mul": (364, 35_425_574_404, 48_507_864_576),
    "addmm": (306, 41_788_888_192, 38_847_648_768),
    "native_layer_norm": (91, 18_316_615_680, 18_340_096_320),
    "gelu": (31, 17_613_348_864, 17_613_348_864),
    "_scaled_dot_product_flash_attention": (60, 12_171_018_240, 6_132_673_440),
    "_fused_rms_norm": (120, 9_105_039_360, 9_116_525_760),
    "sub": (60, 12_076_646_400, 6_038_323_200),
    "copy_": (120, 12_076_646_400, 6_038_323_200),
    "clone": (2, 104_832_000, 104_832_000),
    "convolution": (1, 4_392_960, 100_638_720),
    "cat": (4, 36_992, 33_548_288),
    "silu": (2, 9_216, 9_216),
}
#: One call: (latent frames, rows, columns).
VAES: list[tuple[Any, ...]] = [
    (
        "wan2.1",
        "decode",
        "float32",
        (21, 60, 104),
        "decoder.up_blocks.3.resnets.1.conv1",
        "constant_pad_nd",
        8_166_976_512,
        1_718_250_327_740,
        1_442_772_219_216,
    ),
    (
        "wan2.1",
        "encode",
        "float32",
        (21, 60, 104),
        "encoder.down_blocks.0.conv1",
        "constant_pad_nd",
        5_639_427_072,
        1_038_082_112_400,
        872_998_814_688,
    ),
    (
        "wan2.1",
        "decode",
        "float32",
        (21, 90, 160),
        "decoder.up_blocks.3.resnets.1.conv1",
        "constant_pad_nd",
        18_842_121_216,
        3_955_265_676_476,
        3_327_588_911_952,
    ),
    (
        "wan2.1",
        "encode",
        "float32",
        (21, 90, 160),
        "encoder.down_blocks.0.conv1",
        "constant_pad_nd",
        13_009_314_816,
        2_388_415_592_208,
        2_013_338_546_016,
    ),
    (
        "wan2.1",
        "decode",
        "float32",
        (5, 32, 32),
        "decoder.up_blocks.3.resnets.1.conv1",
        "constant_pad_nd",
        1_290_216_448,
        60_154_680_060,
        49_758_843_216,
    ),
    (
        "wan2.1",
        "encode",
        "float32",
        (5, 32, 32),
        "encoder.down_blocks.0.conv1",
        "constant_pad_nd",
        924_722_176,
        36_643_938_960,
        30_233_440_736,
    ),
    (
        "wan2.1",
        "decode",
        "bfloat16",
        (21, 60, 104),
        "decoder.up_blocks.3.resnets.1.norm2",
        "div",
        4_240_204_800,
        1_246_492_358_110,
        1_041_215_138_256,
    ),
    (
        "wan2.1",
        "encode",
        "bfloat16",
        (21, 60, 104),
        "encoder.down_blocks.0.norm2",
        "div",
        2_976_430_080,
        717_057_372_360,
        595_046_176_152,
    ),
    (
        "wan2.1",
        "decode",
        "bfloat16",
        (21, 90, 160),
        "decoder.up_blocks.3.resnets.1.norm2",
        "div",
        9_785_088_000,
        2_871_557_132_638,
        2_401_861_444_944,
    ),
    (
        "wan2.1",
        "encode",
        "bfloat16",
        (21, 90, 160),
        "encoder.down_blocks.0.norm2",
        "div",
        6_868_684_800,
        1_651_168_525_704,
        1_372_546_431_576,
    ),
    (
        "wan2.1",
        "decode",
        "bfloat16",
        (5, 32, 32),
        "decoder.up_blocks.3.resnets.1.norm2",
        "div",
        670_138_368,
        43_481_741_694,
        35_945_760_976,
    ),
    (
        "wan2.1",
        "encode",
        "bfloat16",
        (5, 32, 32),
        "encoder.down_blocks.0.norm2",
        "div",
        487_391_232,
        25_187_004_744,
        20_613_363_992,
    ),
    (
        "wan2.2",
        "decode",
        "float32",
        (31, 44, 80),
        "decoder.up_blocks.3.resnets.0.conv1",
        "constant_pad_nd",
        20_704_006_144,
        4_958_435_562_896,
        4_141_968_543_984,
    ),
    (
        "wan2.2",
        "encode",
        "float32",
        (31, 44, 80),
        "encoder.down_blocks.0.resnets.1.conv1",
        "constant_pad_nd",
        7_804_574_720,
        1_580_774_775_104,
        1_311_712_528_048,
    ),
    (
        "wan2.2",
        "decode",
        "float32",
        (5, 16, 16),
        "decoder.up_blocks.3.resnets.0.conv1",
        "constant_pad_nd",
        1_427_243_008,
        60_850_228_912,
        42_454_504_784,
    ),
    (
        "wan2.2",
        "encode",
        "float32",
        (5, 16, 16),
        "encoder.down_blocks.0.resnets.1.conv1",
        "constant_pad_nd",
        484_686_848,
        18_997_623_872,
        13_537_162_256,
    ),
    (
        "wan2.2",
        "decode",
        "bfloat16",
        (31, 44, 80),
        "decoder.up_blocks.3.resnets.0.conv1",
        "constant_pad_nd",
        10_352_003_072,
        3_456_803_853_768,
        2_875_057_886_320,
    ),
    (
        "wan2.2",
        "encode",
        "bfloat16",
        (31, 44, 80),
        "encoder.down_blocks.0.resnets.1.norm2",
        "div",
        4_046_254_080,
        1_067_954_960_032,
        878_022_979_152,
    ),
    (
        "wan2.2",
        "decode",
        "bfloat16",
        (5, 16, 16),
        "decoder.up_blocks.3.resnets.0.conv1",
        "constant_pad_nd",
        713_621_504,
        40_461_869_912,
        29_481_952_976,
    ),
    (
        "wan2.2",
        "encode",
        "bfloat16",
        (5, 16, 16),
        "encoder.down_blocks.0.resnets.1.norm2",
        "div",
        252_100_608,
        12_355_397_152,
        9_055_003_184,
    ),
]
ENCODED = ("encoder.down_blocks.0.conv1", "constant_pad_nd")
#: One call of the Wan2.1 VAE in float32 with tiles of the default sizes.
TILED: list[tuple[Any, ...]] = [
    ("decode", (21, 60, 104), "", "clamp", 1_813_487_616, 2_931_619_919_364, 2_392_968_773_040),
    (
        "encode",
        (21, 60, 104),
        "encoder.down_blocks.0.conv1",
        "constant_pad_nd",
        946_643_968,
        1_784_514_096_496,
        1_451_010_716_704,
    ),
    ("decode", (21, 90, 160), "", "clamp", 4_180_377_600, 6_683_376_316_560, 5_487_084_616_896),
    (
        "encode",
        (21, 90, 160),
        "encoder.down_blocks.0.conv1",
        "constant_pad_nd",
        976_233_472,
        4_063_234_613_568,
        3_326_991_389_184,
    ),
]
#: One forward of the encoders at their full size: 512 tokens of text, or one image.
UMT5_XXL = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
ENCODERS: list[tuple[Any, ...]] = [
    (
        "text",
        "bfloat16",
        True,
        "encoder.block.1.layer.0.SelfAttention",
        "clone",
        125_829_120,
        19_766_659_120,
        8_330_484_144,
    ),
    (
        "text",
        "bfloat16",
        False,
        "encoder.block.1.layer.0.SelfAttention",
        "_scaled_dot_product_efficient_attention",
        96_469_008,
        18_955_061_248,
        7_525_177_728,
    ),
    ("image", "float32", None, "encoder.layers.31.mlp.activation_fn", "gelu", 55_265_280, 3_455_283_208, 764_637_200),
    ("image", "bfloat16", None, "encoder.layers.31.mlp.activation_fn", "gelu", 27_632_640, 1_727_642_632, 382_912_272),
]
#: Features that a steady chunk finds, in bytes for each pixel and byte of an element.
CACHES = [("wan2.1", "decode", 2364.5), ("wan2.1", "encode", 1404.0), ("wan2.2", "decode", 7137.5 / 4)]
#: The same at full size in GiB, as far as it was written down: (height, width).
CACHES_GIB = [
    ("wan2.1", "decode", (480, 832), "3.518"),
    ("wan2.1", "encode", (480, 832), "2.089"),
    ("wan2.1", "decode", (720, 1280), "8.118"),
    ("wan2.1", "encode", (720, 1280), "4.820"),
    ("wan2.2", "decode", (704, 1280), "5.990"),
    ("wan2.2", "encode", (704, 1280), "1.976"),
]
STRIDES = {"wan2.1": 8, "wan2.2": 16}


def vae(family: str, precision: str) -> AutoencoderKLWan:
    """The VAE of a family of models."""
    name = {"wan2.1": "wan2.1-t2v-1.3b", "wan2.2": "wan2.2-ti2v-5b"}[family]
    model = AutoencoderKLWan(**mm.load(name).config["vae"])
    model.to(getattr(nn, precision))
    return model


def call_of(method: str, sizes: tuple[int, int, int]) -> Call:
    """The call that a pipeline makes once."""
    return {"decode": decode_call, "encode": encode_call}[method](1, *sizes, 1)


def moved(component: Component, call: Call) -> Sums:
    """What the kernels of a call move, from closed forms."""
    parts = []
    for forward in call.forwards:
        form = compile_forward(component.entry(forward.label), forward.dims)
        first, last = (form.traffic(dims) for dims in forward.ends)
        parts.append(over_times(first, last, forward.times))
    return merged(parts)


def forms(component: Component, call: Call) -> Measured:
    """What was measured, from closed forms."""
    peaks = [
        compile_forward(component.entry(forward.label), forward.dims).peak(forward.dims) for forward in call.forwards
    ]
    peak = max(peaks, key=lambda each: each.live)
    total = overall(moved(component, call))
    return peak.path, peak.op, peak.live, total.bytes_read, total.bytes_written


def transformer(name: str, sizes: tuple[int, int, int, int]) -> tuple[Component, Call]:
    """The diffusion transformer as diffusers runs it, and its forward."""
    batch, frames, height, width = sizes
    model = mm.load(name, "implementation=diffusers")
    plan = model.plan(model.workload(batch_size=batch, num_frames=frames, height=height, width=width, text_len=512))
    (stage,) = [stage for stage in plan.stages if stage.id == "transformer"]
    return model.components["transformer"], single(stage.calls[0].dims, 1)


@pytest.mark.parametrize(("name", "sizes", "module", "op", "peak", "read", "written"), TRANSFORMERS)
def test_transformers_hold_and_move_what_was_measured(
    name: str, sizes: tuple[int, int, int, int], module: str, op: str, peak: int, read: int, written: int
) -> None:
    """One forward of every diffusion transformer, from its closed forms."""
    more = MORE.get((name, sizes), (0, 0, 0))
    expected = (a + b for a, b in zip((peak, read, written), more, strict=True))
    assert forms(*transformer(name, sizes)) == (module, op, *expected)


def test_one_timestep_for_all_tokens_holds_and_moves_what_was_measured() -> None:
    """The transformer of TI2V-5B with a scalar timestep, as another pipeline may run it."""
    model = Wan2_1DiTModel(**transformer_arguments(mm.load("wan2.2-ti2v-5b").config["transformer"]))
    model.to(nn.bfloat16, keep_in_fp32=KEEP_IN_FP32)
    dims = {"batch": 1, "frames": 31, "rows": 22, "columns": 40, "text_len": 512}
    assert forms(model, single(dims, 1)) == SCALAR_TIMESTEP


def test_operators_move_what_was_measured() -> None:
    """Kernels and bytes of every operator of a forward of T2V-1.3B."""
    found: dict[str, tuple[int, int, int]] = {}
    for key, traffic in moved(*transformer("wan2.1-t2v-1.3b", (1, 81, 480, 832))).items():
        counts = traffic.kernels, traffic.bytes_read, traffic.bytes_written
        found[key.op] = tuple(a + b for a, b in zip(found.get(key.op, (0, 0, 0)), counts, strict=True))
    assert {op: counts for op, counts in found.items() if op in OPERATORS} == OPERATORS
    assert sum(read + written for op, (_, read, written) in found.items() if op not in OPERATORS) < 10_000


@pytest.mark.parametrize(("family", "method", "precision", "sizes", "module", "op", "peak", "read", "written"), VAES)
def test_vaes_hold_and_move_what_was_measured(
    family: str,
    method: str,
    precision: str,
    sizes: tuple[int, int, int],
    module: str,
    op: str,
    peak: int,
    read: int,
    written: int,
) -> None:
    """One call of the VAEs, over all its chunks."""
    assert forms(vae(family, precision), call_of(method, sizes)) == (module, op, peak, read, written)


@pytest.mark.parametrize(("method", "sizes", "module", "op", "peak", "read", "written"), TILED)
def test_tiled_vaes_hold_and_move_what_was_measured(
    method: str, sizes: tuple[int, int, int], module: str, op: str, peak: int, read: int, written: int
) -> None:
    """One tiled call, from the closed forms of its tiles, seams and rows."""
    call = {"decode": tiled_decode_call, "encode": tiled_encode_call}[method](1, *sizes, 1, scale_factor_spatial=8)
    assert forms(vae("wan2.1", "float32"), call) == (module, op, peak, read, written)


@pytest.mark.parametrize(("kind", "precision", "masked", "module", "op", "peak", "read", "written"), ENCODERS)
def test_encoders_hold_and_move_what_was_measured(
    kind: str, precision: str, masked: bool, module: str, op: str, peak: int, read: int, written: int
) -> None:
    """One forward of UMT5-XXL and of CLIP ViT-H/14 with all hidden states.

    CLIP was measured on pixels in the dtype of its weights; those that a pipeline gives are float32 and are cast.
    """
    if (kind, precision) == ("image", "bfloat16"):
        pixels = 3 * 224 * 224
        read, written = read + 4 * pixels, written + 2 * pixels
    model: Component = UMT5EncoderModel(**UMT5_XXL, masked=masked) if kind == "text" else CLIPVisionModel()
    model.to(getattr(nn, precision))
    dims = {"batch": 1, "text_len": 512} if kind == "text" else {"batch": 1}
    assert forms(model, single(dims, 1)) == (module, op, peak, read, written)


def cached(family: str, method: str, precision: str, sizes: tuple[int, int, int]) -> int:
    """Bytes of the features that the last chunk of a call finds."""
    *_, last = (forward for forward in call_of(method, sizes).forwards if "chunk" in forward.label)
    (cache,) = (
        value
        for value in vae(family, precision).entry(last.label).inputs(**last.dims).values()
        if isinstance(value, Cache)
    )
    return cache.nbytes


@pytest.mark.parametrize(("family", "method", "factor"), CACHES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_features_are_those_that_were_measured(family: str, method: str, factor: float, precision: str) -> None:
    """What a VAE keeps between chunks is a measured number of bytes for each pixel."""
    element = getattr(nn, precision).itemsize
    for frames, rows, columns in [(21, 60, 104), (31, 44, 80), (3, 4, 6)]:
        pixels = rows * columns * STRIDES[family] ** 2
        assert cached(family, method, precision, (frames, rows, columns)) == factor * pixels * element


@pytest.mark.parametrize(("family", "method", "pixels", "gib"), CACHES_GIB)
def test_features_at_full_size(family: str, method: str, pixels: tuple[int, int], gib: str) -> None:
    """The same in GiB at the sizes of the vendors, in float32."""
    rows, columns = (size // STRIDES[family] for size in pixels)
    assert f"{cached(family, method, 'float32', (21, rows, columns)) / 2**30:.3f}" == gib


def test_rms_norm_step_by_step_moves_and_holds_what_was_measured() -> None:
    """PyTorch below 2.8 has no kernel for RMS norm: T2V-14B at 720p peaks in it, and 36 % more bytes move."""
    model = mm.load("wan2.1-t2v-14b", "implementation=diffusers", "rms_norm=decomposed")
    estimate = model.estimate(workload="official-720p", num_inference_steps=1, guidance_scale=1)
    ((forward, _, form),) = next(run for run in estimate.runs if run.stage.id == "transformer").forwards
    peak = form.peak(forward.dims)
    assert (peak.path, peak.op, peak.live) == ("blocks.0.attn2.norm_q", "mul", 8_609_224_000)
    moved = estimate.traffic["transformer"].total
    assert (moved.bytes_read, moved.bytes_written) == (3_403_335_478_652, 2_966_230_104_068)
