"""Statistics against textbook numbers, limits, direct formulas and simulations."""

import math

import numpy as np
import pytest

from benchmarks.stats import (
    bootstrap_interval,
    kendall,
    paired_difference,
    spearman,
    standard_error,
    t_quantile,
    variance_components,
)

# Dyestuff: yield of six batches, five samples each (Davies 1947); REML by lme4: 1764.05 and 2451.25.
DYESTUFF = {
    "A": (1545, 1440, 1440, 1520, 1580),
    "B": (1540, 1555, 1490, 1560, 1495),
    "C": (1595, 1550, 1605, 1510, 1560),
    "D": (1445, 1440, 1595, 1465, 1545),
    "E": (1595, 1630, 1515, 1635, 1625),
    "F": (1520, 1455, 1450, 1480, 1445),
}
# Student 1908: hours of sleep gained with two drugs, ten patients; the difference is 1.58, t = 4.06.
DRUG_1 = dict(enumerate((0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)))
DRUG_2 = dict(enumerate((1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)))


def test_standard_error():
    assert standard_error([1, 2, 3, 4]) == pytest.approx(math.sqrt(5 / 3) / 2)
    assert standard_error([1.0]) is None and standard_error([2, 2]) == 0


# ---- paired differences ----


@pytest.mark.parametrize(
    "probability, freedom, expected",
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 3, 3.18245),
        (0.975, 4, 2.77645),
        (0.95, 7, 1.89458),
        (0.995, 10, 3.16927),
        (0.975, 30, 2.04227),
        (0.975, 120, 1.97993),
        (0.75, 1, 1.0),
        (0.05, 7, -1.89458),
        (0.5, 5, 0.0),
    ],
)
def test_t_quantiles_of_the_tables(probability, freedom, expected):
    assert t_quantile(probability, freedom) == pytest.approx(expected, abs=6e-5)


