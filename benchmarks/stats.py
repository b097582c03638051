"""Statistics of studies: paired differences, components of variance, bootstrap intervals, rank correlations."""

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latency_lut.fitting import kendall, spearman

__all__ = [
    "PairedDifference",
    "VarianceComponents",
    "bootstrap_interval",
    "kendall",
    "paired_difference",
    "spearman",
    "standard_error",
    "t_quantile",
    "variance_components",
]


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values; None for a single one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


# ---- paired differences ----


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences. With one pair, `sd`, `error` and the interval are None."""

    mean: float
    sd: float | None
    error: float | None  # standard error of the mean
    n: int
    low: float | None  # of the t interval
    high: float | None


def paired_difference(
    a: Mapping[Hashable, float], b: Mapping[Hashable, float], level: float = 0.95
) -> PairedDifference:
    """How much larger `a` is than `b` in the mean, paired by key.

    Args:
        a: Values by seed.
        b: Values by seed, too. Only seeds that both have count.
        level: Of the t interval, which assumes differences that are independent and normal.

    Raises:
        ValueError: If there is no common seed.
    """
    common = [key for key in a if key in b]
    if not common:
        raise ValueError(f"no common seeds: {list(a)} and {list(b)}")
    gaps = [a[key] - b[key] for key in common]
    mean, error = statistics.mean(gaps), standard_error(gaps)
    if error is None:
        return PairedDifference(mean, None, None, 1, None, None)
    half = t_quantile((1 + level) / 2, len(gaps) - 1) * error
    return PairedDifference(mean, statistics.stdev(gaps), error, len(gaps), mean - half, mean + half)


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution for a whole number of degrees of freedom."""
    if not 0 < probability < 1 or freedom < 1:
        raise ValueError(f"probability {probability} must lie between 0 and 1, freedom {freedom} must be at least 1")
    low, high, inside = 0.0, math.pi / 2, abs(2 * probability - 1)
    for _ in range(60):  # bisection down to the precision of a float
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, freedom) < inside else (low, middle)
    return math.copysign(math.sqrt(freedom) * math.tan((low + high) / 2), probability - 0.5)


def _t_inside(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)): the finite sums 26.7.3 and 26.7.4 of Abramowitz and Stegun."""
    sine, cosine, odd = math.sin(angle), math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= (k - 1) / k * cosine**2
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


# ---- components of variance ----


@dataclass(frozen=True)
class VarianceComponents:
    """Of values that differ between groups (networks) and within them (seeds)."""

    mean: float  # of the groups, weighted by how well each is known
    between: float  # variance of the groups' true means
    within: float  # variance of the values of one group
    groups: int
    values: int

    def reliability(self, n: int = 1) -> float:
        """The share of the variance of a group's mean over `n` values that the groups make (intraclass correlation)."""
        total = self.between + self.within / n
        return self.between / total if total else 0.0


def variance_components(groups: Mapping[Hashable, Sequence[float]]) -> VarianceComponents:
    """Restricted maximum likelihood (REML) of a one-way layout with random groups, which need not be of equal size.

    Args:
        groups: The values of each group: of each network, one per seed.

    Raises:
        ValueError: If there are not two groups, or no group has two values.
    """
    layout = [np.asarray(values, float) for values in groups.values() if len(values)]
    sizes, means = np.array([len(v) for v in layout]), np.array([v.mean() for v in layout])
    count = int(sizes.sum()) if len(layout) else 0
    if len(layout) < 2 or count == len(layout):
        raise ValueError("components of variance need two groups, and two values in one of them")
    squares = float(sum(((v - v.mean()) ** 2).sum() for v in layout))  # within the groups
    if squares <= 1e-24 * float((np.concatenate(layout) ** 2).sum()):  # but for rounding the groups do not vary
        return VarianceComponents(float(means.mean()), float(means.var(ddof=1)), 0.0, len(layout), count)
    ratio = _reml_ratio(sizes, means, squares)
    mean, residual = (float(v[0]) for v in _profile(np.array([ratio]), sizes, means, squares))
    within = residual / (count - 1)
    return VarianceComponents(mean, ratio * within, within, len(layout), count)


def _reml_ratio(sizes: np.ndarray, means: np.ndarray, squares: float) -> float:
    """between / within at the maximum of the restricted likelihood: 0, or by grids that become finer."""

    def deviances(ratios: np.ndarray) -> np.ndarray:
        """-2 log of the likelihood, maximized over the mean and the within variance, up to a constant."""
        weights = sizes / (1 + sizes * ratios[:, None])
        residual = _profile(ratios, sizes, means, squares)[1]
        spread = np.log1p(sizes * ratios[:, None]).sum(1)
        return (sizes.sum() - 1) * np.log(residual) + spread + np.log(weights.sum(1))

    center, width = 0.0, 12.0  # of log10(ratio)
    for _ in range(12):
        grid = np.linspace(center - width, center + width, 121)
        center, width = float(grid[deviances(10**grid).argmin()]), width / 20
    best, none = deviances(np.array([10**center, 0.0]))
    return 10**center if best < none else 0.0


def _profile(ratios: np.ndarray, sizes: np.ndarray, means: np.ndarray, squares: float) -> tuple[np.ndarray, np.ndarray]:
    """(means, sums of weighted squares), each at every ratio of the variances."""
    weights = sizes / (1 + sizes * ratios[:, None])
    mean = (weights * means).sum(1) / weights.sum(1)
    return mean, squares + (weights * (means - mean[:, None]) ** 2).sum(1)


# ---- bootstrap ----


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: Sequence[float],
    seed: int = 0,
    level: float = 0.95,
    over: Sequence[Hashable] | None = None,
    draws: int = 2000,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic of paired arrays.

    Args:
        statistic: A function of as many arrays as are given.
        arrays: Of equal length; entries at one position belong together and are drawn together.
        seed: Of the draws.
        level: Of the interval.
        over: The group of each entry, such as its network. Whole groups are drawn, so that seeds of one network do
            not count as independent. None: each entry is drawn alone.
        draws: How often the statistic is computed. Draws of which it is NaN are left out.

    Raises:
        ValueError: If the lengths differ, or there are not two groups.
    """
    data = [np.asarray(array) for array in arrays]
    labels = list(range(len(data[0]))) if over is None else list(over)
    if any(len(array) != len(labels) for array in data) or len(set(labels)) < 2:
        raise ValueError("a bootstrap needs arrays of equal length and at least two groups")
    members: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    groups, generator = [np.array(m) for m in members.values()], np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        drawn = np.concatenate([groups[g] for g in generator.integers(len(groups), size=len(groups))])
        found.append(statistic(*(array[drawn] for array in data)))
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
