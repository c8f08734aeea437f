"""The official forward: bytes as measured on the official classes, FLOPs as diffusers' forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelmeter as mm
from modelmeter.compiled import compile_forward
from modelmeter.flops import called_paths
from modelmeter.memory import peaks
from modelmeter.models.wan2_1.official import WanModel
from modelmeter.models.wan2_1.official_vace import VaceWanModel
from modelmeter.models.wan2_1.transformer import Wan2_1DiTModel
from modelmeter.models.wan2_1.vace import WanVACETransformer3DModel
from modelmeter.nn import Body, DType, Op, bfloat16, float32, trace
from modelmeter.traffic import overall, total_traffic


class Measured(NamedTuple):
    """One forward of an official class: token grid, dtype of the weights, and what the tracker saw."""

    model: str
    grid: tuple[int, int, int]
    dtype: DType
    peak_bytes: int
    peak_module: str
    """In diffusers' names."""
    read: int
    written: int

    @property
    def dims(self) -> dict[str, int]:
        """Sizes of the inputs."""
        images = {"image_tokens": 257} if "wan2.1-i2v" in self.model else {}
        return {
            "batch": 1,
            **dict(zip(("frames", "rows", "columns"), self.grid, strict=True)),
            "text_len": 512,
            **images,
        }


#: Measured with an allocation tracker on the official ``WanModel`` (Wan2.1 at 9737cba, Wan2.2 at 42bf4cf) under
#: emulated CUDA autocast with torch 2.13: a whole forward with a prompt of 512 tokens.
SELF, FFN, TIME = "blocks.1.attn1", "blocks.1.ffn.net.0.proj", "condition_embedder.time_proj"
# fmt: off
MEASURED = [
    Measured("wan2.1-t2v-1.3b", (21, 30, 52), float32, 2_148_612_096, SELF, 437_335_670_064, 383_377_394_408),
    Measured("wan2.1-t2v-1.3b", (5, 16, 16), float32, 91_454_976, FFN, 25_979_119_984, 18_231_052_648),
    Measured("wan2.1-t2v-14b", (21, 30, 52), float32, 7_083_765_760, SELF, 1_899_315_955_672, 1_627_407_131_976),
    Measured("wan2.1-t2v-14b", (21, 45, 80), float32, 16_339_947_520, SELF, 4_266_981_780_952, 3_715_344_080_136),
    Measured("wan2.1-t2v-14b", (5, 16, 16), float32, 313_555_968, FFN, 159_489_609_432, 93_134_136_456),
    Measured("wan2.1-i2v-14b-480p", (21, 30, 52), float32, 7_099_535_360, SELF, 2_022_304_400_632, 1_714_291_036_088),
    Measured("wan2.1-i2v-14b-480p", (21, 45, 80), float32, 16_355_717_120, SELF, 4_530_393_576_952, 3_907_817_274_488),
    Measured("wan2.2-t2v-a14b", (21, 30, 52), bfloat16, 15_134_597_120, SELF, 2_130_239_474_704, 1_729_211_573_760),
    Measured("wan2.2-t2v-a14b", (21, 45, 80), bfloat16, 34_919_137_280, SELF, 4_873_724_169_424, 3_986_743_171_200),
    Measured("wan2.2-t2v-a14b", (5, 16, 16), bfloat16, 852_090_880, TIME, 114_251_176_784, 70_315_806_080),
    Measured("wan2.2-t2v-a14b", (21, 30, 52), float32, 15_805_521_920, SELF, 2_280_624_688_016, 1_851_019_803_904),
    Measured("wan2.2-t2v-a14b", (21, 45, 80), float32, 36_467_425_280, SELF, 5_146_940_230_736, 4_231_382_249_344),
    Measured("wan2.2-t2v-a14b", (5, 16, 16), float32, 654_076_928, FFN, 174_376_934_096, 101_864_580_224),
    Measured("wan2.2-i2v-a14b", (21, 45, 80), bfloat16, 34_919_137_280, SELF, 4_873_804_822_224, 3_986_798_812_800),
    Measured("wan2.2-ti2v-5b", (31, 22, 40), bfloat16, 7_573_454_848, SELF, 819_615_490_720, 670_437_124_576),
    Measured("wan2.2-ti2v-5b", (31, 22, 40), float32, 7_908_671_488, SELF, 874_593_403_168, 715_415_461_600),
]
# fmt: on


