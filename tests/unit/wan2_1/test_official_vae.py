"""The official VAE: peaks and bytes as measured on the official classes, FLOPs as diffusers' forward."""

from __future__ import annotations

from typing import Any

import pytest

import modelmeter as mm
from modelmeter.compiled import CompiledForward, compile_forward
from modelmeter.models.common.vae import AutoencoderKLWan, decode_call, encode_call
from modelmeter.models.common.vae_official import WanVAE
from modelmeter.stage import Call, Component, Forward
from modelmeter.traffic import merged, over_times, overall

UP = "decoder.up_blocks.3.resnets.0.conv1"
DOWN_1, DOWN_2 = "encoder.down_blocks.0.conv1", "encoder.down_blocks.0.resnets.1.conv1"
#: Measured with an allocation tracker on the official ``WanVAE_`` (Wan2.1 ``vae.py`` at 9737cba, Wan2.2 ``vae2_2.py``
#: at 42bf4cf) with torch 2.13, fp32: latent frames, rows and columns, peak, its module in diffusers' names, bytes read
#: and written. All peaks are in the padding of a convolution.
# fmt: off
MEASURED = [
    ("wan2.1-t2v-14b", "decode", (21, 60, 104), 7_561_946_112, UP, 1_718_267_100_988, 1_442_788_992_336),
    ("wan2.1-t2v-14b", "encode", (21, 60, 104), 5_639_427_072, DOWN_1, 1_038_065_339_408, 872_982_041_568),
    ("wan2.1-t2v-14b", "decode", (21, 90, 160), 17_445_897_216, UP, 3_955_304_383_804, 3_327_627_619_152),
    ("wan2.1-t2v-14b", "encode", (21, 90, 160), 13_009_314_816, DOWN_1, 2_388_376_885_136, 2_013_299_838_816),
    ("wan2.2-ti2v-5b", "decode", (31, 44, 80), 20_724_957_184, UP, 4_958_477_465_360, 4_142_010_446_064),
    ("wan2.2-ti2v-5b", "encode", (31, 44, 80), 7_804_574_720, DOWN_2, 1_580_732_873_408, 1_311_670_625_968),
]
# fmt: on
CALLS = {"decode": decode_call, "encode": encode_call}


def compiled(vae: Component, call: Call) -> list[tuple[Forward, CompiledForward]]:
    """Closed forms of every forward of a call."""
    return [(forward, compile_forward(vae.entry(forward.label), forward.dims)) for forward in call.forwards]


@pytest.mark.parametrize(
    ("name", "direction", "sizes", "peak_bytes", "module", "read", "written"), MEASURED, ids=lambda value: str(value)
)
def test_peak_and_bytes_are_those_of_the_official_class(
    name: str, direction: str, sizes: tuple[int, int, int], peak_bytes: int, module: str, read: int, written: int
) -> None:
    """Peak, module and operator of it, and bytes read and written over the whole call are equal integers."""
    forms = compiled(mm.load(name).components["vae"], CALLS[direction](1, *sizes, 1))
    peak = max((form.peak(forward.dims) for forward, form in forms), key=lambda peak: peak.live)
    assert (peak.live, peak.path, peak.op) == (peak_bytes, module, "constant_pad_nd")
    parts = [over_times(*(form.traffic(dims) for dims in forward.ends), forward.times) for forward, form in forms]
    moved = overall(merged(parts))
    assert (moved.bytes_read, moved.bytes_written) == (read, written)


def flops(vae: Component, call: Call) -> dict[str, int]:
    """FLOPs of every module over a call, where there are any."""
    total: dict[str, int] = {}
    for forward, form in compiled(vae, call):
        for path, count in form.module_flops(forward.dims).items():
            total[path] = total.get(path, 0) + forward.times * count
    return {path: count for path, count in total.items() if count}


@pytest.mark.parametrize("direction", CALLS)
@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize(
    "config",
    [
        {"base_dim": 8, "z_dim": 4},
        {
            "base_dim": 4,
            "decoder_base_dim": 8,
            "is_residual": True,
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
        },
    ],
    ids=["2.1", "2.2"],
)
def test_both_forwards_multiply_the_same(config: dict[str, Any], frames: int, direction: str) -> None:
    """Module by module the official VAE counts the FLOPs of diffusers', and has its modules and parameters."""
    official, diffusers = WanVAE(**config, flat=True), AutoencoderKLWan(**config)
    call = CALLS[direction](2, frames, 3, 5, 1)
    counted = flops(official, call)
    assert "decoder.up_blocks.3" in counted or "encoder.down_blocks.3" in counted
    assert counted == flops(diffusers, call)
    parameters = [{path: module.params for path, module in vae.named_modules()} for vae in (official, diffusers)]
    assert parameters[0] == parameters[1]


def test_implementations_run_their_own_class() -> None:
    """The official code runs its own VAE, diffusers its own; tiles, which only diffusers has, run as it does."""
    words = ([], ["implementation=diffusers"], ["vae_tiling=true"])
    found = [type(mm.load("wan2.1-t2v-1.3b", *more).components["vae"]) for more in words]
    assert found == [WanVAE, AutoencoderKLWan, AutoencoderKLWan]


def test_pixels_are_held_to_their_range_in_place() -> None:
    """After the last chunk of Wan2.1 only the video is alive, and one kernel overwrites it, as was measured."""
    call = decode_call(1, 5, 3, 5, 1)
    forward, form = compiled(WanVAE(flat=True), call)[-1]
    (op,) = form.body.ops
    video = 3 * 17 * 24 * 40 * 4
    assert (op.name, form.peak(forward.dims).live) == ("clamp_", video)