def test_t_quantile_refuses_what_has_none():
    for probability, freedom in ((0, 3), (1, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            t_quantile(probability, freedom)


def test_students_sleep_data():
    found = paired_difference(DRUG_2, DRUG_1)
    assert found.n == 10 and found.mean == pytest.approx(1.58)
    assert found.mean / found.error == pytest.approx(4.0621, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)  # t.test of R
    assert paired_difference(DRUG_1, DRUG_2).mean == -found.mean


def test_only_common_seeds_count():
    found = paired_difference({0: 1.0, 1: 2.0, 2: 9.0}, {1: 1.5, 0: 0.5, 3: 100.0})
    assert (found.n, found.mean, found.sd, found.error, found.low, found.high) == (2, 0.5, 0, 0, 0.5, 0.5)
    single = paired_difference({0: 1.0}, {0: 0.25, 1: 0.0})
    assert (single.n, single.mean, single.sd, single.error, single.low) == (1, 0.75, None, None, None)
    with pytest.raises(ValueError, match="no common seeds"):
        paired_difference({0: 1.0}, {1: 1.0})


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_t_intervals_cover_as_often_as_they_say(level):
    draws = np.random.default_rng(0).normal(2.0, 3.0, size=(2000, 3))
    zero = dict.fromkeys(range(3), 0.0)
    found = [paired_difference(dict(enumerate(row)), zero, level) for row in draws.tolist()]
    assert np.mean([f.low <= 2.0 <= f.high for f in found]) == pytest.approx(level, abs=0.025)


# ---- components of variance ----


def test_dyestuff():
    found = variance_components(DYESTUFF)
    assert found.between == pytest.approx(1764.05, rel=1e-5) and found.within == pytest.approx(2451.25, rel=1e-5)
    assert (found.mean, found.groups, found.values) == (pytest.approx(1527.5), 6, 30)
    assert found.reliability() == pytest.approx(1764.05 / 4215.3, rel=1e-4)
    assert found.reliability(5) == pytest.approx(1764.05 / (1764.05 + 2451.25 / 5), rel=1e-4)


def test_reml_of_a_balanced_layout_is_the_analysis_of_variance():
    values = np.random.default_rng(1).normal(size=(8, 4)) + np.arange(8)[:, None]
    found = variance_components(dict(enumerate(values)))
    within = values.var(axis=1, ddof=1).mean()
    assert found.within == pytest.approx(within, rel=1e-6)
    assert found.between == pytest.approx(values.mean(1).var(ddof=1) - within / 4, rel=1e-6)


def test_the_between_variance_is_not_negative():
    """Groups of equal means: analysis of variance gives -within / n; REML gives 0 and pools the rest."""
    found = variance_components({"a": [1.0, 3.0], "b": [3.0, 1.0], "c": [1.0, 3.0]})
    assert found.between == 0 and found.reliability() == 0
    assert found.within == pytest.approx(6 / 5)


def test_no_variance_within_or_none_at_all():
    found = variance_components({"a": [0.1, 0.1], "b": [0.3, 0.3, 0.3]})
    assert found.between == pytest.approx(0.02) and found.within == 0 and found.reliability() == 1
    assert variance_components({"a": [2.0, 2.0], "b": [2.0]}).reliability() == 0


def test_an_unbalanced_layout_is_at_the_maximum_of_the_dense_likelihood():
    """The same likelihood from its covariance matrix: -2 l = log|V| + log|1' V^-1 1| + r' V^-1 r."""
    generator = np.random.default_rng(2)
    groups = {g: generator.normal(generator.normal(0, 2), 1, size=n) for g, n in enumerate((1, 2, 2, 3, 5, 1, 4))}
    values = np.concatenate(list(groups.values()))
    same = np.equal.outer(*[np.repeat(list(groups), [len(v) for v in groups.values()])] * 2)

    def deviance(between, within):
        inverse = np.linalg.inv(covariance := within * np.eye(len(values)) + between * same)
        residual = values - (inverse @ values).sum() / inverse.sum()
        return np.linalg.slogdet(covariance)[1] + math.log(inverse.sum()) + residual @ inverse @ residual

    found = variance_components(groups)
    best = deviance(found.between, found.within)
    for step in (1e-3, 0.1):
        for a, b in ((1 + step, 1), (1 - step, 1), (1, 1 + step), (1, 1 - step), (1 + step, 1 - step)):
            assert deviance(a * found.between, b * found.within) > best


def test_components_are_unbiased_over_many_layouts():
    generator = np.random.default_rng(3)
    found = []
    for _ in range(150):
        true = generator.normal(0, 2.0, size=20)
        groups = {i: generator.normal(true[i], 1.0, size=1 + i % 3) for i in range(20)}
        found.append(variance_components(groups))
    assert np.mean([f.between for f in found]) == pytest.approx(4.0, rel=0.06)
    assert np.mean([f.within for f in found]) == pytest.approx(1.0, rel=0.06)


@pytest.mark.parametrize("groups", [{}, {"a": [1, 2]}, {"a": [1], "b": [2]}, {"a": [1, 2], "b": []}])
def test_too_small_a_layout(groups):
    with pytest.raises(ValueError, match="two groups, and two values"):
        variance_components(groups)


# ---- ranks and bootstrap ----


def test_rank_correlations():
    x = [1, 2, 3, 4, 5]
    assert spearman(x, [2, 4, 9, 16, 99]) == 1 and kendall(x, [9, 7, 5, 3, 1]) == -1
    assert spearman(x, [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert kendall(x, [2, 1, 4, 3, 5]) == pytest.approx((8 - 2) / 10)


def test_bootstrap_intervals_cover_as_often_as_they_say():
    generator = np.random.default_rng(4)
    found = [bootstrap_interval(np.mean, generator.normal(size=40), seed=i, level=0.9, draws=200) for i in range(200)]
    assert np.mean([low <= 0 <= high for low, high in found]) == pytest.approx(0.89, abs=0.04)


def test_a_bootstrap_over_networks_does_not_take_seeds_for_independent():
    """Ten seeds per network that all agree say no more than one seed each."""
    values = np.random.default_rng(5).normal(size=12)
    one = bootstrap_interval(np.mean, values)
    ten = bootstrap_interval(np.mean, np.repeat(values, 10), over=np.repeat(np.arange(12), 10).tolist())
    naive = bootstrap_interval(np.mean, np.repeat(values, 10))
    assert ten == pytest.approx(one) and naive[1] - naive[0] < 0.5 * (ten[1] - ten[0])


def test_a_bootstrap_is_reproducible_draws_pairs_and_skips_nan():
    x = np.arange(10.0)
    assert bootstrap_interval(spearman, x, x**3, seed=1) == (1.0, 1.0)
    first, again, other = (bootstrap_interval(np.mean, x, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    few = bootstrap_interval(lambda v: math.nan if v[0] == 0 else 1.0, x)
    assert few == (1.0, 1.0)


def test_a_bootstrap_refuses_what_it_cannot_draw():
    for arrays, over in ((([1, 2], [1]), None), (([1],), None), (([1, 2],), ["a", "a"])):
        with pytest.raises(ValueError, match="equal length and at least two groups"):
            bootstrap_interval(np.mean, *arrays, over=over)
