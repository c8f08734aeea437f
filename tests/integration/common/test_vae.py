"""Ring 3: our VAE against diffusers' real class: FLOPs and parameters of every module, by whole calls."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import pytest
import torch
from diffusers import AutoencoderKLWan as Reference
from diffusers.models.autoencoders import autoencoder_kl_wan
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modelmeter.compiled import compile_forward
from modelmeter.models.common.vae import AutoencoderKLWan, decode_call, encode_call
from modelmeter.models.common.vae_layers import DupUp3D
from modelmeter.models.common.vae_tiles import tiled_decode_call, tiled_encode_call
from modelmeter.stage import Call
from modelmeter.verify.flop_counter import Counted, count, parameters

Method = Literal["decode", "encode"]
METHODS: tuple[Method, ...] = ("decode", "encode")
#: Batch, latent frames, rows and columns.
Sizes = tuple[int, int, int, int]

WAN_2_1: dict[str, Any] = {}
WAN_2_2: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
CONFIGS = {"wan2.1": WAN_2_1, "wan2.2": WAN_2_2}

#: FLOPs measured with PyTorch 2.13 on diffusers 0.42.1: rows, columns and frames of pixels.
MEASURED: dict[str, dict[Method, dict[tuple[int, int, int], int]]] = {
    "wan2.1": {
        "encode": {
            (480, 832, 81): 163_749_702_205_440,
            (720, 1280, 81): 381_674_137_190_400,
            (480, 832, 1): 2_718_293_360_640,
            (720, 1280, 1): 6_453_470_822_400,
            (480, 832, 5): 10_769_863_802_880,
            (480, 832, 9): 18_821_434_245_120,
            (480, 832, 77): 155_698_131_763_200,
            (64, 64, 9): 191_218_974_720,
            (480, 832, 73): 147_646_561_320_960,
        },
        "decode": {
            (480, 832, 81): 275_352_205_639_680,
            (720, 1280, 81): 639_218_375_884_800,
            (480, 832, 1): 4_352_196_526_080,
            (720, 1280, 1): 10_224_016_588_800,
            (480, 832, 5): 17_902_196_981_760,
            (480, 832, 9): 31_452_197_437_440,
            (480, 832, 77): 261_802_205_184_000,
            (64, 64, 9): 320_765_263_872,
            (1024, 1024, 1): 11_682_587_869_184,
        },
    },
    "wan2.2": {
        "encode": {
            (704, 1280, 1): 4_216_297_226_240,
            (704, 1280, 121): 382_641_064_509_440,
            (704, 1280, 81): 256_499_475_415_040,
            (480, 832, 81): 113_511_527_301_120,
            (704, 1280, 5): 16_830_456_135_680,
            (704, 1280, 9): 29_444_615_045_120,
            (64, 64, 9): 133_408_587_776,
        },
        "decode": {
            (704, 1280, 121): 2_011_137_824_030_720,
            (704, 1280, 81): 1_347_616_909_393_920,
            (480, 832, 81): 596_976_309_596_160,
            (704, 1280, 1): 20_575_080_120_320,
            (704, 1280, 5): 86_927_171_584_000,
            (704, 1280, 9): 153_279_263_047_680,
            (64, 64, 9): 696_035_008_512,
        },
    },
}
TILED: dict[str, dict[Method, tuple[tuple[int, int, int], int]]] = {
    "wan2.1": {
        "decode": ((480, 832, 81), 454_309_947_359_232),
        "encode": ((480, 832, 81), 269_450_416_029_696),
    },
    "wan2.2": {
        "decode": ((704, 1280, 121), 3_325_084_906_717_184),
        "encode": ((704, 1280, 121), 586_719_502_729_216),
    },
}


class Called(torch.nn.Module):
    """A method of the real class as a module call, so that paths begin at the class."""

    def __init__(self, vae: torch.nn.Module, method: Method) -> None:
        super().__init__()
        self.vae = vae
        self.method = method

    def forward(self, **inputs: torch.Tensor) -> Any:
        """The method on its own arguments."""
        return getattr(self.vae, self.method)(**inputs, return_dict=False)


def real(config: Mapping[str, Any]) -> torch.nn.Module:
    """The real class at full size on meta."""
    with torch.device("meta"):
        vae: torch.nn.Module = Reference(**config)
    return vae.eval()


def theirs(vae: torch.nn.Module, config: Mapping[str, Any], method: Method, sizes: Sizes) -> Counted:
    """The real call, counted, by path below the VAE."""
    batch, frames, rows, columns = sizes
    inputs = AutoencoderKLWan(**config).entry(method).inputs(batch=batch, frames=frames, rows=rows, columns=columns)
    counted = count(Called(vae, method), **{name: torch.empty(x.shape, device="meta") for name, x in inputs.items()})
    assert counted.uncounted_ops == ()
    flops = {path.removeprefix("vae."): value for path, value in counted.flops.items()}
    return Counted(flops, counted.own, counted.by_op, ())


def ours(config: Mapping[str, Any], call: Call) -> dict[str, int]:
    """FLOPs of every module over all forwards of a call."""
    vae = AutoencoderKLWan(**config)
    total: Counter[str] = Counter()
    for forward in call.forwards:
        form = compile_forward(vae.entry(forward.label), forward.dims)
        for path, flops in form.module_flops(forward.dims).items():
            total[path] += forward.times * flops
    return dict(total)


def call_of(method: Method, sizes: Sizes) -> Call:
    """The call that a pipeline makes once."""
    return {"decode": decode_call, "encode": encode_call}[method](*sizes, 1)


def tiled_call_of(config: Mapping[str, Any], method: Method, sizes: Sizes) -> Call:
    """The same call, tiled."""
    stride = config.get("scale_factor_spatial", 8)
    if method == "decode":
        cut = {"patch_size": config.get("patch_size"), "out_channels": config.get("out_channels", 3)}
        return tiled_decode_call(*sizes, 1, scale_factor_spatial=stride, **cut)
    return tiled_encode_call(*sizes, 1, scale_factor_spatial=stride, patch_size=config.get("patch_size"))


def latents(config: Mapping[str, Any], pixels: tuple[int, int, int]) -> Sizes:
    """Latent sizes of rows, columns and frames of pixels."""
    rows, columns, frames = pixels
    stride = config.get("scale_factor_spatial", 8)
    return 1, (frames - 1) // 4 + 1, rows // stride, columns // stride


MEASURED_CALLS = [
    pytest.param(name, method, pixels, flops, id=f"{name}-{method}-{'x'.join(map(str, pixels))}")
    for name, methods in MEASURED.items()
    for method, calls in methods.items()
    for pixels, flops in calls.items()
]
TILED_CALLS = [
    pytest.param(name, method, *call, id=f"{name}-{method}")
    for name, calls in TILED.items()
    for method, call in calls.items()
]


@cache
def full_size(name: str) -> torch.nn.Module:
    """The real class of a model, built once."""
    return real(CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_module_has_the_parameters_of_the_real_one(name: str) -> None:
    """Names and parameters of all modules are those of the real class; a call has those that it runs."""
    expected = parameters(full_size(name))
    vae = AutoencoderKLWan(**CONFIGS[name])
    assert {path: module.params for path, module in vae.named_modules()} == expected
    assert expected[""] > 10**8
    assert vae.entry("decode").params == expected["decoder"] + expected["post_quant_conv"]
    assert vae.entry("encode").params == expected["encoder"] + expected["quant_conv"]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, sizes) for name in CONFIGS for sizes in [(1, 1, 4, 6), (1, 2, 4, 6), (2, 3, 6, 4), (1, 6, 1, 2)]),
        ("wan2.1", (1, 21, 60, 104)),
        ("wan2.2", (1, 31, 44, 80)),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_every_module_has_the_flops_of_the_real_one(name: str, method: Method, sizes: Sizes) -> None:
    """The chunks of a call add up to the FLOPs of each module in the real call."""
    expected = theirs(full_size(name), CONFIGS[name], method, sizes).flops
    assert len([flops for flops in expected.values() if flops]) >= 50
    assert ours(CONFIGS[name], call_of(method, sizes)) == expected


@pytest.mark.parametrize(("name", "method", "pixels", "flops"), MEASURED_CALLS)
def test_a_call_costs_what_was_measured(name: str, method: Method, pixels: tuple[int, int, int], flops: int) -> None:
    """The total is the integer that was measured on the real class."""
    assert ours(CONFIGS[name], call_of(method, latents(CONFIGS[name], pixels)))[""] == flops


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method", "pixels", "flops"), MEASURED_CALLS)
def test_the_measured_flops_are_those_of_the_real_class(
    name: str, method: Method, pixels: tuple[int, int, int], flops: int
) -> None:
    """The stored integers are what the installed reference counts."""
    sizes = latents(CONFIGS[name], pixels)
    assert theirs(full_size(name), CONFIGS[name], method, sizes).flops[""] == flops


# -- tiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [(256, 256), (256, 272), (448, 64), (224, 592)], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_tiles_cost_what_the_real_class_runs(name: str, method: Method, pixels: tuple[int, int]) -> None:
    """With tiling enabled every module has the FLOPs of the real one, whatever is left for the last tiles."""
    config = CONFIGS[name] | {"base_dim": 4, "decoder_base_dim": 8, "z_dim": 4}
    sizes = latents(config, (*pixels, 5))
    vae = real(config)
    vae.enable_tiling()
    expected = theirs(vae, config, method, sizes).flops
    assert expected[""] > 0
    assert ours(config, tiled_call_of(config, method, sizes)) == expected


@pytest.mark.parametrize(("name", "method", "pixels", "flops"), TILED_CALLS)
def test_a_tiled_call_costs_what_was_measured(
    name: str, method: Method, pixels: tuple[int, int, int], flops: int
) -> None:
    """The total with the default tiles is the integer that was measured on the real class."""
    config = CONFIGS[name]
    assert ours(config, tiled_call_of(config, method, latents(config, pixels)))[""] == flops


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method", "pixels", "flops"), TILED_CALLS)
def test_the_measured_flops_of_tiles_are_those_of_the_real_class(
    name: str, method: Method, pixels: tuple[int, int, int], flops: int
) -> None:
    """The stored integers of tiled calls are what the installed reference counts."""
    vae = real(CONFIGS[name])
    vae.enable_tiling()
    assert theirs(vae, CONFIGS[name], method, latents(CONFIGS[name], pixels)).flops[""] == flops


# -- any configuration --------------------------------------------------------------------------------------------


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the class, small, over all that decides its structure."""
    is_residual = draw(st.booleans())
    multiples = draw(st.lists(st.sampled_from([1, 2, 4] if is_residual else [1, 2, 3, 4]), min_size=1, max_size=4))
    if is_residual:  # means and repeats need channels that fit
        multiples = sorted(multiples)
        multiples[-2:-1] = multiples[-1:]
    halved = draw(st.lists(st.booleans(), min_size=len(multiples) - 1, max_size=len(multiples) - 1))
    assume(sum(halved) <= 2)  # four frames of a chunk can be halved twice
    patch_size = draw(st.sampled_from([None, 1, 2]))
    channels = draw(st.integers(1, 3)) * (patch_size or 1) ** 2
    return {
        "base_dim": 2 * draw(st.integers(1, 4)),
        "decoder_base_dim": draw(st.sampled_from([None, 2, 6, 8])),
        "z_dim": draw(st.integers(1, 4)),
        "dim_mult": multiples,
        "num_res_blocks": draw(st.integers(1, 3)),
        "temperal_downsample": halved,
        "is_residual": is_residual,
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": patch_size,
    }


