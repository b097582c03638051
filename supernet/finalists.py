"""From trained alphas to the few networks worth a closer look, and the random networks that they must beat."""

from dataclasses import dataclass

from nas.derive import Point, best_under, tied_fronts
from nas.space import Choice, SearchSpace
from supernet.samplers import generator_for
from supernet.score import Scores

CONTROL_DRAWS = 2000
DISTANCE = 3


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


def finalists(space: SearchSpace, points: list[Point], scores: Scores, latency, target_ms: float, derived: int, controls: int,
              seed: int) -> list[Finalist]:  # fmt: skip
    """The best-scoring unlike networks of the front at or under the target, and random ones as close under it as chance allows.

    In a tied space the derived ones are the best network of every candidate that can meet the target.
    """
    if space.tied:
        fronts = tied_fronts(space, *scores, latency)
        best = [best_under(front, target_ms)[0] for front in fronts if front[0].latency_ms <= target_ms]
    else:
        best = unlike(best_under(points, target_ms, len(points)), derived)
    drawn = random_feasible(space, latency, target_ms, controls, seed)
    return [
        *(Finalist(f"derived_{i}", "derived", p.choice, p.latency_ms, p.score) for i, p in enumerate(best, 1)),
        *(Finalist(f"random_{i}", "random", c, path_latency(c, latency), path_score(c, scores, space)) for i, c in enumerate(drawn, 1)),
    ]


def unlike(points: list[Point], count: int) -> list[Point]:
    """The first `count` points, none within DISTANCE slots of an earlier one; neighbours on a front are one network with another hat."""
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
    feasible = [(path_latency(choice, latency), i, choice) for i, choice in enumerate(draws) if path_latency(choice, latency) <= target_ms]
    return [choice for *_, choice in sorted(feasible, reverse=True)[:count]]


def path_latency(choice: Choice, latency) -> float:
    """Predicted milliseconds of a choice."""
    blocks = (ms[op] for stage, d, ops in zip(latency.blocks, choice.depths, choice.ops, strict=True) for ms, op in zip(stage[:d], ops))
    return latency.stem_ms + latency.head_ms + sum(blocks)


def path_score(choice: Choice, scores: Scores, space: SearchSpace) -> float:
    """Score of a choice: its ops that run, and its depths."""
    ops = sum(row[op] for stage, d, picked in zip(scores[0], choice.depths, choice.ops, strict=True) for row, op in zip(stage[:d], picked))
    return ops + sum(row[d - stage.min_depth] for row, d, stage in zip(scores[1], choice.depths, space.stages, strict=True))
