"""Generators by name: `build("resnet_6blocks:instance")`; images (N, 3, H, W) -> images of that size, both in [-1, 1].

The norm is part of the name: "NAME:batch" (what NAME alone means), "NAME:instance" or "NAME:none".
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

from torch import Tensor, nn

from common.errors import UserError
from zoo.catalog import check, near
from zoo.generators.frost_generator import FrostGenerator, init_without_norms
from zoo.generators.norms import NORMS, init_weights, with_norm
from zoo.generators.resnet_generator import ResNetGenerator
from zoo.generators.unet import UNet


@final
@dataclass(frozen=True)
class Generator:
    """A row: the network of a dropout rate, and which sizes in pixels it can halve and double."""

    network: Callable[[float], nn.Module]
    multiple: int
    least: int
    least_instance: int  # with instance norm, which needs more than one pixel


GENERATORS = {
    "resnet_6blocks": Generator(partial(ResNetGenerator, 6), 4, 8, 8),
    "resnet_9blocks": Generator(partial(ResNetGenerator, 9), 4, 8, 8),
    "unet_128": Generator(partial(UNet, 7), 128, 128, 128),
    "unet_256": Generator(partial(UNet, 8), 256, 256, 256),
    "frost_generator": Generator(FrostGenerator, 8, 8, 16),
}
NAMES = tuple(GENERATORS)


def knows(name: str) -> bool:
    """Whether `name` is a generator, its norm included."""
    base, _, norm = name.partition(":")
    return base in GENERATORS and (norm in NORMS or ":" not in name)


def build(name: str, dropout: float = 0.0) -> nn.Module:
    """A float generator, initialised as published: weights N(0, 0.02), norms N(1, 0.02), biases 0.

    "frost_generator:none" is the exception, see `zoo.generators.frost_generator.init_without_norms`.

    Args:
        name: One of NAMES, alone or with ":" and one of NORMS.
        dropout: The share of values that are dropped in training: in residual blocks, in U-Nets behind the three
            innermost steps up.

    Raises:
        UserError: The name is unknown, or the share out of range.
    """
    check(dropout=dropout)
    base, norm = _split(name)
    model = GENERATORS[base].network(dropout)
    init_weights(with_norm(model, norm))
    if norm == "none" and isinstance(model, FrostGenerator):
        init_without_norms(model)
    return model


def check_size(name: str, input_size: int) -> None:
    """Raise UserError where the generator `name` cannot halve images of `input_size` pixels as often as it does."""
    base, norm = _split(name)
    row = GENERATORS[base]
    least = row.least_instance if norm == "instance" else row.least
    if input_size % row.multiple or input_size < least:
        nearest = max(least, round(input_size / row.multiple) * row.multiple)
        raise UserError(
            f"input_size: {input_size!r}, must be a multiple of "
            f"{row.multiple} from {least} for {base!r}, such as {nearest}"
        )


def _split(name: str) -> tuple[str, str]:
    """A generator's name without its norm, and the norm. Raises UserError."""
    if not knows(name):
        known = [*NAMES, *(f"{base}:{norm}" for base in NAMES for norm in NORMS)]
        raise UserError(
            f"arch: {name!r} is no generator; near it: {near(name, known)}; each also with :batch, :instance or :none"
        )
    base, _, norm = name.partition(":")
    return base, norm or "batch"


class Cycle(nn.Module):
    """Two generators that undo each other's work; each is quantized by itself (tasks.parts). `make` builds one."""

    PARTS = ("a_to_b", "b_to_a")

    def __init__(self, make: Callable[[], nn.Module]):
        super().__init__()
        self.a_to_b, self.b_to_a = make(), make()

    def part_examples(self, images: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(self.PARTS, images)