def forward(measured: Measured) -> tuple[Any, Body]:
    """The transformer with weights of that dtype, and its trace."""
    precision = {"float32": "fp32", "bfloat16": "bf16"}[measured.dtype.name]
    model = mm.load(measured.model, f"precision={precision}").components["transformer"]
    return model, trace(model, **model.inputs(**measured.dims)).body


@pytest.mark.parametrize("measured", MEASURED, ids=lambda m: f"{m.model} {m.grid} {m.dtype}")
def test_peak_and_bytes_are_those_of_the_official_class(measured: Measured) -> None:
    """Peak bytes, and the module that runs then, are equal; bytes moved within a millionth.

    What is missing are lengths and grid sizes, a few integers by block, and the timesteps of Wan2.2, which the
    reference reads from one number.
    """
    _, body = forward(measured)
    (peak,) = peaks(body, {})
    assert (peak.live, peak.path) == (measured.peak_bytes, measured.peak_module)
    moved = overall(total_traffic(body))
    assert moved.bytes_read == pytest.approx(measured.read, rel=1e-6)
    assert moved.bytes_written == pytest.approx(measured.written, rel=1e-6)


def test_the_same_peak_comes_from_closed_forms() -> None:
    """What a report evaluates, the compiled forward, gives the measured peak and the same bytes moved."""
    measured = MEASURED[3]
    model, body = forward(measured)
    form = compile_forward(model, measured.dims)
    assert form.peak(measured.dims).live == measured.peak_bytes
    assert overall(form.traffic(measured.dims)) == overall(total_traffic(body))


def block_kernels(body: Body) -> Iterator[Op]:
    """What the second block runs, the first with a float32 stream."""
    for path, called in called_paths(body):
        if path == "blocks.1" or path.startswith("blocks.1."):
            yield from called.ops


@pytest.mark.parametrize(
    ("model", "dtype", "per_token", "kernels"),
    [
        ("wan2.1-t2v-14b", float32, 456, 95),
        ("wan2.1-t2v-1.3b", float32, 470, 95),
        ("wan2.1-i2v-14b-720p", float32, 456 + 24, None),
        ("wan2.2-t2v-a14b", bfloat16, 516, 73),
        ("wan2.2-t2v-a14b", float32, 516 + 28, None),
        ("wan2.2-ti2v-5b", bfloat16, 524, 73),
    ],
)
def test_a_block_runs_and_moves_what_was_counted(model: str, dtype: DType, per_token: int, kernels: int | None) -> None:
    """Kernels besides products and attention, and their bytes by token and channel, are those of the real blocks.

    Counted on the official blocks (Wan2.1 at 9737cba, Wan2.2 at 42bf4cf) under emulated CUDA autocast; the casts of
    weights, which do not grow with the tokens, apart.
    """
    measured = Measured(model, (21, 45, 80), dtype, 0, "", 0, 0)
    _, body = forward(measured)
    others = [op for op in block_kernels(body) if op.kind not in ("linear", "attention")]
    activations = [op for op in others if not (op.name == "_to_copy" and op.weight_bytes_read)]
    moved = sum(op.bytes_read + op.bytes_written for op in activations)
    channels = mm.load(model).config["transformer"]["dim"]
    assert round(moved / (21 * 45 * 80 * channels)) == per_token
    assert kernels is None or len(others) == kernels


# -- the law: the same products in the same modules --------------------------------------------------------------

small = st.fixed_dictionaries(
    {
        "num_attention_heads": st.integers(1, 3),
        "attention_head_dim": st.integers(3, 20).map(lambda n: 2 * n),
        "in_channels": st.integers(4, 40),
        "out_channels": st.integers(1, 4),
        "text_dim": st.integers(1, 60),
        "freq_dim": st.integers(1, 30).map(lambda n: 2 * n),
        "ffn_dim": st.integers(1, 150),
        "num_layers": st.integers(2, 4),
    }
)


def closed_forms(model: Any, dims: dict[str, int]) -> dict[str, Any]:
    """FLOPs that every module runs itself, as formulas, where there are any."""
    form = compile_forward(model, dims)
    return {path: counts for path, counts in form.own_flops(dims).items() if counts}


