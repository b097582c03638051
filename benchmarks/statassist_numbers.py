"""What the cells of the study of StatAssist and GradBoost say in numbers: means, paired differences and errors, what
was lost.

Scores are kept as the tasks give them; a Metric says how they are shown and which way is better.
"""

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from common.errors import UserError

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
    grouped: bool = True  # whether a few pictures can be judged as all of them are


METRICS = {
    "top1": Metric("top-1, %", "points", 100),
    "ap": Metric("AP, %", "points", 100),
    "miou": Metric("mIoU, %", "points", 100),
    "psnr": Metric("PSNR, dB", "dB", 1, 2),
    "ssim": Metric("SSIM", "of SSIM", 1, 3),
    "l1": Metric("L1", "of L1", 1, 4, -1),
    # of a few pictures it is biased: their covariance
    "distance": Metric("feature distance", "of distance", 1, 3, -1, grouped=False),
}


def metric_named(score: str) -> Metric:
    """What is known of a task's score.

    Raises UserError for one that nothing is known of: not even which way is better.
    """
    if score not in METRICS:
        raise UserError(f"score: {score!r} is not one of {', '.join(METRICS)}; say in METRICS which way it is better")
    return METRICS[score]


def metric_of(result: dict, arm: str) -> Metric | None:
    """The metric that an arm is judged by; None before its first cell."""
    score = score_of(result, arm)
    return metric_named(score) if score else None


def score_of(result: dict, arm: str) -> str | None:
    return next((c["score"] for c in result["cells"] if c["arm"] == arm and c["scores"] is not None), None)


def cells_of(result: dict, arm: str, column: str) -> list[dict]:
    return [c for c in result["cells"] if (c["arm"], c["column"]) == (arm, column)]


def judged(result: dict, arm: str, column: str) -> dict[int, dict]:
    """By seed the cells that did not diverge."""
    return {c["seed"]: c for c in cells_of(result, arm, column) if c["scores"] is not None}


def diverged(result: dict, arm: str, column: str) -> list[int]:
    """The seeds with which a column diverged."""
    return sorted(c["seed"] for c in cells_of(result, arm, column) if c["scores"] is None)


def values(result: dict, arm: str, column: str) -> dict[int, float]:
    """Scores by seed, as they are shown."""
    scale = metric.scale if (metric := metric_of(result, arm)) else 1.0
    return {seed: scale * c["scores"][c["score"]] for seed, c in judged(result, arm, column).items()}


def told_by(result: dict, arm: str) -> tuple[list[int], list[dict[int, float]]]:
    """What there is to learn about seeds from: some seeds, and by column the scores with all of these; no seeds below
    ENOUGH columns.

    Columns that are not computed with all seeds yet must not hide what the others say: seeds of too few columns are
    left out.
    """
    found = [
        values(result, arm, column) for column in dict.fromkeys(c["column"] for c in result["cells"] if c["arm"] == arm)
    ]
    count = {
        seed: sum(seed in scores for scores in found) for seed in sorted({seed for scores in found for seed in scores})
    }
    common = [seed for seed in count if count[seed] >= ENOUGH]
    for seeds in (common, sorted(common, key=lambda seed: -count[seed])[:1]):
        whole = [scores for scores in found if scores.keys() >= set(seeds)]
        if seeds and len(whole) >= ENOUGH:
            return seeds, [{seed: scores[seed] for seed in seeds} for scores in whole]
    return [], []


def seed_noise(result: dict, arm: str) -> float | None:
    """The standard deviation that chance gives a score beyond what it does to all columns of a seed alike; None below
    ENOUGH columns.

    Two or three numbers say little about their spread, all columns together more. With several seeds: of the scores
    less their seed's median, the median over columns, so that one that fails, with all seeds or with one, says nothing
    about the others; the divisor turns the median of such spreads into what it is the median of (Wilson and Hilferty
    1931). With one seed: how far the columns lie apart, by the median distance from their median; this holds what the
    ingredients do, too, so that it is rather too large.
    """
    seeds, whole = told_by(result, arm)
    if not seeds:
        return None
    middle = {seed: statistics.median(scores[seed] for scores in whole) for seed in seeds}
    if len(seeds) == 1:
        return statistics.median(abs(scores[seeds[0]] - middle[seeds[0]]) for scores in whole) / NORMAL
    spreads = [statistics.stdev(scores[seed] - middle[seed] for seed in seeds) for scores in whole]
    return statistics.median(spreads) / (1 - 2 / (9 * (len(seeds) - 1))) ** 1.5


