"""A light generator of Frost bottlenecks, our own: the residual generator's shape at a small part of its cost."""

import torch.nn.functional as F
from torch import Tensor, nn

from nas.arch import BlockSpec, resolve
from nas.blocks import Block, ConvBNAct

# Channels at strides 2, 4 and 8; residual Frost blocks at stride 4 on the way up, and at stride 8; their kernel,
# expansion and squeeze.
WIDTHS, FINE_BLOCKS, BLOCKS, KERNEL, EXPAND, SQUEEZE = (32, 64, 128), 2, 8, 5, 3, 4


class FrostGenerator(nn.Module):
    """(N, 3, H, W) -> (N, 3, H, W) in [-1, 1], H and W multiples of 8.

    Down to stride 8 in three steps, blocks there, up again. Each step up but the last is a convolution, a bilinear
    upsampling and the addition of what the way down had at that size. Only the last one runs at full size.
    """

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        half, quarter, eighth = WIDTHS
        self.stem = ConvBNAct(3, half, 5, 2)
        self.down4 = _block(half, quarter, 2)
        self.down8 = _block(quarter, eighth, 2)
        self.coarse = _residuals(eighth, BLOCKS, dropout)
        self.up4 = Up(eighth, quarter)
        self.fine = _residuals(quarter, FINE_BLOCKS, dropout)
        self.up2 = Up(quarter, half)
        self.mix = ConvBNAct(half, half, 3)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.to_picture = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(half, 3, 3), nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        f2 = self.stem(images)
        f4 = self.down4(f2)
        f8 = self.coarse(self.down8(f4))
        y = self.fine(self.up4(f8, f4))
        y = self.mix(self.up2(y, f2))
        return self.to_picture(self.up(y))


class Up(nn.Module):
    """(N, in_channels, H, W), (N, out_channels, 2 H, 2 W) -> the second plus the first, projected and upsampled."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.project = ConvBNAct(in_channels, out_channels, activation=None)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return skip + F.interpolate(self.project(x), scale_factor=2, mode="bilinear", align_corners=False)


def _block(in_channels: int, out_channels: int, stride: int = 1) -> Block:
    return Block(resolve(BlockSpec("frost", KERNEL, in_channels, out_channels, stride, EXPAND, SQUEEZE, "relu")))


def _residuals(channels: int, count: int, dropout: float) -> nn.Sequential:
    blocks = nn.Sequential(*(_block(channels, channels) for _ in range(count)))
    for block in blocks if dropout else ():
        # between convolutions, as in a residual block
        block.depthwise.act = nn.Sequential(block.depthwise.act, nn.Dropout(dropout))
    return blocks


def init_without_norms(model: FrostGenerator) -> None:
    """Initialise weights by fan-in, in place, so that values keep their size from layer to layer without norms.

    Residual branches begin small. The published N(0, 0.02) is for wide kernels with norms behind them: a depthwise
    convolution's 25 weights would leave next to nothing.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for module in model.modules():
        if isinstance(module, Block) and module.residual:
            nn.init.normal_(module.project.conv.weight, std=0.02)
    nn.init.normal_(model.to_picture[1].weight, std=0.02)
