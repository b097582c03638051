"""U-Nets, the generators of pix2pix (arXiv:1611.07004)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """`halvings` times down to half the size and up again, with skip connections.

    Each map on the way down is concatenated to that of the same size on the way up. H and W are multiples of 2 **
    halvings. The first and the innermost convolution have no norm.
    """

    def __init__(self, halvings: int, dropout: float = 0.0, channels: int = 64):
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(halvings)]
        pairs = list(zip(widths, widths[1:]))
        self.downs = nn.ModuleList([_down(3, channels)[::2], *(_down(a, b) for a, b in pairs[:-1])])
        self.bottom = nn.Sequential(_down(*pairs[-1])[0], nn.ReLU())
        ups = [
            _up(b if i == halvings - 2 else 2 * b, a, dropout if i >= halvings - 4 else 0.0)
            for i, (a, b) in enumerate(pairs)
        ]
        self.ups = nn.ModuleList(reversed(ups))
        self.to_picture = nn.Sequential(nn.ConvTranspose2d(2 * channels, 3, 4, 2, 1), nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        x, skips = images, []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        x = self.bottom(x)
        for up, skip in zip(self.ups, reversed(skips)):
            x = torch.cat([F.relu(skip), up(x)], 1)
        return self.to_picture(x)


def _down(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 4, 2, 1, bias=False), nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2)
    )


def _up(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    layers = nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))
