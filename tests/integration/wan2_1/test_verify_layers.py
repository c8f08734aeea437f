"""Every module of the real diffusion transformer, at full size on the meta device, against the analytic model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modelmeter as mm
from modelmeter.compiled import compile_forward
from modelmeter.models.wan2_1 import transformer
from modelmeter.models.wan2_1.transformer import Wan2_1DiTModel
from modelmeter.nn import Linear, tensor
from modelmeter.nn.functional import products
from modelmeter.verify import flop_counter
from modelmeter.verify.flop_counter import count, parameters
from modelmeter.verify.reference import arguments
from modelmeter.verify.run import verify

MODELS = ["wan2.1-t2v-1.3b", "wan2.1-t2v-14b"]
TINY = [
    "transformer.num_layers=2",
    "transformer.dim=256",
    "transformer.num_heads=2",
    "transformer.ffn_dim=512",
    "text_encoder.vocab_size=100",
    "text_encoder.num_layers=1",
    "text_encoder.d_model=64",
    "text_encoder.d_ff=64",
    "text_encoder.num_heads=2",
    "vae.base_dim=8",
    "vae.decoder_base_dim=8",
]

#: FLOPs of one forward and parameters, measured on the real class with torch 2.13, diffusers 0.42.1 on meta.
MEASURED = [
    ("wan2.1-t2v-14b", 480, 832, 1_678_370_283_192_320, 14_288_491_584),
    ("wan2.1-t2v-14b", 720, 1280, 6_523_436_592_005_120, 14_288_491_584),
    ("wan2.1-t2v-1.3b", 480, 832, 283_001_787_777_024, 1_418_996_800),
    ("wan2.1-t2v-1.3b", 720, 1280, 1_249_837_785_022_464, 1_418_996_800),
]


@pytest.mark.parametrize(("name", "height", "width", "flops", "params"), MEASURED)
def test_published_totals(name: str, height: int, width: int, flops: int, params: int) -> None:
    """One forward of 81 frames costs what the real class was measured to cost."""
    estimate = mm.load(name).estimate(
        num_frames=81, height=height, width=width, num_inference_steps=1, guidance_scale=1, text_len=512
    )
    assert estimate["transformer"].flops == flops
    assert estimate["transformer"].params == params


@pytest.mark.parametrize("name", MODELS)
def test_every_module_of_every_preset_is_equal(name: str) -> None:
    """At every preset, FLOPs of every called module and parameters of every module are the same integers."""
    result = verify([mm.load(name)], ["layers"])
    assert result.failures == ()
    assert result.document()["max_rel_diff"] == 0
    assert {row.workload for row in result.rows} == set(mm.load(name).presets)
    with torch.device("meta"):
        arguments = mm.load(name).pipeline.references(mm.load(name).config)["transformer"]["diffusers"].arguments
        modules = [path for path, _ in WanTransformer3DModel(**arguments).named_modules()]
    compared = {row.id for row in result.rows if row.quantity == "params" and row.stage == "transformer"}
    assert compared == {f"transformer.{path}".rstrip(".") for path in modules}
    assert len(compared) > 800


def compare(model: Wan2_1DiTModel, real: torch.nn.Module, sizes: dict[str, int]) -> None:
    """FLOPs and parameters of every module of both are equal, and not all zero."""
    form = compile_forward(model, sizes)
    counted = count(real, **arguments(real, model.inputs(**sizes), torch.device("meta")))
    assert counted.uncounted_ops == ()
    assert form.module_flops(sizes) == counted.flops
    assert {path: module.params for path, module in model.named_modules()} == parameters(real)
    assert counted.flops[""] > 0


sizes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "frames": st.integers(1, 30),
        "rows": st.integers(1, 60),
        "columns": st.integers(1, 60),
        "text_len": st.integers(1, 700),
    }
)


@pytest.fixture(scope="module")
def real_1_3b() -> torch.nn.Module:
    """The real 1.3B class with two of its blocks."""
    with torch.device("meta"):
        return WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=2)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(at=sizes)
def test_random_workloads(real_1_3b: torch.nn.Module, at: dict[str, int]) -> None:
    """At 40 random sizes every module equals the real class."""
    model = Wan2_1DiTModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=2)
    compare(model, real_1_3b, at)


configurations = st.fixed_dictionaries(
    {
        "patch_size": st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
        "num_attention_heads": st.integers(1, 5),
        "attention_head_dim": st.integers(1, 40).map(lambda n: 2 * n),
        "in_channels": st.integers(1, 40),
        "out_channels": st.integers(1, 40),
        "text_dim": st.integers(1, 100),
        "freq_dim": st.integers(2, 100),
        "ffn_dim": st.integers(1, 300),
        "num_layers": st.integers(1, 3),
        "cross_attn_norm": st.booleans(),
        "rope_max_seq_len": st.integers(60, 100),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arguments=configurations, at=sizes)
def test_random_configurations(arguments: dict[str, Any], at: dict[str, int]) -> None:
    """40 random small configurations at random sizes equal the real class in every module."""
    with torch.device("meta"):
        real = WanTransformer3DModel(**arguments)
    compare(Wan2_1DiTModel(**arguments), real, at)


# -- seen failing ------------------------------------------------------------------------------------------------


def verify_tiny() -> Any:
    """A verification of a small transformer at the smallest preset."""
    return verify([mm.load("wan2.1-t2v-1.3b", *TINY)], ["layers"], workload="wan2-1-ci-tiny")


def test_the_small_verification_passes() -> None:
    """Nothing broken: the verification that the next tests break passes."""
    assert verify_tiny().passed


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("addmm", "transformer.condition_embedder.time_embedder.linear_1"),
        ("mm", "text_encoder.encoder.block.0.layer.0.SelfAttention.q"),
        ("convolution", "transformer.patch_embedding"),
        ("flash_attn::_flash_attn_varlen_forward", "transformer.blocks.0.attn1"),
    ],
)
def test_a_broken_formula_is_found_and_named(name: str, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the formula of one operator off by one FLOP, the verification fails and names the module."""
    launch = products.launch

    def broken(op: str, *args: Any, flops: Any = 0, **kwargs: Any) -> Any:
        return launch(op, *args, flops=flops + (op == name), **kwargs)

    monkeypatch.setattr(products, "launch", broken)
    result = verify_tiny()
    assert not result.passed
    assert any(f" {node}: flops" in line for line in result.failures)


