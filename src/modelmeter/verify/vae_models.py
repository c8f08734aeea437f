"""The VAE of diffusers with its tiles, as a reference."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan


def build_tiled_vae(**config: Any) -> torch.nn.Module:
    """The real ``AutoencoderKLWan`` that runs tile by tile, at its default tile sizes."""
    module = AutoencoderKLWan(**config)
    module.enable_tiling()
    built: torch.nn.Module = module
    return built
