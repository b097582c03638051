"""Backbones of detectors and segmenters: a classifier's convolutions, as feature maps at strides 4, 8, 16 and 32.

    net = backbone("frostnet_small_1_0", output_stride=16)
    fine, middle, coarse, coarsest = net(images)

Every FrostNet that `frostnet.find` knows, and the MobileNets of `zoo`, at any width. A map is the last block's output
at its stride; the last one of a MobileNet is that of its last convolution, behind which only the classifier follows.
"""

import math
from pathlib import Path

from torch import Tensor, nn

import frostnet
from common.errors import UserError
from nas.arch import find_file
from zoo.catalog import near
from zoo.classifiers import from_torchvision

MOBILENETS = tuple(name for name in from_torchvision.NAMES if name.startswith("mobilenet"))
STRIDES = (4, 8, 16, 32)
LARGE = 224  # pixels of an image whose first convolution has stride 2; detectors and segmenters see no smaller ones


class Backbone(nn.Module):
    """(N, 3, H, W) -> four maps, finest first, of `feature_channels` at `feature_strides`.

    The strides are 4, 8, 16 and 32, none above `output_stride`: past it the network computes the same function on a
    finer grid, with dilated convolutions. (Squeeze-and-excitation alone sees that grid: it averages over more pixels.)
    """

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], strides: list[int], output_stride: int):
        """`strides`: of each block's output relative to the image, as if nothing were dilated."""
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.taps = {len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES}
        self.feature_channels = [_out_channels(blocks[i]) for i in sorted(self.taps)]
        self.feature_strides = [min(stride, output_stride) for stride in STRIDES]

    def forward(self, x: Tensor) -> list[Tensor]:
        return frostnet.tapped(self.stem(x), self.blocks, self.taps)


def backbone(name: str | frostnet.Architecture, output_stride: int = 32, runs: str | Path = "runs") -> Backbone:
    """The untrained backbone of a name or of an architecture.

    A name is that of a MobileNet ("mobilenet_v2_relu_x0_5"), else what `frostnet.find` knows. The parameters of a
    FrostNet's backbone have the names they have in `frostnet.FrostNet`.

    Args:
        name: Of the network, or the architecture.
        output_stride: 8, 16 or 32.
        runs: The folder of the runs, whose names are FrostNets too.

    Raises:
        UserError: The name is unknown, or the stride is none of these.
    """
    if output_stride not in (8, 16, 32):
        raise UserError(f"output_stride: {output_stride!r}, must be 8, 16 or 32")
    if not isinstance(name, str):
        return _frostnet(name, output_stride)
    return _mobilenet(name, output_stride) if is_mobilenet(name) else _frostnet(find(name, runs), output_stride)


def is_mobilenet(name: str) -> bool:
    """Whether `name` is a MobileNet's, at any width."""
    return from_torchvision.split_width(name)[0] in MOBILENETS


def knows(name: str, runs: str | Path = "runs") -> bool:
    """Whether `name` is a backbone's: of a MobileNet, a file or a run, or a published FrostNet."""
    published = name in frostnet.PUBLISHED or f"{name}_1_0" in frostnet.PUBLISHED
    return is_mobilenet(name) or published or find_file(name, runs) is not None


def find(name: str, runs: str | Path = "runs") -> frostnet.Architecture:
    """The architecture of a FrostNet that is to be a backbone. Raises UserError."""
    if not knows(name, runs):
        raise UserError(
            f"arch: {name!r} is no backbone: neither a file, a run, a FrostNet nor a MobileNet; near it: "
            f"{near(name, (*MOBILENETS, *frostnet.PUBLISHED))}"
        )
    return frostnet.find(name, runs)


def _frostnet(arch: frostnet.Architecture, output_stride: int) -> Backbone:
    arch = arch.for_input(LARGE)
    net = frostnet.FrostNet(arch, output_stride)
    strides = frostnet.nominal_strides(arch.blocks)
    if sorted(set(strides) - {2}) != list(STRIDES):
        raise UserError(
            f"arch: {arch.name!r} has blocks at strides {sorted(set(strides))}, "
            "must have some at each of 4, 8, 16, 32 and none above"
        )
    return Backbone(net.stem, list(net.blocks), strides, output_stride)


def _mobilenet(name: str, output_stride: int) -> Backbone:
    stem, *blocks = from_torchvision.build(name, 1, LARGE).features
    strides, dilation = [2], 1
    for block in blocks:
        stride = math.prod(conv.stride[0] for conv in _convolutions(block))
        strides.append(strides[-1] * stride)
        dilation = _dilate(block, dilation, strided=strides[-1] <= output_stride)
    return Backbone(stem, blocks, strides[1:], output_stride)


def _dilate(block: nn.Module, dilation: int, strided: bool) -> int:
    """Dilate a block's depthwise convolution, in place; the dilation for the blocks after it.

    See `frostnet._blocks` for the rule.
    """
    after = dilation
    for conv in _convolutions(block):
        if not strided:
            after, conv.stride = after * conv.stride[0], (1, 1)
        conv.dilation = (dilation, dilation)
        conv.padding = tuple(dilation * (size - 1) // 2 for size in conv.kernel_size)
    return after


def _convolutions(block: nn.Module) -> list[nn.Conv2d]:
    return [module for module in block.modules() if isinstance(module, nn.Conv2d)]


def _out_channels(block: nn.Module) -> int:
    return _convolutions(block)[-1].out_channels
