"""The classes of the vendor's own code, and what they are built with for a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelmeter.stage import Reference

Config = Mapping[str, Any]

#: What the official ``WanModel`` is built with, of which ``WanAnimateModel`` has no type; and ``VaceWanModel`` besides.
WAN_MODEL = (
    *("model_type", "patch_size", "text_len", "in_dim", "dim", "ffn_dim", "freq_dim", "text_dim", "out_dim"),
    *("num_heads", "num_layers", "qk_norm", "cross_attn_norm", "eps"),
)
VACE = ("vace_layers", "vace_in_dim")


def official_references(config: Config, repository: str) -> dict[str, Reference]:
    """The official classes by stage; tiles are diffusers' own, so that a tiled VAE has none.

    Source: ``wan/modules`` of Wan2.1 at 9737cba and of Wan2.2 at 42bf4cf, by the names of its files there.
    """

    def official(file: str, name: str, arguments: Config, method: str = "forward") -> Reference:
        return Reference(f"wan.modules.{file}", name, arguments, method=method, repository=repository)

    vendor = config["transformer"]
    found = {"text_encoder": official("t5", "umt5_xxl", _text_encoder(config["text_encoder"]))}
    if "motion_encoder_dim" in vendor:
        names = *WAN_MODEL[1:], "motion_encoder_dim"
        found["transformer"] = official("animate.model_animate", "WanAnimateModel", _transformer(vendor, names))
    elif vendor["model_type"] == "vace":
        found["transformer"] = official("vace_model", "VaceWanModel", _transformer(vendor, (*WAN_MODEL, *VACE)))
    else:
        found["transformer"] = official("model", "WanModel", _transformer(vendor, WAN_MODEL))
    if "image_encoder" in config:
        file = "clip" if repository == "Wan2.1" else "animate.clip"
        found["image_encoder"] = official(file, "XLMRobertaCLIP.visual", _image_encoder(config["image_encoder"]))
    if not config["vae_tiling"]:
        vae = config["vae"]
        file = "vae2_2" if vae["is_residual"] else "vae" if repository == "Wan2.1" else "vae2_1"
        for stage, method in (("vae_encode", "encode"), ("vae_decode", "decode")):
            found[stage] = official(file, "WanVAE_", _vae(vae), method)
    return found


def _transformer(vendor: Config, names: Sequence[str]) -> dict[str, Any]:
    """The configuration is the vendor's own, but for what a local model may say beside it."""
    arguments = {name: vendor[name] for name in names if name in vendor}
    return {**arguments, "patch_size": tuple(vendor["patch_size"])}


def _text_encoder(config: Config) -> dict[str, Any]:
    """Arguments of ``umt5_xxl``, which builds on the CPU unless it is told where."""
    return {
        "encoder_only": True,
        "device": "meta",
        "vocab_size": config["vocab_size"],
        "dim": config["d_model"],
        "dim_attn": config["num_heads"] * config["d_kv"],
        "dim_ffn": config["d_ff"],
        "num_heads": config["num_heads"],
        "encoder_layers": config["num_layers"],
        "num_buckets": config["relative_attention_num_buckets"],
    }


def _image_encoder(config: Config) -> dict[str, Any]:
    """Arguments of ``XLMRobertaCLIP``, as ``clip_xlm_roberta_vit_h_14`` gives them; its text part is not run."""
    return {
        "image_size": config["image_size"],
        "patch_size": config["patch_size"],
        "vision_dim": config["hidden_size"],
        "vision_mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        "vision_heads": config["num_attention_heads"],
        "vision_layers": config["num_hidden_layers"],
        "vision_pool": "token",
        "activation": "gelu",
    }


def _vae(config: Config) -> dict[str, Any]:
    """Arguments of ``WanVAE_``; only that of Wan2.2 has a width of its own for the decoder."""
    decoder = {"dec_dim": config["decoder_base_dim"]} if config["is_residual"] else {}
    return {
        "dim": config["base_dim"],
        **decoder,
        "z_dim": config["z_dim"],
        "dim_mult": config["dim_mult"],
        "num_res_blocks": config["num_res_blocks"],
        "attn_scales": [],
        "temperal_downsample": config["temperal_downsample"],
        "dropout": 0.0,
    }
