"""`int8`, arXiv:1712.05877: ranges are observed, nothing is learned. Right at 8 bits; a maximum follows outliers, so it
fails at 2.

Weights      scale_c = max|w_c| / qmax, codes -qmax..qmax, recomputed from the current weight at every step (a moving
             average would clip weights that grow); `scheme="affine"`: the nudged range [min w_c, max w_c] instead
Activations  lo, hi follow the batch minimum and maximum; `scheme="symmetric"`: T follows max|x|, grid -T..T (TensorRT's
             form)
"""

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.quantizers.base import INF, WeightQuantizer, check_range, choose
from quant.quantizers.fake_quant import fake_quantize, fake_quantize_weight, numbers
from quant.quantizers.grid import QParams, positive_levels
from quant.quantizers.ranges import MovingRange, affine_weight_grid, symmetric_scale


class Int8Weight(WeightQuantizer):
    """Weights on one grid an output channel.

    scheme        "symmetric" or "affine"
    granularity   "channel" or "tensor"
    levels        quant.quantizers.grid.positive_levels, for the symmetric scheme
    bias_correct  add each channel's mean error back (a variant of the MXNet operator); leaves the grid, so it has no
                  integer form
    """

    def __init__(
        self,
        bits: int = 8,
        limit: int = 127,
        axis: int = 0,
        scheme: str = "symmetric",
        granularity: str = "channel",
        levels: str = "signed",
        bias_correct: bool = False,
    ):
        super().__init__(bits, limit, axis)
        self.scheme = choose("scheme", scheme, "symmetric", "affine")
        self.granularity = choose("granularity", granularity, "channel", "tensor")
        self.levels, self.bias_correct = choose("levels", levels, "signed", "seed"), bias_correct

    def quantize(self, weight: Tensor) -> Tensor:
        if self.scheme == "symmetric":
            y = fake_quantize_weight(weight, self.scale(weight))
        else:
            y = fake_quantize(weight, *self._affine(weight))
        return y + (weight - y).mean(self.one_grid(weight), keepdim=True).detach() if self.bias_correct else y

    @torch.no_grad()
    def scale(self, weight: Tensor) -> Tensor:
        if self.scheme == "affine":
            return self._affine(weight)[-1]
        qmax = min(positive_levels(self.bits, self.levels), self.limit)
        return symmetric_scale(weight.abs().amax(dim=self.one_grid(weight, self.granularity), keepdim=True), qmax)

    def codes(self, weight: Tensor) -> Tensor:
        if self.bias_correct:
            raise QuantError("bias_correct moves weights off their grid; leave it out to convert")
        return super().codes(weight)

    @torch.no_grad()
    def _affine(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inside = self.one_grid(weight, self.granularity)
        return affine_weight_grid(
            weight.amin(inside, keepdim=True), weight.amax(inside, keepdim=True), self.bits, self.limit
        )


class Int8Activation(MovingRange):
    """Activations on one grid for the tensor.

    scheme    "affine" or "symmetric"
    levels    quant.quantizers.grid.positive_levels, for the symmetric scheme; "unsigned" is for values that cannot be
              negative
    delay     training batches during which ranges are tracked and nothing is rounded, in evaluation neither
    momentum, grad  as in MovingRange
    """

    def __init__(
        self,
        bits: int = 8,
        floor: float = -INF,
        ceiling: float = INF,
        signed: bool = True,
        scheme: str = "affine",
        levels: str = "signed",
        momentum: float = 0.05,
        delay: int = 0,
        grad: str = "clip",
    ):
        super().__init__(bits, floor, ceiling, signed, momentum, choose("grad", grad, "clip", "ste"))
        self.scheme, self.delay = choose("scheme", scheme, "affine", "symmetric"), check_range("delay", delay, 0)
        positive_levels(bits, levels)
        self.levels = "signed" if levels == "unsigned" and self.signed else levels
        if scheme == "symmetric":
            self.signed = self.levels != "unsigned"

    def ready(self) -> bool:
        return self.batches > self.delay

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lo, hi = super().batch_range(x)
        return (lo, hi) if self.scheme == "affine" else (x.new_zeros(()), torch.maximum(-lo, hi))

    def quantize(self, x: Tensor) -> Tensor:
        if self.scheme == "affine":
            return super().quantize(x)
        (largest,) = numbers(self.hi)
        positive = positive_levels(self.bits, self.levels)
        scale = symmetric_scale(largest, positive)
        lo = 0.0 * scale if self.floor == 0.0 or not self.signed else -positive * scale
        through = self.grad == "ste"
        x = self.activate(x) if through else self.cut(x)
        return fake_quantize(x, lo, positive * scale, scale, relu=self.floor == 0.0, through=through)

    def grid(self) -> QParams:
        if self.scheme == "affine":
            return super().grid()
        positive = positive_levels(self.bits, self.levels)
        return self.around_zero(symmetric_scale(self.hi.item(), positive), positive)
