"""Rounding back to a grid that is there already: for averages of values that lie on it."""

import torch
from torch import Tensor

from quant.quantizers.base import ActivationQuantizer, Quantizer
from quant.quantizers.fake_quant import straight_through, widen
from quant.quantizers.grid import HALVES_AWAY, QParams


class SameGrid(Quantizer):
    """Rounds averages of values of the quantizer `of` (a bilinear resizing makes such) to the grid of `of`.

    It has no range of its own and observes nothing: averages of values on a grid lie within its bounds. The gradient
    passes straight through. `of` is no submodule: it stands in the model under its own name, and whatever moves its
    range or switches it moves this too.
    """

    def __init__(self, of: ActivationQuantizer):
        super().__init__(of.bits)
        self.__dict__["of"] = of

    def forward(self, x: Tensor) -> Tensor:
        if not self.of.fake_quant_enabled or not self.of.ready():
            return x
        with torch.no_grad():
            rounded = self.of.quantize(widen(x.detach()) * HALVES_AWAY).to(x.dtype)
        return straight_through(x, rounded)

    def qparams(self) -> QParams:
        return self.of.qparams()
