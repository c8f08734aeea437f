"""Configurations of the encoders and of the VAE as sections of ours.

A class that is not modelled gives no section: its component is then listed as not modelled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modelmeter.errors import InputError, shown
from modelmeter.local.keys import (
    MOST_LAYERS,
    Key,
    boolean,
    booleans,
    integer,
    integers,
    needed,
    only,
    optional_integer,
    unknown,
    values,
)

#: Most residual blocks of a level and most levels of a VAE: far above any, few enough to count in a moment.
MOST_RES_BLOCKS, MOST_LEVELS = 16, 8
#: Frames of pixels of a latent frame: both implementations cut a video into chunks of so many.
TEMPORAL_STRIDE = 4

#: Source: ``UMT5Config`` of transformers 5.23.
TEXT_ENCODER: Mapping[str, Key] = {
    "vocab_size": integer(250112),
    "d_model": integer(512),
    "d_kv": integer(64),
    "d_ff": integer(1024),
    "num_layers": integer(8, MOST_LAYERS),
    "num_heads": integer(6),
    "relative_attention_num_buckets": integer(32),
}
#: What the model cannot represent otherwise.
TEXT_ENCODER_FIXED: Mapping[str, Key] = {
    "feed_forward_proj": only("gated-gelu"),
    "dense_act_fn": only("gelu_new"),
    "is_gated_act": only(True),
}
#: Fewest buckets of distances: half of them for each direction, half of those by logarithm.
FEWEST_BUCKETS = 4
#: Source: ``CLIPVisionConfig`` of transformers 5.23.
IMAGE_ENCODER: Mapping[str, Key] = {
    "hidden_size": integer(768),
    "intermediate_size": integer(3072),
    "num_hidden_layers": integer(12, MOST_LAYERS),
    "num_attention_heads": integer(12),
    "num_channels": integer(3),
    "image_size": integer(224),
    "patch_size": integer(32),
}
#: Most convolutions over the samples of an audio encoder.
MOST_CONVOLUTIONS = 16
#: Source: ``Wav2Vec2Config`` of transformers 5.23.
AUDIO_ENCODER: Mapping[str, Key] = {
    "vocab_size": integer(32),
    "hidden_size": integer(768),
    "intermediate_size": integer(3072),
    "num_hidden_layers": integer(12, MOST_LAYERS),
    "num_attention_heads": integer(12),
    "conv_dim": integers([512] * 7, MOST_CONVOLUTIONS),
    "conv_kernel": integers([10, 3, 3, 3, 3, 2, 2], MOST_CONVOLUTIONS),
    "conv_stride": integers([5, 2, 2, 2, 2, 2, 2], MOST_CONVOLUTIONS),
    "conv_bias": boolean(False),
    "num_conv_pos_embeddings": integer(128),
    "num_conv_pos_embedding_groups": integer(16),
}
#: What the model cannot represent otherwise; the class without them has its norms elsewhere.
AUDIO_ENCODER_FIXED: Mapping[str, Key] = {
    "feat_extract_norm": needed(only("layer")),
    "do_stable_layer_norm": needed(only(True)),
    "feat_extract_activation": only("gelu"),
    "hidden_act": only("gelu"),
    "add_adapter": only(False),
    "adapter_attn_dim": only(None),
}
#: Source: the signature of diffusers' ``AutoencoderKLWan``.
VAE: Mapping[str, Key] = {
    "base_dim": integer(96),
    "decoder_base_dim": optional_integer(None),
    "z_dim": integer(16),
    "dim_mult": integers([1, 2, 4, 4], most=MOST_LEVELS),
    "num_res_blocks": integer(2, MOST_RES_BLOCKS),
    "temperal_downsample": booleans([False, True, True], most=MOST_LEVELS),
    "is_residual": boolean(False),
    "in_channels": integer(3),
    "out_channels": integer(3),
    "patch_size": optional_integer(None),
    "scale_factor_temporal": only(TEMPORAL_STRIDE),
    "scale_factor_spatial": integer(8),
}
#: What costs nothing, and what the real class has but cannot run.
VAE_OTHERS: Mapping[str, Key] = {
    "attn_scales": only([]),
    "dropout": Key("a number from 0 to 1", lambda value: type(value) in (int, float) and 0 <= value <= 1, 0.0),
    "latents_mean": Key("a list", lambda value: isinstance(value, list), []),
    "latents_std": Key("a list", lambda value: isinstance(value, list), []),
    "clip_output": boolean(False),
}


@dataclass(frozen=True, slots=True)
class Section:
    """The configuration of a component in our keys; ``None`` where its class is not modelled."""

    class_name: str
    values: Mapping[str, Any] | None
    warnings: tuple[str, ...] = ()


def text_encoder(file: str, given: Mapping[str, Any]) -> Section:
    """The section of a ``UMT5EncoderModel``.

    Raises:
        InputError: a value that the class or the model cannot have.

    Example:
        >>> text_encoder("config.json", {"model_type": "umt5", "d_model": 4096}).values["d_model"]
        4096
    """
    name = _transformers_class(given, {"umt5": "UMT5EncoderModel"})
    if name not in ("UMT5EncoderModel", "UMT5Model", "UMT5ForConditionalGeneration"):
        return Section(name, None)
    values(file, given, TEXT_ENCODER_FIXED)
    found = values(file, given, TEXT_ENCODER)
    if found["relative_attention_num_buckets"] < FEWEST_BUCKETS:
        buckets = found["relative_attention_num_buckets"]
        raise InputError(f"{file}:relative_attention_num_buckets", buckets, f"at least {FEWEST_BUCKETS}")
    return Section(name, found, _quantised(file, given))


def image_encoder(file: str, given: Mapping[str, Any]) -> Section:
    """The section of a ``CLIPVisionModel``.

    Raises:
        InputError: a value that the class or the model cannot have.
    """
    name = _transformers_class(given, {"clip_vision_model": "CLIPVisionModel"})
    if name != "CLIPVisionModel":
        return Section(name, None)
    found = values(file, given, IMAGE_ENCODER)
    activation = given.get("hidden_act", "quick_gelu")
    warnings = _quantised(file, given)
    if activation != "gelu":
        warnings += (f"{file}:hidden_act={shown(activation)}: modelled as gelu, which has the same FLOPs",)
    return Section(name, found, warnings)


def audio_encoder(file: str, given: Mapping[str, Any]) -> Section:
    """The section of a ``Wav2Vec2ForCTC``.

    Raises:
        InputError: a value that the class or the model cannot have.
    """
    name = _transformers_class(given, {"wav2vec2": "Wav2Vec2ForCTC"})
    if name != "Wav2Vec2ForCTC":
        return Section(name, None)
    values(file, given, AUDIO_ENCODER_FIXED)
    return Section(name, values(file, given, AUDIO_ENCODER), _quantised(file, given))


def vae(file: str, given: Mapping[str, Any]) -> Section:
    """The section of an ``AutoencoderKLWan``.

    Raises:
        InputError: a value that the class or the model cannot have.
    """
    name = given.get("_class_name")
    if name != "AutoencoderKLWan":
        return Section(name if isinstance(name, str) else "no class", None)
    values(file, given, VAE_OTHERS)
    found = values(file, given, VAE)
    if found["decoder_base_dim"] is None:
        found["decoder_base_dim"] = found["base_dim"]
    return Section(name, found, tuple(unknown(file, given, {**VAE, **VAE_OTHERS})))


def _transformers_class(given: Mapping[str, Any], by_type: Mapping[str, str]) -> str:
    """The class that transformers wrote, or that of the type of model."""
    classes = given.get("architectures")
    if isinstance(classes, list) and classes and isinstance(classes[0], str):
        return classes[0]
    kind = given.get("model_type")
    return by_type.get(kind, kind) if isinstance(kind, str) else "no class"


def _quantised(file: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"{file}: quantization_config is left out",) if given.get("quantization_config") else ()


#: Components beside the diffusion transformers, and how their configuration is read.
COMPONENTS: Mapping[str, Callable[[str, Mapping[str, Any]], Section]] = {
    "text_encoder": text_encoder,
    "image_encoder": image_encoder,
    "audio_encoder": audio_encoder,
    "vae": vae,
}
