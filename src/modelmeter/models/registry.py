"""Which Python file answers for the ``pipeline`` that a configuration names."""

from __future__ import annotations

from collections.abc import Mapping

from modelmeter.errors import choice
from modelmeter.models.ltx_video.pipeline import LTX_PIPELINE
from modelmeter.models.wan2_1.pipeline import WAN_IMAGE_TO_VIDEO_PIPELINE, WAN_PIPELINE, WAN_VACE_PIPELINE
from modelmeter.models.wan2_2.animate_pipeline import WAN_ANIMATE_PIPELINE
from modelmeter.models.wan2_2.pipeline import (
    WAN2_2_IMAGE_TO_VIDEO_PIPELINE,
    WAN2_2_PIPELINE,
    WAN2_2_TEXT_IMAGE_TO_VIDEO_PIPELINE,
)
from modelmeter.models.wan2_2.s2v_pipeline import WAN2_2_SPEECH_TO_VIDEO_PIPELINE
from modelmeter.stage import Pipeline

PIPELINES: Mapping[str, Pipeline] = {
    "LTXPipeline": LTX_PIPELINE,
    "WanPipeline": WAN_PIPELINE,
    "WanImageToVideoPipeline": WAN_IMAGE_TO_VIDEO_PIPELINE,
    "WanVACEPipeline": WAN_VACE_PIPELINE,
    "WanAnimatePipeline": WAN_ANIMATE_PIPELINE,
    "Wan2_2Pipeline": WAN2_2_PIPELINE,
    "Wan2_2ImageToVideoPipeline": WAN2_2_IMAGE_TO_VIDEO_PIPELINE,
    "Wan2_2TextImageToVideoPipeline": WAN2_2_TEXT_IMAGE_TO_VIDEO_PIPELINE,
    "Wan2_2SpeechToVideoPipeline": WAN2_2_SPEECH_TO_VIDEO_PIPELINE,
}


def pipeline(name: str) -> Pipeline:
    """The pipeline of that name: diffusers' class name, with the family where it runs other stages.

    Raises:
        InputError: no such pipeline.
    """
    if name not in PIPELINES:
        raise choice("pipeline", name, PIPELINES)
    return PIPELINES[name]
