"""Which Python file answers for the ``pipeline`` that a configuration names."""

from __future__ import annotations

from collections.abc import Mapping

from modelmeter.errors import choice
from modelmeter.models.wan2_1.pipeline import WAN_PIPELINE
from modelmeter.stage import Pipeline

PIPELINES: Mapping[str, Pipeline] = {"WanPipeline": WAN_PIPELINE}


def pipeline(name: str) -> Pipeline:
    """The pipeline of that name (diffusers' class name).

    Raises:
        InputError: no such pipeline.
    """
    if name not in PIPELINES:
        raise choice("pipeline", name, PIPELINES)
    return PIPELINES[name]