@settings(max_examples=int(os.environ.get("MODELMETER_VAE_EXAMPLES", "25")))
@given(
    configurations(),
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from(METHODS),
)
def test_any_configuration_costs_what_the_real_class_runs(config: dict[str, Any], sizes: Sizes, method: Method) -> None:
    """FLOPs and parameters of each module are the real ones, whatever the configuration and sizes."""
    vae = real(config)
    assert {path: module.params for path, module in AutoencoderKLWan(**config).named_modules()} == parameters(vae)
    expected = theirs(vae, config, method, sizes).flops
    assert expected[""] > 0
    assert ours(config, call_of(method, sizes)) == expected


@pytest.mark.parametrize("multiples", [[1, 3], [3, 2], [1, 2, 3]], ids=str)
def test_channels_that_cannot_be_grouped_are_refused(multiples: list[int]) -> None:
    """Shortcuts that the real class refuses to build are refused by ours."""
    config = {
        "base_dim": 8,
        "dim_mult": multiples,
        "temperal_downsample": [False] * (len(multiples) - 1),
        "is_residual": True,
    }
    with pytest.raises((AssertionError, ValueError)):
        real(config)
    with pytest.raises(ValueError, match="no multiple of"):
        AutoencoderKLWan(**config)


def test_repeats_that_do_not_fit_are_refused() -> None:
    """The shortcut of the decoder refuses the channels that the real one refuses."""
    with pytest.raises(AssertionError):
        autoencoder_kl_wan.DupUp3D(3, 2, factor_t=1, factor_s=2)
    with pytest.raises(ValueError, match="no multiple of"):
        DupUp3D(3, 2, factor_t=1, factor_s=2)


def test_attention_in_the_encoder_runs_in_neither() -> None:
    """Attention scales add the weights of the real class, whose encoder then fails; so does ours."""
    config = {"base_dim": 4, "z_dim": 2, "attn_scales": [0.5, 0.125]}
    vae = real(config)
    assert {path: module.params for path, module in AutoencoderKLWan(**config).named_modules()} == parameters(vae)
    assert ours(config, call_of("decode", (1, 1, 2, 3))) == theirs(vae, config, "decode", (1, 1, 2, 3)).flops
    with pytest.raises(TypeError):
        theirs(vae, config, "encode", (1, 1, 2, 3))
    with pytest.raises(TypeError):
        ours(config, call_of("encode", (1, 1, 2, 3)))
