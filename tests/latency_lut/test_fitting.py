"""Ratio and error figures: known answers, invariances, a reference."""

import math

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_lut.fitting import calibrate, fit_ratio, kendall, prediction_errors, spearman, split

VALUES = st.lists(st.integers(1, 50).map(float), min_size=3, max_size=12)
PAIRS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=15)


@given(VALUES, st.floats(0.3, 3))
def test_an_exact_ratio_is_recovered(sums, ratio):
    assert fit_ratio(sums, [ratio * s for s in sums]) == pytest.approx(ratio)


def test_the_ratio_weighs_relative_errors_alike():
    assert fit_ratio([1.0, 100.0], [2.0, 50.0]) == pytest.approx(1.0)  # twice too low and twice too high


def test_the_ratio_does_not_follow_a_network_that_was_never_quiet():
    assert fit_ratio([1.0, 2.0, 3.0], [1.1, 2.2, 30.0]) == pytest.approx(1.1)


def test_what_each_part_pays_and_a_network_once_is_taken_out():
    entries = {"a": 1.5, "b": 2.5}  # each with a call of half a millisecond
    networks = {f"n{i}": ("a" + i * "b", 1.2 * (1.5 + i * 2.0)) for i in range(6)}
    ratio, _, figures = calibrate(entries, networks, call=0.5)
    assert ratio == pytest.approx(1.2) and figures["mape"] == pytest.approx(0)
    assert calibrate(entries, networks)[2]["mape"] > 0.01


def test_perfect_predictions_have_no_error():
    figures = prediction_errors([1.0, 2.0, 4.0], [1.0, 2.0, 4.0])
    assert figures == {
        "networks": 3,
        "bias": 0,
        "mape": 0,
        "rmse_ms": 0,
        "within_5": 1,
        "within_10": 1,
        "spearman": pytest.approx(1),
        "kendall": 1,
    }


def test_errors_are_relative_to_what_was_measured():
    figures = prediction_errors([1.08, 1.84, 4.12, 8.0], [1.0, 2.0, 4.0, 10.0])  # +8 %, -8 %, +3 %, -20 %
    assert figures["bias"] == pytest.approx(-0.0425)
    assert figures["mape"] == pytest.approx(0.0975)
    assert figures["rmse_ms"] == pytest.approx(math.sqrt((0.0064 + 0.0256 + 0.0144 + 4) / 4))
    assert (figures["within_5"], figures["within_10"]) == (0.25, 0.75)


@given(PAIRS)
def test_spearman_equals_that_of_pandas(pairs):
    x, y = zip(*pairs)
    if len(set(x)) > 1 and len(set(y)) > 1:
        reference = pandas.DataFrame({"x": x, "y": y}).corr(method="spearman").iloc[0, 1]
        assert spearman(x, y) == pytest.approx(reference)


@given(PAIRS)
def test_kendall_counts_pairs(pairs):
    x, y = zip(*pairs)
    agree = sum((x[i] - x[j]) * (y[i] - y[j]) > 0 for i in range(len(x)) for j in range(i))
    differ = sum((x[i] - x[j]) * (y[i] - y[j]) < 0 for i in range(len(x)) for j in range(i))
    untied = [sum(v[i] != v[j] for i in range(len(v)) for j in range(i)) for v in (x, y)]
    expected = (agree - differ) / math.sqrt(untied[0] * untied[1]) if all(untied) else 0.0
    assert kendall(x, y) == pytest.approx(expected)


@pytest.mark.parametrize("correlation", [spearman, kendall])
@given(values=st.lists(st.integers(1, 1000), min_size=2, max_size=10, unique=True))
def test_rank_correlations_see_only_the_order(correlation, values):
    assert correlation(values, [math.log(v) for v in values]) == pytest.approx(1)
    assert correlation(values, [-v for v in values]) == pytest.approx(-1)
    assert correlation(values, [1.0] * len(values)) == 0


@given(st.integers(2, 60))
def test_a_third_fits_and_the_rest_is_held_out(count):
    names = [str(i) for i in range(count)]
    fit, held_out = split(names)
    assert sorted(fit + held_out) == sorted(names) and len(fit) == (count + 1) // 3
    assert fit and held_out


def test_networks_that_are_sums_times_a_ratio_calibrate_without_error():
    entries = {"a": 1.0, "b": 2.0, "c": 4.0}
    networks = {
        f"n{i}": (parts, 1.1 * sum(entries[p] for p in parts))
        for i, parts in enumerate(("ab", "bc", "abc", "aabc", "ccb", "cccb"))
    }
    ratio, fit, figures = calibrate(entries, networks)
    assert ratio == pytest.approx(1.1) and fit == ["n1", "n4"]
    assert figures["networks"] == 4 and figures["mape"] == pytest.approx(0) and figures["spearman"] == pytest.approx(1)


def test_the_held_out_networks_do_not_move_the_ratio():
    entries = {"a": 1.0}
    honest = {f"n{i}": ("a" * (i + 1), 1.2 * (i + 1)) for i in range(6)}
    wild = {**honest, "n0": ("a", 50.0), "n5": ("aaaaaa", 0.1)}
    assert calibrate(entries, wild)[0] == calibrate(entries, honest)[0] == pytest.approx(1.2)
    assert calibrate(entries, wild)[2]["mape"] > 0.5
