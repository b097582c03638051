"""`dorefa`, arXiv:1606.06160: weights squashed by tanh into [-1, 1], activations clipped to [0, 1].

    q(r) = round(n r) / n, n = 2^bits - 1
    weights       y = 2 q(t / 2m + 1/2) - 1, t = tanh(w), m = max|t|    (equation 9)
    of one bit    y = sign(w) mean|w|                                   (equation 7)
    activations   y = q(clip(x, 0, 1))                                  (equation 11)

Gradients are in quant/quantizers/gradients.py. Weights have 2^bits values, none of them zero, and magnitude
1 whatever w is: they want a batch norm behind each layer.
"""

import torch
from torch import Tensor

from quant.quantizers.base import ActivationQuantizer, WeightQuantizer, choose
from quant.quantizers.fake_quant import fake_quantize, straight_through
from quant.quantizers.grid import SMALLEST_SCALE, QParams, symmetric_levels, symmetric_qparams


class DorefaWeight(WeightQuantizer):
    """Values are odd multiples of 1/n, so that 8 bits take codes to 255, beyond any engine.

    weight_grad  "max_detached": m is a constant (default: no weight moves another); "through_max": differentiated, as
                 in the paper's code; "identity": dw = g
    """

    min_bits = 1

    def __init__(self, bits: int = 2, limit: int = 127, axis: int = 0, weight_grad: str = "max_detached"):
        super().__init__(bits, limit, axis)
        self.weight_grad = choose("weight_grad", weight_grad, "max_detached", "through_max", "identity")

    def levels(self) -> tuple[int, int]:
        n = 2**self.bits - 1
        return n, n

    def quantize(self, weight: Tensor) -> Tensor:
        if self.bits == 1:
            signs = torch.where(weight >= 0, 1.0, -1.0)
            return straight_through(weight, signs * self.scale(weight))
        (_, n), t = self.levels(), torch.tanh(weight)
        largest = t.abs().max().clamp(min=SMALLEST_SCALE)
        y = t / (largest if self.weight_grad == "through_max" else largest.detach())
        # 2 q(y / 2 + 1/2) - 1, behind autograd's back
        y.detach().add_(1.0).mul_(n / 2.0).round_().mul_(2.0 / n).sub_(1.0)
        return straight_through(weight, y) if self.weight_grad == "identity" else y

    @torch.no_grad()
    def scale(self, weight: Tensor) -> Tensor:
        if self.bits == 1:
            return weight.abs().mean().clamp(min=SMALLEST_SCALE)
        return weight.new_tensor(1.0 / self.levels()[1])


class DorefaActivation(ActivationQuantizer):
    """Clipped to [0, 1], or to [-1, 1] where values can be negative; nothing to observe or to learn."""

    def ready(self) -> bool:
        return True

    def levels(self) -> tuple[int, int]:
        return symmetric_levels(self.bits, self.signed)

    def step(self) -> float:
        return 1.0 / self.levels()[1]

    def quantize(self, x: Tensor) -> Tensor:
        return fake_quantize(self.clamp_to_ceiling(x), -1.0 if self.signed else 0.0, 1.0, self.step())

    def grid(self) -> QParams:
        return symmetric_qparams(self.step(), self.levels(), self.floor, self.ceiling)
