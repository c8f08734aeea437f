"""Directories that diffusers and transformers themselves write, read as they read them: equal integers."""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2ForCTC

import modelmeter as mm
from modelmeter.api import Model
from modelmeter.config import compose, find
from modelmeter.local import model as local_model
from modelmeter.verify.flop_counter import parameters
from modelmeter.verify.reference import measure
from modelmeter.verify.run import verify

META = torch.device("meta")
#: A video small enough for components of any size.
SMALL = {"num_frames": 9, "height": 64, "width": 96, "num_inference_steps": 3, "guidance_scale": 5}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What the packages say about themselves is no part of the tests."""
    loggings = [(one, one.get_verbosity()) for one in (diffusers.utils.logging, transformers.logging)]
    for one, _ in loggings:
        one.set_verbosity_error()
    yield
    for one, verbosity in loggings:
        one.set_verbosity(verbosity)


def read_by_the_real_class(folder: Path) -> torch.nn.Module:
    """The module that diffusers or transformers builds from a folder, on meta."""
    given = json.loads((folder / "config.json").read_text())
    with META:
        if "_class_name" in given:
            kind = getattr(diffusers, given["_class_name"])
            built: torch.nn.Module = kind.from_config(kind.load_config(folder))
        elif given["model_type"] == "umt5":
            built = UMT5EncoderModel(UMT5Config.from_pretrained(folder))
        else:
            built = CLIPVisionModel(CLIPVisionConfig.from_pretrained(folder, output_hidden_states=True))
    return built.eval()


def assert_equal(model: Model, real: Mapping[str, torch.nn.Module], **video: Any) -> int:
    """Every call of every stage has the FLOPs of the real module, in every submodule; parameters too."""
    plan = model.plan(model.workload(**{**SMALL, **video}))
    references = model.pipeline.references(model.config)
    for stage in plan.stages:
        reference = references[stage.id]["diffusers"]
        module = real[stage.component]
        for call in stage.calls:
            inputs = model.components[stage.component].entry(reference.method).inputs(**call.dims)
            measured = measure(reference, module, inputs, META)
            analytic = model.call_flops(stage, call)
            assert measured.uncounted_ops == ()
            assert {path: n for path, n in measured.flops.items() if n} == {p: n for p, n in analytic.items() if n}
            assert measured.flops[""] > 0
        ours = {path: found.params for path, found in model.components[stage.component].named_modules()}
        theirs = parameters(module)
        assert {path: n for path, n in ours.items() if n} == {path: n for path, n in theirs.items() if n}
    return len(plan.stages)


# -- one component -----------------------------------------------------------------------------------------------


def transformer_arguments(draw: random.Random, kind: str) -> dict[str, Any]:
    """Arguments of a small random diffusion transformer of a kind."""
    heads, head_dim = draw.randint(1, 3), 2 * draw.randint(3, 16)
    channels = {"i2v": (36, 16), "flf2v": (36, 16), "a14b": (36, 16), "ti2v": (48, 48)}.get(kind, (16, 16))
    arguments: dict[str, Any] = {
        "patch_size": draw.choice([(1, 2, 2), (1, 1, 1), (1, 2, 1), (1, 1, 2)]),
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "in_channels": channels[0],
        "out_channels": channels[1],
        "text_dim": draw.randint(1, 60),
        "freq_dim": draw.randint(2, 60),
        "ffn_dim": draw.randint(1, 150),
        "num_layers": draw.randint(1, 4),
        "cross_attn_norm": draw.random() < 0.7,
        "rope_max_seq_len": draw.choice([1024, 64]),
    }
    if kind in ("i2v", "flf2v"):
        arguments |= {"image_dim": draw.choice([1280, draw.randint(1, 60)]), "added_kv_proj_dim": heads * head_dim}
    if kind == "flf2v":
        arguments["pos_embed_seq_len"] = draw.choice([514, 2 * draw.randint(1, 40)])
    if kind == "vace":
        layers = draw.sample(range(1, arguments["num_layers"]), draw.randint(0, arguments["num_layers"] - 1))
        arguments |= {"vace_layers": [0, *sorted(layers)], "vace_in_channels": draw.randint(1, 100)}
    return arguments


KINDS = ["t2v", "i2v", "flf2v", "ti2v", "vace", "a14b"]


@pytest.mark.parametrize("seed", range(50))
def test_random_transformers_equal_the_real_class(seed: int, tmp_path: Path) -> None:
    """50 transformers' own folders, written by save_config, cost what the class that diffusers reads there costs."""
    kind = KINDS[seed % len(KINDS)]
    arguments = transformer_arguments(random.Random(seed), kind)
    written = WanVACETransformer3DModel if kind == "vace" else WanTransformer3DModel
    with META:
        written(**arguments).save_config(tmp_path)
    model = mm.load(tmp_path, "implementation=diffusers")
    assert model.source == "local"
    assert "transformer" not in model.not_modelled
    assert model.config["transformer"]["model_type"] == {"a14b": "i2v"}.get(kind, kind)
    video = {"height": 128, "width": 128} if kind == "ti2v" else {}
    assert assert_equal(model, {"transformer": read_by_the_real_class(tmp_path)}, **video) == 1


