"""Rings 3 and 4: the text, image and audio encoders against transformers' real classes, by module and by kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmeter import nn
from modelmeter.compiled import compile_forward
from modelmeter.flops import called_paths, total_flops
from modelmeter.memory import peaks
from modelmeter.models.common.audio_encoder import Wav2Vec2ForCTC, audio_dims, token_span
from modelmeter.models.common.image_encoder import CLIPVisionModel
from modelmeter.models.common.text_encoder import UMT5EncoderModel
from modelmeter.nn import evaluate
from modelmeter.stage import Component
from modelmeter.verify.allocations import Tracked, track
from modelmeter.verify.flop_counter import Counted, count, parameters
from modelmeter.verify.transformers_models import build_audio_encoder, build_image_encoder, build_text_encoder

Arguments = Mapping[str, Any]
Dims = Mapping[str, int]

#: UMT5-XXL and CLIP ViT-H/14 as in the configurations published with the Wan2.1 weights.
UMT5_XXL: Arguments = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
}
CLIP_VIT_H: Arguments = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 14,
}


#: wav2vec 2.0 large as XLSR-53 fine-tuned for English, published with the Wan2.2 S2V weights.
XLSR_53: Arguments = {
    "vocab_size": 33,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": True,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}


def recording(batch: int, samples: int) -> Dims:
    """Sizes of recordings."""
    return audio_dims(batch, samples, token_span(XLSR_53["conv_kernel"], XLSR_53["conv_stride"]))


SECONDS_5, SECONDS_10 = recording(1, 80_000), recording(1, 160_000)


class Encoder(NamedTuple):
    """Our class and how to build the real one."""

    ours: type[Component]
    build: Callable[..., torch.nn.Module]
    precisions: tuple[str, ...] = ("float32", "bfloat16")


TEXT = Encoder(UMT5EncoderModel, build_text_encoder)
IMAGE = Encoder(CLIPVisionModel, build_image_encoder)
AUDIO = Encoder(Wav2Vec2ForCTC, build_audio_encoder, ("float32",))  # it takes samples as they are, and never casts


class Row(NamedTuple):
    """What a kernel is compared by; live bytes are those above weights and inputs."""

    name: str
    path: str
    live: int
    bytes_read: int
    bytes_written: int


def ours(encoder: Encoder, arguments: Arguments, precision: str = "float32") -> Component:
    """Our module."""
    module = encoder.ours(**arguments)
    module.to(getattr(nn, precision))
    return module


def theirs(encoder: Encoder, arguments: Arguments, precision: str = "float32") -> torch.nn.Module:
    """The real module on meta."""
    with torch.device("meta"):
        return encoder.build(**arguments).to(getattr(torch, precision))


def tensors(inputs: Mapping[str, nn.Tensor]) -> dict[str, torch.Tensor]:
    """Real inputs on meta of the shapes and dtypes of ours."""
    return {
        name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype.name), device="meta")
        for name, tensor in inputs.items()
    }


def counted(encoder: Encoder, arguments: Arguments, dims: Dims) -> Counted:
    """FLOPs of the real class; nothing ran that the counter does not know."""
    result = count(theirs(encoder, arguments), **tensors(encoder.ours(**arguments).inputs(**dims)))
    assert result.uncounted_ops == ()
    assert result.flops[""] > 0
    return result


def kernels(encoder: Encoder, arguments: Arguments, dims: Dims, precision: str) -> list[Row]:
    """The kernels of our trace on numbers."""
    module = ours(encoder, arguments, precision)
    return list(unrolled(nn.trace(module, **module.inputs(**dims)).body, "", 0))


def unrolled(body: nn.Body, path: str, live: int) -> Iterator[Row]:
    """Every kernel of a call, in the order they run."""
    for item in body.items:
        if isinstance(item, nn.Op):
            yield Row(item.name, path, live + item.live, item.bytes_read, item.bytes_written)
        else:
            yield from unrolled(item.body, f"{path}.{item.name}" if path else item.name, live + item.live)


def tracked(encoder: Encoder, arguments: Arguments, dims: Dims, precision: str) -> Tracked:
    """The real class under the allocation tracker."""
    return track(theirs(encoder, arguments, precision), **tensors(encoder.ours(**arguments).inputs(**dims)))


def rows(tracked: Tracked) -> list[Row]:
    """The tracked kernels, by what they are compared by."""
    return [Row(k.name, k.path, k.live, k.bytes_read, k.bytes_written) for k in tracked.kernels]


# -- FLOPs and parameters -----------------------------------------------------------------------------------

FULL_SIZE = [
    pytest.param(TEXT, UMT5_XXL, {"batch": 1, "text_len": 512}, 4_844_723_109_888, id="umt5-512"),
    pytest.param(TEXT, UMT5_XXL, {"batch": 1, "text_len": 226}, None, id="umt5-226"),
    pytest.param(TEXT, UMT5_XXL, {"batch": 2, "text_len": 512}, 2 * 4_844_723_109_888, id="umt5-batch-2"),
    pytest.param(TEXT, {**UMT5_XXL, "masked": False}, {"batch": 1, "text_len": 512}, 4_844_723_109_888, id="umt5-bare"),
    pytest.param(IMAGE, CLIP_VIT_H, {"batch": 1}, 334_587_658_240, id="clip"),
    pytest.param(IMAGE, CLIP_VIT_H, {"batch": 2}, 2 * 334_587_658_240, id="clip-batch-2"),
    pytest.param(IMAGE, {**CLIP_VIT_H, "layers_that_run": 31}, {"batch": 1}, 324_143_836_160, id="clip-31"),
    pytest.param(AUDIO, XLSR_53, SECONDS_5, 185_492_971_520, id="wav2vec2-5s"),
    pytest.param(AUDIO, XLSR_53, SECONDS_10, 383_887_339_520, id="wav2vec2-10s"),
    pytest.param(AUDIO, XLSR_53, {**SECONDS_5, "batch": 2}, 2 * 185_492_971_520, id="wav2vec2-batch-2"),
]


@pytest.mark.parametrize(("encoder", "arguments", "dims", "flops"), FULL_SIZE)
def test_every_module_counts_what_the_real_one_counts(
    encoder: Encoder, arguments: Arguments, dims: Dims, flops: int | None
) -> None:
    """At full size the same modules are called and each counts the real FLOPs; known totals are the stated ones."""
    expected = counted(encoder, arguments, dims).flops
    if flops is not None:
        assert expected[""] == flops
    assert sum(count > 0 for count in expected.values()) > 190
    assert compile_forward(ours(encoder, arguments), dims).module_flops(dims) == expected


@pytest.mark.parametrize(
    ("encoder", "arguments", "params"),
    [
        pytest.param(TEXT, UMT5_XXL, 5_680_910_336, id="umt5"),
        pytest.param(IMAGE, CLIP_VIT_H, 630_766_080, id="clip"),
        pytest.param(IMAGE, {**CLIP_VIT_H, "layers_that_run": 31}, 630_766_080, id="clip-31"),
        pytest.param(AUDIO, XLSR_53, 315_471_521, id="wav2vec2"),
    ],
)
def test_every_module_holds_the_parameters_of_the_real_one(encoder: Encoder, arguments: Arguments, params: int) -> None:
    """Paths and parameters of all modules are the real ones, also after a cast; a shared weight counts once."""
    expected = parameters(theirs(encoder, arguments))
    assert expected[""] == params
    for module in (ours(encoder, arguments), ours(encoder, arguments, "bfloat16")):
        assert {path: child.params for path, child in module.named_modules()} == expected


def test_the_vocabulary_is_one_weight_under_two_names() -> None:
    """A cast keeps the table shared, and it is named once, after the module that comes first."""
    model = UMT5EncoderModel(vocab_size=100, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    model.to(nn.bfloat16)
    assert model.shared.weight is model.encoder.embed_tokens.weight
    assert model.shared.weight.dtype == nn.bfloat16
    assert [path for path, weight in model.named_parameters() if weight.shape == (100, 8)] == ["shared.weight"]
    assert model.shared.params == model.encoder.embed_tokens.params == 800


# -- random configurations ----------------------------------------------------------------------------------


@st.composite
def text_encoders(draw: st.DrawFn) -> tuple[Encoder, Arguments, Dims]:
    """A small UMT5 and a prompt for it."""
    small = st.integers(1, 12)
    arguments = {
        "vocab_size": draw(small),
        "d_model": draw(small),
        "d_kv": draw(small),
        "d_ff": draw(small),
        "num_layers": draw(st.integers(1, 3)),
        "num_heads": draw(small),
        "relative_attention_num_buckets": draw(st.integers(4, 12)),
        "masked": draw(st.booleans()),
    }
    return TEXT, arguments, {"batch": draw(st.integers(1, 3)), "text_len": draw(st.integers(1, 20))}


@st.composite
def image_encoders(draw: st.DrawFn) -> tuple[Encoder, Arguments, Dims]:
    """A small CLIP and some images for it, of sizes that need not be whole patches."""
    heads, layers, patch = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    arguments = {
        "hidden_size": heads * draw(st.integers(1, 8)),
        "intermediate_size": draw(st.integers(1, 12)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_channels": draw(st.integers(1, 4)),
        "image_size": patch + draw(st.integers(0, 9)),
        "patch_size": patch,
        "layers_that_run": draw(st.none() | st.integers(0, layers)),
    }
    return IMAGE, arguments, {"batch": draw(st.integers(1, 3))}


@st.composite
def audio_encoders(draw: st.DrawFn) -> tuple[Encoder, Arguments, Dims]:
    """A small wav2vec 2.0 and recordings for it, of lengths that need not be whole tokens."""
    heads, groups, layers = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    strides = draw(st.lists(st.integers(1, 4), min_size=layers, max_size=layers))
    kernels = [draw(st.integers(1, 5)) for _ in strides]
    arguments = {
        "vocab_size": draw(st.integers(2, 9)),
        "hidden_size": heads * groups * draw(st.integers(1, 5)),
        "intermediate_size": draw(st.integers(1, 12)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "conv_dim": [draw(st.integers(1, 7)) for _ in strides],
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": draw(st.booleans()),
        "num_conv_pos_embeddings": draw(st.integers(1, 7)),
        "num_conv_pos_embedding_groups": groups,
    }
    span = token_span(kernels, strides)
    return AUDIO, arguments, audio_dims(draw(st.integers(1, 3)), span[0] + draw(st.integers(0, 300)), span)


def compare(encoder: Encoder, arguments: Arguments, dims: Dims) -> None:
    """FLOPs and parameters of every module, and every kernel, are the real ones."""
    form = compile_forward(ours(encoder, arguments), dims)
    assert form.module_flops(dims) == counted(encoder, arguments, dims).flops
    assert {node.path: node.params for node in form.nodes} == parameters(theirs(encoder, arguments))
    for precision in encoder.precisions:
        expected = tracked(encoder, arguments, dims, precision)
        assert kernels(encoder, arguments, dims, precision) == rows(expected)
        peak = compile_forward(ours(encoder, arguments, precision), dims).peak(dims)
        assert peak.live == expected.peak_bytes > 0


RANDOM = pytest.mark.parametrize(
    "cases", [text_encoders(), image_encoders(), audio_encoders()], ids=["text", "image", "audio"]
)


@RANDOM
def test_random_encoders_are_the_real_ones(cases: st.SearchStrategy[tuple[Encoder, Arguments, Dims]]) -> None:
    """Any small configuration gives the FLOPs, parameters and kernels of the real class: 25 of each encoder."""
    settings(max_examples=25)(given(cases)(lambda case: compare(*case)))()


@pytest.mark.slow
@RANDOM
def test_many_random_encoders_are_the_real_ones(cases: st.SearchStrategy[tuple[Encoder, Arguments, Dims]]) -> None:
    """Any small configuration gives the FLOPs, parameters and kernels of the real class: 500 of each encoder."""
    settings(max_examples=500)(given(cases)(lambda case: compare(*case)))()


# -- kernels and live bytes ---------------------------------------------------------------------------------

SMALL = [
    *(
        pytest.param(TEXT, {**UMT5_XXL, "num_layers": 2, "masked": masked}, dims, id=f"umt5-{masked}-{dims}")
        for masked in (True, False)
        for dims in ({"batch": 1, "text_len": 512}, {"batch": 2, "text_len": 226}, {"batch": 1, "text_len": 1})
    ),
    *(
        pytest.param(
            IMAGE, {**CLIP_VIT_H, "num_hidden_layers": 2, "layers_that_run": run}, dims, id=f"clip-{run}-{dims}"
        )
        for run in (None, 1)
        for dims in ({"batch": 1}, {"batch": 2})
    ),
]


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize(("encoder", "arguments", "dims"), SMALL)
def test_every_kernel_is_that_of_the_real_class(
    encoder: Encoder, arguments: Arguments, dims: Dims, precision: str
) -> None:
    """Name, module, live bytes, bytes read and written of each kernel of two layers are the real ones."""
    expected = rows(tracked(encoder, arguments, dims, precision))
    assert len(expected) >= 17
    assert kernels(encoder, arguments, dims, precision) == expected


@pytest.mark.parametrize("dims", [SECONDS_5, SECONDS_10, {**SECONDS_5, "batch": 2}], ids=str)
def test_every_kernel_of_the_audio_encoder_is_that_of_the_real_class(dims: Dims) -> None:
    """Name, module, live bytes, bytes read and written of each kernel of two layers are the real ones."""
    arguments = {**XLSR_53, "num_hidden_layers": 2}
    expected = rows(tracked(AUDIO, arguments, dims, "float32"))
    assert len(expected) > 40
    assert kernels(AUDIO, arguments, dims, "float32") == expected


PEAKS = [
    pytest.param(TEXT, UMT5_XXL, {"batch": 1, "text_len": 512}, "bfloat16", 125_829_120, id="umt5-mask"),
    pytest.param(
        TEXT, {**UMT5_XXL, "masked": False}, {"batch": 1, "text_len": 512}, "bfloat16", 96_469_008, id="umt5-bare"
    ),
    pytest.param(IMAGE, CLIP_VIT_H, {"batch": 1}, "float32", 55_265_280, id="clip-fp32"),
    pytest.param(IMAGE, CLIP_VIT_H, {"batch": 1}, "bfloat16", 27_632_640, id="clip-bf16"),
]


@pytest.mark.parametrize(("encoder", "arguments", "dims", "precision", "peak"), PEAKS)
def test_the_peak_of_a_full_forward_is_that_of_the_real_class(
    encoder: Encoder, arguments: Arguments, dims: Dims, precision: str, peak: int
) -> None:
    """At full depth every kernel agrees, and the peak is the one measured on transformers 5.23 with torch 2.13."""
    expected = tracked(encoder, arguments, dims, precision)
    assert expected.peak_bytes == peak
    assert kernels(encoder, arguments, dims, precision) == rows(expected)
    assert compile_forward(ours(encoder, arguments, precision), dims).peak(dims).live == peak


def test_the_real_class_makes_the_mask_that_ours_takes() -> None:
    """Of a padded prompt's mask [B, L] the real class makes a bool [B, 1, L, L] before its first block."""
    model = build_text_encoder(vocab_size=10, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    seen: list[torch.Tensor] = []
    model.encoder.block[0].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    with torch.no_grad():
        model(torch.zeros(2, 5, dtype=torch.int64), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]))
    mask = UMT5EncoderModel().inputs(batch=2, text_len=5)["attention_mask"]
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in seen] == [(mask.shape, torch.bool)]
    assert mask.dtype == nn.bool_


