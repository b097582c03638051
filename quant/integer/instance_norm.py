"""Instance norm on codes: (x - mean) / sqrt(variance + eps) * gamma + beta, with mean and variance of each picture and
channel.

Over n pixels with codes q of step s, counted from any point (the mean moves along),
    mean = sum q / n,    variance = (n sum q^2 - (sum q)^2) / n^2,    y = (q - mean) s gamma / sqrt(s^2 variance + eps)
                         + beta.
Both sums are integers, so a picture's statistics do not depend on the others of its batch, nor on the order in which it
is summed up.
"""

import torch
from torch import Tensor

from quant.integer.graph import Op


def scale_and_shift(op: Op, step: float, total: Tensor, squares: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """(factor, offset), float64 (N, C, 1, 1), such that y = q * factor + offset.

    total, squares: sums over all pixels of q and of q^2, (N, C); exact up to half a million pixels of q from -128 to
    127.
    """
    total, squares = total.double(), squares.double()
    variance = (pixels * squares - total**2) / pixels**2
    factor = op.weight_scale.double() * step / torch.sqrt(variance * step**2 + op.attrs["eps"])
    offset = op.bias.double() - total / pixels * factor
    return factor[:, :, None, None], offset[:, :, None, None]
