"""Convolutions of many groups in forms that fbgemm has kernels for. Added weights are zero: values stay the same.

Its kernels for groups know no dilation, those for one channel a group no odd numbers of channels and no even windows;
the way around them takes several hundred times as long (64 channels of 56x56, each for itself, 3x3: 86 ms with dilation
2, 0.12 ms without; 58 channels of
28x28: 19 ms). Engine x86 hands convolutions of more than 100 groups to fbgemm. Three forms:

spread   a kernel with zeros between its weights, where that makes one of 5x5 or 7x7 (3x3 with dilation 2 or 3): the
         first example in 0.18 ms
phases   where the picture keeps its size under a kernel by channel, every d-th row and column are a picture of their
         own, and the dilated convolution is the ordinary one of these: 720 channels of 20x20, 5x5 with dilation 2, 0.4
         ms for 58
merged   groups in blocks, each a dense convolution whose weights between unlike groups are zero: the second one in 0.2
         ms, the first one with dilation 8 in 0.8 ms
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.attach import ops
from quant.engines import has_vnni
from quant.integer.graph import Op

_BY_CHANNEL = ([3, 3], [5, 5], [7, 7])  # kernels for one channel a group, of which
_MULTIPLE = 8  # there must be a multiple
_LARGEST_BLOCK = 64  # input channels
_ONEDNN_GROUPS = 100  # up to so many, engine x86 takes oneDNN, which is as fast dilated as not


def fast_form(op: Op, engine: str) -> tuple[Op, int]:
    """The convolution `op` as `engine` is to pack it, and the number of phases a side of its input (see `apart`)."""
    dilation, groups, inputs = ops.pair(op.attrs["dilation"]), op.attrs["groups"], op.weight.shape[1]
    kernel, outputs = list(op.weight.shape[2:]), len(op.weight)
    by_fbgemm = engine == "fbgemm" or (engine == "x86" and (groups > _ONEDNN_GROUPS or not has_vnni()))
    by_channel = inputs == 1 and outputs == groups and groups % _MULTIPLE == 0
    has_kernel = max(dilation) == 1 and (inputs > 1 or (by_channel and kernel in _BY_CHANNEL))
    if not by_fbgemm or has_kernel:
        return op, 1
    reach = [1 + d * (size - 1) for d, size in zip(dilation, kernel)]
    if by_channel and reach in _BY_CHANNEL:
        return replace(op, weight=_spread(op.weight, dilation, reach), attrs=op.attrs | {"dilation": (1, 1)}), 1
    if by_channel and kernel in _BY_CHANNEL and dilation[0] == dilation[1] and _keeps_size(op, reach):
        dense = {"dilation": (1, 1), "padding": [size // 2 for size in kernel]}
        return replace(op, attrs=op.attrs | dense), dilation[0]
    block = max(
        size for size in range(1, groups + 1) if groups % size == 0 and (size == 1 or size * inputs <= _LARGEST_BLOCK)
    )
    return replace(op, weight=_merged(op.weight, groups, block), attrs=op.attrs | {"groups": groups // block}), 1


def apart(x: Tensor, phases: int) -> Tensor:
    """(N, C, H, W) -> (phases^2 N, C, h, w): an image of each phase of rows and columns, filled up with real zeros."""
    x = _filled(x, phases)
    n, c, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(n, height // phases, phases, width // phases, phases, c).permute(2, 4, 0, 1, 3, 5)
    return x.reshape(phases**2 * n, height // phases, width // phases, c).permute(0, 3, 1, 2)


def together(x: Tensor, phases: int, size: tuple[int, int]) -> Tensor:
    """What `apart` took apart: (N, C, *size), channels last in memory."""
    n, c, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(phases, phases, n // phases**2, height, width, c).permute(2, 3, 0, 4, 1, 5)
    x = x.reshape(n // phases**2, height * phases, width * phases, c).permute(0, 3, 1, 2)
    return x[:, :, : size[0], : size[1]].contiguous(memory_format=torch.channels_last)


@torch.jit.script_if_tracing  # a trace alone would keep to the way it took, whatever size comes later
def _filled(x: Tensor, phases: int) -> Tensor:
    """Real zeros below and on the right, up to multiples of `phases`.

    A copy takes as long as the kernel: none where none are to add.
    """
    height, width = x.shape[2], x.shape[3]
    if height % phases == 0 and width % phases == 0:
        return x
    return F.pad(x, [0, -width % phases, 0, -height % phases])


def _keeps_size(op: Op, reach: list[int]) -> bool:
    return ops.pair(op.attrs["stride"]) == [1, 1] and ops.pair(op.attrs["padding"]) == [size // 2 for size in reach]


def _spread(weight: Tensor, dilation: list[int], reach: list[int]) -> Tensor:
    """Zeros between rows and columns."""
    spread = weight.new_zeros(*weight.shape[:2], *reach)
    spread[:, :, :: dilation[0], :: dilation[1]] = weight
    return spread


def _merged(weight: Tensor, groups: int, block: int) -> Tensor:
    """The weights (outputs, inputs of a group, h, w) of `groups` groups as those of `groups // block` groups."""
    outputs, inputs, *kernel = weight.shape
    diagonal = torch.eye(block, dtype=weight.dtype).view(1, block, 1, block, 1, 1, 1)
    apart = weight.view(groups // block, block, outputs // groups, 1, inputs, *kernel)
    return (apart * diagonal).reshape(outputs, block * inputs, *kernel)
