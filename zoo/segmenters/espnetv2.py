"""ESPNetv2 (arXiv:1811.11431) as a segmenter, in the quantizable form of StatAssist's authors (arXiv:2006.09679).

That form has ReLU for PReLU, no batch norm behind the dilated convolutions, and a whole 1x1 convolution behind their
concatenation.

The dilated convolutions are fused, each added to the next, as in the paper; what those authors measured drops the sums.
"""

import math
from itertools import accumulate

import torch
from torch import Tensor, nn

from common.errors import UserError
from nas.blocks import ConvBNAct, init_weights
from zoo.segmenters.espnet import LEAST_WIDTH, upsample

WIDE, NARROW = (1, 2, 3, 4), (1, 1, 2, 3)  # dilations: kernels reaching over up to 9 pixels, up to 7
REPEATS = (3, 7)  # units at strides 8 and 16
SCALES = (0.5, 1.0, 1.5, 2.0)


class EESP(nn.Module):
    """Reduce to a quarter, four dilated depthwise convolutions, each added to the one before, join and mix.

    (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), a ReLU to follow; the input is added where it
    fits. The first and last convolutions have 4 groups.
    """

    def __init__(self, in_channels: int, out_channels: int, dilations: tuple[int, ...], stride: int = 1):
        super().__init__()
        part = out_channels // 4
        self.reduce = ConvBNAct(in_channels, part, groups=4)
        self.branches = nn.ModuleList(
            nn.Conv2d(part, part, 3, stride, padding=dilation, dilation=dilation, groups=part, bias=False)
            for dilation in dilations
        )
        self.join = ConvBNAct(out_channels, out_channels)
        self.mix = ConvBNAct(out_channels, out_channels, groups=4, activation=None)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        fused = accumulate([branch(reduced) for branch in self.branches])
        y = self.mix(self.join(torch.cat(list(fused), 1)))
        return x + y if self.residual else y


class Down(nn.Module):
    """Half the resolution: averages beside a strided EESP, plus two convolutions of the image at the new size."""

    def __init__(self, in_channels: int, out_channels: int, dilations: tuple[int, ...]):
        super().__init__()
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        self.eesp = EESP(in_channels, out_channels - in_channels, dilations, stride=2)
        self.reinforce = nn.Sequential(ConvBNAct(3, 3, 3), ConvBNAct(3, out_channels, activation=None))
        self.act = nn.ReLU()

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        return self.act(torch.cat([self.pool(x), self.eesp(x)], 1) + self.reinforce(image))


class Pyramid(nn.Module):
    """A map beside depthwise convolutions of its averages at 1/2, 1/4, 1/8 and 1/16 of its size, joined."""

    def __init__(self, channels: int):
        super().__init__()
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        self.stages = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False) for _ in range(4)
        )
        self.join = ConvBNAct(5 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        levels, small = [x], x
        for stage in self.stages:
            small = self.pool(small)
            levels.append(upsample(stage(small), x))
        return self.join(torch.cat(levels, 1))


class ESPNetv2(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes, H / 2, W / 2).

    `scale` multiplies the channels, 0.5 to 2; raises UserError.
    """

    def __init__(self, num_classes: int, scale: float = 1.0):
        super().__init__()
        if not 0.5 <= scale <= 2:
            raise UserError(f"scale: {scale!r}, must be from 0.5 to 2")
        base = 4 * math.ceil(int(32 * scale) / 4)
        c1, c2, c3, c4 = min(32, base), 2 * base, 4 * base, 8 * base  # at strides 2, 4, 8, 16
        width = max(num_classes, LEAST_WIDTH)
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        self.stem = ConvBNAct(3, c1, 3, 2)
        self.down2 = Down(c1, c2, WIDE)
        self.down3 = Down(c2, c3, WIDE)
        self.level3 = _units(c3, WIDE, REPEATS[0])
        self.down4 = Down(c3, c4, WIDE)
        self.level4 = _units(c4, NARROW, REPEATS[1])
        self.project4 = ConvBNAct(c4, c3)
        self.merge3 = nn.Sequential(EESP(2 * c3, c3, NARROW), nn.ReLU(), Pyramid(c3))
        self.project3 = nn.Sequential(ConvBNAct(c3, width), ConvBNAct(width, width))
        self.merge2 = ConvBNAct(c2 + width, width)
        self.classifier = nn.Conv2d(c1 + width, num_classes, 1, bias=False)
        init_weights(self)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        quarter = self.pool(self.pool(images))
        eighth = self.pool(quarter)
        f1 = self.stem(images)
        f2 = self.down2(f1, quarter)
        f3 = self.level3(self.down3(f2, eighth))
        f4 = self.level4(self.down4(f3, self.pool(eighth)))
        y = self.merge3(torch.cat([f3, upsample(self.project4(f4), f3)], 1))
        y = self.merge2(torch.cat([f2, upsample(self.project3(y), f2)], 1))
        return self.classifier(torch.cat([f1, upsample(y, f1)], 1))


def _units(channels: int, dilations: tuple[int, ...], count: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(EESP(channels, channels, dilations), nn.ReLU()) for _ in range(count)))
