"""Finalists: the derived networks that are worth a short training, and the random baselines that they must beat."""

import itertools
import statistics
from dataclasses import dataclass, replace

from nas.derive import Point, Scores, best_under, front, latency_range, tied_fronts
from nas.space import Choice, Latencies, SearchSpace
from supernet.samplers import generator_for

BASELINE_DRAWS = 2000
MIN_DISTANCE = 3  # slots in which two finalists differ at least
MIN_USED = 0.97  # of the target: a faster network has not used the latency that it was granted
FIRST_BONUS = 0.25  # score that a block of mean latency gains by the first latency bonus
MAX_BONUSES = 12  # each twice the one before


@dataclass
class Finalist:
    """A network that is evaluated and measured.

    Attributes:
        name: `kind` and a number.
        kind: "derived" from the scores, "random" as a baseline, or "pareto" for one of many targets.
        choice: The network as a choice of the space.
        latency_ms: Predicted by the latency table, milliseconds.
        score: Its score, higher is better.
        inherited: Top-1 in [0, 1] on held-out images under fake-quant, with the supernet's weights.
        accuracy: The same after a short training alone.
        measured_ms: Measured latency of the whole converted network on the engine, milliseconds.
    """

    name: str
    kind: str
    choice: Choice
    latency_ms: float
    score: float
    inherited: float | None = None
    accuracy: float | None = None
    measured_ms: float | None = None


def finalists(
    space: SearchSpace,
    fronts: list[list[Point]],
    scores: Scores,
    latency: Latencies,
    target_ms: float,
    derived: int,
    baselines: int,
    seed: int,
) -> list[Finalist]:
    """Networks to evaluate for a target: derived ones, then random baselines of nearly the target's latency.

    Args:
        space: The space.
        fronts: Fronts of latency against score, see `target_fronts`; they take turns at naming derived networks.
        scores: Scores of all candidates and depths.
        latency: Calibrated milliseconds of all candidates.
        target_ms: No finalist is predicted to be slower.
        derived: How many derived networks, any two MIN_DISTANCE slots apart. Of a tied space instead the best network
            of every candidate that can meet the target.
        baselines: How many random networks.
        seed: Of the random networks.
    """
    if space.tied:
        best = [best_under(front, target_ms)[0] for front in fronts if front[0].latency_ms <= target_ms]
    else:
        ranked = [best_under(front, target_ms, len(front)) for front in fronts]
        best = diverse([p for turn in itertools.zip_longest(*ranked) for p in turn if p is not None], derived)
    random = random_baselines(space, latency, target_ms, baselines, seed)
    return [
        finalist(kind, i, choice, space, scores, latency)
        for kind, choices in (("derived", [point.choice for point in best]), ("random", random))
        for i, choice in enumerate(choices, 1)
    ]


def finalist(
    kind: str, number: int, choice: Choice, space: SearchSpace, scores: Scores, latency: Latencies
) -> Finalist:
    """A choice as a finalist that has not been evaluated yet."""
    return Finalist(f"{kind}_{number}", kind, choice, path_latency(choice, latency), path_score(choice, scores, space))


# ---- derived networks --------------------------------------------------------------------------------------


def target_fronts(space: SearchSpace, scores: Scores, latency: Latencies, target_ms: float) -> list[list[Point]]:
    """Fronts of latency against score: the first by the scores alone, the last of networks that use the target.

    The alphas were trained under a penalty on latency, and a supernet that has trained briefly prefers small
    candidates: the network of the best score may be far faster than the target. Latency below the target costs nothing,
    so each further front adds a larger bonus per millisecond to the scores, until the best network under the target
    uses MIN_USED of it. In a tied space: the front of every candidate, without a bonus.
    """
    if space.tied:
        return tied_fronts(space, scores, latency)
    fronts = [front(space, scores, latency)]
    bonus = FIRST_BONUS / _mean_ms(latency)
    wanted_ms = MIN_USED * min(target_ms, latency_range(space, latency)[1])
    while len(fronts) <= MAX_BONUSES and best_under(fronts[-1], target_ms)[0].latency_ms < wanted_ms:
        fronts.append(front(space, with_latency_bonus(scores, latency, bonus), latency))
        bonus *= 2
    return fronts


def with_latency_bonus(scores: Scores, latency: Latencies, bonus: float) -> Scores:
    """Scores with `bonus` added for each millisecond of a candidate."""

    def add(row, ms):
        return [score + bonus * t for score, t in zip(row, ms, strict=True)]

    ops = [
        [add(row, ms) for row, ms in zip(rows, ms_rows, strict=True)]
        for rows, ms_rows in zip(scores.ops, latency.blocks, strict=True)
    ]
    return replace(scores, ops=ops)


def _mean_ms(latency: Latencies) -> float:
    return statistics.mean(ms for stage in latency.blocks for slot in stage for ms in slot)


def diverse(points: list[Point], count: int) -> list[Point]:
    """The first `count` points, without those closer than MIN_DISTANCE to an earlier one.

    Neighbours on a front are nearly the same network.
    """
    kept: list[Point] = []
    for point in points:
        if len(kept) < count and all(distance(point.choice, other.choice) >= MIN_DISTANCE for other in kept):
            kept.append(point)
    return kept


def distance(a: Choice, b: Choice) -> int:
    """Slots in which two choices differ (Hamming distance): in their candidate, or in whether they run."""
    return sum(
        (i < da) != (i < db) or (i < da and x != y)
        for da, db, row_a, row_b in zip(a.depths, b.depths, a.ops, b.ops, strict=True)
        for i, (x, y) in enumerate(zip(row_a, row_b, strict=True))
    )


# ---- random networks ---------------------------------------------------------------------------------------


def random_baselines(space: SearchSpace, latency: Latencies, target_ms: float, count: int, seed: int) -> list[Choice]:
    """Of BASELINE_DRAWS uniform draws the `count` slowest that meet the target; fewer where fewer do."""
    generator = generator_for(seed, 4, 0)
    draws = {space.random(generator): None for _ in range(BASELINE_DRAWS)}
    feasible = [
        (path_latency(choice, latency), i, choice)
        for i, choice in enumerate(draws)
        if path_latency(choice, latency) <= target_ms
    ]
    return [choice for *_, choice in sorted(feasible, reverse=True)[:count]]


# ---- figures of one network --------------------------------------------------------------------------------


def path_latency(choice: Choice, latency: Latencies) -> float:
    """Predicted milliseconds of a choice."""
    blocks = (
        ms[op]
        for stage, d, ops in zip(latency.blocks, choice.depths, choice.ops, strict=True)
        for ms, op in zip(stage[:d], ops)
    )
    return latency.stem_ms + latency.head_ms + sum(blocks)


def path_score(choice: Choice, scores: Scores, space: SearchSpace) -> float:
    """Score of a choice: its candidates in the slots that run, its depths, and its shared candidate in a tied space."""
    shared = scores.shared[space.tied_candidate(choice)] if space.tied else 0.0
    ops = sum(
        row[op]
        for stage, d, picked in zip(scores.ops, choice.depths, choice.ops, strict=True)
        for row, op in zip(stage[:d], picked)
    )
    depths = sum(
        row[d - stage.min_depth] for row, d, stage in zip(scores.depths, choice.depths, space.stages, strict=True)
    )
    return shared + ops + depths