@pytest.mark.parametrize("kind", ["t2v", "i2v", "flf2v", "per_token", "vace"])
@settings(max_examples=15, deadline=None)
@given(config=small, batch=st.integers(1, 3), grid=st.tuples(*[st.integers(1, 12)] * 3), tokens=st.integers(1, 40))
def test_both_forwards_multiply_the_same(
    kind: str, config: dict[str, Any], batch: int, grid: tuple[int, int, int], tokens: int
) -> None:
    """Module by module the official forward counts the FLOPs of diffusers', and has its modules and parameters."""
    dims = {"batch": batch, "frames": grid[0], "rows": grid[1], "columns": grid[2], "text_len": 512}
    width = config["num_attention_heads"] * config["attention_head_dim"]
    ours: type[Wan2_1DiTModel] = WanModel
    theirs: type[Wan2_1DiTModel] = Wan2_1DiTModel
    extra: dict[str, Any] = {}
    if kind in ("i2v", "flf2v"):
        positions = 2 * tokens if kind == "flf2v" else None
        extra = {"image_dim": 24, "added_kv_proj_dim": width, "pos_embed_seq_len": positions}
        dims["image_tokens"] = tokens
    elif kind == "per_token":
        extra = {"expand_timesteps": True}
    elif kind == "vace":
        ours, theirs = VaceWanModel, WanVACETransformer3DModel
        extra = {"vace_layers": [0, config["num_layers"] - 1], "vace_in_channels": tokens}
        config = {**config, "out_channels": config["in_channels"]}
    official, diffusers = ours(**config, **extra), theirs(**config, **extra)
    counted = closed_forms(official, dims)
    assert counted
    assert counted == closed_forms(diffusers, dims)
    assert {p: m.params for p, m in official.named_modules()} == {p: m.params for p, m in diffusers.named_modules()}
    shapes = {name: tensor.shape for name, tensor in official.inputs(**dims).items()}
    assert shapes == {name: tensor.shape for name, tensor in diffusers.inputs(**dims).items()}


@pytest.mark.parametrize("kind", [WanModel, VaceWanModel])
def test_sharing_equal_calls_changes_nothing(kind: type[Wan2_1DiTModel]) -> None:
    """With and without the memo the record of an official forward reads the same."""
    extra: dict[str, Any] = {"vace_layers": [0, 2], "vace_in_channels": 8} if kind is VaceWanModel else {}
    model = kind(num_attention_heads=2, attention_head_dim=16, ffn_dim=48, num_layers=4, **extra)
    inputs = model.inputs(batch=2, frames=3, rows=4, columns=5, text_len=16)
    shared, plain = (list(kernels(trace(model, memo=memo, **inputs).body)) for memo in (True, False))
    assert len(plain) > 300
    assert shared == plain


def kernels(body: Body, path: str = "", live: Any = 0) -> Iterator[tuple[str, Op]]:
    """Every kernel with its module, live bytes from the start of the forward."""
    for item in body.items:
        if isinstance(item, Op):
            yield path, item._replace(live=live + item.live)
        else:
            yield from kernels(item.body, f"{path}.{item.name}", live + item.live)


def test_control_blocks_stack_all_hints_anew() -> None:
    """Control block i writes i + 2 videos in float32, and the last stack lives until the main blocks have run.

    Read in ``wan/modules/vace_model.py`` of Wan2.1 at 9737cba, not measured.
    """
    model = VaceWanModel(
        num_attention_heads=2, attention_head_dim=16, ffn_dim=48, num_layers=4, vace_layers=[0, 2], vace_in_channels=8
    )
    model.to(float32)
    body = trace(model, **model.inputs(batch=1, frames=3, rows=4, columns=5, text_len=16)).body
    video = 3 * 4 * 5 * 32 * 4
    found = {path: op for path, op in kernels(body) if op.name == "stack" and path.startswith(".vace")}
    stacks = {path: op.bytes_written for path, op in found.items() if op.outputs[0].shape[0] > 1}
    assert stacks == {".vace_blocks.0": 2 * video, ".vace_blocks.1": 3 * video}
    assert all(op.live > 3 * video for path, op in kernels(body) if path.startswith(".blocks"))


def test_the_weights_have_the_dtype_that_is_asked_for() -> None:
    """Unasked, the official code loads float32; asked, all weights are what is asked, with no float32 islands."""
    for precision, dtype in (("default", float32), ("bf16", bfloat16)):
        model = mm.load("wan2.1-t2v-1.3b", f"precision={precision}").components["transformer"]
        assert {weight.dtype for _, weight in model.named_parameters()} == {dtype}


def test_an_odd_width_of_the_timestep_embedding_is_refused() -> None:
    """As the official code asserts; half of it is cosines."""
    with pytest.raises(mm.InputError, match=r"freq_dim=255.*even"):
        mm.load("wan2.1-t2v-1.3b", "transformer.freq_dim=255").estimate()
