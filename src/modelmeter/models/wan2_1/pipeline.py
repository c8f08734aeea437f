"""The Wan2.1 text-to-video pipeline: which stages run, on what sizes, how often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmeter.errors import InputError
from modelmeter.models.wan2_1.transformer import KEEP_IN_FP32, Wan2_1DiTModel
from modelmeter.nn import bfloat16
from modelmeter.stage import Component, Pipeline, Plan, Reference, Stage, single
from modelmeter.workload import Grid, Workload, round_frames

#: Most positions along an axis of the token grid. Source: ``rope_max_seq_len`` of diffusers'
#: ``WanTransformer3DModel``; ``rope_params(1024, ...)`` in the official ``WanModel``.
MAX_POSITIONS = 1024
#: Largest values of an architecture: far above any model, small enough to count at once.
LARGEST = {"num_layers": 1000, "num_heads": 10_000, "patch_size": 64}
LARGEST_WIDTH = 1_000_000
#: Part of a module's path, and the part of the mirror's path that runs the same matrix products.
MIRRORED = {"ffn.net.0.proj": "ffn.fc1", "ffn.net.0": "ffn.fc1", "ffn.net.2": "ffn.fc2"}


def transformer_arguments(vendor: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of diffusers' ``WanTransformer3DModel`` for the vendor's configuration of ``WanModel``.

    Raises:
        InputError: sizes that no model can have.

    Source: diffusers ``scripts/convert_wan_to_diffusers.py``.

    Example:
        >>> from modelmeter.config import compose, find
        >>> transformer_arguments(compose(find("wan2.1-t2v-14b"))["transformer"])["attention_head_dim"]
        128
    """
    for key in ("in_dim", "dim", "ffn_dim", "freq_dim", "text_dim", "out_dim", "num_heads", "num_layers"):
        _check(f"transformer.{key}", vendor[key], LARGEST.get(key, LARGEST_WIDTH))
    for patch in vendor["patch_size"]:
        _check("transformer.patch_size", patch, LARGEST["patch_size"])
    if vendor["model_type"] != "t2v":
        raise InputError("transformer.model_type", vendor["model_type"], "t2v for this model")
    for key in ("qk_norm", "cross_attn_norm"):
        if vendor[key] is not True:
            raise InputError(f"transformer.{key}", vendor[key], "true for this model")
    heads, dim = vendor["num_heads"], vendor["dim"]
    if dim % heads or dim // heads % 2:
        raise InputError("transformer.dim", dim, f"a multiple of 2 x num_heads = {2 * heads}")
    return {
        "patch_size": tuple(vendor["patch_size"]),
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": vendor["in_dim"],
        "out_channels": vendor["out_dim"],
        "text_dim": vendor["text_dim"],
        "freq_dim": vendor["freq_dim"],
        "ffn_dim": vendor["ffn_dim"],
        "num_layers": vendor["num_layers"],
        "cross_attn_norm": vendor["cross_attn_norm"],
        "rope_max_seq_len": MAX_POSITIONS,
    }


def _check(field: str, value: int, largest: int) -> None:
    if not 1 <= value <= largest:
        raise InputError(field, value, f"an integer from 1 to {largest:,}")


def components(config: Mapping[str, Any]) -> dict[str, Component]:
    """The modules of the pipeline by component id, weights as diffusers loads them in bfloat16."""
    transformer = Wan2_1DiTModel(**transformer_arguments(config["transformer"]))
    transformer.to(bfloat16, keep_in_fp32=KEEP_IN_FP32)
    return {"transformer": transformer}


def plan(config: Mapping[str, Any], video: Workload) -> Plan:
    """Stages of one generation.

    Raises:
        InputError: a size that the model cannot run.
    """
    video, warnings = round_frames(video, config["implementation"])
    stride_t, stride_h, _ = config["vae"]["stride"]
    p_t, p_h, p_w = patch_size = tuple(config["transformer"]["patch_size"])
    grid = Grid(temporal_stride=stride_t, spatial_stride=stride_h, patch_size=patch_size, max_positions=MAX_POSITIONS)
    geometry = grid.geometry(video)
    if config["implementation"] == "official" and video.guidance_passes == 1:
        warnings.append(
            f"guidance_scale={video.guidance_scale:g}: counted as one forward a step; "
            "the official loop runs two whatever the scale"
        )
    dims = {
        "batch": video.batch_size,
        "frames": geometry.latent_frames // p_t,
        "rows": geometry.latent_height // p_h,
        "columns": geometry.latent_width // p_w,
        "text_len": video.text_len,
    }
    forwards = video.num_inference_steps * video.guidance_passes
    transformer = Stage(id="transformer", component="transformer", calls=(single(dims, forwards),))
    return Plan(
        workload=video,
        geometry=geometry,
        stages=(transformer,),
        not_modelled=("text_encoder", "vae_decode"),
        warnings=tuple(warnings),
    )


def references(config: Mapping[str, Any]) -> dict[str, dict[str, Reference]]:
    """The real classes of the components: diffusers' own, and mirrors in plain PyTorch."""
    arguments = transformer_arguments(config["transformer"])
    mirrors = f"{__package__}.scripts.verify._reference_modules"
    return {
        "transformer": {
            "diffusers": Reference("diffusers", "WanTransformer3DModel", arguments),
            "modules": Reference(mirrors, "RefWan2_1DiffusionCore", arguments, MIRRORED),
        }
    }


WAN_PIPELINE = Pipeline(components=components, plan=plan, references=references)
