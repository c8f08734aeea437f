"""Model directories: which model they are, what they lack, and what lies in them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import modelmeter as mm
from modelmeter.cli import main
from modelmeter.config import compose, find, registry
from modelmeter.models.registry import pipeline
from modelmeter.verify.run import verify

#: Classes of diffusers whose configuration is read.
READ = ("WanTransformer3DModel", "WanVACETransformer3DModel", "WanAnimateTransformer3DModel")
#: Keys that the vendor's config.json files have.
PUBLISHED = ("dim", "eps", "ffn_dim", "freq_dim", "in_dim", "model_type", "num_heads", "num_layers", "out_dim")
PUBLISHED += ("text_len", "vace_layers", "vace_in_dim")
#: Where the vendor's repository of S2V has the configuration of the audio encoder.
AUDIO_ENCODER = "wav2vec2-large-xlsr-53-english/config.json"


def shipped() -> list[str]:
    """Models whose transformer is one that is read from directories of diffusers."""
    found = []
    for entry in registry():
        config = compose(entry)
        reference = pipeline(config["pipeline"]).references(config).get("transformer", {}).get("diffusers")
        if reference is not None and reference.name in READ:
            found.append(entry.id)
    return found


def published(name: str) -> dict[str, Any]:
    """The config.json of the vendor: S2V has all that its section has."""
    section = compose(find(name))["transformer"]
    kinds = {"vace": "VaceWanModel", "animate": "WanAnimateModel", "s2v": "WanModel_S2V"}
    kind = next((kind for word, kind in kinds.items() if word in name), "WanModel")
    keys = section if "s2v" in name else [key for key in PUBLISHED if key in section]
    return {"_class_name": kind, **{key: section[key] for key in keys}}


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Status, document and standard error of a report as JSON."""
    with pytest.raises(SystemExit) as exit:
        main(["report", *arguments, "--format", "json"])
    output, error = capsys.readouterr()
    assert isinstance(exit.value.code, int)
    return exit.value.code, json.loads(output or "{}"), error


def refused(path: Path, *overrides: str) -> str:
    """The one line with which a directory is refused."""
    with pytest.raises(mm.InputError) as caught:
        mm.load(path, *overrides)
    line = str(caught.value)
    assert line.isprintable()
    return line


# -- which model it is -------------------------------------------------------------------------------------------


def test_there_are_shipped_models_to_compare_with() -> None:
    """The next tests compare all models of the transformer classes, and none of them vacuously."""
    assert len(shipped()) >= 11


@pytest.mark.parametrize("name", [*shipped(), "wan2.2-s2v-14b"])
def test_a_shipped_model_is_found_again_in_its_official_layout(name: str, make: Any, tmp_path: Path) -> None:
    """From what the vendor publishes, transformer, pipeline, vendor defaults and totals are those of the model."""
    config = compose(find(name))
    given = published(name)
    places = ["high_noise_model", "low_noise_model"] if "boundary" in config else ["."]
    for place in places:
        make.write(tmp_path, f"{place}/config.json", given)
    make.write(tmp_path, "models_t5_umt5-xxl-enc-bf16.pth", b"")
    make.write(tmp_path, "Wan2.2_VAE.pth" if "ti2v" in name else "Wan2.1_VAE.pth", b"")
    if "image_encoder" in config:
        make.write(tmp_path, "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", b"")
    described = ["audio_encoder"] if "audio_encoder" in config else []
    if described:
        make.write(tmp_path, AUDIO_ENCODER, {**make.AUDIO_ENCODER, **config["audio_encoder"]})
    model = mm.load(tmp_path)
    assert model.not_modelled == ()
    own = {"id", "title", "aliases", "source", "local", "default_workload"}
    assert {k: v for k, v in model.config.items() if k not in own} == {k: v for k, v in config.items() if k not in own}
    here, there = model.estimate(workload="official-480p"), mm.load(name).estimate(workload="official-480p")
    assert (here.flops, here.params) == (there.flops, there.params)
    assert sum("is a pickle, which is never opened" in line for line in model.warnings) == (
        len(model.components) - len(places) - len(described)
    )


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_model_is_found_again_in_the_layout_of_diffusers(name: str, make: Any, tmp_path: Path) -> None:
    """From the arguments of the real classes, every section and the totals are those of the model."""
    config = compose(find(name))
    references = pipeline(config["pipeline"]).references(config)
    real = references["transformer"]["diffusers"]
    experts = ["transformer", "transformer_2"] if "boundary" in config else ["transformer"]
    for expert in experts:
        make.write(tmp_path, f"{expert}/config.json", {"_class_name": real.name, **real.arguments})
    make.write(tmp_path, "vae/config.json", {"_class_name": "AutoencoderKLWan", **config["vae"]})
    text = {"architectures": ["UMT5EncoderModel"], "model_type": "umt5", **config["text_encoder"]}
    make.write(tmp_path, "text_encoder/config.json", text)
    index = {**make.INDEX, **{expert: ["diffusers", real.name] for expert in experts}}
    index |= {"boundary_ratio": config.get("boundary"), "expand_timesteps": "ti2v" in name}
    if "image_encoder" in config:
        clip = {**make.IMAGE_ENCODER, **config["image_encoder"]}
        make.write(tmp_path, "image_encoder/config.json", clip)
        index["image_encoder"] = ["transformers", "CLIPVisionModel"]
    make.write(tmp_path, "model_index.json", index)
    model = mm.load(tmp_path)
    assert (model.not_modelled, len(model.warnings)) == ((), 1)
    own = {"id", "title", "aliases", "source", "local", "default_workload"}
    assert {k: v for k, v in model.config.items() if k not in own} == {k: v for k, v in config.items() if k not in own}
    assert model.estimate(workload="official-480p").flops == mm.load(name).estimate(workload="official-480p").flops


