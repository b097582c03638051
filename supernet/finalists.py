"""From trained alphas to the few networks worth a closer look, and the random networks that they must beat."""

import itertools
import statistics
from dataclasses import dataclass

from nas.derive import Point, best_under, front, latency_range, tied_fronts
from nas.space import Choice, SearchSpace
from supernet.samplers import generator_for
from supernet.score import Scores

CONTROL_DRAWS = 2000
DISTANCE = 3
FILLED = 0.97  # of a target: a network that takes less has not used what it was given
FIRST_PRICE = 0.25  # score that a block of ordinary latency gains by it
PRICES = 12  # each twice the one before


@dataclass
class Finalist:
    """A network that is re-scored and measured. kind: "derived" from the scores, or "random" as a control.

    inherited   top-1 in [0, 1] on held-out pictures under fake-quant, with the supernet's weights
    accuracy    the same after a few steps of its own
    measured_ms the whole network, frozen, on the engine
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
    latency,
    target_ms: float,
    derived: int,
    controls: int,
    seed: int,
) -> list[Finalist]:
    """The best-scoring unlike networks of the `fronts_for` a target, in turns, and random ones as close under it as
    chance allows.

    In a tied space the derived ones are the best network of every candidate that can meet the target.
    """
    if space.tied:
        best = [best_under(front, target_ms)[0] for front in fronts if front[0].latency_ms <= target_ms]
    else:
        ranked = [best_under(front, target_ms, len(front)) for front in fronts]
        best = unlike([p for turn in itertools.zip_longest(*ranked) for p in turn if p is not None], derived)
    drawn = random_feasible(space, latency, target_ms, controls, seed)
    choices = [("derived", point.choice) for point in best] + [("random", choice) for choice in drawn]
    numbers = {kind: itertools.count(1) for kind in ("derived", "random")}
    return [
        Finalist(
            f"{kind}_{next(numbers[kind])}",
            kind,
            choice,
            path_latency(choice, latency),
            path_score(choice, scores, space),
        )
        for kind, choice in choices
    ]


def fronts_for(space: SearchSpace, scores: Scores, latency, target_ms: float) -> list[list[Point]]:
    """Fronts of latency against score, the first by the scores alone, the last of networks that use the target.

    The alphas were trained under a price on latency, and a supernet that has trained briefly prefers what is small: the
    best score may belong to a network far below the target. What the target leaves costs nothing, so latency is given
    back a rising price, until the best network under the target uses FILLED of it. In a tied space: the front of every
    candidate, as scored.
    """
    if space.tied:
        return tied_fronts(space, *scores, latency)
    fronts = [front(space, *scores, latency)]
    price = FIRST_PRICE / _mean_ms(latency)
    while len(fronts) <= PRICES and best_under(fronts[-1], target_ms)[0].latency_ms < FILLED * min(
        target_ms, latency_range(space, latency)[1]
    ):
        fronts.append(front(space, *priced(scores, latency, price), latency))
        price *= 2
    return fronts


def priced(scores: Scores, latency, price: float) -> Scores:
    """Scores with `price` more for each millisecond of a candidate."""
    ops, depths = scores

    def add(row, ms):
        return [score + price * t for score, t in zip(row, ms, strict=True)]

    return [
        [add(row, ms) for row, ms in zip(rows, mss, strict=True)] for rows, mss in zip(ops, latency.blocks, strict=True)
    ], depths


def _mean_ms(latency) -> float:
    return statistics.mean(ms for stage in latency.blocks for slot in stage for ms in slot)


def unlike(points: list[Point], count: int) -> list[Point]:
    """The first `count` points, none within DISTANCE slots of an earlier one; neighbours on a front are one network
    with another hat.
    """
    kept: list[Point] = []
    for point in points:
        if len(kept) < count and all(distance(point.choice, other.choice) >= DISTANCE for other in kept):
            kept.append(point)
    return kept


def distance(a: Choice, b: Choice) -> int:
    """Slots in which two choices differ: in their candidate, or because only one of them runs the slot."""
    return sum(
        (i < da) != (i < db) or (i < da and x != y)
        for da, db, row_a, row_b in zip(a.depths, b.depths, a.ops, b.ops, strict=True)
        for i, (x, y) in enumerate(zip(row_a, row_b, strict=True))
    )


def random_feasible(space: SearchSpace, latency, target_ms: float, count: int, seed: int) -> list[Choice]:
    """Of CONTROL_DRAWS uniform draws, the `count` slowest that meet the target; fewer where chance found fewer."""
    generator = generator_for(seed, 4, 0)
    draws = {space.random(generator): None for _ in range(CONTROL_DRAWS)}
    feasible = [
        (path_latency(choice, latency), i, choice)
        for i, choice in enumerate(draws)
        if path_latency(choice, latency) <= target_ms
    ]
    return [choice for *_, choice in sorted(feasible, reverse=True)[:count]]


def path_latency(choice: Choice, latency) -> float:
    """Predicted milliseconds of a choice."""
    blocks = (
        ms[op]
        for stage, d, ops in zip(latency.blocks, choice.depths, choice.ops, strict=True)
        for ms, op in zip(stage[:d], ops)
    )
    return latency.stem_ms + latency.head_ms + sum(blocks)


def path_score(choice: Choice, scores: Scores, space: SearchSpace) -> float:
    """Score of a choice: its ops that run, and its depths."""
    ops = sum(
        row[op]
        for stage, d, picked in zip(scores[0], choice.depths, choice.ops, strict=True)
        for row, op in zip(stage[:d], picked)
    )
    return ops + sum(
        row[d - stage.min_depth] for row, d, stage in zip(scores[1], choice.depths, space.stages, strict=True)
    )
