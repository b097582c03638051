"""A transposed convolution as an ordinary one, so that every engine's integer convolution computes it, exactly.

In one dimension, with stride s, padding p and K taps (dilation written out as zeros between taps), the transposed
convolution is
    y[n] = sum over q, k with q s + k = n + p of x[q] w[k].
Write n + p = s m + i with 0 <= i < s, and k = s t + i: the output's phase i is the convolution sum_t x[m - t] w[s t +
i]. So s convolutions of T = ceil(K / s) taps, stacked as output channels, give all outputs after interleaving; p then
only crops.
"""

import torch.nn.functional as F
from torch import Tensor

from quant.integer.graph import Op


def out_first(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight (in, out / groups, kh, kw) as a convolution's: (out, in / groups, kh, kw)."""
    inputs, outputs, *kernel = weight.shape
    return (
        weight.reshape(groups, inputs // groups, outputs, *kernel)
        .transpose(1, 2)
        .reshape(groups * outputs, inputs // groups, *kernel)
    )


def as_convolution(op: Op) -> tuple[Op, tuple[int, int], tuple[slice, slice]]:
    """(convolution of all phases, stride to interleave them by, what to keep of the rows and columns) of a "deconv"
    operation.

    op: weight as `out_first` gives it, attrs stride, padding, output_padding, dilation and groups of the float layer.
    """
    weight, padding, keep = op.weight, [], []
    for dim, stride, p, extra, dilation in zip(
        (2, 3), *(op.attrs[n] for n in ("stride", "padding", "output_padding", "dilation"))
    ):
        weight = _spread(weight, dim, dilation)
        size = weight.shape[dim]
        taps = -(-max(size, size + extra - p) // stride)
        weight = F.pad(weight, [0, 0] * (3 - dim) + [0, stride * taps - size])
        after = stride * taps + p - size - extra
        spare = min(p // stride, after // stride, taps - 1)  # whole rows that would be cropped on either side
        padding.append(taps - 1 - spare)
        keep.append(slice(p - spare * stride, -(after - spare * stride) or None))
    (sh, sw), phases = op.attrs["stride"], op.attrs["stride"][0] * op.attrs["stride"][1]
    outputs, inputs, kh, kw = weight.shape
    split = weight.reshape(outputs, inputs, kh // sh, sh, kw // sw, sw).flip(2, 4)
    stacked = split.permute(0, 3, 5, 1, 2, 4).reshape(outputs * phases, inputs, kh // sh, kw // sw)
    attrs = {"stride": (1, 1), "padding": tuple(padding), "dilation": (1, 1), "groups": op.attrs["groups"]}
    scale, bias = (t.repeat_interleave(phases) for t in (op.weight_scale, op.bias))
    conv = Op(f"{op.name}_phases", "conv", op.inputs, op.qparams, stacked.contiguous(), scale, bias, attrs)
    return conv, (sh, sw), tuple(keep)


def interleave(x: Tensor, stride: tuple[int, int], keep: tuple[slice, slice]) -> Tensor:
    """Phases (N, C sh sw, H, W) to (N, C, H sh, W sw), of which `keep` is kept."""
    (sh, sw), (n, channels, height, width) = stride, x.shape
    x = x.reshape(n, channels // (sh * sw), sh, sw, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, channels // (sh * sw), height * sh, width * sw)[:, :, keep[0], keep[1]]


def _spread(weight: Tensor, dim: int, dilation: int) -> Tensor:
    """Zeros between the taps of one dimension."""
    if dilation == 1:
        return weight
    shape = list(weight.shape)
    shape[dim] = dilation * (shape[dim] - 1) + 1
    spread = weight.new_zeros(shape)
    spread[(slice(None),) * dim + (slice(None, None, dilation),)] = weight
    return spread