@pytest.mark.parametrize(
    ("keys", "nearest"),
    [
        ({"dim": 1600, "num_heads": 10}, "wan2.1-t2v-1.3b"),
        ({"dim": 4096, "num_heads": 32, "num_layers": 36}, "wan2.1-t2v-14b"),
        ({"in_dim": 48, "out_dim": 48}, "wan2.2-ti2v-5b"),
        ({"model_type": "ti2v", "in_dim": 48, "out_dim": 48}, "wan2.2-ti2v-5b"),
        ({"model_type": "i2v", "in_dim": 36}, "wan2.1-i2v-14b-480p"),
        ({"_class_name": "VaceWanModel", "model_type": "vace", "dim": 1600, "num_heads": 10}, "wan2.1-vace-1.3b"),
    ],
)
def test_a_fine_tune_is_the_nearest_model(keys: dict[str, Any], nearest: str, make: Any, tmp_path: Path) -> None:
    """Other widths and depths keep the pipeline of their kind and the defaults of the model of the nearest size."""
    model = mm.load(make.official(tmp_path, **keys))
    assert model.config["local"] == {"layout": "official", "nearest": nearest}
    assert model.config["pipeline"] == compose(find(nearest))["pipeline"]
    assert model.config["transformer"]["dim"] == keys.get("dim", 1536)


def test_the_idle_half_of_clip_is_that_of_the_vendor(make: Any, tmp_path: Path) -> None:
    """Under the official code the vendor's image encoder takes its text half along; another one has only itself."""
    make.diffusers(tmp_path, image_encoder=["transformers", "CLIPVisionModel"])
    sizes = {"in_channels": 36, "image_dim": 16, "added_kv_proj_dim": 24}
    make.write(tmp_path, "transformer/config.json", {**make.SMALL, **sizes})
    shipped = compose(find("wan2.1-i2v-14b-480p"))["image_encoder"]
    text_half = 1_193_014_785 - 630_766_080  # of XLMRobertaCLIP, measured on the official class and on diffusers'
    for encoder, idle in ((make.IMAGE_ENCODER, 0), ({**make.IMAGE_ENCODER, **shipped}, text_half)):
        make.write(tmp_path, "image_encoder/config.json", encoder)
        model = mm.load(tmp_path, "implementation=official")
        assert model.weights()["image_encoder"].total == 2 * (model.components["image_encoder"].params + idle)


S2V_REFUSED = [
    ("config.json", {"enable_motioner": True}, "enable_motioner=True (bool): allowed is false for this model"),
    (
        "config.json",
        {"framepack_drop_mode": "drop"},
        "framepack_drop_mode='drop' (str): allowed is padd for this model",
    ),
    ("config.json", {"patch_size": [1, 1, 1]}, "patch_size=[1, 1, 1] (list): allowed is [1, 2, 2] for this model"),
    ("config.json", {"enable_framepack": ...}, "enable_framepack=missing: allowed is true for this model"),
    ("config.json", {"audio_inject_layers": []}, "audio_inject_layers=[] (list): allowed is a list of at most"),
    ("config.json", {"audio_inject_layers": ...}, "audio_inject_layers=missing: allowed is a list of at most"),
    (AUDIO_ENCODER, {"do_stable_layer_norm": ...}, "do_stable_laye...=missing: allowed is true for this model"),
    (AUDIO_ENCODER, {"feat_extract_norm": "group"}, "feat_extract_norm='group' (str): allowed is layer for this model"),
    (AUDIO_ENCODER, {"conv_stride": 5}, "conv_stride=5 (int): allowed is a list of at most 16 integers from 1 up"),
]


