"""Ring 4: our VAE against the allocation tracker on diffusers' real class, kernel by kernel over whole calls."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import pytest
import torch
from diffusers import AutoencoderKLWan as Reference
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmeter import nn
from modelmeter.compiled import compile_forward
from modelmeter.models.common.vae import AutoencoderKLWan, decode_call, encode_call
from modelmeter.stage import Call
from modelmeter.verify.allocations import Tracked, track

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
SMALL = {name: config | {"base_dim": 4, "decoder_base_dim": 8, "z_dim": 4} for name, config in CONFIGS.items()}

VIDEO_480P = (1, 21, 60, 104)
VIDEO_720P = (1, 21, 90, 160)
VIDEO_704P = (1, 31, 44, 80)
#: Peaks measured with PyTorch 2.13 on diffusers 0.42.1, in float32 and bfloat16.
PEAKS: list[tuple[str, Method, Sizes, int, int]] = [
    ("wan2.1", "decode", VIDEO_480P, 8_166_976_512, 4_240_204_800),
    ("wan2.1", "encode", VIDEO_480P, 5_639_427_072, 2_976_430_080),
    ("wan2.1", "decode", VIDEO_720P, 18_842_121_216, 9_785_088_000),
    ("wan2.1", "encode", VIDEO_720P, 13_009_314_816, 6_868_684_800),
    ("wan2.2", "decode", VIDEO_704P, 20_704_006_144, 10_352_003_072),
    ("wan2.2", "encode", VIDEO_704P, 7_804_574_720, 4_046_254_080),
]


class Called(torch.nn.Module):
    """A method of the real class as a module call, so that paths begin at the class."""

    def __init__(self, vae: torch.nn.Module, method: Method) -> None:
        super().__init__()
        self.vae = vae
        self.method = method

    def forward(self, x: torch.Tensor) -> Any:
        """The method on its only argument."""
        return getattr(self.vae, self.method)(x, return_dict=False)


class Row(NamedTuple):
    """What a kernel is compared by; live bytes are those above weights and inputs."""

    name: str
    path: str
    live: int
    bytes_read: int
    bytes_written: int


def model(config: Mapping[str, Any], precision: str) -> AutoencoderKLWan:
    """Our VAE with its weights in a precision."""
    vae = AutoencoderKLWan(**config)
    vae.to(getattr(nn, precision))
    return vae


def call_of(method: Method, sizes: Sizes) -> Call:
    """The call that a pipeline makes once."""
    return {"decode": decode_call, "encode": encode_call}[method](*sizes, 1)


def theirs(config: Mapping[str, Any], method: Method, sizes: Sizes, precision: str) -> Tracked:
    """The real call on meta."""
    dtype = getattr(torch, precision)
    (x,) = AutoencoderKLWan(**config).entry(method).inputs(**call_of(method, sizes).dims).values()
    with torch.device("meta"):
        vae = Reference(**config)
        for weight in vae.parameters():
            weight.data = weight.data.to(dtype)
        return track(Called(vae.eval(), method), torch.empty(x.shape, dtype=dtype))


def rows(tracked: Tracked) -> list[Row]:
    """The tracked kernels, by what they are compared by."""
    return [
        Row(k.name, k.path.removeprefix("vae").removeprefix("."), k.live, k.bytes_read, k.bytes_written)
        for k in tracked.kernels
    ]


def ours(config: Mapping[str, Any], method: Method, sizes: Sizes, precision: str, *, memo: bool = True) -> list[Row]:
    """All forwards of our call, each as often as it runs: of later chunks every one at its own length of video."""
    vae = model(config, precision)
    kernels: list[Row] = []
    for forward in call_of(method, sizes).forwards:
        for later in range(forward.times):
            dims = dict(forward.dims) | ({"done": 2 + later} if "done" in forward.dims else {})
            part = vae.entry(forward.label)
            kernels += unrolled(nn.trace(part, **part.inputs(**dims), memo=memo).body, "", 0)
    return kernels


def unrolled(body: nn.Body, path: str, live: int) -> Iterator[Row]:
    """Every kernel of a call, in the order they run."""
    for item in body.items:
        if isinstance(item, nn.Op):
            yield Row(item.name, path, live + item.live, item.bytes_read, item.bytes_written)
        else:
            yield from unrolled(item.body, f"{path}.{item.name}" if path else item.name, live + item.live)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [(1, 1, 4, 6), (1, 2, 4, 6), (1, 4, 4, 6), (2, 4, 6, 4), (2, 3, 1, 1)], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_kernel_is_that_of_the_real_class(name: str, method: Method, sizes: Sizes, precision: str) -> None:
    """Name, module, live bytes, bytes read and written of each kernel, chunk by chunk, are the real ones."""
    expected = rows(theirs(SMALL[name], method, sizes, precision))
    assert len(expected) > 200
    assert ours(SMALL[name], method, sizes, precision) == expected


@pytest.mark.parametrize(
    ("name", "method", "sizes", "precision"),
    [
        pytest.param(
            name,
            method,
            sizes,
            precision,
            id=f"{name}-{method}-{sizes}-{precision}",
            marks=[] if sizes is VIDEO_480P else pytest.mark.slow,
        )
        for name, method, sizes, *_ in PEAKS
        for precision in ("float32", "bfloat16")
    ],
)
def test_every_kernel_of_a_full_call_is_that_of_the_real_class(
    name: str, method: Method, sizes: Sizes, precision: str
) -> None:
    """At full size each of some thousand kernels agrees, and the measured peak is the real one."""
    tracked = theirs(CONFIGS[name], method, sizes, precision)
    peaks = {(name, method, sizes): peak for name, method, sizes, *peak in PEAKS}
    assert tracked.peak_bytes == peaks[name, method, sizes][precision == "bfloat16"]
    assert ours(CONFIGS[name], method, sizes, precision) == rows(tracked)


@pytest.mark.parametrize(("name", "method", "sizes", "single", "half"), PEAKS)
def test_the_peak_is_in_the_closed_forms(name: str, method: Method, sizes: Sizes, single: int, half: int) -> None:
    """The highest of the parts, each on formulas and the later chunks as the last of them, is the measured peak."""
    for precision, peak in (("float32", single), ("bfloat16", half)):
        vae = model(CONFIGS[name], precision)
        parts = call_of(method, sizes).forwards
        forms = {part.label: compile_forward(vae.entry(part.label), part.dims) for part in parts}
        assert max(forms[part.label].peak(part.dims).live for part in parts) == peak


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Small arguments of the class, over all that decides which kernels run."""
    is_residual = draw(st.booleans())
    levels = draw(st.integers(1, 4))
    multiples = [1, 2, 4, 4][:levels] if is_residual else draw(st.permutations([1, 2, 3, 4]))[:levels]
    if is_residual and levels in (2, 3):
        multiples[-1] = multiples[-2]
    halved = draw(st.lists(st.booleans(), min_size=levels - 1, max_size=levels - 1).filter(lambda h: sum(h) <= 2))
    patch_size = draw(st.sampled_from([None, 1, 2]))
    channels = 3 * (patch_size or 1) ** 2
    return {
        "base_dim": 2 * draw(st.integers(1, 4)),
        "z_dim": draw(st.integers(1, 4)),
        "dim_mult": multiples,
        "num_res_blocks": draw(st.integers(1, 2)),
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
    st.sampled_from(["float32", "bfloat16"]),
)
def test_any_configuration_runs_the_kernels_of_the_real_class(
    config: dict[str, Any], sizes: Sizes, method: Method, precision: str
) -> None:
    """Kernel by kernel, whatever the configuration and sizes."""
    expected = rows(theirs(config, method, sizes, precision))
    assert expected
    assert ours(config, method, sizes, precision) == expected


