"""`fqn`, Fully Quantized Network for object detection (Li et al., CVPR 2019): affine grids, ranges without outliers.

Weights      nudged affine grid over [min w_c, max w_c] of each output channel
Activations  bounds are the (1-percentile, percentile) quantiles of the batch: averaged over the first `calib_batches`,
             then a moving average; values and gradients are clipped outside

The paper freezes batch norm while fine-tuning: QuantConfig(freeze_bn=True).
"""

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.quantizers.base import INF, WeightQuantizer, check_range, choose, quantiles
from quant.quantizers.fake_quant import fake_quantize, straight_through
from quant.quantizers.ranges import MovingRange, affine_weight_grid, scale_up_to


class FqnWeight(WeightQuantizer):
    """granularity "channel" or "tensor"; zero_point=False is the MXNet operator's form: the grid starts at the minimum,
    zero is not on it (padding and pruned weights move), gradients pass everywhere, and there is no integer form."""

    def __init__(
        self, bits: int = 4, limit: int = 127, axis: int = 0, granularity: str = "channel", zero_point: bool = True
    ):
        super().__init__(bits, limit, axis)
        self.granularity, self.zero_point = choose("granularity", granularity, "channel", "tensor"), zero_point

    def quantize(self, weight: Tensor) -> Tensor:
        lo, hi = self._range(weight)
        if self.zero_point:
            return fake_quantize(weight, *affine_weight_grid(lo, hi, self.bits, self.limit))
        scale = scale_up_to(hi - lo, 2**self.bits - 1)
        return straight_through(weight, torch.round((weight - lo) / scale) * scale + lo)

    def scale(self, weight: Tensor) -> Tensor:
        return affine_weight_grid(*self._range(weight), self.bits, self.limit)[-1]

    def codes(self, weight: Tensor) -> Tensor:
        if not self.zero_point:
            raise QuantError("zero_point=False: real zero is on no code, so these weights have no integer form")
        return super().codes(weight)

    @torch.no_grad()
    def _range(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        dims = self.reduce_dims(weight, self.granularity)
        return weight.amin(dims, keepdim=True), weight.amax(dims, keepdim=True)


class FqnActivation(MovingRange):
    """percentile (the paper's gamma), calib_batches (its n), momentum of the moving average that follows."""

    def __init__(
        self,
        bits: int = 4,
        floor: float = -INF,
        ceiling: float = INF,
        signed: bool = True,
        percentile: float = 0.999,
        calib_batches: int = 20,
        momentum: float = 0.01,
    ):
        super().__init__(bits, floor, ceiling, signed, momentum)
        check_range("calib_batches", calib_batches, 0)
        if not 0.5 < percentile < 1.0:
            raise QuantError(f"percentile: {percentile}, must lie between 0.5 and 1")
        self.percentile, self.calib_batches = percentile, calib_batches

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return quantiles(x, 1.0 - self.percentile)

    def newest_weight(self) -> float:
        return 1.0 / (self.batches + 1) if self.batches < self.calib_batches else self.momentum