def speech(folder: Path, make: Any, file: str = "", changes: dict[str, Any] | None = None) -> Path:
    """The official layout of S2V with its audio encoder; ``...`` takes a key away."""
    encoder = {**make.AUDIO_ENCODER, **compose(find("wan2.2-s2v-14b"))["audio_encoder"]}
    for place, given in {"config.json": published("wan2.2-s2v-14b"), AUDIO_ENCODER: encoder}.items():
        written = {**given, **(changes or {} if place == file else {})}
        make.write(folder, place, {key: value for key, value in written.items() if value is not ...})
    return folder


@pytest.mark.parametrize(("file", "changes", "said"), S2V_REFUSED)
def test_speech_to_video_that_is_built_otherwise_is_refused(
    file: str, changes: dict[str, Any], said: str, make: Any, tmp_path: Path
) -> None:
    """A value that the model cannot represent, or the lack of one that makes it so, is refused by file and key."""
    assert refused(speech(tmp_path, make, file, changes)).startswith(f"{file}:{said}")


def test_speech_to_video_without_its_parts(make: Any, tmp_path: Path) -> None:
    """Parts that are not there are listed; an audio encoder of another class or width is told of."""
    speech(tmp_path, make, "config.json", {"_class_name": ..., "num_layers": 2})
    model = mm.load(tmp_path)
    assert (model.config["local"]["nearest"], model.not_modelled) == ("wan2.2-s2v-14b", ("text_encoder", "vae"))
    assert [stage.id for stage in model.estimate(num_clips=2).stages] == ["audio_encoder", "transformer"]
    weights = make.safetensors({"wav2vec2.masked_spec_embed": ("F32", [1024])})  # of use in training alone
    make.write(tmp_path, AUDIO_ENCODER.replace("config.json", "model.safetensors"), weights)
    assert not any("holds" in line for line in mm.load(tmp_path).warnings)
    speech(tmp_path, make, AUDIO_ENCODER, {"hidden_size": 512})
    told = "audio_encoder has hidden_size=512, and the transformer takes audio_dim=1024"
    assert told in mm.load(tmp_path).warnings
    speech(tmp_path, make, AUDIO_ENCODER, {"architectures": ["HubertModel"]})
    assert "audio_encoder is not modelled: the class HubertModel is not modelled" in mm.load(tmp_path).warnings
    (tmp_path / AUDIO_ENCODER).unlink()
    assert f"audio_encoder is not modelled: no {AUDIO_ENCODER}" in mm.load(tmp_path).warnings


@pytest.mark.parametrize(
    ("tensor", "nearest"), [("img_emb.proj.0.bias", "wan2.1-i2v"), ("head.head.bias", "wan2.2-i2v")]
)
def test_the_tensors_tell_an_expert_from_a_model_with_an_image_encoder(
    tensor: str, nearest: str, make: Any, tmp_path: Path
) -> None:
    """The official configuration of both is the same; the layers for images are in one of them."""
    make.official(tmp_path, model_type="i2v", in_dim=36)
    make.write(tmp_path, "diffusion_pytorch_model.safetensors", make.safetensors({tensor: ("F32", [8])}))
    model = mm.load(tmp_path)
    assert model.config["local"]["nearest"].startswith(nearest)
    # one transformer alone runs every step
    assert model.estimate()["transformer"].calls == 2 * 40


def test_the_schedule_of_the_directory_shares_out_the_steps(make: Any, tmp_path: Path) -> None:
    """Shift and boundary come from the directory, under both implementations."""
    make.diffusers(tmp_path, boundary_ratio=0.5, transformer_2=["diffusers", "WanTransformer3DModel"])
    make.write(tmp_path, "transformer_2/config.json", make.SMALL)
    # sigma = 4 s / (1 + 3 s) is a half or more down to s = 1/5; the 17th of 20 steps is at 0.1998 where the first is at
    # 0.999, as in the official code, and at 0.2008 where it is at 1
    for implementation, steps in (("official", (16, 4)), ("diffusers", (17, 3))):
        model = mm.load(tmp_path, f"implementation={implementation}")
        estimate = model.estimate(num_inference_steps=20, guidance_scale=1)
        assert estimate.workload.flow_shift == 4.0
        assert (estimate["transformer"].calls, estimate["transformer_2"].calls) == steps


