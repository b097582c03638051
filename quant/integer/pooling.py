"""Average pooling over windows as an integer convolution: every weight is 1, worth one part in so many of the window.

The sum of the codes is exact, and padding counts as zeros, as in torch. Engines differ in how fast they are at it, so
only windows that all of them have a kernel for become convolutions: 3x3 and 5x5, by channel where channels are
multiples of 8, else (a picture's three) densely. Other windows are averaged in float, which is then as fast or faster:
fbgemm takes 40 times as long for a 2x2 window by channel.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from quant.attach import ops
from quant.integer.graph import Call, Op

AVERAGES = (nn.AvgPool2d, F.avg_pool2d)
_KERNELS = ([3, 3], [5, 5])
_MOST_DENSE = 32  # channels


def as_convolution(name: str, call: Call, source: str, channels: int) -> Op | None:
    """The convolution that computes a call of AVERAGES on the codes `source`;

    None where there is none, or a slow one.
    """
    kernel = ops.pair(ops.setting(call, 1, "kernel_size"))
    stride, padding = ops.pair(ops.setting(call, 2, "stride") or kernel), ops.pair(ops.setting(call, 3, "padding", 0))
    counts_all = ops.setting(call, 5, "count_include_pad", True) or padding == [0, 0]
    same_everywhere = (
        counts_all and not ops.setting(call, 4, "ceil_mode", False) and not ops.setting(call, 6, "divisor_override")
    )
    by_channel = channels % 8 == 0
    if not same_everywhere or kernel not in _KERNELS or not (by_channel or channels <= _MOST_DENSE):
        return None
    from_to = torch.ones(channels, 1) if by_channel else torch.eye(channels)
    weight = from_to[:, :, None, None].repeat(1, 1, *kernel).to(torch.int8)
    attrs = {"stride": stride, "padding": padding, "dilation": [1, 1], "groups": channels if by_channel else 1}
    return Op(
        name,
        "conv",
        (source,),
        None,
        weight,
        torch.full((channels,), 1 / math.prod(kernel)),
        torch.zeros(channels),
        attrs,
    )
