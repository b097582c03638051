"""Affine grids over observed ranges, shared by the methods that have no Parameters of their own (int8, fqn)."""

import torch
from torch import Tensor

from quant.quantizers.base import INF, ActivationQuantizer, check_range
from quant.quantizers.fake_quant import at_least, fake_quantize
from quant.quantizers.grid import SMALLEST_SCALE, QParams, affine_qparams


class MovingRange(ActivationQuantizer):
    """Affine activations whose bounds follow those of the batches: hi <- hi + momentum * (batch hi - hi), likewise lo.

    momentum  weight of the newest batch; the first batch sets the range
    grad      "clip": no gradient outside the range (arXiv:1712.05877); "ste": gradient everywhere (the MXNet operator's
              default)
    """

    def __init__(
        self,
        bits: int,
        floor: float = -INF,
        ceiling: float = INF,
        signed: bool = True,
        momentum: float = 0.05,
        grad: str = "clip",
    ):
        super().__init__(bits, floor, ceiling, signed)
        self.momentum, self.grad = check_range("momentum", momentum, 0.0, 1.0), grad
        self.register_buffer("lo", torch.tensor(0.0))
        self.register_buffer("hi", torch.tensor(0.0))

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds of one batch, before the fused activation."""
        # two reductions: torch.aminmax is several times slower on a CPU
        lo = x.new_zeros(()) if self.floor == 0.0 else x.amin()
        return lo, x.amax()

    def newest_weight(self) -> float:
        return 1.0 if self.batches == 0 else self.momentum

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        lo, hi = self.batch_range(x)
        if self.floor != 0.0:
            self.lo.lerp_(lo.float().clamp_(self.floor, 0.0), self.newest_weight())
        self.hi.lerp_(hi.float().clamp_(0.0, self.ceiling), self.newest_weight())

    def across_ranks(self) -> dict[str, list[Tensor]]:
        """The bounds follow the largest range of all ranks; see common.distributed.average."""
        return {"max": [self.hi], "min": [self.lo]} if self.training and self.observer_enabled else {}

    def quantize(self, x: Tensor) -> Tensor:
        bounds = self._bounds() if self.hi.device.type == "cpu" else self._device_bounds()
        through = self.grad == "ste"  # of the range: the fused activation keeps its own gradient
        return fake_quantize(self.activate(x) if through else x, *bounds, relu=self.floor == 0.0, through=through)

    def grid(self) -> QParams:
        return affine_qparams(self.lo.item(), self.hi.item(), 2**self.bits - 1, self.ceiling)

    def _bounds(self) -> tuple[float, float, float]:
        grid = self.grid()
        return grid.lowest, grid.highest, grid.scale

    def _device_bounds(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same numbers as _bounds as tensors, without asking the device for a value."""
        lo, hi, steps = self.lo.double(), self.hi.double(), 2**self.bits - 1
        scale = ((hi - lo) / steps).clamp(min=SMALLEST_SCALE).float().double()
        zero_point = torch.round(-lo / scale).clamp(0, steps)
        qmax = torch.clamp(zero_point + torch.round(self.ceiling / scale), max=steps)
        return tuple(bound.float() for bound in (-zero_point * scale, (qmax - zero_point) * scale, scale))


def affine_weight_grid(lo: Tensor, hi: Tensor, bits: int, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """(lowest, highest, scale) of nudged affine grids over [lo, hi] that hold zero (arXiv:1712.05877, section 3.1).

    Codes counted from the zero point stay within -limit..limit: the step grows where 2^bits - 1 of them would not.
    """
    lo, hi, steps = lo.clamp(max=0.0), hi.clamp(min=0.0), 2**bits - 1
    scale = torch.maximum((hi - lo) / steps, torch.maximum(hi, -lo) / limit).clamp_(min=SMALLEST_SCALE)
    zero_point = torch.round(-lo / scale).clamp_(0, steps)
    return -zero_point.clamp(max=limit) * scale, (steps - zero_point).clamp_(max=limit) * scale, scale


def scale_up_to(largest, steps: int):
    """The scale of a grid with `steps` steps from zero to `largest` (a number or a tensor)."""
    return at_least(largest / steps, SMALLEST_SCALE)