def difference(result: dict, arm: str, one: str, other: str, only: Iterable[int] | None = None) -> dict | None:
    """How much better column `one` is than `other`, as shown: the mean over the seeds that both have, and its standard
    error.

    The error is made of the spread over seeds, paired (of this very difference or of the arm's seed noise, whichever is
    larger), and of that over groups of judged pictures, paired: both networks were shown the same ones. None where
    nothing tells what a seed does.
    only  the seeds to look at; None: all
    """
    a, b, metric = judged(result, arm, one), judged(result, arm, other), metric_of(result, arm)
    seeds = sorted(a.keys() & b.keys() & (a.keys() if only is None else set(only)))
    if not seeds:
        return None
    better = metric.sign * metric.scale
    gaps = [better * (a[s]["scores"][a[s]["score"]] - b[s]["scores"][b[s]["score"]]) for s in seeds]
    own, noise = _of_mean(gaps), seed_noise(result, arm)
    pooled = 0.0 if noise is None else noise * math.sqrt(2 / len(gaps))
    known = len(gaps) > 1 or noise is not None
    error = math.hypot(_of_mean(_by_group(metric, a, b, seeds)), max(own, pooled)) if known else None
    return {"mean": statistics.mean(gaps), "error": error, "own_error": own, "seeds": len(seeds)}


def _by_group(metric: Metric, a: dict[int, dict], b: dict[int, dict], seeds: list[int]) -> list[float]:
    """How much better the cells `a` are than `b` on each group of pictures, the mean over seeds; none where groups say
    nothing.
    """
    if not metric.grouped:
        return []
    by_seed = [zip(*(side[s]["groups"] for s in seeds)) for side in (a, b)]
    better = metric.sign * metric.scale
    return [better * (statistics.mean(xs) - statistics.mean(ys)) for xs, ys in zip(*by_seed) if None not in (*xs, *ys)]


def _of_mean(found: list[float]) -> float:
    """The standard error of a mean; 0 for a single number."""
    return statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0


def together(
    result: dict, arms: Iterable[str], one: str, other: str, only: dict[str, set[int]] | None = None
) -> dict | None:
    """The mean of a difference over arms that are judged in percent and have it, each counting alike, and its standard
    error: what follows from those of the arms, or from how far the arms lie apart, whichever is larger; None where one
    of the arms has none.
    only  by arm the seeds to look at; None: all
    """
    some = [arm for arm in arms if (metric := metric_of(result, arm)) and metric.scale == 100]
    found = {arm: difference(result, arm, one, other, only and only[arm]) for arm in some}
    found = {arm: value for arm, value in found.items() if value is not None}
    if not found:
        return None
    means, errors = [v["mean"] for v in found.values()], [v["error"] for v in found.values()]
    error = None if None in errors else max(math.hypot(*errors) / len(found), _of_mean(means))
    return {"mean": statistics.mean(means), "error": error, "arms": list(found)}


def verdict(value: dict) -> int:
    """1 where a difference is above the noise, -1 where it is below, 0 where nothing can be said."""
    return (
        0 if value["error"] is None or abs(value["mean"]) <= SURE * value["error"] else 1 if value["mean"] > 0 else -1
    )


def fall(cell: dict) -> tuple[float, float] | None:
    """(best score so far, what it fell to): the deepest of the falls below LOST of it on a learning curve, if there is
    one.

    A best score below LEARNED of the whole curve's is not yet one to lose.
    """
    best, deepest = 0.0, None
    learned = LEARNED * max((score for _, score in cell["curve"]), default=0.0)
    for _, score in cell["curve"]:
        if best > learned and score < LOST * best and (deepest is None or score / best < deepest[1] / deepest[0]):
            deepest = (best, score)
        best = max(best, score)
    return deepest