def test_a_broken_operator_without_flops_breaks_no_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that runs no matrix product must not count any: giving one FLOP to GELU is found."""
    pointwise = tensor.launch

    def broken(op: str, *args: Any, flops: Any = 0, **kwargs: Any) -> Any:
        return pointwise(op, *args, flops=1 if op == "gelu" else flops, **kwargs)

    monkeypatch.setattr(tensor, "launch", broken)
    result = verify_tiny()
    assert any("transformer.blocks.1.ffn.net.0: flops" in line for line in result.failures)


def breaking(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> Any:
    """The verification after ``change`` on every attention module."""
    init = transformer.WanAttention.__init__

    def changed(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        change(self)

    monkeypatch.setattr(transformer.WanAttention, "__init__", changed)
    return verify_tiny()


def test_a_missing_module_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the real class that the analytic model does not have is missing, and fails."""

    def rename(attention: Any) -> None:
        vars(attention)["query"] = vars(attention).pop("to_q")

    def stands_in(attention: Any, name: str) -> Any:
        return vars(attention)[{"to_q": "query"}[name]]

    monkeypatch.setattr(transformer.WanAttention, "__getattr__", stands_in, raising=False)
    result = breaking(monkeypatch, rename)
    assert any("transformer.blocks.0.attn1.to_q" in node for check in result.checks for node in check.missing)
    assert any("transformer.blocks.0.attn1.query" in node for check in result.checks for node in check.extra)
    assert not result.passed


def test_a_module_of_another_width_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of another shape shows in the parameters of that module and of all above it."""

    def narrow(attention: Any) -> None:
        attention.to_v = Linear(256, 256, bias=False)

    failures = breaking(monkeypatch, narrow).failures
    assert any(
        " transformer.blocks.1.attn2.to_v: params analytic 65,536, reference 65,792" in line for line in failures
    )
    assert any(" transformer: params" in line for line in failures)


def test_an_operator_without_a_formula_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that ran uncounted fails the verification, even where all numbers agree."""
    monkeypatch.setattr(flop_counter, "_ALLOWED", flop_counter._ALLOWED - {"silu"})
    result = verify_tiny()
    assert result.checks[-1].uncounted_ops == ("aten.silu",)
    assert result.failures == ("uncounted operator: aten.silu ran without a FLOP formula",)


def test_comparing_nothing_or_only_zeros_fails() -> None:
    """A verification without rows, or with zeros only, has not passed."""
    result = verify_tiny()
    assert replace(result, checks=()).failures == ("nothing was compared",)
    assert replace(result.checks[0], rows=()).failures == ("nothing was compared",)
    zeros = tuple(replace(row, analytic=0, reference=0) for row in result.rows)
    assert replace(result.checks[0], rows=zeros).failures == ("only zeros were compared",)


def test_a_preset_that_the_model_cannot_run() -> None:
    """Without a name such a preset is listed as not applicable; by name it is refused; without any left, it fails."""
    model = mm.load("wan2.1-t2v-1.3b", *TINY, "transformer.patch_size=[1,2,4]", "width=480")
    with pytest.raises(mm.InputError, match="a multiple of 32"):
        verify([mm.load("wan2.1-t2v-1.3b", *TINY, "transformer.patch_size=[1,4,2]")], workload="official-720p")
    result = verify([mm.load("wan2.1-t2v-1.3b", *TINY, "transformer.patch_size=[1,4,2]")])
    assert any("wan2-1-720p" in pair for pair in result.not_applicable)
    assert result.passed
    with pytest.raises(mm.InputError, match="^width=481"):  # the same for every preset, said once
        verify([replace(model, overrides=replace(model.overrides, workload={"width": 481}))])