# -- formulas, refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "arguments", "sizes"),
    [
        (TEXT, {**UMT5_XXL, "num_layers": 2}, [{"batch": 2, "text_len": n} for n in (2, 226, 512, 65536)]),
        (TEXT, {**UMT5_XXL, "num_layers": 2, "masked": False}, [{"batch": n, "text_len": 512} for n in (2, 3, 65536)]),
        (TEXT, {**UMT5_XXL, "num_layers": 2}, [{"batch": 1, "text_len": n} for n in (2, 226, 512, 65536)]),
        (IMAGE, {**CLIP_VIT_H, "num_hidden_layers": 2}, [{"batch": n} for n in (2, 3, 65536)]),
        (AUDIO, {**XLSR_53, "num_hidden_layers": 2}, [recording(1, 320 * n + 87) for n in (2, 3, 249, 1_000_000)]),
        (AUDIO, {**XLSR_53, "num_hidden_layers": 2}, [recording(n, 16_000 * n) for n in (2, 9)]),
    ],
    ids=["text", "text, no mask", "text, one prompt", "image", "audio", "audio, several"],
)
def test_formulas_give_the_numbers(encoder: Encoder, arguments: Arguments, sizes: list[dict[str, int]]) -> None:
    """One trace on symbols, evaluated, is the trace on numbers: kernels, FLOPs of every module, and the peak."""
    module = ours(encoder, arguments, encoder.precisions[-1])
    form = compile_forward(module, sizes[0])
    for dims in sizes:
        body = nn.trace(module, **module.inputs(**dims)).body
        formulas = [Row(*row[:2], *(evaluate(value, dims) for value in row[2:])) for row in unrolled(form.body, "", 0)]
        assert formulas == list(unrolled(body, "", 0))
        called = {path: sum(total_flops(call).values()) for path, call in called_paths(body)}
        assert form.module_flops(dims) == called
        assert form.flops(dims) == called[""] > 0
        (peak,) = peaks(body, {})
        assert form.peak(dims).live == peak.live > 0


@pytest.mark.parametrize(("encoder", "arguments", "dims"), SMALL)
def test_sharing_equal_calls_changes_no_kernel(encoder: Encoder, arguments: Arguments, dims: Dims) -> None:
    """With and without the memo the record reads the same."""
    module = ours(encoder, arguments)
    shared, single = (nn.trace(module, **module.inputs(**dims), memo=memo).body for memo in (True, False))
    assert list(unrolled(shared, "", 0)) == list(unrolled(single, "", 0))


def test_float16_text_encoder_is_refused() -> None:
    """In float16 the real class clamps after every layer, which is not modelled and therefore not passed over."""
    model = ours(TEXT, {**UMT5_XXL, "num_layers": 1}, "float16")
    with pytest.raises(NotImplementedError, match="UMT5 in float16"):
        nn.trace(model, **model.inputs(batch=1, text_len=8))


@pytest.mark.parametrize("layers", [-1, 33])
def test_more_layers_than_there_are_cannot_run(layers: int) -> None:
    """The number of layers that run is checked when the model is built."""
    with pytest.raises(ValueError, match=f"layers_that_run={layers}"):
        CLIPVisionModel(layers_that_run=layers)
