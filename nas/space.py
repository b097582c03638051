"""Search spaces: stages of slots, each slot a tuple of candidate blocks, each stage of variable depth.

A stage of depth d runs its first d slots. A `Choice` picks the depths and one candidate per slot; it stands for
exactly one `Architecture`. The shipped spaces are in nas.spaces.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Protocol, TypeVar

import torch

from common.errors import UserError
from nas.arch import Architecture, BlockSpec, HeadSpec, StemSpec, resolve, signature

T = TypeVar("T")


@dataclass(frozen=True)
class Slot:
    candidates: tuple[BlockSpec, ...]  # in a space that is not tied, no two of them build the same block


@dataclass(frozen=True)
class Stage:
    slots: tuple[Slot, ...]
    min_depth: int  # at least 1: there is no path around a stage


@dataclass(frozen=True)
class Choice:
    """`depths[stage]` slots run; `ops[stage][slot]` is a candidate's index, 0 in slots that do not run."""

    depths: tuple[int, ...]
    ops: tuple[tuple[int, ...], ...]


class Latencies(Protocol):
    """Milliseconds of every component of a space, calibrated: the latency of a network is the sum over its own."""

    stem_ms: float
    head_ms: float
    blocks: Sequence[Sequence[Sequence[float]]]  # [stage][slot][candidate]


@dataclass(frozen=True)
class SearchSpace:
    """Construction checks that every choice is a network. Raises UserError naming stage, slot and field.

    `tied`: every slot that has more than one candidate takes the same one, so that the space searches one block for
    the whole network. At least one of these slots runs in every network.
    """

    name: str
    width: float
    input_size: int
    stem: StemSpec
    stages: tuple[Stage, ...]
    head: HeadSpec
    tied: bool = False

    def __post_init__(self):
        try:
            _check(self)
        except UserError as error:
            raise UserError(f"space {self.name!r}: {error}") from error

    @property
    def tied_count(self) -> int:
        """How many candidates a tied space chooses from."""
        return max(len(slot.candidates) for stage in self.stages for slot in stage.slots)

    def restricted(self, candidate: int) -> "SearchSpace":
        """The networks of a tied space with one of its candidates everywhere; only depths are left to choose."""

        def one(slot):
            return slot if len(slot.candidates) == 1 else Slot((slot.candidates[candidate],))

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

        def candidate(stage: int, slot: int) -> int:
            return int(torch.randint(len(self.stages[stage].slots[slot].candidates), (), generator=generator))

        return self.choice(self.random_depths(generator), self.each_slot(candidate))

    def random_depths(self, generator: torch.Generator) -> tuple[int, ...]:
        """A uniform depth for every stage."""
        return tuple(
            int(torch.randint(stage.min_depth, len(stage.slots) + 1, (), generator=generator)) for stage in self.stages
        )

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
        return self.choice(
            choice.depths, [[candidate * (len(slot.candidates) > 1) for slot in stage.slots] for stage in self.stages]
        )

    def tied_candidate(self, choice: Choice) -> int:
        """The candidate that a choice of a tied space takes in all its slots; the inverse of `with_candidate`."""
        return max(op for ops in choice.ops for op in ops)  # 0 in slots that do not run or have one candidate

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


# ---- checks ------------------------------------------------------------------------------------------------


def _check(space: SearchSpace) -> None:
    for field, kind in (("stem", StemSpec), ("head", HeadSpec)):
        if not isinstance(getattr(space, field), kind):
            raise UserError(f"{field}: a {type(getattr(space, field)).__name__}, must be a nas.{kind.__name__}")
    _check_all("stages", space.stages, Stage)
    channels = space.stem.out_channels
    for i, stage in enumerate(space.stages):
        channels = _check_stage(f"stage {i}", stage, channels, space.tied)
    if space.head.in_channels != channels:
        raise UserError(f"head.in_channels: {space.head.in_channels}, must be {channels}, what the last stage gives")
    if space.tied:
        _check_tied(space.stages)
    deepest = space.choice(
        tuple(len(stage.slots) for stage in space.stages), [[0] * len(stage.slots) for stage in space.stages]
    )
    space.architecture(deepest)  # the input size and the number of blocks


def _check_all(place: str, items: tuple, kind: type) -> None:
    if not isinstance(items, tuple) or not all(isinstance(item, kind) for item in items):
        raise UserError(f"{place}: {items!r:.80}, must be a tuple of nas.{kind.__name__}")
    if not items:
        raise UserError(f"{place}: none, must be at least one")


def _check_stage(place: str, stage: Stage, channels: int, tied: bool) -> int:
    """Check a stage that is given `channels`; returns how many it gives."""
    _check_all(f"{place}: slots", stage.slots, Slot)
    if type(stage.min_depth) is not int or not 1 <= stage.min_depth <= len(stage.slots):
        raise UserError(
            f"{place}: min_depth: {stage.min_depth!r}, must be a whole number from 1 to {len(stage.slots)}, its slots"
        )
    for j, slot in enumerate(stage.slots):
        _check_slot(f"{place}, slot {j}", slot, channels, tied)
        first = slot.candidates[0]
        for field, kept in (("stride", 1), ("out_channels", channels)):
            if j > 0 and getattr(first, field) != kept:
                raise UserError(
                    f"{place}, slot {j}: {field}: {getattr(first, field)}, must be {kept}: a stage may end after any "
                    "slot, so only its first changes the shape; begin a new stage here"
                )
        channels = first.out_channels
    return channels


def _check_slot(place: str, slot: Slot, channels: int, tied: bool) -> None:
    _check_all(f"{place}: candidates", slot.candidates, BlockSpec)
    first, seen = slot.candidates[0], {}
    if first.in_channels != channels:
        raise UserError(f"{place}: in_channels: {first.in_channels}, must be {channels}, what comes out before it")
    for k, spec in enumerate(slot.candidates):
        for field in ("in_channels", "out_channels", "stride"):
            value, wanted = getattr(spec, field), getattr(first, field)
            if value != wanted:
                raise UserError(
                    f"{place}, candidate {k}: {field}: {value}, must be {wanted} as in candidate 0, which it can stand "
                    "in for"
                )
        if resolve(spec) != spec:
            raise UserError(
                f"{place}, candidate {k}: op: {spec.op!r}, but {spec} has no room for a squeeze; give nas.resolve of it"
            )
        built = (spec.op, spec.kernel_size, spec.expand_ratio, spec.squeeze_channels, spec.activation)
        if seen.setdefault(built, k) != k and not tied:
            raise UserError(
                f"{place}, candidate {k}: {spec} builds the same block as candidate {seen[built]}; give each block once"
            )


def _check_tied(stages: tuple[Stage, ...]) -> None:
    choices = [(j < stage.min_depth, len(slot.candidates)) for stage in stages for j, slot in enumerate(stage.slots)]
    choices = [(always_runs, count) for always_runs, count in choices if count > 1]
    counts = sorted({count for _, count in choices})
    if len(counts) != 1:
        raise UserError(f"tied, but its slots have {counts or 1} candidates; give all the same number, above 1")
    if not any(always_runs for always_runs, _ in choices):
        raise UserError(
            "tied, but a network may run none of the slots with a choice; raise the min_depth of a stage, so that one "
            "of them always runs"
        )
