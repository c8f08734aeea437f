"""The configuration of a local model: that of the nearest shipped one, with what the directory says in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelmeter.config import Entry, compose
from modelmeter.errors import InputError
from modelmeter.local.family import expands_timesteps, has_experts
from modelmeter.local.layout import CHECKPOINTS, CONFIG, OFFICIAL_FOLDERS, Found
from modelmeter.local.transformer_config import FIXED

Config = dict[str, Any]

#: Sections of a configuration that are components beside the diffusion transformers.
COMPONENTS = ("text_encoder", "image_encoder", "audio_encoder", "vae")
#: What both experts of a pair take and give.
INTERFACE = ("patch_size", "in_dim", "out_dim", "text_dim")


def composed(found: Found, nearest: Entry) -> tuple[Config, tuple[str, ...]]:
    """The configuration, and the components in it that the model is without.

    What the directory does not have keeps the section of the nearest model, from which strides and tokens are taken.

    Raises:
        InputError: two experts that cannot share a video.
    """
    config = compose(nearest)
    absent = _put_transformers(found, config)
    differences = config["differences"]
    for name, section in found.components.items():
        if name in config and section.values is not None:
            if (
                name == "image_encoder" and section.values != config[name]
            ):  # the idle half is that of the vendor's alone
                differences["image_encoder_idle_params"] = dict.fromkeys(differences["image_encoder_idle_params"], 0)
            config[name] = dict(section.values)
    if found.flow_shift is not None:  # whoever runs it, this is the schedule that the directory asks for
        differences["flow_shift"] = dict.fromkeys(differences["flow_shift"], found.flow_shift)
        config["vendor"]["flow_shift"] = found.flow_shift
        for preset in config["workloads"].values():
            preset.pop("flow_shift", None)
    text_len = config["transformer"]["text_len"]
    differences["text_padding"]["official"] = config["vendor"]["text_len"] = text_len
    for name, preset in config["workloads"].items():
        if name.startswith("official-"):
            preset["text_len"] = text_len
    if found.expand_timesteps is not None and config["transformer"]["model_type"] in ("t2v", "ti2v"):
        differences["timesteps"]["diffusers"] = "per_token" if expands_timesteps(found) else "per_sample"
    if "task" in config["workload_keys"] and found.pipeline == "WanImageToVideoPipeline":
        config["workload_keys"] = {**config["workload_keys"], "task": "i2v"}
    local = {"layout": found.layout, "nearest": nearest.id}
    return {**config, "title": "a local model", "aliases": [], "source": "local", "local": local}, absent


def _put_transformers(found: Found, config: Config) -> tuple[str, ...]:
    first = found.experts.get("transformer") or found.experts["transformer_2"]
    second = found.experts.get("transformer_2")
    # the types are equal but for t2v and ti2v, which only the pipeline tells apart
    model_type = {"model_type": config["transformer"]["model_type"]}
    config["transformer"] = {**first.section, **model_type}
    if "boundary" not in config:
        return ()
    if not has_experts(found):  # every step is above the boundary
        config["boundary"] = 0.0
        return ("transformer_2",)
    if found.boundary is not None:
        config["boundary"] = found.boundary
    if second is not None and second.section != first.section:
        for key in INTERFACE:
            if second.section[key] != first.section[key]:
                allowed = f"{first.section[key]}, as that of the other expert"
                raise InputError(f"{second.file}:{key}", second.section[key], allowed)
        config["transformer_2"] = {**second.section, **model_type}
    return ()


def not_modelled(found: Found, config: Config, absent: tuple[str, ...]) -> dict[str, str]:
    """Components that the model has and that are left out, and why."""
    left_out = dict(found.missing)
    experts = ("transformer", "transformer_2") if "boundary" in config else ("transformer",)
    for name in (*experts, *(name for name in COMPONENTS if name in config)):
        if name not in (*found.experts, *found.components, *absent) and not _checkpoint(found, config, name):
            left_out.setdefault(name, _why(found, name))
    if "transformer_2" in found.experts and ("transformer_2" in absent or "transformer_2" not in experts):
        alone = "without boundary_ratio it never runs"
        left_out["transformer_2"] = alone if found.boundary is None else "this pipeline runs one transformer"
    return left_out


def _why(found: Found, name: str) -> str:
    if found.layout == "official" and name in OFFICIAL_FOLDERS:
        return f"no {OFFICIAL_FOLDERS[name]}/{CONFIG}"
    if found.layout == "diffusers":
        return f"no {name}/{CONFIG}"
    return "the directory is that of a transformer" if found.layout == "transformer" else "no checkpoint of the vendor"


def _checkpoint(found: Found, config: Config, name: str) -> str | None:
    """The vendor's checkpoint of a component, which for a VAE is that of the vendor's generation."""
    for file in found.checkpoints:
        if CHECKPOINTS[file] == name and (name != "vae" or file.startswith("Wan2.2") == config["vae"]["is_residual"]):
            return file
    return None


def assumed(found: Found, config: Config) -> Iterator[str]:
    """What stands in the vendor's code alone, and which checkpoint says so; those of no use are named too."""
    for file in found.checkpoints:
        name = CHECKPOINTS[file]
        if name in config and _checkpoint(found, config, name) == file:
            yield f"{name}: {file} is a pickle, which is never opened; modelled is the vendor's component"
        else:
            yield f"{file}: a pickle, which is never opened; this model does not run it"
    if found.boundary is not None and not has_experts(found):
        yield "boundary_ratio is set without a transformer_2: every step is counted with the transformer"
    for name in found.components:
        if name not in config:
            yield f"{name}: this model does not run it, so it is not counted"


def mismatches(config: Mapping[str, Any], left_out: Mapping[str, str]) -> Iterator[str]:
    """Components that do not fit the transformer: each is counted as it is, but the pipeline could not run."""
    transformer = config["transformer"]
    pairs = {"text_encoder": [("d_model", "text_dim", transformer["text_dim"])], "vae": [_latents(config)]}
    if "audio_encoder" in config:
        pairs["audio_encoder"] = [("hidden_size", "audio_dim", transformer["audio_dim"])]
    if "image_encoder" in config:
        encoder = config["image_encoder"]
        pairs["image_encoder"] = [("hidden_size", "image_dim", transformer.get("image_dim", FIXED["image_dim"]))]
        tokens = 2 * ((encoder["image_size"] // encoder["patch_size"]) ** 2 + 1)
        positions = transformer.get("pos_embed_seq_len", FIXED["pos_embed_seq_len"])
        if transformer["model_type"] == "flf2v" and tokens != positions and "image_encoder" not in left_out:
            yield f"image_encoder gives {tokens} tokens for two images, and the transformer takes {positions}"
    for component, keys in pairs.items():
        for key, taken, value in keys:
            if component in config and component not in left_out and config[component][key] != value:
                yield f"{component} has {key}={config[component][key]}, and the transformer takes {taken}={value}"


def _latents(config: Mapping[str, Any]) -> tuple[str, str, int]:
    """Channels of the latents as the transformer gives them."""
    return "z_dim", "out_dim", config["transformer"]["out_dim"]
