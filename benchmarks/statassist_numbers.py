"""What the cells of the study of StatAssist and GradBoost say in numbers: means, paired differences and errors, what was lost.

Scores are kept as the tasks give them; a Metric says how they are shown and which way is better.
"""

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

SURE = 2.0  # standard errors from which on a difference is one
ENOUGH = 4  # columns that have all seeds, from which on they say what seeds do
NORMAL = 0.6745  # standard deviations that the median distance from the median is, of a normal distribution
LEARNED = 0.25  # see `fall`
LOST = 0.5  # share of its best score so far below which a network has lost what it had learned


class Metric(NamedTuple):
    words: str
    unit: str  # of a difference
    scale: float
    digits: int = 1
    sign: int = 1  # -1: less is better


METRICS = {
    "top1": Metric("top-1, %", "points", 100), "ap": Metric("AP, %", "points", 100), "miou": Metric("mIoU, %", "points", 100),
    "psnr": Metric("PSNR, dB", "dB", 1, 2), "ssim": Metric("SSIM", "of SSIM", 1, 3), "l1": Metric("L1", "of L1", 1, 4, -1),
}  # fmt: skip


def metric_of(result: dict, arm: str) -> Metric | None:
    """The metric that an arm is judged by; None before its first cell."""
    score = score_of(result, arm)
    return METRICS.get(score, Metric(score, "", 1, 4)) if score else None


def score_of(result: dict, arm: str) -> str | None:
    return next((c["score"] for c in result["cells"] if c["arm"] == arm and c["scores"] is not None), None)


def cells_of(result: dict, arm: str, column: str) -> list[dict]:
    return [c for c in result["cells"] if (c["arm"], c["column"]) == (arm, column)]


def judged(result: dict, arm: str, column: str) -> dict[int, dict]:
    """By seed the cells that did not diverge."""
    return {c["seed"]: c for c in cells_of(result, arm, column) if c["scores"] is not None}


def values(result: dict, arm: str, column: str) -> dict[int, float]:
    """Scores by seed, as they are shown."""
    scale = metric.scale if (metric := metric_of(result, arm)) else 1.0
    return {seed: scale * c["scores"][c["score"]] for seed, c in judged(result, arm, column).items()}


def seed_noise(result: dict, arm: str) -> float | None:
    """The standard deviation that chance gives a score beyond what it does to all columns of a seed alike; None below ENOUGH columns.

    Two or three numbers say little about their spread, all columns together more. With several seeds: of the scores less their seed's
    mean, the median over columns, so that one that fails says nothing about the others; the divisor turns the median of such spreads
    into what it is the median of (Wilson and Hilferty 1931). With one seed: how far the columns lie apart, by the median distance from
    their median; this holds what the ingredients do, too, so that it is rather too large.
    """
    found = {c["column"]: values(result, arm, c["column"]) for c in result["cells"] if c["arm"] == arm}
    seeds = {seed for scores in found.values() for seed in scores}
    whole = [scores for scores in found.values() if scores.keys() == seeds]
    if not seeds or len(whole) < ENOUGH:
        return None
    if len(seeds) == 1:
        scores = [value for column in whole for value in column.values()]
        middle = statistics.median(scores)
        return statistics.median(abs(value - middle) for value in scores) / NORMAL
    means = {seed: statistics.mean(scores[seed] for scores in whole) for seed in seeds}
    spreads = [statistics.stdev(scores[seed] - means[seed] for seed in seeds) for scores in whole]
    return statistics.median(spreads) / (1 - 2 / (9 * (len(seeds) - 1))) ** 1.5


def difference(result: dict, arm: str, one: str, other: str) -> dict | None:
    """How much better column `one` is than `other`, as shown: the mean over the seeds that both have, and its standard error.

    The error is made of the spread over seeds, paired (of this very difference or of the arm's seed noise, whichever is larger), and of
    that over groups of judged pictures, paired: both networks were shown the same ones.
    """
    a, b, metric = judged(result, arm, one), judged(result, arm, other), metric_of(result, arm)
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    better = metric.sign * metric.scale
    gaps = [better * (a[s]["scores"][a[s]["score"]] - b[s]["scores"][b[s]["score"]]) for s in seeds]
    by_seed = [zip(*(side[s]["groups"] for s in seeds)) for side in (a, b)]
    groups = [better * (statistics.mean(xs) - statistics.mean(ys)) for xs, ys in zip(*by_seed) if None not in (*xs, *ys)]
    own, pooled = _of_mean(gaps), (seed_noise(result, arm) or 0.0) * math.sqrt(2 / len(gaps))
    return {"mean": statistics.mean(gaps), "error": math.hypot(_of_mean(groups), max(own, pooled)), "own_error": own, "seeds": len(seeds)}


def _of_mean(found: list[float]) -> float:
    """The standard error of a mean; 0 for a single number."""
    return statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0


def together(result: dict, arms: Iterable[str], one: str, other: str) -> dict | None:
    """The mean of a difference over arms that are judged in percent and have it, each counting alike, and its standard error: what
    follows from those of the arms, or from how far the arms lie apart, whichever is larger."""
    some = [arm for arm in arms if (metric := metric_of(result, arm)) and metric.scale == 100]
    found = {arm: value for arm in some if (value := difference(result, arm, one, other)) is not None}
    if not found:
        return None
    means, inside = [v["mean"] for v in found.values()], math.sqrt(sum(v["error"] ** 2 for v in found.values())) / len(found)
    return {"mean": statistics.mean(means), "error": max(inside, _of_mean(means)), "arms": list(found)}


def verdict(value: dict) -> int:
    """1 where a difference is above the noise, -1 where it is below, 0 where nothing can be said."""
    return 0 if abs(value["mean"]) <= SURE * value["error"] else 1 if value["mean"] > 0 else -1


def fall(cell: dict) -> tuple[float, float] | None:
    """(best score so far, what it fell to): the deepest of the falls below LOST of it on a learning curve, if there is one.

    A best score below LEARNED of the whole curve's is not yet one to lose.
    """
    best, deepest = 0.0, None
    learned = LEARNED * max((score for _, score in cell["curve"]), default=0.0)
    for _, score in cell["curve"]:
        if best > learned and score < LOST * best and (deepest is None or score / best < deepest[1] / deepest[0]):
            deepest = (best, score)
        best = max(best, score)
    return deepest
