"""Sizes of the encoders and the VAE that no model can have, refused before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelmeter.errors import InputError

#: Largest values: far above any model, small enough to count at once.
LARGEST = {"num_layers": 1000, "num_hidden_layers": 1000, "num_res_blocks": 100, "dim_mult": 64, "patch_size": 1000}
LARGEST_SIZE = 10_000_000
#: A pair of channels for each of time, height and width.
FEWEST_CHANNELS = 6


def check_component(name: str, section: Mapping[str, Any]) -> None:
    """Refuse sizes out of bounds, widths that do not divide into heads, and levels that do not fit.

    Raises:
        InputError: names the key as a user sets it.

    Example:
        >>> check_component("text_encoder", {"num_layers": 24})
    """
    for key, value in _integers(section):
        largest = LARGEST.get(key, LARGEST_SIZE)
        if not 1 <= value <= largest:
            raise InputError(f"{name}.{key}", section[key], f"integers from 1 to {largest:,}")
    if "hidden_size" in section and section["hidden_size"] % section["num_attention_heads"]:
        heads = section["num_attention_heads"]
        raise InputError(f"{name}.hidden_size", section["hidden_size"], f"a multiple of num_attention_heads = {heads}")
    if "attention_head_dim" in section:
        _check_heads(name, section)
    if "image_size" in section and section["image_size"] % section["patch_size"]:
        allowed = f"a multiple of patch_size = {section['patch_size']}"
        raise InputError(f"{name}.image_size", section["image_size"], allowed)
    if "dim_mult" in section:
        _check_levels(name, section)
    if "conv_kernel" in section:
        _check_convolutions(name, section)


def _integers(section: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in section.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int) and not isinstance(item, bool):
                yield key, item


def _check_convolutions(name: str, section: Mapping[str, Any]) -> None:
    """Every convolution over the samples has channels, a kernel and a stride."""
    for key in ("conv_kernel", "conv_stride"):
        if len(section[key]) != len(section["conv_dim"]):
            raise InputError(f"{name}.{key}", section[key], f"as many as conv_dim: {len(section['conv_dim'])}")
    groups = section["num_conv_pos_embedding_groups"]
    if section["hidden_size"] % groups:
        allowed = f"a multiple of num_conv_pos_embedding_groups = {groups}"
        raise InputError(f"{name}.hidden_size", section["hidden_size"], allowed)


def _check_heads(name: str, section: Mapping[str, Any]) -> None:
    """Positions rotate pairs of channels along each axis; a cross-attention attends to what is as wide as the video."""
    if section["attention_head_dim"] % 2 or section["attention_head_dim"] < FEWEST_CHANNELS:
        allowed = f"a multiple of 2, at least {FEWEST_CHANNELS}"
        raise InputError(f"{name}.attention_head_dim", section["attention_head_dim"], allowed)
    width = section["num_attention_heads"] * section["attention_head_dim"]
    if section.get("cross_attention_dim", width) != width:
        allowed = f"num_attention_heads x attention_head_dim = {width}"
        raise InputError(f"{name}.cross_attention_dim", section["cross_attention_dim"], allowed)


def _check_levels(name: str, section: Mapping[str, Any]) -> None:
    """The strides of a VAE follow from its levels."""
    halvings = section["temperal_downsample"]
    if len(halvings) != len(section["dim_mult"]) - 1:
        raise InputError(f"{name}.temperal_downsample", halvings, "one fewer than dim_mult")
    strides = {
        "scale_factor_temporal": 2 ** sum(halvings),
        "scale_factor_spatial": 2 ** len(halvings) * (section["patch_size"] or 1),
    }
    for key, stride in strides.items():
        if section[key] != stride:
            raise InputError(f"{name}.{key}", section[key], f"{stride}, which the levels give")
