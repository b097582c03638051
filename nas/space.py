"""Search spaces: stages of slots, each slot a tuple of candidate blocks, each stage of variable depth.

A stage of depth d runs its first d slots. A `Choice` picks the depths and one candidate per slot; it stands for
exactly one `Architecture`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

import torch

from nas.arch import Architecture, BlockSpec, HeadSpec, StemSpec, resolve, round8, signature, stem_stride
from nas.errors import UserError

KERNEL_SIZES, EXPAND_RATIOS, SQUEEZE_FACTORS = (3, 5), (3, 6), (2, 4)
FIXED_CHANNELS = 16
STAGES = ((24, 2, 4), (40, 2, 4), (80, 2, 4), (96, 1, 5), (192, 2, 5), (320, 1, 1))  # out_channels, stride, slots
HEAD_CHANNELS = 1280  # not scaled by the width


@dataclass(frozen=True)
class Slot:
    candidates: tuple[BlockSpec, ...]  # no two of them build the same block


@dataclass(frozen=True)
class Stage:
    slots: tuple[Slot, ...]
    min_depth: int


@dataclass(frozen=True)
class Choice:
    """`depths[stage]` slots run; `ops[stage][slot]` is a candidate's index, 0 in slots that do not run."""

    depths: tuple[int, ...]
    ops: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class SearchSpace:
    name: str
    width: float
    input_size: int
    stem: StemSpec
    stages: tuple[Stage, ...]
    head: HeadSpec

    @cached_property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Spatial input size in pixels of every slot, [stage][slot]."""
        size, sizes = -(-self.input_size // self.stem.stride), []
        for stage in self.stages:
            row = []
            for slot in stage.slots:
                row.append(size)
                size = -(-size // slot.candidates[0].stride)
            sizes.append(tuple(row))
        return tuple(sizes)

    @property
    def head_size(self) -> int:
        """Spatial input size of the head in pixels. Only first slots have a stride, so depth does not change it."""
        last = self.stages[-1].slots[-1].candidates[0]
        return -(-self.sizes[-1][-1] // last.stride)

    def architecture(self, choice: Choice, name: str = "frostnet") -> Architecture:
        blocks = tuple(
            slot.candidates[op]
            for stage, depth, ops in zip(self.stages, choice.depths, choice.ops, strict=True)
            for slot, op in zip(stage.slots[:depth], ops)
        )
        return Architecture(name, self.input_size, self.stem, blocks, self.head)

    def random(self, generator: torch.Generator) -> Choice:
        """Uniform depth in every stage, uniform candidate in every slot that runs."""

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        depths = tuple(draw(stage.min_depth, len(stage.slots) + 1) for stage in self.stages)
        ops = tuple(
            tuple(draw(0, len(slot.candidates)) if i < depth else 0 for i, slot in enumerate(stage.slots))
            for stage, depth in zip(self.stages, depths)
        )
        return Choice(depths, ops)

    def choice_of(self, arch: Architecture) -> Choice:
        """A choice whose architecture has `arch`'s blocks. Raises UserError where the space does not hold it."""
        rows = _fit(self.stages, arch.blocks)
        if rows is None:
            raise UserError(f"{arch.name}: its blocks are not in the space {self.name!r} at width {self.width}")
        padded = tuple(row + (0,) * (len(stage.slots) - len(row)) for row, stage in zip(rows, self.stages))
        return Choice(tuple(map(len, rows)), padded)

    def specs(self) -> dict[str, tuple[StemSpec | BlockSpec | HeadSpec, int]]:
        """Every distinct part that the space can build: signature -> (spec, spatial input size in pixels)."""
        parts = [(self.stem, self.input_size)]
        for stage, sizes in zip(self.stages, self.sizes):
            parts += [(spec, size) for slot, size in zip(stage.slots, sizes) for spec in slot.candidates]
        parts.append((self.head, self.head_size))
        return {signature(spec, size): (spec, size) for spec, size in parts}

    def hash(self) -> str:
        """sha256 of the space as canonical JSON. The number of classes is left out: it changes only the classifier."""
        data = asdict(self)
        del data["head"]["num_classes"]
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _fit(stages: tuple[Stage, ...], blocks: tuple[BlockSpec, ...]) -> list[tuple[int, ...]] | None:
    """Candidate indices per stage that spell `blocks`, or None. Stages of equal width make it a search."""
    if not stages:
        return None if blocks else []
    first, ops = stages[0], []
    for depth in range(len(first.slots) + 1):
        if depth >= first.min_depth:
            rest = _fit(stages[1:], blocks[depth:])
            if rest is not None:
                return [tuple(ops), *rest]
        if depth == len(first.slots) or depth == len(blocks) or blocks[depth] not in first.slots[depth].candidates:
            return None
        ops.append(first.slots[depth].candidates.index(blocks[depth]))
    return None


# ---- the FrostNet space --------------------------------------------------------------------------------------


def scaled(channels: int, width: float) -> int:
    """Channels at a width multiplier, a multiple of 8."""
    return round8(int(channels * width))


def frostnet_stem(width: float, input_size: int, in_channels: int = 3) -> StemSpec:
    return StemSpec(in_channels, scaled(32, min(1.0, width)), 3, stem_stride(input_size), "relu")


def frostnet_head(in_channels: int, num_classes: int, dropout: float = 0.2) -> HeadSpec:
    return HeadSpec(in_channels, HEAD_CHANNELS, num_classes, dropout, "relu")


def candidates(in_channels: int, out_channels: int, stride: int) -> tuple[BlockSpec, ...]:
    """k{3,5} x e{3,6} x r{2,4}, resolved, each distinct block once."""
    distinct = {}
    for kernel in KERNEL_SIZES:
        for expand in EXPAND_RATIOS:
            for squeeze in SQUEEZE_FACTORS:
                raw = BlockSpec("frost", kernel, in_channels, out_channels, stride, expand, squeeze, "relu")
                spec = resolve(raw)
                distinct.setdefault((kernel, expand, spec.squeeze_channels), spec)
    return tuple(distinct.values())


def frostnet_space(width: float = 1.0, input_size: int = 224, num_classes: int = 1000, in_channels: int = 3) -> SearchSpace:
    """The space whose members include every published FrostNet (arXiv:2006.09679, appendix tables).

    Stage 0 is the fixed block without expansion; the other stages hold 23 slots of up to 8 candidates.
    """
    if not 0 < width <= 4:
        raise UserError(f"width: {width}, must be above 0 and at most 4")
    stem = frostnet_stem(width, input_size, in_channels)
    before = scaled(FIXED_CHANNELS, width)
    fixed = BlockSpec("mb", 3, stem.out_channels, before, 1, 1, 0, "relu")
    stages = [Stage((Slot((fixed,)),), 1)]
    for base, stride, count in STAGES:
        out = scaled(base, width)
        first = Slot(candidates(before, out, stride))
        stages.append(Stage((first,) + (Slot(candidates(out, out, 1)),) * (count - 1), 1))
        before = out
    head = frostnet_head(before, num_classes)
    return SearchSpace("frostnet", width, input_size, stem, tuple(stages), head)


SPACES = {"frostnet": frostnet_space}
