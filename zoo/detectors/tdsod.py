"""Tiny-DSOD (arXiv:1807.11013): depthwise dense blocks and a depthwise feature pyramid, trained from scratch.

Laid out as the authors of StatAssist (arXiv:2006.09679) measured it: the heads are those of zoo/detectors/ssdlite.py,
convolutions without bias with batch norm behind them. At 300 px the six maps have 38, 19, 10, 5, 3 and 2 pixels a side,
and 128 channels each. Unlike what was measured, nothing here depends on the image's size: each bilinear upsampling
goes to the size of the map that it is added to.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.blocks import ConvBNAct
from zoo.detectors.ssdlite import Heads, init_xavier

STEM = 128
# Of each dense block: units, channels that each adds, channels behind it, and whether a max-pool follows
BLOCKS = ((4, 32, 128, True), (6, 48, 128, True), (6, 64, 256, False), (6, 80, 64, False))
PYRAMID = 128  # channels of the pyramid's maps, half of them from each branch on the way down


class TDSOD(nn.Module):
    """(N, 3, H, W) -> class logits of the six maps, then box regressions of the six.

    Their shapes: (N, boxes x (num_classes + 1), h, w) and (N, boxes x 4, h, w). Class 0 is the background.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        half = PYRAMID // 2
        self.stem = _stem()
        self.fine = nn.Sequential(*_dense(STEM, BLOCKS[0]), *_dense(BLOCKS[0][2], BLOCKS[1])[:-1])
        self.pool = _halve()
        self.coarse = nn.Sequential(*_dense(BLOCKS[1][2], BLOCKS[2]), *_dense(BLOCKS[2][2], BLOCKS[3]))
        self.down = nn.ModuleList(Down(channels) for channels in (PYRAMID, PYRAMID + half, PYRAMID, PYRAMID, PYRAMID))
        self.up = nn.ModuleList(Up(PYRAMID) for _ in self.down)
        self.heads = Heads([PYRAMID] * 6, num_classes)
        init_xavier(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        fine = self.fine(self.stem(x))
        laterals = [fine, self.down[0](fine)]
        y = torch.cat([laterals[-1], self.coarse(self.pool(fine))], 1)
        for down in self.down[1:]:
            y = down(y)
            laterals.append(y)
        maps = [y]
        for up, lateral in zip(self.up, reversed(laterals[:-1])):
            maps.append(up(maps[-1], lateral))
        return self.heads(maps[::-1])


class Unit(nn.Module):
    """The input, and beside it what a 1x1 and a depthwise 3x3 convolution make of it."""

    def __init__(self, in_channels: int, growth: int):
        super().__init__()
        self.conv = ConvBNAct(in_channels, growth)
        self.depthwise = ConvBNAct(growth, growth, 3, groups=growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.depthwise(self.conv(x))], 1)


class Down(nn.Module):
    """A map of half the size, rounded up: max-pooled features beside features of a strided depthwise convolution."""

    def __init__(self, in_channels: int):
        super().__init__()
        half = PYRAMID // 2
        self.pooled = nn.Sequential(_halve(), ConvBNAct(in_channels, half))
        self.strided = nn.Sequential(
            ConvBNAct(in_channels, half, activation=None), ConvBNAct(half, half, 3, stride=2, groups=half)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.pooled(x), self.strided(x)], 1)


class Up(nn.Module):
    """A coarse map, brought to the size of a finer one and through a depthwise convolution, plus the finer one."""

    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = ConvBNAct(channels, channels, 3, groups=channels)

    def forward(self, x: Tensor, lateral: Tensor) -> Tensor:
        x = F.interpolate(x, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return self.depthwise(x) + lateral


def _stem() -> nn.Sequential:
    half = STEM // 2
    return nn.Sequential(
        ConvBNAct(3, half, 3, stride=2),
        ConvBNAct(half, half),
        ConvBNAct(half, half, 3, groups=half),
        ConvBNAct(half, STEM),
        ConvBNAct(STEM, STEM, 3, groups=STEM),
        _halve(),
    )


def _dense(in_channels: int, block: tuple[int, int, int, bool]) -> list[nn.Module]:
    """A dense block's units, the 1x1 convolution behind them, and the max-pool behind that."""
    units, growth, out_channels, pooled = block
    modules = [Unit(in_channels + i * growth, growth) for i in range(units)]
    modules.append(ConvBNAct(in_channels + units * growth, out_channels))
    return modules + ([_halve()] if pooled else [])


def _halve() -> nn.MaxPool2d:
    return nn.MaxPool2d(2, ceil_mode=True)