def test_a_folder_that_is_read_wrongly_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: a key that is mapped to another one makes it red."""
    with META:
        WanTransformer3DModel(**transformer_arguments(random.Random(1), "t2v")).save_config(tmp_path)
    read = local_model.composed

    def wrong(*given: Any) -> Any:
        config, absent = read(*given)
        config["transformer"]["ffn_dim"] += 1
        return config, absent

    monkeypatch.setattr(local_model, "composed", wrong)
    with pytest.raises(AssertionError):
        assert_equal(mm.load(tmp_path, "implementation=diffusers"), {"transformer": read_by_the_real_class(tmp_path)})


@pytest.mark.parametrize("seed", range(6))
def test_random_animate_transformers_equal_the_real_class(seed: int, tmp_path: Path) -> None:
    """6 folders of small Animate transformers, written by save_config, cost what the real class costs."""
    draw = random.Random(seed)
    arguments = transformer_arguments(draw, "i2v") | {"patch_size": (1, 2, 2), "rope_max_seq_len": 1024}
    every = draw.randint(1, 2)
    arguments |= {"num_layers": 2 * every, "inject_face_latents_blocks": every, "motion_dim": draw.randint(1, 9)}
    arguments |= {"face_encoder_hidden_dim": 4 * draw.randint(1, 8), "motion_style_dim": draw.randint(8, 40)}
    arguments |= {"motion_encoder_dim": draw.randint(8, 40), "motion_encoder_batch_size": draw.randint(1, 9)}
    with META:
        diffusers.WanAnimateTransformer3DModel(**arguments).save_config(tmp_path)
    model = mm.load(tmp_path, "implementation=diffusers")
    assert model.config["local"]["nearest"] == "wan2.2-animate-14b"
    assert assert_equal(model, {"transformer": read_by_the_real_class(tmp_path)}) == 1


@pytest.mark.parametrize("seed", range(4))
def test_random_audio_encoders_equal_the_real_class(seed: int, tmp_path: Path) -> None:
    """4 folders of small audio encoders, written by save_pretrained, cost beside S2V what the real class costs."""
    draw = random.Random(seed)
    heads, groups, layers = draw.randint(1, 3), draw.randint(1, 2), draw.randint(1, 3)
    sizes = {"conv_dim": [4 * draw.randint(1, 4) for _ in range(layers)], "conv_kernel": [10, 3, 2][:layers]}
    sizes |= {"conv_stride": [5, 2, 2][:layers], "conv_bias": draw.random() < 0.5, "vocab_size": draw.randint(5, 40)}
    sizes |= {"num_conv_pos_embeddings": draw.randint(2, 9), "num_conv_pos_embedding_groups": groups}
    sizes |= {"hidden_size": 2 * heads * groups, "num_attention_heads": heads, "intermediate_size": draw.randint(1, 50)}
    options = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "mask_time_prob": 0.0}
    given = Wav2Vec2Config(**sizes, **options, num_hidden_layers=2, num_feat_extract_layers=layers)
    with META:
        real = Wav2Vec2ForCTC(given).eval()
    real.config.save_pretrained(tmp_path / "wav2vec2-large-xlsr-53-english")
    section = {"_class_name": "WanModel_S2V", **compose(find("wan2.2-s2v-14b"))["transformer"], "num_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(section))
    model = mm.load(tmp_path)
    plan = model.plan(model.workload(**SMALL))
    (stage,) = [stage for stage in plan.stages if stage.id == "audio_encoder"]
    (call,) = stage.calls
    reference = model.pipeline.references(model.config)[stage.id]["diffusers"]
    measured = measure(reference, real, model.components[stage.id].inputs(**call.dims), META)
    assert {path: n for path, n in measured.flops.items() if n} == {
        path: n for path, n in model.call_flops(stage, call).items() if n
    }
    assert measured.flops[""] > 0
    assert model.components[stage.id].params == sum(weight.numel() for weight in real.parameters())


def vae_arguments(draw: random.Random, *, residual: bool) -> dict[str, Any]:
    """Arguments of a small random VAE in the style of Wan2.1 or 2.2."""
    arguments: dict[str, Any] = {
        "base_dim": 2 * draw.randint(1, 6),
        "z_dim": draw.randint(1, 20),
        "dim_mult": [draw.randint(1, 3) for _ in range(4)],
        "num_res_blocks": draw.randint(1, 2),
    }
    if residual:
        arguments |= {"dim_mult": [1, 2, 4, 4], "base_dim": 8, "decoder_base_dim": 8}
        arguments |= {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
        arguments["scale_factor_spatial"] = 16
    return arguments


def text_encoder_arguments(draw: random.Random) -> dict[str, Any]:
    """Arguments of a small random UMT5."""
    sizes = {key: draw.randint(1, 40) for key in ("d_model", "d_kv", "d_ff", "vocab_size")}
    return {**sizes, "num_layers": draw.randint(1, 3), "num_heads": draw.randint(1, 4)}


def image_encoder_arguments(draw: random.Random) -> dict[str, Any]:
    """Arguments of a small random CLIP vision tower."""
    heads, patch = draw.randint(1, 4), draw.choice([4, 8])
    return {
        "hidden_size": heads * draw.randint(1, 10),
        "num_attention_heads": heads,
        "intermediate_size": draw.randint(1, 40),
        "num_hidden_layers": draw.randint(2, 4),
        "image_size": patch * draw.randint(1, 4),
        "patch_size": patch,
    }


@pytest.mark.parametrize("seed", range(12))
def test_random_components_equal_the_real_classes(seed: int, tmp_path: Path) -> None:
    """12 whole directories of random components, written one by one, equal what diffusers and transformers read."""
    draw = random.Random(seed)
    kind = ["i2v", "t2v", "ti2v"][seed % 3]
    parts: dict[str, Any] = {}
    with META:
        parts["transformer"] = WanTransformer3DModel(**transformer_arguments(draw, kind))
        parts["vae"] = AutoencoderKLWan(**vae_arguments(draw, residual=kind == "ti2v"))
        UMT5EncoderModel(UMT5Config(**text_encoder_arguments(draw))).config.save_pretrained(tmp_path / "text_encoder")
        if kind == "i2v":
            CLIPVisionModel(CLIPVisionConfig(**image_encoder_arguments(draw))).config.save_pretrained(
                tmp_path / "image_encoder"
            )
    for name, module in parts.items():
        module.save_config(tmp_path / name)
    model = mm.load(tmp_path, "implementation=diffusers")
    assert model.not_modelled == ()
    real = {folder.name: read_by_the_real_class(folder) for folder in tmp_path.iterdir()}
    side = 16 * (2 if kind == "ti2v" else 1) * 2
    assert assert_equal(model, real, height=side, width=side) == {"i2v": 5, "t2v": 3, "ti2v": 3}[kind]


# -- whole pipelines ---------------------------------------------------------------------------------------------


def tiny_parts(draw: random.Random, *, images: bool) -> dict[str, Any]:
    """Real components that fit each other, with random weights."""
    width = 24
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "freq_dim": 32, "num_layers": 2}
    clip = image_encoder_arguments(draw)
    own = {"in_channels": 36, "image_dim": clip["hidden_size"], "added_kv_proj_dim": width} if images else {}
    text = text_encoder_arguments(draw) | {"d_model": 32}
    parts = {
        "transformer": WanTransformer3DModel(**sizes, **own, text_dim=32, out_channels=16),
        "vae": AutoencoderKLWan(base_dim=4, num_res_blocks=1, z_dim=16),
        "text_encoder": UMT5EncoderModel(UMT5Config(**text)),
        "tokenizer": None,
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=draw.choice([3.0, 7.5])
        ),
    }
    if images:
        parts["image_encoder"] = CLIPVisionModel(CLIPVisionConfig(**clip))
        parts["image_processor"] = transformers.CLIPImageProcessor()
    return parts


@pytest.mark.parametrize("images", [False, True])
def test_a_saved_pipeline_is_read_and_verified(images: bool, tmp_path: Path) -> None:
    """A whole pipeline, saved by diffusers with its weights, is read without a difference, and every check passes."""
    parts = tiny_parts(random.Random(images), images=images)
    kind = diffusers.WanImageToVideoPipeline if images else diffusers.WanPipeline
    kind(**parts).save_pretrained(tmp_path)
    model = mm.load(tmp_path, "implementation=diffusers")
    assert model.not_modelled == ()
    differing = [line for line in model.warnings if "layout; " not in line and "hidden_act" not in line]
    # the diffusion transformer keeps some weights in float32, the VAE all of them
    expected = f"text_encoder/model.safetensors stores {model.components['text_encoder'].params:,} parameters in F32"
    assert [line.partition(" which")[0] for line in differing if "image_encoder" not in line] == [
        f"text_encoder: {expected}"
    ]
    assert not any("holds" in line or "missing" in line for line in differing)
    shift = parts["scheduler"].config["flow_shift"]
    assert model.estimate().workload.flow_shift == shift
    real = {name: read_by_the_real_class(tmp_path / name) for name in model.components}
    assert assert_equal(model, real) == (5 if images else 3)
    result = verify([model], workload="wan2-1-512p" if images else "wan2-1-ci-tiny")
    assert result.failures == ()
    assert {check.kind for check in result.checks} == {"layers", "end2end", "core", "pipelines"}


@pytest.mark.parametrize("boundary", [0.875, None])
def test_two_experts_share_the_steps(boundary: float | None, tmp_path: Path) -> None:
    """Experts of different depth are both read; without a boundary the second is said never to run."""
    parts = tiny_parts(random.Random(3), images=False)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "freq_dim": 32, "text_dim": 32}
    parts["transformer_2"] = WanTransformer3DModel(**sizes, num_layers=1)
    diffusers.WanPipeline(**parts, boundary_ratio=boundary).save_pretrained(tmp_path)
    model = mm.load(tmp_path, "implementation=diffusers")
    names = ["text_encoder", "transformer", "transformer_2", "vae_decode"]
    if boundary is None:
        assert model.not_modelled == ("transformer_2",)
        names.remove("transformer_2")
    else:
        assert model.not_modelled == ()
        assert len(model.config["transformer_2"]) == len(model.config["transformer"])
    assert [stage.id for stage in model.estimate().stages] == names
    real = {name: read_by_the_real_class(tmp_path / name) for name in model.components}
    assert_equal(model, real, num_inference_steps=20)
    assert verify([model], workload="wan2-1-ci-tiny").failures == ()


# -- the official layout -----------------------------------------------------------------------------------------


def official_keys(draw: random.Random, kind: str) -> tuple[dict[str, Any], type, dict[str, Any]]:
    """A random official configuration, the class of diffusers, and the arguments that the vendor's weights convert to.

    Source of the correspondence: ``convert_wan_to_diffusers.py``.
    """
    heads, head_dim = draw.randint(1, 3), 2 * draw.randint(3, 16)
    dim, in_dim, out_dim = heads * head_dim, *{"i2v": (36, 16), "flf2v": (36, 16), "ti2v": (48, 48)}.get(kind, (16, 16))
    layers, ffn_dim, text_dim = draw.randint(1, 4), draw.randint(1, 100), draw.randint(1, 50)
    given = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "model_type": kind, "dim": dim, "eps": 1e-06}
    given |= {"ffn_dim": ffn_dim, "freq_dim": 256, "in_dim": in_dim, "num_heads": heads, "num_layers": layers}
    given |= {"out_dim": out_dim, "text_len": 512, "text_dim": text_dim}
    real = {"num_attention_heads": heads, "attention_head_dim": head_dim, "in_channels": in_dim}
    real |= {"out_channels": out_dim, "ffn_dim": ffn_dim, "num_layers": layers, "text_dim": text_dim}
    if kind in ("i2v", "flf2v"):
        real |= {"image_dim": 1280, "added_kv_proj_dim": dim}
    if kind == "flf2v":
        real["pos_embed_seq_len"] = 514
    if kind == "vace":
        given |= {"_class_name": "VaceWanModel", "vace_layers": [0], "vace_in_dim": 96}
        real |= {"vace_layers": [0], "vace_in_channels": 96}
    return given, WanVACETransformer3DModel if kind == "vace" else WanTransformer3DModel, real


@pytest.mark.parametrize("seed", range(50))
def test_random_official_directories_equal_the_real_class(seed: int, tmp_path: Path) -> None:
    """50 random official config.json cost what diffusers' class with the converted arguments costs."""
    kind = KINDS[seed % 5]
    given, real, arguments = official_keys(random.Random(seed), kind)
    (tmp_path / "config.json").write_text(json.dumps(given))
    with META:
        module = real(**arguments).eval()
    model = mm.load(str(tmp_path))
    assert model.config["local"]["layout"] == "official"
    assert assert_equal(model, {"transformer": module}) == 1


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_official_experts(kind: str, tmp_path: Path) -> None:
    """Two official folders are the two experts of A14B, without an image encoder, at the vendor's boundary."""
    given, real, arguments = official_keys(random.Random(7), kind)
    for name in ("high_noise_model", "low_noise_model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(given))
    converted = {k: v for k, v in arguments.items() if k not in ("image_dim", "added_kv_proj_dim")}
    with META:
        module = real(**converted).eval()
    model = mm.load(tmp_path)
    assert model.config["local"]["nearest"] == f"wan2.2-{kind}-a14b"
    assert assert_equal(model, {"transformer": module, "transformer_2": module}) == 2
    steps = {"t2v": (26, 14), "i2v": (15, 25)}[kind]
    estimate = model.estimate()
    assert (estimate["transformer"].calls, estimate["transformer_2"].calls) == tuple(2 * n for n in steps)
    assert verify([model], ("layers", "core"), workload="wan2-1-ci-tiny").failures == ()
