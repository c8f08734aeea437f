"""Which shipped model a diffusion transformer is nearest to: its pipeline, its vendor's defaults and presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import log
from typing import Any

from modelmeter.config import Entry, compose, registry
from modelmeter.errors import InputError
from modelmeter.local.layout import OFFICIAL_EXPERTS, Found
from modelmeter.local.transformer_config import TI2V_CHANNELS, Transformer

#: Sizes by which models of one kind are told apart.
SIZES = ("dim", "ffn_dim", "num_layers", "num_heads")
#: The checkpoint of the image encoder, which only models of Wan2.1 with image tokens have.
CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
#: Tensors of the official class that take in the image encoder's output. Source: ``img_emb`` in wan/modules/model.py.
IMAGE_TENSORS = "img_emb."


@cache
def _shipped() -> tuple[tuple[Entry, Mapping[str, Any]], ...]:
    return tuple((entry, compose(entry)) for entry in registry())


def takes_images(found: Found, folder_name: str, tensors: Sequence[str]) -> bool:
    """Whether the transformer takes the tokens of an image encoder.

    The official configuration of ``i2v`` is the same with them (Wan2.1) and without (Wan2.2): then the folder, the
    tensors that are stored, or the checkpoint of the image encoder tell; without any of them, it is Wan2.1.
    """
    expert = next(iter(found.experts.values()))
    if expert.images is not None:
        return expert.images
    if has_experts(found) or folder_name in OFFICIAL_EXPERTS.values():
        return False
    if tensors and CLIP not in found.checkpoints:
        return any(name.startswith(IMAGE_TENSORS) for name in tensors)
    return True


def family(found: Found, *, images: bool) -> Entry:
    """The nearest shipped model: of the same kind, its sizes nearest by ratio.

    Raises:
        InputError: a combination that no pipeline runs.
    """
    expert = next(iter(found.experts.values()))
    pipeline, model_type = _kind(found, expert, images=images)
    fitting = [
        (entry, config["transformer"])
        for entry, config in _shipped()
        if config["pipeline"] == pipeline and config["transformer"].get("model_type") == model_type
    ]
    return min(fitting, key=lambda pair: _distance(pair[1], expert.section))[0]


def has_experts(found: Found) -> bool:
    """Whether two experts share the steps; without a boundary the second of diffusers' never runs."""
    second = "transformer_2" in found.experts or "transformer_2" in found.missing or "transformer" in found.missing
    return second and (found.layout == "official" or found.boundary is not None)


def expands_timesteps(found: Found) -> bool:
    """Whether every token has a timestep of its own in the way of TI2V."""
    section = next(iter(found.experts.values())).section
    if found.expand_timesteps is not None and section["model_type"] in ("t2v", "ti2v"):
        return found.expand_timesteps
    return bool(section["model_type"] == "ti2v")


def _kind(found: Found, expert: Transformer, *, images: bool) -> tuple[str, str]:
    """Pipeline and type as a shipped configuration names them."""
    model_type = expert.section["model_type"]
    if model_type == "vace":
        return "WanVACEPipeline", model_type
    if model_type == "s2v":
        return "Wan2_2SpeechToVideoPipeline", model_type
    if "motion_dim" in expert.section:
        return "WanAnimatePipeline", model_type
    experts = has_experts(found)
    if images and experts:
        raise InputError(f"{expert.file}:image_dim", "set", "null for a model of two experts")
    if images:
        return "WanImageToVideoPipeline", model_type
    if model_type == "i2v":
        return "Wan2_2ImageToVideoPipeline", model_type
    if experts:
        return "Wan2_2Pipeline", "t2v"
    if expands_timesteps(found) or model_type == "ti2v" or expert.section["out_dim"] == TI2V_CHANNELS:
        return "Wan2_2TextImageToVideoPipeline", "ti2v"
    return "WanPipeline", "t2v"


def _distance(shipped: Mapping[str, Any], section: Mapping[str, Any]) -> float:
    return sum(abs(log(section[key] / shipped[key])) for key in SIZES)