# -- laws ---------------------------------------------------------------------------------------------------------

LAW_SIZES = (2, 5, 4, 6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_sharing_equal_calls_changes_no_kernel(name: str, method: Method) -> None:
    """With and without the memo the records read the same."""
    without = ours(SMALL[name], method, LAW_SIZES, "bfloat16", memo=False)
    assert ours(SMALL[name], method, LAW_SIZES, "bfloat16") == without


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_formula_gives_the_numbers_of_every_kernel(name: str, method: Method) -> None:
    """FLOPs, bytes and live bytes on symbols, evaluated, are those of a trace on numbers."""
    vae = model(SMALL[name], "bfloat16")
    for forward in call_of(method, LAW_SIZES).forwards:
        part = vae.entry(forward.label)
        formulas = nn.trace(part, **part.inputs(**{size: nn.symbol(size) for size in forward.dims})).body
        numbers = nn.trace(part, **part.inputs(**forward.dims)).body
        expected = list(operators(numbers))
        assert expected
        assert [tuple(nn.evaluate(value, forward.dims) for value in op) for op in operators(formulas)] == expected


def operators(body: nn.Body) -> Iterator[tuple[nn.Dim, ...]]:
    """The numbers of every kernel, those of shared calls each time."""
    for item in body.items:
        if isinstance(item, nn.Op):
            yield item.flops, item.vector_flops, item.bytes_read, item.bytes_written, item.live
        else:
            yield (item.live,)
            yield from operators(item.body)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_second_chunk_costs_the_flops_of_later_ones_but_other_bytes(name: str, method: Method) -> None:
    """Zeros or features before a chunk are multiplied alike, but the second has fewer features to read and hold."""
    vae = model(CONFIGS[name], "float32")
    forms = {}
    for forward in call_of(method, LAW_SIZES).forwards:
        form = compile_forward(vae.entry(forward.label), forward.dims)
        forms[forward.label.removeprefix(f"{method} ")] = form.flops(forward.dims), form.peak(forward.dims).live
    first, second, later = (forms[f"{which} chunk"] for which in ("first", "second", "later"))
    assert first[0] < second[0] == later[0]
    assert first[1] < second[1] < later[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_left_no_longer_changes_after_the_second_chunk(name: str, method: Method) -> None:
    """A chunk that runs on what the second has left leaves features of the same sizes and layout, so all later do."""
    part = model(SMALL[name], "bfloat16").entry(f"{method} later chunk")
    left = part.inputs(**dict(zip(("batch", "frames", "rows", "columns", "done"), (*LAW_SIZES, 2), strict=True)))
    _, chunk, features = nn.trace(part, **left).outputs
    assert (chunk.shape, chunk.strides) == (left["chunk"].shape, left["chunk"].strides)
    layouts = [(kept.shape, kept.dtype, kept.strides) for kept in features.tensors]
    assert layouts == [(kept.shape, kept.dtype, kept.strides) for kept in left["features"].tensors]
    assert len(layouts) > 20


@pytest.mark.parametrize("method", METHODS)
def test_a_part_that_does_not_exist_has_no_entry(method: Method) -> None:
    """Names of parts are exact, and whole calls run in parts only."""
    vae = AutoencoderKLWan()
    with pytest.raises(KeyError):
        vae.entry(f"{method} third chunk")
    whole = vae.entry(method)
    with pytest.raises(NotImplementedError, match="in parts"):
        nn.trace(whole, **whole.inputs(batch=1, frames=2, rows=4, columns=4))
