"""ModelMeter: what a video diffusion model costs, before anyone runs it.

Example:
    >>> import modelmeter as mm
    >>> model = mm.load("wan2.1-t2v-14b")
    >>> estimate = model.estimate(num_frames=81, height=720, width=1280, num_inference_steps=1, guidance_scale=1)
    >>> estimate["transformer"].flops
    6523436592005120
    >>> estimate["transformer.blocks.*.attn1"].flops_by_kind["attention"]
    4682022912000000
"""

from modelmeter.api import Model, load
from modelmeter.errors import InputError, UnavailableError
from modelmeter.estimate import Estimate, Node
from modelmeter.workload import Geometry, Workload

__all__ = ["Estimate", "Geometry", "InputError", "Model", "Node", "UnavailableError", "Workload", "load"]
