"""Modules of ``torch.nn`` that only chain or move."""

from __future__ import annotations

from modelmeter.nn import functional as F
from modelmeter.nn.modules import Module, ModuleList
from modelmeter.nn.tensor import Tensor


class Sequential(ModuleList):
    """Modules under the names ``0``, ``1``, ..., each called on what the one before returned.

    Example:
        >>> from modelmeter.nn import Linear, float32, trace
        >>> trace(Sequential([Linear(4, 8), Linear(8, 2)]), Tensor((3, 4), float32)).outputs.shape
        (3, 2)
    """

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x


class ZeroPad2d(Module):
    """Zeros around rows and columns: ``padding`` is left, right, top, bottom."""

    def __init__(self, padding: tuple[int, int, int, int]) -> None:
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.padding)
