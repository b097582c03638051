"""Operations that few engines know as integers, as ones that all of them know, with the same values: transposed
convolution, average pooling, padding and instance norm.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.attach import ops
from quant.integer.graph import Call, Op

# ---- transposed convolution: a convolution and an interleaving of its outputs ------------------------------
#
# In one dimension, with stride s, padding p and K taps (dilation written out as zeros between taps), it is
#     y[n] = sum over q, k with q s + k = n + p of x[q] w[k].
# Write n + p = s m + i with 0 <= i < s, and k = s t + i: the output's phase i is the convolution
# sum_t x[m - t] w[s t + i]. So s convolutions of T = ceil(K / s) taps, stacked as output channels, give all outputs
# after interleaving; p then only crops.


def deconv_weight_as_conv(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight (in, out / groups, kh, kw) as a convolution's: (out, in / groups, kh, kw)."""
    inputs, outputs, *kernel = weight.shape
    grouped = weight.reshape(groups, inputs // groups, outputs, *kernel).transpose(1, 2)
    return grouped.reshape(groups * outputs, inputs // groups, *kernel)


def deconv_as_conv(op: Op) -> tuple[Op, tuple[int, int], tuple[slice, slice]]:
    """A "deconv" operation as the convolution of all its phases.

    Args:
        op: weight as `deconv_weight_as_conv` gives it; attrs stride, padding, output_padding, dilation and groups of
            the float layer.

    Returns:
        The convolution, the stride by which its outputs are to be interleaved, and the rows and columns to keep.
    """
    weight, padding, keep = op.weight, [], []
    for dim, stride, p, extra, dilation in zip(
        (2, 3), *(op.attrs[n] for n in ("stride", "padding", "output_padding", "dilation"))
    ):
        weight = _zeros_between_taps(weight, dim, dilation)
        size = weight.shape[dim]
        taps = -(-max(size, size + extra - p) // stride)
        weight = F.pad(weight, [0, 0] * (3 - dim) + [0, stride * taps - size])
        after = stride * taps + p - size - extra
        spare = min(p // stride, after // stride, taps - 1)  # whole rows that would be cropped on either side
        padding.append(taps - 1 - spare)
        keep.append(slice(p - spare * stride, -(after - spare * stride) or None))
    attrs = {"stride": (1, 1), "padding": tuple(padding), "dilation": (1, 1), "groups": op.attrs["groups"]}
    scale, bias = (t.repeat_interleave(math.prod(op.attrs["stride"])) for t in (op.weight_scale, op.bias))
    stacked = _stacked_phases(weight, op.attrs["stride"])
    conv = Op(f"{op.name}_phases", "conv", op.inputs, op.qparams, stacked, scale, bias, attrs)
    return conv, tuple(op.attrs["stride"]), tuple(keep)


def interleave_phases(x: Tensor, stride: tuple[int, int], keep: tuple[slice, slice]) -> Tensor:
    """Phases (N, C sh sw, H, W) to (N, C, H sh, W sw), of which `keep` is kept."""
    (sh, sw), (n, channels, height, width) = stride, x.shape
    x = x.reshape(n, channels // (sh * sw), sh, sw, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, channels // (sh * sw), height * sh, width * sw)[:, :, keep[0], keep[1]]


def _stacked_phases(weight: Tensor, stride: tuple[int, int]) -> Tensor:
    """Weight (out, in, kh, kw) to (out sh sw, in, kh / sh, kw / sw), each phase's taps in a convolution's order."""
    (outputs, inputs, kh, kw), (sh, sw) = weight.shape, stride
    split = weight.reshape(outputs, inputs, kh // sh, sh, kw // sw, sw).flip(2, 4).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(outputs * sh * sw, inputs, kh // sh, kw // sw).contiguous()


def _zeros_between_taps(weight: Tensor, dim: int, dilation: int) -> Tensor:
    if dilation == 1:
        return weight
    shape = list(weight.shape)
    shape[dim] = dilation * (shape[dim] - 1) + 1
    spread = weight.new_zeros(shape)
    spread[(slice(None),) * dim + (slice(None, None, dilation),)] = weight
    return spread


# ---- average pooling: a convolution of constant weights ----------------------------------------------------
#
# Every weight is 1, worth one part in so many of the window. The sum of the codes is exact, and padding counts as
# zeros, as in torch. Engines differ in how fast they are at it, so only windows that all of them have a kernel for
# become convolutions: 3x3 and 5x5, depthwise where channels are multiples of 8, else (an image's three) densely. Other
# windows are averaged in float, which is then as fast or faster: fbgemm takes 40 times as long for a depthwise 2x2.

AVERAGE_POOLS = (nn.AvgPool2d, F.avg_pool2d)
_POOL_KERNELS = ([3, 3], [5, 5])
_MOST_DENSE_CHANNELS = 32


def average_pool_as_conv(name: str, call: Call, source: str, channels: int) -> Op | None:
    """The convolution that computes a call of AVERAGE_POOLS on the codes `source`.

    None where there is none, or a slow one.
    """
    kernel = ops.pair(ops.setting(call, 1, "kernel_size"))
    stride, padding = ops.pair(ops.setting(call, 2, "stride") or kernel), ops.pair(ops.setting(call, 3, "padding", 0))
    counts_all = ops.setting(call, 5, "count_include_pad", True) or padding == [0, 0]
    same_everywhere = (
        counts_all and not ops.setting(call, 4, "ceil_mode", False) and not ops.setting(call, 6, "divisor_override")
    )
    depthwise = channels % 8 == 0
    if not same_everywhere or kernel not in _POOL_KERNELS or not (depthwise or channels <= _MOST_DENSE_CHANNELS):
        return None
    from_to = torch.ones(channels, 1) if depthwise else torch.eye(channels)
    weight = from_to[:, :, None, None].repeat(1, 1, *kernel).to(torch.int8)
    scale, bias = torch.full((channels,), 1 / math.prod(kernel)), torch.zeros(channels)
    attrs = {"stride": stride, "padding": padding, "dilation": [1, 1], "groups": channels if depthwise else 1}
    return Op(name, "conv", (source,), None, weight, scale, bias, attrs)


# ---- padding: a move of codes ------------------------------------------------------------------------------
#
#     reflect  3 2 1 | 0 1 2 3 | 2 1 0      replicate  0 0 0 | 0 1 2 3 | 3 3 3      constant  z z z | 0 1 2 3 | z z z
#
# Reflected and repeated pixels are codes that are there, and real zero is one of the grid. Pixels are looked up row by
# row and column by column: torch's own kernels for code tensors take nine times as long (256 channels of 32x32: 0.02 ms
# for 0.20), leave the memory format channels_last, or are missing.

Sides = tuple[int, int, int, int]  # columns on the left and right, rows above and below; below zero: cut off


def pad_codes(codes: Tensor, sides: Sides, mode: str, zero_point: int) -> Tensor:
    """Codes (N, C, H, W), a quantized tensor or plain numbers, padded. A quantized result is channels_last."""
    images = codes.permute(0, 2, 3, 1)
    if mode == "constant":
        zero = 0.0 if codes.is_quantized else zero_point
        padded = F.pad(images, [0, 0, *sides], value=zero)
    else:
        left, right, top, bottom = sides
        rows = _looked_up(images.shape[1], top, bottom, mode)
        columns = _looked_up(images.shape[2], left, right, mode)
        padded = images.index_select(1, rows).index_select(2, columns)
    return padded.permute(0, 3, 1, 2)


def _looked_up(size: int, before: int, after: int, mode: str) -> Tensor:
    """For each row of the result the row of `size` ones that it repeats."""
    fold, last = torch.abs if mode == "reflect" else torch.relu, size - 1
    return last - fold(last - fold(torch.arange(-before, size + after)))


# ---- instance norm: a factor and an offset from sums of codes ----------------------------------------------
#
# (x - mean) / sqrt(variance + eps) * gamma + beta, with mean and variance of each image and channel. Over n pixels with
# codes q of step s, counted from any point (the mean moves along),
#     mean = sum q / n,    variance = (n sum q^2 - (sum q)^2) / n^2,
#     y = (q - mean) s gamma / sqrt(s^2 variance + eps) + beta.
# Both sums are integers, so an image's statistics do not depend on the others of its batch, nor on the order in which
# it is summed up.


def instance_norm_as_affine(op: Op, step: float, total: Tensor, squares: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """(factor, offset), float64 (N, C, 1, 1), such that an "instance_norm" operation is y = q * factor + offset.

    Args:
        op: with gamma as weight_scale, beta as bias, and eps.
        step: s, the scale of the input's grid.
        total: (N, C), the sum of q over all pixels.
        squares: (N, C), the sum of q^2; both exact up to half a million pixels of q from -128 to 127.
        pixels: n.
    """
    total, squares = total.double(), squares.double()
    variance = (pixels * squares - total**2) / pixels**2
    factor = op.weight_scale.double() * step / torch.sqrt(variance * step**2 + op.attrs["eps"])
    offset = op.bias.double() - total / pixels * factor
    return factor[:, :, None, None], offset[:, :, None, None]
