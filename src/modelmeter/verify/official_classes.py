"""The classes of the official Wan code that can be run: how each is called with the inputs of ours.

Source: the ``forward``, ``encode`` and ``decode`` of every class in Wan2.1 at 9737cba and Wan2.2 at 42bf4cf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from modelmeter.stage import Reference
from modelmeter.verify.official_names import (
    ANIMATE_TRANSFORMER,
    IMAGE_ENCODER,
    TEXT_ENCODER,
    TRANSFORMER,
    VACE_TRANSFORMER,
    Names,
    residual_vae_names,
    vae_names,
)

Inputs = Mapping[str, torch.Tensor]

#: What latents are shifted by and scaled with in the VAE, which are numbers or tensors.
SCALE = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class OfficialClass:
    """An official class.

    Args:
        call: runs it on the inputs of the component that it is the reference of.
        names: its table of names.
        attention: it attends by ``flash_attention``.
    """

    call: Callable[[torch.nn.Module, Reference, Inputs], object]
    names: Callable[[Reference], Names]
    attention: bool = False


def official_class(reference: Reference) -> OfficialClass:
    """How the class of a reference is used."""
    return CLASSES[reference.package, reference.name]


def run_transformer(model: Any, reference: Reference, inputs: Inputs) -> object:
    """``WanModel`` and those that derive from it, which take lists of videos and of texts."""
    latents, timestep, text = (inputs[name] for name in ("hidden_states", "timestep", "encoder_hidden_states"))
    given: dict[str, Any] = {"x": list(latents), "t": timestep, "context": list(text)}
    # the images come apart from the noise; the class of Animate takes no type
    if reference.arguments.get("model_type", "i2v") in ("i2v", "flf2v"):
        noise = reference.arguments["out_dim"]
        given |= {"x": list(latents[:, :noise]), "y": list(latents[:, noise:])}
    if "encoder_hidden_states_image" in inputs:
        given["clip_fea"] = inputs["encoder_hidden_states_image"]
    if "control_hidden_states" in inputs:
        given["vace_context"] = list(inputs["control_hidden_states"])
    if "pose_hidden_states" in inputs:
        given["pose_latents"] = inputs["pose_hidden_states"]
        given["face_pixel_values"] = inputs["face_pixel_values"]
    if timestep.ndim == 2 and len(latents) == 1:
        given["t"] = timestep[:, 0]  # the model of Wan2.2 itself gives it to every token, though of one video only
    patches = zip(latents.shape[2:], reference.arguments["patch_size"], strict=True)
    model.text_len = text.shape[1]  # it pads every text to this length, by default to 512 tokens
    return model(**given, seq_len=prod(size // patch for size, patch in patches))


def run_text_encoder(model: torch.nn.Module, reference: Reference, inputs: Inputs) -> object:
    """``T5Encoder``, which takes a mask of [B, L]."""
    return model(inputs["input_ids"], torch.ones_like(inputs["input_ids"]))


def run_image_encoder(model: torch.nn.Module, reference: Reference, inputs: Inputs) -> object:
    """``VisionTransformer`` without its last layer, as ``CLIPModel.visual`` calls it."""
    return model(inputs["pixel_values"], use_31_block=True)


def run_vae(model: torch.nn.Module, reference: Reference, inputs: Inputs) -> object:
    """``encode`` or ``decode`` of ``WanVAE_``."""
    (video,) = inputs.values()
    return getattr(model, reference.method)(video, SCALE)


def _levels(reference: Reference) -> tuple[int, int]:
    return len(reference.arguments["dim_mult"]), reference.arguments["num_res_blocks"]


WAN_VAE = OfficialClass(run_vae, lambda reference: vae_names(*_levels(reference)))

#: By module and name of the class, and after a dot the part of it that runs.
CLASSES: Mapping[tuple[str, str], OfficialClass] = {
    ("wan.modules.model", "WanModel"): OfficialClass(run_transformer, lambda _: TRANSFORMER, attention=True),
    ("wan.modules.vace_model", "VaceWanModel"): OfficialClass(
        run_transformer, lambda _: VACE_TRANSFORMER, attention=True
    ),
    ("wan.modules.animate.model_animate", "WanAnimateModel"): OfficialClass(
        run_transformer, lambda _: ANIMATE_TRANSFORMER, attention=True
    ),
    ("wan.modules.t5", "umt5_xxl"): OfficialClass(run_text_encoder, lambda _: TEXT_ENCODER),
    ("wan.modules.clip", "XLMRobertaCLIP.visual"): OfficialClass(
        run_image_encoder, lambda _: IMAGE_ENCODER, attention=True
    ),
    ("wan.modules.animate.clip", "XLMRobertaCLIP.visual"): OfficialClass(
        run_image_encoder, lambda _: IMAGE_ENCODER, attention=True
    ),
    ("wan.modules.vae", "WanVAE_"): WAN_VAE,
    ("wan.modules.vae2_1", "WanVAE_"): WAN_VAE,
    ("wan.modules.vae2_2", "WanVAE_"): OfficialClass(
        run_vae, lambda reference: residual_vae_names(*_levels(reference))
    ),
}
