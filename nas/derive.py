"""From scores to networks: the whole front of latency against score, exactly.

Latencies are additive over stem, slots and head, and so are scores, so the best network under a target is a
multiple-choice knapsack. It is solved for all targets at once by dynamic programming over lists of partial
choices of which no other is both faster and better (Nemhauser and Ullmann, 1969).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from nas.space import Choice, Latencies, SearchSpace

Row = Sequence[float]


@dataclass(frozen=True)
class Scores:
    """Additive scores of a space; higher is better. The score of a network is the sum over its components.

    Attributes:
        ops: [stage][slot][candidate], added for every slot that runs; zeros in a tied space.
        depths: [stage][depth - min_depth], added once per stage.
        shared: [candidate] of a tied space, added once per network; None in other spaces.
    """

    ops: Sequence[Sequence[Row]]
    depths: Sequence[Row]
    shared: Row | None = None

    def combine(self, function: Callable[..., list[float]], *others: "Scores") -> "Scores":
        """Scores whose rows are function(row of these, row of the next, ..)."""
        several = (self, *others)
        ops = [
            [function(*rows) for rows in zip(*stages, strict=True)]
            for stages in zip(*(scores.ops for scores in several), strict=True)
        ]
        depths = [function(*rows) for rows in zip(*(scores.depths for scores in several), strict=True)]
        return Scores(ops, depths, function(*(scores.shared for scores in several)) if self.shared else None)


@dataclass(frozen=True)
class Point:
    """A network of the front: no network of the space is both faster and better."""

    latency_ms: float
    score: float
    choice: Choice


class _List(NamedTuple):
    """Partial choices, faster to slower and worse to better, with where each came from."""

    latency: np.ndarray
    score: np.ndarray
    parent: np.ndarray  # its index in the list before
    option: np.ndarray  # the candidate (or, at a stage's end, the depth) that was added


class _StageLists(NamedTuple):
    """`slots[i]` after the stage's slot i; `end` after its depth is settled."""

    slots: list[_List]
    end: _List


def front(space: SearchSpace, scores: Scores, latencies: Latencies, resolution: int = 20_000) -> list[Point]:
    """The best network for every target, exactly, from the fastest to the best-scoring.

    Args:
        space: The networks to choose from.
        scores: Scores of all candidates and depths.
        latencies: Milliseconds of all candidates.
        resolution: Exact while the lists of partial choices stay shorter than this. A longer list keeps the best
            entry of each bin of 1/`resolution` of the slowest network's latency, so that a point may be late by at
            most one bin per slot and stage. Latencies and scores of the points are true in any case.

    Returns:
        Points with strictly rising latency and strictly rising score.

    Raises:
        UserError: A score is not a finite number.
    """
    if space.tied:
        return _best_of(tied_fronts(space, scores, latencies, resolution))
    _check_scores(scores)
    return _knapsack(space, scores, latencies, resolution)


def tied_fronts(
    space: SearchSpace, scores: Scores, latencies: Latencies, resolution: int = 20_000
) -> list[list[Point]]:
    """The front of each candidate of a tied space; arguments as in `front`."""
    _check_scores(scores)
    fronts = []
    for i, shared in enumerate(scores.shared):
        one = Scores(_only(scores.ops, i), scores.depths)
        points = _knapsack(space.restricted(i), one, _restricted(latencies, i), resolution, shared)
        fronts.append([Point(p.latency_ms, p.score, space.with_candidate(p.choice, i)) for p in points])
    return fronts


class _Latencies(NamedTuple):
    stem_ms: float
    head_ms: float
    blocks: list[list[Row]]


def _restricted(latencies: Latencies, candidate: int) -> _Latencies:
    """The latencies of one candidate of a tied space."""
    return _Latencies(latencies.stem_ms, latencies.head_ms, _only(latencies.blocks, candidate))


def _only(rows: Sequence[Sequence[Row]], candidate: int) -> list[list[Row]]:
    """Of figures [stage][slot][candidate] those of one candidate of a tied space."""
    return [[list(row) if len(row) == 1 else [row[candidate]] for row in stage] for stage in rows]


def _best_of(fronts: list[list[Point]]) -> list[Point]:
    """The front of several fronts together."""
    kept: list[Point] = []
    for point in sorted(itertools.chain(*fronts), key=lambda p: (p.latency_ms, -p.score)):
        if not kept or point.score > kept[-1].score:
            kept.append(point)
    return kept


def latency_range(space: SearchSpace, latencies: Latencies) -> tuple[float, float]:
    """Milliseconds of the fastest and of the slowest network of the space."""
    if space.tied:
        ranges = [latency_range(space.restricted(i), _restricted(latencies, i)) for i in range(space.tied_count)]
        return min(low for low, _ in ranges), max(high for _, high in ranges)
    low = high = float(latencies.stem_ms + latencies.head_ms)
    for stage, ms in zip(space.stages, latencies.blocks, strict=True):
        low += min(sum(min(slot) for slot in ms[:d]) for d in range(stage.min_depth, len(stage.slots) + 1))
        high += max(sum(max(slot) for slot in ms[:d]) for d in range(stage.min_depth, len(stage.slots) + 1))
    return float(low), float(high)


