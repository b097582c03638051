"""`int8`, arXiv:1712.05877: ranges are observed, nothing is learned. Right at 8 bits; outliers make it fail at 2.

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
from quant.quantizers.grid import QParams, symmetric_levels, symmetric_qparams
from quant.quantizers.ranges import MovingRange, affine_weight_grid, scale_up_to


class Int8Weight(WeightQuantizer):
    """Weights on one grid an output channel.

    scheme        "symmetric" or "affine"
    granularity   "channel" or "tensor"
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
        bias_correct: bool = False,
    ):
        super().__init__(bits, limit, axis)
        self.scheme = choose("scheme", scheme, "symmetric", "affine")
        self.granularity = choose("granularity", granularity, "channel", "tensor")
        self.bias_correct = bias_correct

    def levels(self) -> tuple[int, int]:
        return super().levels() if self.scheme == "affine" else symmetric_levels(self.bits, limit=self.limit)

    def quantize(self, weight: Tensor) -> Tensor:
        if self.scheme == "symmetric":
            y = fake_quantize_weight(weight, self.scale(weight))
        else:
            y = fake_quantize(weight, *self._affine(weight))
        return y + (weight - y).mean(self.reduce_dims(weight), keepdim=True).detach() if self.bias_correct else y

    @torch.no_grad()
    def scale(self, weight: Tensor) -> Tensor:
        if self.scheme == "affine":
            return self._affine(weight)[-1]
        largest = weight.abs().amax(dim=self.reduce_dims(weight, self.granularity), keepdim=True)
        return scale_up_to(largest, self.levels()[1])

    def codes(self, weight: Tensor) -> Tensor:
        if self.bias_correct:
            raise QuantError("bias_correct moves weights off their grid; leave it out to convert")
        return super().codes(weight)

    @torch.no_grad()
    def _affine(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dims = self.reduce_dims(weight, self.granularity)
        lo, hi = weight.amin(dims, keepdim=True), weight.amax(dims, keepdim=True)
        return affine_weight_grid(lo, hi, self.bits, self.limit)


class Int8Activation(MovingRange):
    """Activations on one grid for the tensor.

    scheme    "affine" or "symmetric"
    unsigned  give values that cannot be negative all steps above zero in the symmetric scheme; off, they have a signed
              grid too (TensorRT's form)
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
        unsigned: bool = False,
        momentum: float = 0.05,
        delay: int = 0,
        grad: str = "clip",
    ):
        super().__init__(bits, floor, ceiling, signed, momentum, choose("grad", grad, "clip", "ste"))
        self.scheme, self.delay = choose("scheme", scheme, "affine", "symmetric"), check_range("delay", delay, 0)
        if scheme == "symmetric":
            self.signed = self.signed or not unsigned

    def levels(self) -> tuple[int, int]:
        return super().levels() if self.scheme == "affine" else symmetric_levels(self.bits, self.signed)

    def ready(self) -> bool:
        return self.batches > self.delay

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lo, hi = super().batch_range(x)
        return (lo, hi) if self.scheme == "affine" else (x.new_zeros(()), torch.maximum(-lo, hi))

    def quantize(self, x: Tensor) -> Tensor:
        if self.scheme == "affine":
            return super().quantize(x)
        (largest,) = numbers(self.hi)
        below, above = self.levels()
        scale = scale_up_to(largest, above)
        lo = 0.0 * scale if self.floor == 0.0 or not self.signed else -below * scale
        through = self.grad == "ste"
        x = self.activate(x) if through else self.clamp_to_ceiling(x)
        return fake_quantize(x, lo, above * scale, scale, relu=self.floor == 0.0, through=through)

    def grid(self) -> QParams:
        if self.scheme == "affine":
            return super().grid()
        levels = self.levels()
        return symmetric_qparams(scale_up_to(self.hi.item(), levels[1]), levels, self.floor, self.ceiling)
