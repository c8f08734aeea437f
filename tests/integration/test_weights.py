"""Bytes of weights against the real classes."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

import modelmeter as mm
from modelmeter.models.common import vae
from modelmeter.models.wan2_1.transformer import KEEP_IN_FP32, Wan2_1DiTModel
from modelmeter.nn import Module
from modelmeter.policy import DTYPES
from modelmeter.weights import weights

SMALL = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2, "text_dim": 16}
IMAGES = {**SMALL, "image_dim": 20, "added_kv_proj_dim": 24}
TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def by_module(module: torch.nn.Module) -> dict[str, int]:
    """Bytes of the parameters that each module itself holds."""
    found = {
        path: sum(weight.numel() * weight.element_size() for weight in part.parameters(recurse=False))
        for path, part in module.named_modules()
    }
    return {path: size for path, size in found.items() if size}


def ours(module: Module) -> dict[str, int]:
    """The same of the analytic model."""
    return dict(weights(module).by_module)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("sizes", [SMALL, IMAGES], ids=["text", "images"])
def test_a_loaded_transformer_has_these_bytes(tmp_path: Path, sizes: dict[str, int], precision: str) -> None:
    """Module by module what ``from_pretrained`` loads in each dtype, with what diffusers keeps in float32."""
    WanTransformer3DModel(**sizes).save_pretrained(tmp_path)
    theirs = by_module(WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=TORCH[precision]))
    model = Wan2_1DiTModel(**sizes)
    model.to(DTYPES[precision], keep_in_fp32=KEEP_IN_FP32)
    assert ours(model) == theirs
    assert len({theirs["blocks.0.attn1.to_q"] // 4 == 24 * 24 + 24, precision == "fp32"}) == 1


@pytest.mark.parametrize("precision", DTYPES)
def test_a_vae_has_these_bytes(precision: str) -> None:
    """Module by module what ``.to`` makes of the real VAE."""
    with torch.device("meta"):
        theirs = by_module(AutoencoderKLWan().to(TORCH[precision]))
    model = vae.AutoencoderKLWan()
    model.to(DTYPES[precision])
    assert ours(model) == theirs


@pytest.mark.parametrize("name", ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p", "wan2.1-vace-1.3b", "wan2.2-ti2v-5b"])
def test_the_official_transformer_is_plain_float32(name: str) -> None:
    """At full size on meta, module by module what the real class takes in float32."""
    model = mm.load(name)
    reference = model.pipeline.references(model.config)["transformer"]["diffusers"]
    with torch.device("meta"):
        theirs = by_module(getattr(diffusers, reference.name)(**reference.arguments))
    assert dict(model.weights()["transformer"].by_module) == theirs