def check_target(target_ms: float, fastest_ms: float, slowest_ms: float) -> None:
    """Raise UserError where no network is as fast as the target."""
    if not target_ms >= fastest_ms:  # not `<`: nan is no target either
        raise UserError(
            f"target_ms: {target_ms:g}, but networks of this space take {fastest_ms:.4g} to {slowest_ms:.4g} ms; "
            "choose a target in that range, or a narrower space"
        )


def best_under(points: Sequence[Point], target_ms: float, k: int = 1) -> list[Point]:
    """The `k` best-scoring points of a front at or under the target, best first. Raises UserError if there is none."""
    check_target(target_ms, points[0].latency_ms, points[-1].latency_ms)
    feasible = [point for point in points if point.latency_ms <= target_ms]
    return feasible[::-1][:k]


# ---- the dynamic programme ---------------------------------------------------------------------------------


def _knapsack(
    space: SearchSpace, scores: Scores, latencies: Latencies, resolution: int, start: float = 0.0
) -> list[Point]:
    """The front of a space that is not tied; every score begins at `start`."""
    bin_ms = latency_range(space, latencies)[1] / resolution
    current = _first(latencies.stem_ms + latencies.head_ms, start)
    history = []
    for stage, ops, depths, ms in zip(space.stages, scores.ops, scores.depths, latencies.blocks, strict=True):
        current, lists = _add_stage(current, stage.min_depth, ops, depths, ms, bin_ms, resolution)
        history.append(lists)
    return [
        Point(float(latency), float(score), choice)
        for latency, score, choice in zip(current.latency, current.score, _choices(history), strict=True)
    ]


def _first(latency_ms: float, score: float) -> _List:
    none = np.zeros(1, np.int64)
    return _List(np.array([latency_ms]), np.array([score], float), none, none)


def _add_stage(before, min_depth, op_scores, depth_scores, ms, bin_ms, resolution) -> tuple[_List, _StageLists]:
    """Choices up to the end of one more stage. Each depth is a separate list until the end, where they compete."""
    lists = [before]
    for slot_ms, slot_scores in zip(ms, op_scores, strict=True):
        options = [_shifted(lists[-1], t, s, i) for i, (t, s) in enumerate(zip(slot_ms, slot_scores, strict=True))]
        lists.append(_thin(_nondominated(options), bin_ms, resolution))
    ends = [
        _shifted(lists[depth], 0.0, score, depth)
        for depth, score in zip(range(min_depth, len(lists)), depth_scores, strict=True)
    ]
    end = _thin(_nondominated(ends), bin_ms, resolution)
    return end, _StageLists(lists[1:], end)


def _shifted(source: _List, latency: float, score: float, option: int) -> _List:
    count = len(source.latency)
    return _List(source.latency + latency, source.score + score, np.arange(count), np.full(count, option))


def _nondominated(lists: list[_List]) -> _List:
    """The union of the lists without what another entry equals or beats in both latency and score."""
    union = _List(*map(np.concatenate, zip(*lists)))
    order = np.lexsort((-union.score, union.latency))
    score = union.score[order]
    best_before = np.concatenate(([-np.inf], np.maximum.accumulate(score)[:-1]))
    return _take(union, order[score > best_before])


def _thin(entries: _List, bin_ms: float, resolution: int) -> _List:
    """Where a list is too long: the best, hence last, entry of each latency bin, and the fastest of all."""
    if len(entries.latency) <= resolution:
        return entries
    bins = (entries.latency / bin_ms).astype(np.int64)
    last_of_bin = np.append(bins[1:] != bins[:-1], True)
    last_of_bin[0] = True
    return _take(entries, np.flatnonzero(last_of_bin))


def _take(entries: _List, index: np.ndarray) -> _List:
    return _List(*(column[index] for column in entries))


def _choices(history: list[_StageLists]) -> list[Choice]:
    """The choices of the last list, read back through the parents, last stage first."""
    at = np.arange(len(history[-1].end.latency))
    depths, ops = [], []
    for stage in reversed(history):
        depth, at = stage.end.option[at], stage.end.parent[at]
        columns = np.zeros((len(at), len(stage.slots)), np.int64)  # slots that do not run stay 0
        for slot in reversed(range(len(stage.slots))):
            runs = depth > slot
            columns[runs, slot] = stage.slots[slot].option[at[runs]]
            at[runs] = stage.slots[slot].parent[at[runs]]
        depths.insert(0, depth.tolist())
        ops.insert(0, list(map(tuple, columns.tolist())))
    return [Choice(d, o) for d, o in zip(zip(*depths), zip(*ops), strict=True)]


def _check_scores(scores: Scores) -> None:
    named = [(f"stage {i}", [*slots, depths]) for i, (slots, depths) in enumerate(zip(scores.ops, scores.depths))]
    if scores.shared is not None:
        named.append(("the tied candidates", [scores.shared]))
    for name, rows in named:
        for row in rows:
            if not np.isfinite(np.asarray(row, float)).all():
                raise UserError(f"scores of {name}: {list(row)}, must be numbers: the search has diverged")
