"""Residual generators (arXiv:1603.08155, as in CycleGAN, arXiv:1703.10593).

NOTE: they upsample bilinearly and convolve where the published ones have transposed convolutions, as StatAssist's
authors (arXiv:2006.09679) have it, and pad by reflection everywhere, which only moves values.
"""

from torch import Tensor, nn


class ResNetGenerator(nn.Sequential):
    """Down to stride 4, `blocks` residual blocks there, up again.

    `channels` at full resolution. H and W are multiples of 4.
    """

    def __init__(self, blocks: int, dropout: float = 0.0, channels: int = 64):
        wide = 4 * channels
        super().__init__(
            _conv(3, channels, 7),
            _conv(channels, 2 * channels, 3, stride=2),
            _conv(2 * channels, wide, 3, stride=2),
            *(Residual(wide, dropout) for _ in range(blocks)),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            _conv(wide, 2 * channels, 3),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            _conv(2 * channels, channels, 3),
            nn.ReflectionPad2d(3),
            nn.Conv2d(channels, 3, 7),
            nn.Tanh(),
        )


class Residual(nn.Module):
    """The input plus what two 3x3 convolutions make of it."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.first = _conv(channels, channels, 3)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.second = _conv(channels, channels, 3)[:-1]

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return x + self.second(y if self.dropout is None else self.dropout(y))


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.ReflectionPad2d(kernel_size // 2),
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
