"""Discriminators of pix2pix (arXiv:1611.07004) and CycleGAN (arXiv:1703.10593): `build("patch", 6)`.

They are plain float modules, never shipped. Batch norms keep no running statistics: discriminators never leave
training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import nn

from common.errors import UserError
from zoo.catalog import check
from zoo.generators.norms import NORMS, init_weights, with_norm


def _patch(in_channels: int, channels: int) -> list[nn.Module]:
    """70 = the receptive field of kernels of 4 at strides 2, 2, 2, 1, 1."""
    layers = [nn.Conv2d(in_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
    for width, stride in ((2, 2), (4, 2), (8, 1)):
        before = width // 2 * channels
        norm = nn.BatchNorm2d(width * channels, track_running_stats=False)
        layers += [nn.Conv2d(before, width * channels, 4, stride, 1, bias=False), norm, nn.LeakyReLU(0.2)]
    return [*layers, nn.Conv2d(8 * channels, 1, 4, 1, 1)]


def _pixel(in_channels: int, channels: int) -> list[nn.Module]:
    wide = 2 * channels
    middle = [
        nn.Conv2d(channels, wide, 1, bias=False),
        nn.BatchNorm2d(wide, track_running_stats=False),
        nn.LeakyReLU(0.2),
    ]
    return [nn.Conv2d(in_channels, channels, 1), nn.LeakyReLU(0.2), *middle, nn.Conv2d(wide, 1, 1, bias=False)]


@final
@dataclass(frozen=True)
class Discriminator:
    """A row: the layers of in_channels and channels, and the least size of an image in pixels."""

    layers: Callable[[int, int], list[nn.Module]]
    least: int


DISCRIMINATORS = {"patch": Discriminator(_patch, 32), "pixel": Discriminator(_pixel, 1)}
NAMES = tuple(DISCRIMINATORS)


def build(name: str, in_channels: int, norm: str = "batch", channels: int = 64) -> nn.Module:
    """(N, in_channels, H, W) -> logits, with weights as zoo.generators.norms.init_weights has them.

    "patch" gives one logit for each of the overlapping squares of 70 x 70 pixels that lie 8 apart, (N, 1, H / 8 - 2, W
    / 8 - 2), "pixel" one for each pixel, (N, 1, H, W). Raises UserError.
    """
    for field, value, choices in (("discriminator", name, NAMES), ("norm", norm, NORMS)):
        if value not in choices:
            raise UserError(f"{field}: {value!r}, must be {' or '.join(choices)}")
    check(in_channels=in_channels, channels=channels)
    layers = DISCRIMINATORS[name].layers(in_channels, channels)
    return init_weights(with_norm(nn.Sequential(*layers), norm))


def check_size(name: str, input_size: int) -> None:
    """Raise UserError where images of `input_size` pixels a side are too small for the discriminator."""
    least = DISCRIMINATORS[name].least
    if input_size < least:
        raise UserError(
            f"input_size: {input_size}, must be {least} or more for discriminator {name!r}; smaller ones: 'pixel'"
        )
