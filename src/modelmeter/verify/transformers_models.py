"""The encoders of transformers as references: built from the arguments of the analytic model.

Every function returns a real class whose ``named_modules()`` and inputs are those of the component, built
on the current default device: wrap the call in ``torch.device("meta")`` for full size without memory.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPEncoder


def build_text_encoder(*, masked: bool = True, **config: Any) -> torch.nn.Module:
    """The real ``UMT5EncoderModel``.

    It takes the mask in four dimensions: one of [B, L] makes transformers look at its values, which do not
    exist on meta.

    Args:
        masked: an option of the analytic model; the real class goes by the mask it is given.
        config: keys of ``UMT5Config``.
    """
    model: torch.nn.Module = UMT5EncoderModel(UMT5Config(**config))
    return model.eval()


def build_image_encoder(*, layers_that_run: int | None = None, **config: Any) -> torch.nn.Module:
    """The real ``CLIPVisionModel`` that returns all its hidden states, as pipelines ask it to.

    Args:
        layers_that_run: how many of the first layers run; all without it.
        config: keys of ``CLIPVisionConfig``.
    """
    options = {"hidden_act": "gelu", "output_hidden_states": True, **config}
    model = CLIPVisionModel(CLIPVisionConfig(**options))
    if layers_that_run is not None:
        model.encoder = _FirstLayers(model.config, layers_that_run)
    module: torch.nn.Module = model.eval()
    return module


def build_audio_encoder(**config: Any) -> torch.nn.Module:
    """The real ``Wav2Vec2ForCTC`` that returns all its hidden states, as pipelines ask it to.

    It is built without the vector that stands for masked features, which training alone uses.

    Args:
        config: keys of ``Wav2Vec2Config``.
    """
    options = {
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "mask_time_prob": 0.0,
        "output_hidden_states": True,
        **config,
    }
    model: torch.nn.Module = Wav2Vec2ForCTC(Wav2Vec2Config(**options))
    return model.eval()


class _FirstLayers(CLIPEncoder):  # type: ignore[misc]
    """An encoder of which the last layers never run, as in the official Wan2.1 code."""

    def __init__(self, config: CLIPVisionConfig, layers_that_run: int) -> None:
        super().__init__(config)
        self.layers_that_run = layers_that_run

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: None = None, **kwargs: Any) -> BaseModelOutput:
        """[B, N, D] -> [B, N, D]."""
        hidden_states = inputs_embeds
        for layer in self.layers[: self.layers_that_run]:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)
