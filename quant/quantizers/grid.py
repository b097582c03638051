"""Integer grids: the numbers that tie a real value to an 8-bit code, and each engine's range policy.

real = scale * (code - zero_point),   qmin <= code <= qmax        (arXiv:1712.05877, equation 1)
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quant.errors import QuantError

SMALLEST_SCALE = 1e-8  # a zero range must never divide
# What averages of codes are multiplied with before they are rounded: one in sixteen of a doubled picture's lies halfway
# between two codes, where the last bit of a float would decide, in every engine otherwise. All of them go away from
# zero now, and in resizes by up to four no others move.
HALVES_AWAY = 1 + 2.0**-14


@dataclass(frozen=True)
class QParams:
    """A per-tensor grid of unsigned 8-bit codes. `scale` is a float32 value held as a Python float."""

    scale: float
    zero_point: int
    qmin: int = 0
    qmax: int = 255

    @property
    def lowest(self) -> float:
        """The smallest real value on the grid."""
        return self.scale * (self.qmin - self.zero_point)

    @property
    def highest(self) -> float:
        """The largest real value on the grid."""
        return self.scale * (self.qmax - self.zero_point)

    def quantize(self, x: Tensor) -> Tensor:
        """Real values to codes, uint8, rounded half to even and clamped to [qmin, qmax]."""
        codes = torch.round(x.double() / self.scale) + self.zero_point
        return codes.clamp_(self.qmin, self.qmax).to(torch.uint8)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Codes to real values, float32."""
        return (codes.to(torch.float32) - self.zero_point) * self.scale


def affine_qparams(lo: float, hi: float, steps: int, ceiling: float = float("inf")) -> QParams:
    """The grid for values in [lo, hi], with `steps` steps across and real zero exactly on it.

    The range is widened to contain zero and nudged onto the integers (arXiv:1712.05877, section 3.1). `ceiling` is the
    upper bound of a fused ReLU6, applied exactly. Raises QuantError for a range that is not finite.
    """
    if not (math.isfinite(lo) and math.isfinite(hi)):
        raise QuantError(f"the range of an activation is {lo} to {hi}: training has diverged; lower the learning rate")
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = float(np.float32(max((hi - lo) / steps, SMALLEST_SCALE)))
    zero_point = int(min(max(round(-lo / scale), 0), steps))
    qmax = steps if ceiling == float("inf") else min(steps, zero_point + round(ceiling / scale))
    return QParams(scale, zero_point, 0, qmax)


def symmetric_qparams(
    scale: float, levels: tuple[int, int], floor: float = -float("inf"), ceiling: float = float("inf")
) -> QParams:
    """The grid with `levels` steps (below, above) zero; codes start at 0, so the zero point is the steps below.

    `floor` and `ceiling` are the bounds of a fused activation function. Raises QuantError for a scale that is not
    finite.
    """
    if not math.isfinite(scale):
        raise QuantError(f"the scale of an activation is {scale}: training has diverged; lower the learning rate")
    below, above = levels
    top = above if ceiling == float("inf") else min(above, round(ceiling / scale))
    return QParams(float(np.float32(scale)), below, below if floor == 0.0 else 0, below + top)


def symmetric_levels(bits: int, signed: bool = True, limit: int = 255) -> tuple[int, int]:
    """Quantization steps (below, above) zero of a grid that has as many on either side, or none below.

    `bits` counts the whole code, sign included; no side has more than `limit` steps.

    >>> symmetric_levels(4), symmetric_levels(4, signed=False)
    ((7, 7), (0, 15))
    """
    above = min(2 ** (bits - 1) - 1 if signed else 2**bits - 1, limit)
    return (above if signed else 0), above
