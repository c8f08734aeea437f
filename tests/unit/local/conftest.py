"""Model directories written by hand, whole or broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

#: As the vendor's repository of Wan2.1 T2V-1.3B has it.
OFFICIAL: dict[str, Any] = {
    "_class_name": "WanModel",
    "_diffusers_version": "0.30.0",
    "dim": 1536,
    "eps": 1e-06,
    "ffn_dim": 8960,
    "freq_dim": 256,
    "in_dim": 16,
    "model_type": "t2v",
    "num_heads": 12,
    "num_layers": 30,
    "out_dim": 16,
    "text_len": 512,
}
#: A small one, in the keys of diffusers.
SMALL: dict[str, Any] = {
    "_class_name": "WanTransformer3DModel",
    "_diffusers_version": "0.42.1",
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "ffn_dim": 32,
    "freq_dim": 32,
    "text_dim": 32,
    "num_layers": 2,
}
VAE: dict[str, Any] = {"_class_name": "AutoencoderKLWan", "base_dim": 4, "num_res_blocks": 1, "patch_size": None}
TEXT_ENCODER: dict[str, Any] = {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "d_model": 32,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 1,
    "num_heads": 2,
    "vocab_size": 10,
}
IMAGE_ENCODER: dict[str, Any] = {
    "architectures": ["CLIPVisionModel"],
    "model_type": "clip_vision_model",
    "hidden_act": "gelu",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "image_size": 8,
    "patch_size": 4,
}
AUDIO_ENCODER: dict[str, Any] = {
    "architectures": ["Wav2Vec2ForCTC"],
    "model_type": "wav2vec2",
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "UniPCMultistepScheduler",
    "flow_shift": 4.0,
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
}
INDEX: dict[str, Any] = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.42.1",
    "boundary_ratio": None,
    "expand_timesteps": False,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def write(folder: Path, file: str, content: object) -> Path:
    """A file with text, bytes, or anything else as JSON."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def official(folder: Path, **keys: Any) -> Path:
    """The official layout with one configuration."""
    write(folder, "config.json", {**OFFICIAL, **keys})
    return folder


def diffusers(folder: Path, **keys: Any) -> Path:
    """The layout of diffusers, small, with every component of text to video."""
    write(folder, "model_index.json", {**INDEX, **keys})
    write(folder, "transformer/config.json", SMALL)
    write(folder, "vae/config.json", VAE)
    write(folder, "text_encoder/config.json", TEXT_ENCODER)
    write(folder, "scheduler/scheduler_config.json", SCHEDULER)
    return folder


def safetensors(tensors: Mapping[str, tuple[str, list[int]]], *, bits: int = 32, data: bool = True) -> bytes:
    """A file with zeros for tensors of the given dtypes and shapes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = prod(shape) * bits // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at if data else 0)


@pytest.fixture
def make() -> SimpleNamespace:
    """What the tests of this folder write: files, directories, and the configurations in them."""
    functions = {"write": write, "official": official, "diffusers": diffusers, "safetensors": safetensors}
    configs = {"OFFICIAL": OFFICIAL, "SMALL": SMALL, "VAE": VAE, "TEXT_ENCODER": TEXT_ENCODER}
    configs |= {"IMAGE_ENCODER": IMAGE_ENCODER, "AUDIO_ENCODER": AUDIO_ENCODER}
    return SimpleNamespace(**functions, **configs, SCHEDULER=SCHEDULER, INDEX=INDEX)
