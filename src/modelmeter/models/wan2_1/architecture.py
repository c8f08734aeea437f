"""From the vendor's configuration of a diffusion transformer to the arguments of diffusers' class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmeter.errors import InputError, choice

#: Most positions along an axis of the token grid. Source: ``rope_max_seq_len`` of diffusers'
#: ``WanTransformer3DModel``; ``rope_params(1024, ...)`` in the official ``WanModel``.
MAX_POSITIONS = 1024
#: Largest values of an architecture: far above any model, small enough to count at once.
LARGEST = {"num_layers": 1000, "num_heads": 10_000, "patch_size": 64}
LARGEST_WIDTH = 1_000_000
#: Width of the image encoder's output, and tokens of two images, where a configuration does not say.
IMAGE_DIM, TWO_IMAGES = 1280, 514
#: What the types of the official ``WanModel`` and ``VaceWanModel`` add. Source: ``convert_wan_to_diffusers.py``.
MODEL_TYPES: Mapping[str, tuple[str, ...]] = {
    "t2v": (),
    "ti2v": (),
    "i2v": ("image_dim", "added_kv_proj_dim"),
    "flf2v": ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"),
    "vace": ("vace_layers", "vace_in_channels"),
}


def transformer_arguments(vendor: Mapping[str, Any], *, image_encoder: bool = False) -> dict[str, Any]:
    """Arguments of diffusers' transformer class for the vendor's configuration of ``WanModel``.

    Args:
        image_encoder: the model has one; an i2v model of Wan2.2 has none and takes the image in its channels.

    Raises:
        InputError: sizes that no model can have.

    Source: diffusers ``scripts/convert_wan_to_diffusers.py``.

    Example:
        >>> from modelmeter.config import compose, find
        >>> transformer_arguments(compose(find("wan2.1-t2v-14b"))["transformer"])["attention_head_dim"]
        128
    """
    check_sizes(vendor)
    if vendor["model_type"] not in MODEL_TYPES:
        raise choice("transformer.model_type", vendor["model_type"], MODEL_TYPES)
    heads, dim = vendor["num_heads"], vendor["dim"]
    added = {
        "image_dim": vendor.get("image_dim", IMAGE_DIM),
        "added_kv_proj_dim": dim,
        "pos_embed_seq_len": vendor.get("pos_embed_seq_len", TWO_IMAGES),
        "vace_layers": list(vendor.get("vace_layers", ())),
        "vace_in_channels": vendor.get("vace_in_dim"),
    }
    names = MODEL_TYPES[vendor["model_type"]]
    if "image_dim" in names and not image_encoder:
        names = ()
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
        "rope_max_seq_len": max_positions(vendor),
        **{name: added[name] for name in names},
    }


def max_positions(vendor: Mapping[str, Any]) -> int:
    """Most positions along an axis of the token grid, of which only configurations of diffusers have their own."""
    positions: int = vendor.get("rope_max_seq_len", MAX_POSITIONS)
    return positions


def check_sizes(vendor: Mapping[str, Any], *further: str) -> None:
    """Refuse sizes of a ``WanModel`` that no model can have.

    Args:
        further: keys of further sizes.

    Raises:
        InputError: names the key as a user sets it.
    """
    sizes = ["in_dim", "dim", "ffn_dim", "freq_dim", "text_dim", "out_dim", "num_heads", "num_layers"]
    own = ["vace_in_dim", "image_dim", "pos_embed_seq_len", "rope_max_seq_len"]
    for key in [*sizes, *further, *(key for key in own if key in vendor)]:
        _check(f"transformer.{key}", vendor[key], LARGEST.get(key, LARGEST_WIDTH))
    if len(vendor["patch_size"]) != 3:
        raise InputError("transformer.patch_size", vendor["patch_size"], "three sizes: frames, rows, columns")
    for patch in vendor["patch_size"]:
        _check("transformer.patch_size", patch, LARGEST["patch_size"])
    if vendor["qk_norm"] is not True:
        raise InputError("transformer.qk_norm", vendor["qk_norm"], "true for this model")
    if vendor["dim"] % vendor["num_heads"] or vendor["dim"] // vendor["num_heads"] % 2:
        allowed = f"a multiple of 2 x num_heads = {2 * vendor['num_heads']}"
        raise InputError("transformer.dim", vendor["dim"], allowed)
    layers = vendor.get("vace_layers", [0])
    if 0 not in layers or len(set(layers)) < len(layers) or not all(0 <= i < vendor["num_layers"] for i in layers):
        allowed = f"different blocks below num_layers = {vendor['num_layers']}, 0 among them"
        raise InputError("transformer.vace_layers", layers, allowed)


def _check(field: str, value: int, largest: int) -> None:
    if not 1 <= value <= largest:
        raise InputError(field, value, f"an integer from 1 to {largest:,}")
