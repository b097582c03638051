"""Generators by name: `build("resnet_6blocks:instance")`; untrained plain float modules, images (N, 3, H, W) ->
pictures of that size.

Both lie in [-1, 1]. Residual generators (arXiv:1603.08155, as in CycleGAN, arXiv:1703.10593), U-Nets (pix2pix,
arXiv:1611.07004) and a light one of Frost bottlenecks. The norm is part of the name: "NAME:batch" (what NAME alone
means), "NAME:instance" or "NAME:none".

NOTE: the residual ones upsample bilinearly and convolve where the published ones have transposed convolutions, as
StatAssist's authors (arXiv:2006.09679) have it, and pad by reflection everywhere, which only moves values.
"""

from collections.abc import Callable
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from nas.arch import RULES
from zoo.generators.frost_generator import FrostGenerator, init_without_norms

NORMS = ("batch", "instance", "none")
RESNETS = {"resnet_6blocks": 6, "resnet_9blocks": 9}  # residual blocks
UNETS = {"unet_128": 7, "unet_256": 8}  # halvings of the resolution
NAMES = (*RESNETS, *UNETS, "frost_generator")


def knows(name: str) -> bool:
    """Whether `name` is a generator, its norm included."""
    base, _, norm = name.partition(":")
    return base in NAMES and (norm in NORMS or ":" not in name)


def build(name: str, dropout: float = 0.0) -> nn.Module:
    """The float generator of a name, initialised as published: weights N(0, 0.02), norms N(1, 0.02), biases 0
    ("frost_generator:none": see zoo.generators.frost_generator.init_without_norms).

    dropout  the share of values that are dropped in training: in residual blocks, in U-Nets behind the three innermost
             steps up
    Raises UserError.
    """
    if not RULES["dropout"][0](dropout):
        raise UserError(f"dropout: {dropout!r}, must be {RULES['dropout'][1]}")
    base, norm = _split(name)
    if base in RESNETS:
        model = ResNetGenerator(RESNETS[base], dropout)
    else:
        model = UNet(UNETS[base], dropout) if base in UNETS else FrostGenerator(dropout)
    init_weights(with_norm(model, norm))
    if norm == "none" and isinstance(model, FrostGenerator):
        init_without_norms(model)
    return model


def check_size(name: str, input_size: int) -> None:
    """Raise UserError where the generator `name` cannot halve and double pictures of `input_size` pixels a side as
    often as it does.
    """
    base, norm = _split(name)
    unit = 2 ** UNETS[base] if base in UNETS else {"frost_generator": 8}.get(base, 4)
    # more than one pixel for norms and reflection
    least = max(unit, 16 if (base, norm) == ("frost_generator", "instance") else 8)
    if input_size % unit or input_size < least:
        near = max(least, round(input_size / unit) * unit)
        raise UserError(
            f"input_size: {input_size!r}, must be a multiple of {unit} from {least} for {base!r}, such as {near}"
        )


def _split(name: str) -> tuple[str, str]:
    """A generator's name without its norm, and the norm."""
    if not knows(name):
        known = [*NAMES, *(f"{base}:{norm}" for base in NAMES for norm in NORMS)]
        near = get_close_matches(name, known, 3, 0.5) or NAMES
        raise UserError(
            f"arch: {name!r} is no generator; near it: {', '.join(near)}; each also with :batch, :instance or :none"
        )
    base, _, norm = name.partition(":")
    return base, norm or "batch"


# ---- the networks ------------------------------------------------------------------------------------------


class ResNetGenerator(nn.Sequential):
    """Down to stride 4, `blocks` residual blocks there, up again;

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


class UNet(nn.Module):
    """`halvings` times down to half the size and up again, each size's picture on the way down laid beside that on the
    way up.

    H and W are multiples of 2 ** halvings. The first and the innermost convolution have no norm.
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


class Cycle(nn.Module):
    """Two generators that undo each other's work; each is quantized by itself (tasks.parts). `make` builds one."""

    PARTS = ("a_to_b", "b_to_a")

    def __init__(self, make: Callable[[], nn.Module]):
        super().__init__()
        self.a_to_b, self.b_to_a = make(), make()

    def part_examples(self, images: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(self.PARTS, images)


# ---- norms and weights, of discriminators too --------------------------------------------------------------


class NoNorm(nn.Module):
    """What it is given. torch.fx sees through it, and so a convolution and its ReLU stay one group; nn.Identity would
    part them.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x


def with_norm(model: nn.Module, norm: str) -> nn.Module:
    """The model, changed in place: its batch norms replaced by instance norms (without weights, as published), or by
    convolution biases.
    """
    for parent in [*model.modules()] if norm != "batch" else ():
        for name, module in parent.named_children():
            if isinstance(module, nn.BatchNorm2d):
                setattr(parent, name, nn.InstanceNorm2d(module.num_features) if norm == "instance" else NoNorm())
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.bias is None and norm == "none":
                module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels))
    return model


def init_weights(model: nn.Module) -> nn.Module:
    """The published initialisation, in place."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    return model
