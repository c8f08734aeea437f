"""LTX-Video against the real class: every module, every kernel, and what it cannot run."""

import inspect
from typing import Any

import pytest
import torch
from diffusers import LTXPipeline, LTXVideoTransformer3DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modelmeter as mm
from modelmeter.compiled import compile_forward
from modelmeter.models.ltx_video import pipeline
from modelmeter.nn import Body, Op, Tensor, bfloat16, functional, trace
from modelmeter.verify.allocations import track
from modelmeter.verify.flop_counter import count
from modelmeter.verify.flop_counter import parameters as params_of
from modelmeter.verify.reference import arguments
from modelmeter.verify.run import verify

META = torch.device("meta")
small = st.fixed_dictionaries(
    {
        "num_attention_heads": st.integers(1, 4),
        "attention_head_dim": st.integers(3, 30).map(lambda n: 2 * n),
        "in_channels": st.integers(1, 40),
        "out_channels": st.integers(1, 40),
        "caption_channels": st.integers(1, 60),
        "num_layers": st.integers(1, 3),
    }
)
sizes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "frames": st.integers(1, 9),
        "rows": st.integers(1, 12),
        "columns": st.integers(1, 12),
        "text_len": st.integers(1, 200),
    }
)


def both(config: dict[str, Any]) -> tuple[pipeline.LTXVideoTransformer3DModel, torch.nn.Module]:
    """The model on shapes and the real one."""
    config = {**config, "cross_attention_dim": config["num_attention_heads"] * config["attention_head_dim"]}
    with META:
        return pipeline.LTXVideoTransformer3DModel(**config), LTXVideoTransformer3DModel(**config)


def compare(config: dict[str, Any], dims: dict[str, int]) -> None:
    """FLOPs and parameters of every module of both are equal."""
    ours, real = both(config)
    counted = count(real, **arguments(real, ours.inputs(**dims), META))
    assert counted.uncounted_ops == ()
    assert compile_forward(ours, dims).module_flops(dims) == counted.flops
    assert {path: module.params for path, module in ours.named_modules()} == params_of(real)
    assert counted.flops[""] > 0


def kernels(body: Body, live: Any = 0) -> list[tuple[str, Any, Any, Any]]:
    """Kernels of a trace in order: name, live bytes, bytes read and written."""
    found = []
    for item in body.items:
        if isinstance(item, Op):
            found.append((item.name, live + item.live, item.bytes_read, item.bytes_written))
        else:
            found += kernels(item.body, live + item.live)
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=small, dims=sizes)
def test_random_configurations(config: dict[str, Any], dims: dict[str, int]) -> None:
    """60 random small configurations at random sizes equal the real class in every module."""
    compare(config, dims)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=small, dims=sizes)
def test_many_random_configurations(config: dict[str, Any], dims: dict[str, int]) -> None:
    """500 random small configurations at random sizes equal the real class in every module."""
    compare(config, dims)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=small, dims=sizes)