# -- names -------------------------------------------------------------------------------------------------------


def test_ids_win_over_directories_and_paths_over_repositories(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name without a slash that is an id is that model; ./id, an absolute path and a directory are paths."""
    monkeypatch.chdir(tmp_path)
    make.official(tmp_path / "wan2.1-t2v-14b", num_layers=2)
    make.official(tmp_path / "Wan-AI" / "Wan2.1-T2V-14B", num_layers=3)
    make.official(tmp_path / "mine", num_layers=4)

    def layers(name: Any) -> int:
        return mm.load(name).config["transformer"]["num_layers"]

    assert layers("wan2.1-t2v-14b") == 40
    assert layers("./wan2.1-t2v-14b") == layers(tmp_path / "wan2.1-t2v-14b") == layers(Path("wan2.1-t2v-14b")) == 2
    assert layers("Wan-AI/Wan2.1-T2V-14B") == 3
    assert layers("Wan-AI/Wan2.1-T2V-14B-Diffusers") == 40
    assert layers("mine") == layers("mine/") == layers(str(tmp_path / "mine")) == 4
    monkeypatch.chdir(tmp_path / "mine")
    assert layers(".") == 4


@pytest.mark.parametrize(
    "name", ["./nothing", "/nothing/there", "./a\0b", "../x\n\x1b[31my", "/dev/null", "./" + "x" * 5000]
)
def test_a_path_without_a_directory_is_refused(name: str) -> None:
    """What is no directory is refused in one printable line that says what may stand there."""
    with pytest.raises(mm.InputError, match="^model=.*allowed is a model directory") as caught:
        mm.load(name)
    assert str(caught.value).isprintable()


def test_the_name_of_a_directory_is_shown_without_control_characters(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that would steer a terminal is escaped in every format."""
    folder = make.official(tmp_path / "a\x1b[31mb\udcff")
    for format in ("table", "markdown", "latex", "json", "csv"):
        with pytest.raises(SystemExit) as exit:
            main(["report", str(folder), "--format", format])
        assert exit.value.code in (None, 0)
        assert "\x1b" not in capsys.readouterr().out


def test_source_and_overrides_of_a_local_model(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The document says that the model is local and by which name; its sections can be overridden."""
    status, document, error = report(capsys, str(make.diffusers(tmp_path)), "transformer.num_layers=1", "height=64")
    assert (status, error) == (0, "")
    assert document["model"]["source"] == "local"
    assert document["model"]["id"] == str(tmp_path)
    assert document["model"]["config"]["transformer"]["num_layers"] == 1
    assert document["workload"]["height"] == 64
    assert document["not_modelled"] == []


# -- what is missing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["vae", "text_encoder"])
@pytest.mark.parametrize("how", ["absent", "unknown class"])
def test_a_component_that_is_missing_or_unknown_is_not_modelled(
    component: str, how: str, make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is listed with a warning, its stages and parameters are left out, and the rest is counted as before."""
    make.diffusers(tmp_path)
    before = report(capsys, str(tmp_path))[1]
    if how == "absent":
        os.unlink(tmp_path / component / "config.json")
    else:
        unknown = {"_class_name": "AutoencoderX", "architectures": ["X\x1b[31m"], "model_type": "x"}
        make.write(tmp_path, f"{component}/config.json", unknown)
    status, after, error = report(capsys, str(tmp_path))
    assert (status, error, after["not_modelled"]) == (0, "", [component])
    assert any(line.startswith(f"{component} is not modelled: ") for line in after["warnings"])
    assert all("\x1b" not in line for line in after["warnings"])
    gone = {"vae": "vae_decode"}.get(component, component)
    stages = [stage for stage in before["stages"] if stage["id"] != gone]
    assert after["stages"] == stages
    assert len(stages) == len(before["stages"]) - 1
    assert after["totals"]["flops"] == sum(stage["flops"] for stage in stages)
    assert component not in [one["id"] for one in after["components"]]


def test_components_that_nothing_is_known_of_are_listed(make: Any, tmp_path: Path) -> None:
    """A component of model_index.json that no pipeline here has is not modelled, and its name is printable."""
    make.diffusers(tmp_path, controlnet=["diffusers", "WanControlnet"], **{"x\x1b": ["a", "B"]})
    model = mm.load(tmp_path)
    assert model.not_modelled == ("controlnet", "x\\x1b")
    assert "controlnet is not modelled: the class WanControlnet is not modelled" in model.warnings


def test_one_expert_alone_is_counted_and_the_other_listed(make: Any, tmp_path: Path) -> None:
    """Of two experts the one that is there keeps its share of the steps."""
    make.write(tmp_path, "low_noise_model/config.json", make.OFFICIAL)
    model = mm.load(tmp_path)
    assert model.not_modelled == ("transformer", "text_encoder", "vae")
    assert [(stage.id, stage.calls) for stage in model.estimate().stages] == [("transformer_2", 2 * 14)]
    # in a single step it does not run at all, which breaks no law
    assert verify([model], ("core",), workload="wan2-1-ci-tiny").failures == ()


@pytest.mark.parametrize("what", ["empty", "vae only", "unknown class", "no class", "index alone"])
def test_without_a_diffusion_transformer_nothing_is_reported(
    what: str, make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory without a readable diffusion transformer ends with status 2 and one line."""
    if what == "vae only":
        make.write(tmp_path, "config.json", make.VAE)
    if what == "unknown class":
        make.official(tmp_path, _class_name="FluxTransformer2DModel")
    if what == "no class":
        make.write(tmp_path, "config.json", {"hidden_size": 8})
    if what == "index alone":
        make.write(tmp_path, "model_index.json", make.INDEX)
    status, _, error = report(capsys, str(tmp_path))
    assert status == 2
    assert error.count("\n") == 1
    assert error.startswith("modelmeter: ")


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("transformer", "qk_norm", "layer_norm"),
        ("transformer", "qk_norm", None),
        ("transformer", "added_kv_proj_dim", 24),
        ("transformer", "num_layers", "2"),
        ("transformer", "num_layers", True),
        ("transformer", "num_layers", 2.0),
        ("transformer", "num_layers", 10**9),
        ("transformer", "num_attention_heads", 0),
        ("transformer", "patch_size", [1, 2]),
        ("vae", "attn_scales", [1.0]),
        ("vae", "scale_factor_temporal", 8),
        ("vae", "scale_factor_spatial", 32),
        ("vae", "num_res_blocks", 10_000),
        ("vae", "dim_mult", [1] * 1000),
        ("text_encoder", "feed_forward_proj", "relu"),
        ("text_encoder", "relative_attention_num_buckets", 1),
        ("text_encoder", "d_model", None),
    ],
)
def test_what_the_model_cannot_represent_is_refused_by_name(
    component: str, key: str, value: object, make: Any, tmp_path: Path
) -> None:
    """A value that has another meaning, type or size than the classes know names file and key."""
    make.diffusers(tmp_path)
    file = tmp_path / component / "config.json"
    make.write(tmp_path, f"{component}/config.json", {**json.loads(file.read_text()), key: value})
    line = refused(tmp_path)
    assert key in line or (key, "image_dim") == ("added_kv_proj_dim", line.partition("=")[0].rpartition(":")[2])
    assert component in line


def test_components_that_do_not_fit_each_other_are_told(make: Any, tmp_path: Path) -> None:
    """Each component is counted as it is; widths that do not meet are warned of."""
    make.diffusers(tmp_path)
    make.write(tmp_path, "vae/config.json", {**make.VAE, "z_dim": 8})
    make.write(tmp_path, "text_encoder/config.json", {**make.TEXT_ENCODER, "d_model": 48})
    warnings = mm.load(tmp_path).warnings
    assert "vae has z_dim=8, and the transformer takes out_dim=16" in warnings
    assert "text_encoder has d_model=48, and the transformer takes text_dim=32" in warnings


def test_keys_that_the_class_does_not_know_are_told(make: Any, tmp_path: Path) -> None:
    """Keys that diffusers would leave out are left out and named; those that are off are not."""
    make.official(tmp_path, add_control_adapter=True, hidden_size=None, ref_conv=False, **{"x\n": 1})
    unknown = [line for line in mm.load(tmp_path).warnings if "left out" in line]
    assert unknown == ["config.json: not known to the class and left out: add_control_adapter, x\\n"]
