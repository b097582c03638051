"""The shipped spaces, and how the space of a name is found.

frostnet    places a block: kernel size, expansion and squeeze of every slot, depth of every stage
bottleneck  finds that block: what is inside it, its kernel and its activation, the same in all slots

Users' spaces are in `nas.user_space`.
"""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from common.checks import check_choice, check_format
from common.errors import UserError
from common.files import read_json, write_json
from nas.arch import ACTIVATIONS, BlockSpec, HeadSpec, StemSpec, resolve, round8, stem_stride
from nas.ops import OPS
from nas.space import SearchSpace, Slot, Stage
from nas.user_space import imported_space

KERNEL_SIZES, EXPAND_RATIOS, SQUEEZE_FACTORS = (3, 5), (3, 6), (2, 4)
FIXED_CHANNELS = 16
STAGES = ((24, 2, 4), (40, 2, 4), (80, 2, 4), (96, 1, 5), (192, 2, 5), (320, 1, 1))  # out_channels, stride, slots
HEAD_CHANNELS = 1280  # not scaled by the width
FORMAT, VERSION = "bottleneck", 1  # of a file that holds a Bottleneck
# op, squeeze_factor: what the bottleneck space tries
INSIDES = tuple((name, factor) for name, op in OPS.items() for factor in op.factors)
BOTTLENECK_EXPAND = 3


def scaled(channels: int, width: float) -> int:
    """Channels at a width multiplier, a multiple of 8."""
    return round8(int(channels * width))


def frostnet_stem(width: float, input_size: int, in_channels: int = 3) -> StemSpec:
    return StemSpec(in_channels, scaled(32, min(1.0, width)), 3, stem_stride(input_size), "relu")


def frostnet_head(in_channels: int, num_classes: int, dropout: float = 0.2) -> HeadSpec:
    return HeadSpec(in_channels, HEAD_CHANNELS, num_classes, dropout, "relu")


# ---- the block ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bottleneck:
    """What a block is made of, wherever it stands: `op` and `activation` of `nas.BlockSpec`."""

    op: str = "frost"
    activation: str = "relu"

    def __post_init__(self):
        check_choice("op", self.op, tuple(OPS))
        check_choice("activation", self.activation, ACTIVATIONS)

    @property
    def space(self) -> str:
        """The name of the space that places this block."""
        return "frostnet" if self == Bottleneck() else f"frostnet_{self.op}_{self.activation}"

    def save(self, path: str | Path, provenance: dict) -> None:
        """Write it as JSON, with where it came from."""
        write_json(path, {"format": FORMAT, "version": VERSION, **asdict(self), "provenance": provenance})

    @classmethod
    def load(cls, path: str | Path) -> "Bottleneck":
        """The bottleneck in a file that a search of the bottleneck space wrote.

        Raises UserError naming the file and the field.
        """
        data = read_json(path)
        try:
            check_format(data, FORMAT, VERSION, ("op", "activation", "provenance"))
            return cls(data["op"], data["activation"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


# ---- the spaces --------------------------------------------------------------------------------------------


def frostnet_space(
    width: float = 1.0,
    input_size: int = 224,
    num_classes: int = 1000,
    in_channels: int = 3,
    bottleneck: Bottleneck = Bottleneck(),
) -> SearchSpace:
    """The space whose members include every published FrostNet (arXiv:2006.09679, appendix tables), or the same around
    another block.

    Stage 0 is the fixed block without expansion; the other stages hold 23 slots of up to 8 candidates.
    """
    return _staged(bottleneck.space, width, input_size, num_classes, in_channels, partial(candidates, block=bottleneck))


def bottleneck_space(
    width: float = 1.0, input_size: int = 224, num_classes: int = 1000, in_channels: int = 3
) -> SearchSpace:
    """The space that finds the block: what is inside (INSIDES) x kernel x activation, the same in all slots, and
    depths.

    Where a slot's input leaves no room for a squeeze, it holds a plain inverted residual.
    """
    return _staged("bottleneck", width, input_size, num_classes, in_channels, _kinds, tied=True)


def _staged(
    name: str, width: float, input_size: int, num_classes: int, in_channels: int, fill: Callable, tied=False
) -> SearchSpace:
    """The stages of FrostNet, their slots filled by fill(in_channels, out_channels, stride)."""
    if not 0 < width <= 4:
        raise UserError(f"width: {width}, must be above 0 and at most 4")
    stem = frostnet_stem(width, input_size, in_channels)
    before = scaled(FIXED_CHANNELS, width)
    fixed = BlockSpec("mb", 3, stem.out_channels, before, 1, 1, 0, "relu")
    stages = [Stage((Slot((fixed,)),), 1)]
    for base, stride, count in STAGES:
        out = scaled(base, width)
        first = Slot(fill(before, out, stride))
        stages.append(Stage((first,) + (Slot(fill(out, out, 1)),) * (count - 1), 1))
        before = out
    return SearchSpace(name, width, input_size, stem, tuple(stages), frostnet_head(before, num_classes), tied)


def candidates(
    in_channels: int, out_channels: int, stride: int, block: Bottleneck = Bottleneck()
) -> tuple[BlockSpec, ...]:
    """k{3,5} x e{3,6} x r{2,4}, resolved, each distinct block once."""
    distinct = {}
    factors = SQUEEZE_FACTORS if OPS[block.op].squeezes else (0,)
    for kernel, expand, squeeze in itertools.product(KERNEL_SIZES, EXPAND_RATIOS, factors):
        spec = resolve(
            BlockSpec(block.op, kernel, in_channels, out_channels, stride, expand, squeeze, block.activation)
        )
        distinct.setdefault((kernel, expand, spec.squeeze_channels), spec)
    return tuple(distinct.values())


def _kinds(in_channels: int, out_channels: int, stride: int) -> tuple[BlockSpec, ...]:
    """Every kind of block, resolved; the same order in every slot."""
    return tuple(
        resolve(BlockSpec(op, kernel, in_channels, out_channels, stride, BOTTLENECK_EXPAND, squeeze, activation))
        for (op, squeeze), kernel, activation in itertools.product(INSIDES, KERNEL_SIZES, ACTIVATIONS)
    )


SPACES = {"frostnet": frostnet_space, "bottleneck": bottleneck_space} | {
    block.space: partial(frostnet_space, bottleneck=block)
    for block in itertools.starmap(Bottleneck, itertools.product(OPS, ACTIVATIONS))
    if block != Bottleneck()
}


def find_space(name: str) -> Callable[[float, int, int], SearchSpace]:
    """The function (width, input_size, num_classes) -> SearchSpace that a name means: one of SPACES, or
    `module:function`.

    A module is looked for in the working folder, too. Raises UserError.
    """
    if name in SPACES:
        return SPACES[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise UserError(f"space: {name!r}, must be one of {', '.join(SPACES)}, or module:function of your own")
    return imported_space(name, module, function)
