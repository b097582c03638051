"""INT8 after arXiv:1712.05877: symmetric per-channel weights, affine per-tensor activations with moving-average ranges.

Weights       scale_c = max|w_c| / qmax, codes -qmax..qmax, recomputed from the current weight at every step (a moving average would clip
              weights that grow, arXiv:1712.05877 keeps none either)
Activations   lo, hi follow the batch minimum and maximum: hi <- hi + momentum * (max(x) - hi)
"""

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.fake_quant import fake_quantize, fake_quantize_weight
from quant.grid import SMALLEST_SCALE, QParams, affine_qparams
from quant.quantizers.base import ActivationQuantizer, WeightQuantizer


class Int8Weight(WeightQuantizer):
    """Symmetric weights with codes -qmax..qmax (quant.grid.weight_qmax), one scale for each output channel, axis 0."""

    def __init__(self, qmax: int = 127):
        super().__init__()
        self.qmax = qmax

    def forward(self, weight: Tensor) -> Tensor:
        return fake_quantize_weight(weight, self.scale(weight)) if self.fake_quant else weight

    @torch.no_grad()
    def scale(self, weight: Tensor) -> Tensor:
        return weight.abs().amax(dim=list(range(1, weight.dim())), keepdim=True).float().div_(self.qmax).clamp_(min=SMALLEST_SCALE)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        return torch.round(weight / self.scale(weight)).clamp_(-self.qmax, self.qmax).to(torch.int8)


class Int8Activation(ActivationQuantizer):
    """Affine 8-bit activations on one grid for the tensor.

    levels    steps across the range, 255 for 8 bits
    momentum  weight of the newest batch in the moving average; the first batch sets the range
    """

    def __init__(self, levels: int, floor: float = float("-inf"), ceiling: float = float("inf"), momentum: float = 0.05):
        super().__init__(floor, ceiling)
        self.levels, self.momentum = levels, momentum
        self.register_buffer("lo", torch.tensor(0.0))
        self.register_buffer("hi", torch.tensor(0.0))
        self.register_buffer("batches", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.observe and self.training:
            self.update_range(x.detach())
        if not self.fake_quant:
            return self.activate(x)
        bounds = self._bounds() if self.hi.device.type == "cpu" else self._device_bounds()
        return fake_quantize(x, *bounds, relu=self.floor == 0.0)

    @torch.no_grad()
    def update_range(self, x: Tensor) -> None:
        """Move lo and hi towards the minimum and maximum of x (after the fused activation)."""
        lo = x.new_zeros(()) if self.floor == 0.0 else x.amin()  # two reductions: torch.aminmax is several times slower on a CPU
        hi = x.amax()
        weight = torch.where(self.batches == 0, 1.0, self.momentum)
        self.lo.lerp_(lo.float().clamp(self.floor, 0.0), weight)
        self.hi.lerp_(hi.float().clamp(0.0, self.ceiling), weight)
        self.batches.add_(1)

    def qparams(self) -> QParams:
        if self.batches.item() == 0:
            raise QuantError("an activation quantizer has seen no data: run some batches through the model in training mode first")
        return affine_qparams(self.lo.item(), self.hi.item(), self.levels, self.ceiling)

    def _bounds(self) -> tuple[float, float, float]:
        grid = affine_qparams(self.lo.item(), self.hi.item(), self.levels, self.ceiling)
        return grid.lowest, grid.highest, grid.scale

    def _device_bounds(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same numbers as _bounds as tensors, without asking the device for a value."""
        lo, hi = self.lo.double(), self.hi.double()
        scale = ((hi - lo) / self.levels).clamp(min=SMALLEST_SCALE).float().double()
        zero_point = torch.round(-lo / scale).clamp(0, self.levels)
        qmax = torch.clamp(zero_point + torch.round(self.ceiling / scale), max=255)
        return tuple(bound.float() for bound in (-zero_point * scale, (qmax - zero_point) * scale, scale))
