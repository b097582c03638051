"""Integer grids: the numbers that tie a real value to an 8-bit code, and each engine's range policy.

real = scale * (code - zero_point),   qmin <= code <= qmax        (arXiv:1712.05877, equation 1)
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quant.errors import QuantError

LEVELS = ("signed", "unsigned", "seed")
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


def affine_qparams(lo: float, hi: float, levels: int, ceiling: float = float("inf")) -> QParams:
    """The grid for values in [lo, hi], with `levels` steps across and real zero exactly on it.

    The range is widened to contain zero and nudged onto the integers (arXiv:1712.05877, section 3.1). `ceiling` is the
    upper bound of a fused ReLU6, applied exactly. Raises QuantError for a range that is not finite.
    """
    if not (math.isfinite(lo) and math.isfinite(hi)):
        raise QuantError(f"the range of an activation is {lo} to {hi}: training has diverged; lower the learning rate")
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = float(np.float32(max((hi - lo) / levels, SMALLEST_SCALE)))
    zero_point = int(min(max(round(-lo / scale), 0), levels))
    qmax = levels if ceiling == float("inf") else min(levels, zero_point + round(ceiling / scale))
    return QParams(scale, zero_point, 0, qmax)


def positive_levels(bits: int, levels: str = "signed") -> int:
    """Steps on the positive side of zero: `bits` counts the whole code, sign included, unless a published variant
    counts otherwise.

    "signed"    2^(bits-1) - 1 on either side
    "unsigned"  2^bits - 1 above zero and none below
    "seed"      2^bits - 1 on either side: magnitude bits, as the MXNet operators count; a code then takes bits + 1
    Raises QuantError for another word.
    """
    if levels not in LEVELS:
        raise QuantError(f"levels: {levels!r} is not one of {', '.join(LEVELS)}")
    return 2 ** (bits - 1) - 1 if levels == "signed" else 2**bits - 1