def test_kernel_by_kernel(config: dict[str, Any], dims: dict[str, int]) -> None:
    """In bfloat16 every kernel, the bytes alive after it, and the bytes it moves are those of the real class."""
    ours, real = both(config)
    ours.to(bfloat16)
    for weight in real.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    inputs = ours.inputs(**dims)
    real_inputs = {name: meta(value) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    tracked = [(k.name, k.live, k.bytes_read, k.bytes_written) for k in track(real, **real_inputs).kernels]
    assert kernels(trace(ours, **inputs).body) == tracked
    assert len(tracked) > 100


def meta(tensor: Tensor) -> torch.Tensor:
    """The same shape and dtype in PyTorch."""
    shape: Any = tensor.shape
    return torch.empty(shape, dtype=getattr(torch, tensor.dtype.name), device=META)


def test_every_preset_that_runs_is_equal() -> None:
    """At full size, every module at every preset equals the real class; presets whose sides do not divide are named."""
    result = verify([mm.load("ltx-video-2b")], ("layers",))
    assert result.failures == ()
    presets = {row.workload for row in result.rows}
    refused = {pair.split()[1].rstrip(":") for pair in result.not_applicable}
    assert presets == {"wan2-1-ci-tiny", "wan2-1-512p", "official-480p", "official-720p"}
    assert refused == {"wan2-1-720p", "official-480p-16x9"}


def test_the_laws_and_whole_runs_hold_and_calls_are_not_compared() -> None:
    """Laws and whole runs pass; that no real pipeline stands for the calls is said, not passed over."""
    result = verify([mm.load("ltx-video-2b", "transformer.num_layers=2")], workload="wan2-1-512p")
    assert result.failures == ()
    assert {check.kind for check in result.checks} == {"layers", "end2end", "core"}
    assert "ltx-video-2b pipelines: not compared for this model" in result.not_applicable
    with pytest.raises(mm.InputError, match="^pipeline=LTXPipeline"):
        verify([mm.load("ltx-video-2b")], ["pipelines"])


def test_live_bytes_and_traffic_of_the_whole_model_are_equal() -> None:
    """At full size the peak, where it is, and the bytes that every operator moves are those of the real class."""
    result = verify([mm.load("ltx-video-2b")], ("memory",), workload="official-480p")
    assert result.failures == ()
    assert any(row.analytic for check in result.checks for row in check.rows)


def test_guidance_is_one_call_of_twice_the_videos() -> None:
    """The pipeline runs a step with and without the prompt as one call, which costs what two would."""
    model = mm.load("ltx-video-2b", "transformer.num_layers=2")
    guided, plain = model.estimate(guidance_scale=3), model.estimate(guidance_scale=1)
    assert guided["transformer"].calls == plain["transformer"].calls == guided.workload.num_inference_steps
    assert guided.flops == 2 * plain.flops
    assert guided.plan.not_modelled == ("text_encoder", "vae_decode")


def test_the_vendor_defaults_are_those_of_the_pipeline() -> None:
    """Frames, steps, guidance and text of the presets are the defaults of diffusers' pipeline."""
    parameters = inspect.signature(LTXPipeline.__call__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    vendor = dict(mm.load("ltx-video-2b").config["vendor"])
    assert vendor.pop("text_len") == defaults["max_sequence_length"]
    assert vendor == {key: defaults[key] for key in ("num_frames", "num_inference_steps", "guidance_scale")}


def test_the_configuration_is_the_default_of_the_class() -> None:
    """The sizes of the configuration are those that the real class has by default."""
    config = mm.load("ltx-video-2b").config["transformer"]
    with META:
        real = LTXVideoTransformer3DModel(num_layers=1)
    assert {**{key: real.config[key] for key in config}, "num_layers": 28} == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("transformer.num_attention_heads=31", "^transformer.cross_attention_dim=2048: allowed is .* = 1984"),
        ("transformer.attention_head_dim=63", "^transformer.attention_head_dim=63: allowed is a multiple of 2"),
        ("transformer.attention_head_dim=4", "^transformer.attention_head_dim=4: .* at least 6"),
        ("transformer.num_layers=0", "^transformer.num_layers=0: allowed is integers from 1"),
        ("vae.spatial_compression_ratio=0", "^vae.spatial_compression_ratio=0"),
        ("implementation=official", "^override=implementation"),
        ("height=720", "nearest: 704 or 736"),
    ],
)
def test_what_it_cannot_run_is_refused(override: str, message: str) -> None:
    """Widths that do not fit, sizes of nothing, sides that do not divide, and a choice that it does not have."""
    with pytest.raises(mm.InputError, match=message):
        mm.load("ltx-video-2b", override).estimate()


def test_a_wrong_forward_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cross-attention that takes keys and values from the video instead of the text fails, and they are named."""
    shared = pipeline.LTXAttention.projected
    monkeypatch.setattr(pipeline.LTXAttention, "projected", lambda self, x, _: shared(self, x, x))
    monkeypatch.setattr(pipeline.layers, "attend", lambda q, k, v, mask: functional.gelu(q).flatten(2, 3))
    shallow = mm.load("ltx-video-2b", "transformer.num_layers=1")
    failures = verify([shallow], ["layers"], workload="official-480p").failures
    assert any("attn2.to_k" in failure for failure in failures)
