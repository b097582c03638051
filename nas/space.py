"""Search spaces: stages of slots, each slot a tuple of candidate blocks, each stage of variable depth.

A stage of depth d runs its first d slots. A `Choice` picks the depths and one candidate per slot; it stands for
exactly one `Architecture`. The shipped spaces are in nas.spaces.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch

from nas.arch import Architecture, BlockSpec, HeadSpec, StemSpec, signature
from nas.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Slot:
    candidates: tuple[BlockSpec, ...]  # in a space that is not tied, no two of them build the same block


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
    """`tied`: every slot with a choice takes the same one, so that the space searches one block for the whole network."""

    name: str
    width: float
    input_size: int
    stem: StemSpec
    stages: tuple[Stage, ...]
    head: HeadSpec
    tied: bool = False

    def __post_init__(self):
        counts = {len(slot.candidates) for stage in self.stages for slot in stage.slots} - {1}
        if self.tied and len(counts) != 1:
            raise UserError(f"space {self.name!r}: tied, but its slots have {sorted(counts)} candidates; give all the same number, above 1")

    @property
    def tied_count(self) -> int:
        """How many candidates a tied space chooses from."""
        return max(len(slot.candidates) for stage in self.stages for slot in stage.slots)

    def restricted(self, candidate: int) -> "SearchSpace":
        """The networks of a tied space with one of its candidates everywhere; only depths are left to choose."""
        one = lambda slot: slot if len(slot.candidates) == 1 else Slot((slot.candidates[candidate],))  # noqa: E731
        return replace(self, tied=False, stages=tuple(replace(s, slots=tuple(map(one, s.slots))) for s in self.stages))

    def each_slot(self, draw: Callable[[int, int], T]) -> list[list[T]]:
        """draw(stage, slot) for every slot, [stage][slot]; in a tied space once for all slots that have a choice."""
        shared: list[T] = []

        def value(stage: int, slot: int) -> T:
            if not self.tied or len(self.stages[stage].slots[slot].candidates) == 1:
                return draw(stage, slot)
            if not shared:
                shared.append(draw(stage, slot))
            return shared[0]

        return [[value(i, j) for j in range(len(stage.slots))] for i, stage in enumerate(self.stages)]

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
        return self.choice(depths, self.each_slot(lambda i, j: draw(0, len(self.stages[i].slots[j].candidates))))

    def choice(self, depths: tuple[int, ...], ops: list[list[int]]) -> Choice:
        """A choice from candidates of every slot, running or not."""
        running = [[op if i < depth else 0 for i, op in enumerate(row)] for depth, row in zip(depths, ops, strict=True)]
        return Choice(tuple(depths), tuple(map(tuple, running)))

    def choice_of(self, arch: Architecture) -> Choice:
        """A choice whose architecture has `arch`'s blocks. Raises UserError where the space does not hold it."""
        spaces = [self.restricted(i) for i in range(self.tied_count)] if self.tied else [self]
        for i, space in enumerate(spaces):
            rows = _fit(space.stages, arch.blocks)
            if rows is not None:
                ops = [list(row) + [0] * (len(stage.slots) - len(row)) for row, stage in zip(rows, space.stages)]
                return self.with_candidate(space.choice(tuple(map(len, rows)), ops), i)
        raise UserError(f"{arch.name}: its blocks are not in the space {self.name!r} at width {self.width}")

    def with_candidate(self, choice: Choice, candidate: int) -> Choice:
        """A choice of `restricted(candidate)` as one of this space; in a space that is not tied, the choice itself."""
        if not self.tied:
            return choice
        return self.choice(choice.depths, [[candidate * (len(slot.candidates) > 1) for slot in stage.slots] for stage in self.stages])

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
