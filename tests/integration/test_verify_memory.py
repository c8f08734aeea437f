"""Ring 4: peaks, feature caches and bytes moved against the tracker on the real classes; and what must fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modelmeter as mm
from modelmeter.compiled import CompiledForward
from modelmeter.models.common import vae, vae_layers
from modelmeter.models.wan2_1 import pipeline, transformer
from modelmeter.nn import Module, Tensor, functional, tensor
from modelmeter.verify import allocations
from modelmeter.verify.compare import Verification
from modelmeter.verify.run import ALL, KINDS, verify

#: One model of every diffusion transformer that diffusers has.
MODELS = [
    *("wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p", "wan2.1-flf2v-14b", "wan2.1-vace-1.3b"),
    *("wan2.2-t2v-a14b", "wan2.2-i2v-a14b", "wan2.2-ti2v-5b", "wan2.2-animate-14b"),
]
SHALLOW = {
    "transformer.num_layers": 2,
    "transformer.dim": 256,
    "transformer.num_heads": 2,
    "transformer.ffn_dim": 512,
    "text_encoder.num_layers": 2,
    "vae.base_dim": 8,
}
SMALL = {"batch_size": 2, "num_frames": 13, "height": 64, "width": 96, "num_inference_steps": 2}


def load(name: str, keys: dict[str, Any]) -> mm.Model:
    """A model with these keys, and with the layers that a shallow one of its kind has."""
    plain = mm.load(name).config
    more: dict[str, Any] = {}
    if "vace_layers" in plain["transformer"]:
        more["transformer.vace_layers"] = [0, keys["transformer.num_layers"] - 1]
    if "inject_face_latents_blocks" in plain["transformer"]:
        more["transformer.inject_face_latents_blocks"] = 1
    if "image_encoder" in plain:
        more["image_encoder.num_hidden_layers"] = 2
    if plain["vae"]["decoder_base_dim"] is not None:
        more["vae.decoder_base_dim"] = keys["vae.base_dim"]
    words = {**keys, **more}
    return mm.load(name, *(f"{key}={value}".replace(" ", "").lower() for key, value in words.items()))


def verified(name: str, **keys: Any) -> Verification:
    """The verification of a shallow model at a small workload."""
    return verify([load(name, {**SHALLOW, **SMALL, **keys})], ["memory"], workload="wan2-1-512p")


@pytest.mark.parametrize("name", MODELS)
def test_every_stage_is_that_of_the_real_class(name: str) -> None:
    """Peak, place of the peak, features kept, and what every operator reads and writes are the real ones."""
    result = verified(name)
    assert result.failures == ()
    assert max(row.rel_diff for row in result.rows) == 0
    stages = {row.stage for row in result.rows}
    assert stages >= {"text_encoder", "transformer", "vae_decode"}
    for stage in stages:
        rows = {row.id: row.reference for row in result.rows if row.stage == stage}
        for moved in ("bytes_read", "bytes_written", "weight_bytes_read"):
            by_op = [count for id, count in rows.items() if id.startswith(f"{stage}:{moved}.")]
            assert rows[f"{stage}:{moved}"] == sum(by_op) > 0
        assert rows[f"{stage}:weight_bytes_read"] < rows[f"{stage}:bytes_read"]
        assert (rows[f"{stage}:cache_bytes"] > 0) == stage.startswith("vae")
        *_, place = rows
        assert rows[place] == rows[f"{stage}:peak_bytes"] > 0


@pytest.mark.parametrize(
    ("name", "precision"), [("wan2.1-vace-1.3b", "fp32"), ("wan2.1-vace-1.3b", "bf16"), ("wan2.2-ti2v-5b", "bf16")]
)
def test_a_tiled_vae_is_the_real_one(name: str, precision: str) -> None:
    """Tile by tile peaks, their places, features, and what every operator moves are the real ones, seams included."""
    keys = {"vae_tiling": True, "vae_precision": precision, "height": 320, "width": 480, "vae.base_dim": 4}
    task = {"task": "i2v"} if "ti2v" in name else {}
    result = verified(name, **keys, **task, num_frames=9, batch_size=1)
    assert result.failures == ()
    assert {row.stage for row in result.rows} >= {"vae_encode", "vae_decode"}
    assert any(row.id == "vae_decode:bytes_written.copy_" and row.reference > 0 for row in result.rows)


def test_memory_runs_only_when_named() -> None:
    """It is no part of ``all``, and has one reference on one device."""
    assert set(KINDS) - set(ALL) == {"memory"}
    model = mm.load("wan2.1-t2v-1.3b")
    with pytest.raises(mm.InputError, match="^device=cpu: allowed is meta for memory"):
        verify([model], ["memory"], device="cpu")
    with pytest.raises(mm.InputError, match="^reference=modules: allowed is diffusers for memory"):
        verify([model], ["memory"], reference="modules")


def test_the_official_implementation_is_compared_as_diffusers_runs_it() -> None:
    """Whatever implementation is asked for, the forwards of diffusers are what is compared."""
    official, diffusers = (verified("wan2.2-t2v-a14b", implementation=name) for name in ("official", "diffusers"))
    assert official.rows == diffusers.rows
    (said,) = official.not_applicable
    assert said.startswith("implementation=official: its forwards are not tracked")
    assert "--reference official" in said
    assert diffusers.not_applicable == ()


def test_a_model_without_a_class_in_diffusers_is_compared_as_it_is() -> None:
    """Of S2V the encoders and the VAE, of which there are real classes, are equal; its transformer is named."""
    keys = {"text_encoder.num_layers": 2, "audio_encoder.num_hidden_layers": 2, "transformer.num_layers": 2}
    sizes = {"num_clips": 2, "num_frames": 16, "height": 128, "width": 192, "num_inference_steps": 1}
    words = {**keys, "vae.base_dim": 8, "vae.decoder_base_dim": 8, **sizes}
    model = mm.load("wan2.2-s2v-14b", *(f"{key}={value}" for key, value in words.items()))
    result = verify([model], ["memory"], workload="wan2-1-512p")
    assert result.failures == ()
    assert {row.stage for row in result.rows} == {"text_encoder", "audio_encoder", "vae_encode", "vae_decode"}
    assert result.not_applicable == ("wan2.2-s2v-14b transformer: no reference of the kind diffusers",)


@pytest.mark.parametrize("precision", ["fp8", "int8", "q4_k"])
def test_quantised_weights_are_refused(precision: str) -> None:
    """Real classes hold plain dtypes, so that a format of quantised matrices is bad input, said in one line."""
    model = mm.load("wan2.1-t2v-1.3b", f"precision={precision}")
    with pytest.raises(mm.InputError, match=rf"^precision={precision}: allowed is fp32, bf16, fp16 for memory$"):
        verify([model], ["memory"], workload="wan2-1-ci-tiny")


@pytest.mark.parametrize(
    ("name", "precision"), [("wan2.1-t2v-1.3b", "fp32"), ("wan2.1-vace-1.3b", "bf16"), ("wan2.2-animate-14b", "fp16")]
)
def test_rms_norm_step_by_step_is_what_pytorch_decomposes(name: str, precision: str) -> None:
    """Under ``rms_norm=decomposed`` the norms of queries and keys are the steps that PyTorch itself takes."""
    result = verified(name, implementation="diffusers", rms_norm="decomposed", precision=precision)
    assert result.failures == ()
    ids = {row.id for row in result.rows if row.reference}
    assert "transformer:bytes_written.rsqrt" in ids
    assert "transformer:bytes_written._fused_rms_norm" not in ids


@pytest.mark.parametrize(("precision", "norm"), [("fp32", "fused"), ("bf16", "decomposed"), ("fp16", "fused")])
def test_ltx_video_in_any_dtype_is_the_real_one(precision: str, norm: str) -> None:
    """The transformer of another family, whose text has a mask, is equal in plain dtypes and with either norm."""
    words = ["transformer.num_layers=2", "text_len=7", f"precision={precision}", f"rms_norm={norm}"]
    result = verify([mm.load("ltx-video-2b", *words)], ["memory"], workload="wan2-1-ci-tiny")
    assert result.failures == ()
    assert len(result.rows) > 60


# -- any configuration --------------------------------------------------------------------------------------------

configurations = st.fixed_dictionaries(
    {
        "implementation": st.just("diffusers"),
        "precision": st.sampled_from(["fp32", "bf16", "fp16"]),
        "vae_precision": st.sampled_from(["fp32", "bf16", "fp16"]),
        "rms_norm": st.sampled_from(["fused", "decomposed"]),
        "transformer.num_layers": st.integers(2, 3),
        "transformer.num_heads": st.integers(1, 3),
        "transformer.dim": st.integers(1, 10).map(lambda n: 12 * n),
        "transformer.ffn_dim": st.integers(1, 300),
        "transformer.freq_dim": st.integers(2, 40),
        "text_encoder.num_layers": st.integers(1, 2),
        "text_encoder.d_ff": st.integers(1, 60),
        "text_encoder.num_heads": st.integers(1, 3),
        "text_encoder.d_kv": st.integers(1, 20),
        "vae.base_dim": st.sampled_from([4, 8, 12]),
        "vae.num_res_blocks": st.integers(1, 2),
        "batch_size": st.integers(1, 3),
        "num_frames": st.integers(5, 21),
        "height": st.integers(1, 5).map(lambda n: 32 * n),
        "width": st.integers(1, 5).map(lambda n: 32 * n),
    }
)


def compare(name: str, keys: dict[str, Any], text_len: int) -> None:
    """Every number of every stage is the real one."""
    if "image_encoder" in mm.load(name).config:
        text_len = 512
    result = verified(name, **keys, text_len=text_len)
    assert result.failures == ()
    assert len(result.rows) > 100


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(keys=configurations, text_len=st.integers(1, 300))
def test_random_configurations(name: str, keys: dict[str, Any], text_len: int) -> None:
    """Random small configurations of every class, at odd sizes and batches up to 3, equal the real ones."""
    compare(name, keys, text_len)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(keys=configurations, text_len=st.integers(1, 300))
def test_many_random_configurations(name: str, keys: dict[str, Any], text_len: int) -> None:
    """The same for many more configurations."""
    compare(name, keys, text_len)


# -- broken on purpose --------------------------------------------------------------------------------------------


def first_kernel(result: Verification) -> str:
    """The line that names the first kernel that differs."""
    (line,) = [line for line in result.failures if ": kernel " in line]
    return line


def test_a_broken_lifetime_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that gives what it norms a name, and so holds it for longer, fails and is named."""

    def holding(norm: Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        single = x.float()
        normed = norm(single)
        return (normed * (scale + 1) + shift).to(x.dtype)

    monkeypatch.setattr(transformer, "modulated", holding)
    result = verified("wan2.1-t2v-1.3b")
    assert "add in transformer.blocks.0: " in first_kernel(result)


def test_a_broken_dtype_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm that is not kept in single precision fails: other bytes of weights are read, in that norm."""
    kind, _ = pipeline.TRANSFORMERS["diffusers", False]
    without_norm = {("diffusers", False): (kind, ("time_embedder", "scale_shift_table"))}
    monkeypatch.setattr(pipeline, "TRANSFORMERS", {**pipeline.TRANSFORMERS, **without_norm})
    result = verified("wan2.1-t2v-1.3b")
    assert any("transformer:weight_bytes_read.native_layer_norm: " in line for line in result.failures)
    assert "native_layer_norm in transformer.blocks.0.norm2: " in first_kernel(result)


def test_a_fused_norm_in_place_of_its_steps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose norm is one kernel fails where the reference takes its steps, and the norm is named."""
    monkeypatch.setattr(functional, "decomposed_rms_norm", functional.rms_norm)
    result = verified("wan2.1-t2v-1.3b", implementation="diffusers", rms_norm="decomposed")
    assert "_fused_rms_norm in transformer.blocks.0.attn1.norm_q: " in first_kernel(result)


def test_a_broken_cache_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VAE that keeps a frame too few fails, and the features are named."""
    monkeypatch.setattr(vae_layers, "KEPT_FRAMES", 1)
    result = verified("wan2.1-t2v-1.3b")
    assert any(" vae_decode:cache_bytes: " in line for line in result.failures)
    assert " vae_decode: kernel " in first_kernel(result)


def test_broken_bytes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that read what is expanded over and over fail, and the operator is named."""
    monkeypatch.setattr(tensor, "_bytes_read", lambda inputs: sum(x.numel() * x.dtype.itemsize for x in inputs))
    result = verified("wan2.1-t2v-1.3b")
    assert any(" transformer:bytes_read.cat: " in line for line in result.failures)
    assert "kernel 1 is cat in transformer.rope: " in first_kernel(result)


def test_chunks_that_do_not_grow_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all chunks are taken to be as long as the last, too much is moved by the video that grows."""
    chunks = vae._chunks
    monkeypatch.setattr(vae, "_chunks", lambda *given: [replace(chunk, first=None) for chunk in chunks(*given)])
    failures = verified("wan2.1-t2v-1.3b", num_frames=21).failures
    assert any(" vae_decode:bytes_written.cat: " in line for line in failures)
    assert not any(":peak_bytes: " in line for line in failures)


def test_a_peak_at_another_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator of another name at the peak has nothing alive in the reference."""
    honest = CompiledForward.peak
    monkeypatch.setattr(CompiledForward, "peak", lambda *given: honest(*given)._replace(op="tanh"))
    (row,) = [row for row in verified("wan2.1-t2v-1.3b").rows if row.rel_diff and row.stage == "text_encoder"]
    assert row.id.endswith(":tanh")
    assert row.reference == 0 < row.analytic


@pytest.mark.parametrize("fails", [True, False])
def test_a_tracked_run_leaves_pytorch_as_it_was(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a verification, also one that breaks off, attention, RMS norm and module calls are PyTorch's own."""
    functional = torch.nn.functional
    before = functional.scaled_dot_product_attention, functional.rms_norm
    if fails:

        def broken(*_: Any) -> None:
            raise RuntimeError("in the middle of a forward")

        monkeypatch.setattr(allocations._Tracker, "_record", broken)
        with pytest.raises(RuntimeError, match="in the middle"):
            verified("wan2.1-t2v-1.3b")
    else:
        assert verified("wan2.1-t2v-1.3b").passed
    assert (functional.scaled_dot_product_attention, functional.rms_norm) == before
    hooks = torch.nn.modules.module
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks
    assert torch.nn.Linear(2, 3)(torch.ones(1, 2)).shape == (1, 3)


def test_within_a_tolerance_kernels_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``--accept-rel-diff`` the sums decide, and a difference beyond it still fails."""
    chunks = vae._chunks
    monkeypatch.setattr(vae, "_chunks", lambda *given: [replace(chunk, first=None) for chunk in chunks(*given)])
    model = load("wan2.1-t2v-1.3b", {**SHALLOW, **SMALL, "num_frames": 21})
    wide, narrow = (
        verify([model], ["memory"], workload="wan2-1-512p", accept_rel_diff=accepted) for accepted in (0.9, 1e-9)
    )
    assert wide.passed
    assert 0 < wide.document()["max_rel_diff"] < 0.9
    assert not narrow.passed
