"""ESPNet (arXiv:1803.06815), a segmenter of spatial pyramids of dilated convolutions, in a quantizable form.

The form is that of StatAssist's authors (arXiv:2006.09679): ReLU for PReLU, no batch norm but in front of a ReLU,
bilinear upsampling for transposed convolutions.

Here the bilinear grids have no aligned corners: a weight is then a fraction of the ratio of sizes, for a factor of two
1/4 or 3/4.
"""

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.blocks import ConvBNAct, init_weights

DILATIONS = (1, 2, 4, 8, 16)
REPEATS = (2, 8)  # of the pyramid at strides 4 and 8
LEAST_WIDTH = 8  # channels of the decoder, which otherwise has as many as there are classes


class ESP(nn.Module):
    """Reduce to a fifth, five dilated 3x3 convolutions side by side, join.

    (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride). All but the first are summed up, each to those
    of smaller dilation, which fills the gaps between a dilated kernel's taps. With `residual` the input is added before
    the last convolution. The first convolution of all is 1x1, or 3x3 where it strides.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, residual: bool = False):
        super().__init__()
        part = out_channels // 5
        first = out_channels - 4 * part
        kernel = 1 if stride == 1 else 3
        self.reduce = nn.Conv2d(in_channels, part, kernel, stride, padding=kernel // 2, bias=False)
        widths = (first, part, part, part, part)
        self.branches = nn.ModuleList(
            nn.Conv2d(part, n, 3, padding=d, dilation=d, bias=False) for n, d in zip(widths, DILATIONS)
        )
        self.join = ConvBNAct(out_channels, out_channels)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        first, *others = [branch(reduced) for branch in self.branches]
        y = torch.cat([first, *accumulate(others)], 1)
        return self.join(x + y if self.residual else y)


class ESPNet(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes, H, W).

    The image itself, halved and quartered, is laid beside the maps of its size.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        width = max(num_classes, LEAST_WIDTH)
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        self.stem = ConvBNAct(3, 16, 3, 2)
        self.join1 = ConvBNAct(16 + 3, 16 + 3)
        self.down2 = ESP(16 + 3, 64, stride=2)
        self.level2 = nn.Sequential(*(ESP(64, 64, residual=True) for _ in range(REPEATS[0])))
        self.join2 = ConvBNAct(2 * 64 + 3, 2 * 64 + 3)
        self.down3 = ESP(2 * 64 + 3, 128, stride=2)
        self.level3 = nn.Sequential(*(ESP(128, 128, residual=True) for _ in range(REPEATS[1])))
        self.join3 = ConvBNAct(2 * 128, 2 * 128)
        self.project3 = nn.Sequential(
            nn.Conv2d(2 * 128, width, 1, bias=False), ConvBNAct(width, width, activation=None)
        )
        self.up3 = ConvBNAct(width, width)
        self.project2 = nn.Conv2d(2 * 64 + 3, width, 1, bias=False)
        self.merge2 = ESP(2 * width, width)
        self.up2 = ConvBNAct(width, width)
        self.merge1 = ConvBNAct(width + 16 + 3, width, 3)
        self.classifier = nn.Conv2d(width, num_classes, 1, bias=False)
        init_weights(self)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        half = self.pool(images)
        quarter = self.pool(half)
        fine = self.join1(torch.cat([self.stem(images), half], 1))
        start = self.down2(fine)
        middle = self.join2(torch.cat([self.level2(start), start, quarter], 1))
        start = self.down3(middle)
        coarse = self.join3(torch.cat([start, self.level3(start)], 1))
        y = self.up3(upsample(self.project3(coarse), middle))
        y = self.merge2(torch.cat([self.project2(middle), y], 1))
        y = self.up2(upsample(y, fine))
        y = self.merge1(torch.cat([y, fine], 1))
        return self.classifier(upsample(y, images))


def upsample(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to the rows and columns of another map."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
