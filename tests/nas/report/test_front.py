"""The front with its target and choice, and predictions against measurements."""

import pytest

from nas.report.front import front_figure, prediction_errors, prediction_figure
from tests.nas.report.pages import FRONT


def _legend(ax):
    return ax.get_legend_handles_labels()[1]


def test_the_front_shows_target_choice_and_control():
    left, right = front_figure(FRONT).axes
    assert list(left.lines[0].get_xdata()) == [1.0, 3.0]
    assert {"front, 2 networks", "chosen: a", "target 3 ms"} <= set(_legend(left))
    assert {"derived", "random", "chosen: a", "target 3 ms"} <= set(_legend(right))
    assert right.get_xlabel() == "measured latency (ms)"


def test_one_network_without_a_measurement_falls_back_to_predictions_for_all():
    networks = [dict(n, measured_ms=None) if n["name"] == "b" else n for n in FRONT["networks"]]
    assert front_figure({**FRONT, "networks": networks}).axes[1].get_xlabel() == "predicted latency (ms)"


def test_a_front_without_judged_networks_is_one_panel():
    assert len(front_figure({"points": FRONT["points"]}).axes) == 1


def test_a_front_of_20_000_networks_is_thinned_but_keeps_its_ends():
    points = [{"latency_ms": 1.0 + i, "score": float(i)} for i in range(20_000)]
    ax = front_figure({"points": points}).axes[0]
    x = ax.lines[0].get_xdata()
    assert len(x) <= 600 and (x[0], x[-1]) == (1.0, 20_000.0)
    assert "front, 20,000 networks" in _legend(ax)


def test_networks_without_names_and_a_front_without_a_choice_are_drawn():
    assert front_figure({"networks": [{"latency_ms": 1.0, "score": 1.0}]}).axes


MEASURED = {
    "networks": [
        {"name": "a", "latency_ms": 1.05, "measured_ms": 1.0},
        {"name": "b", "latency_ms": 1.9, "measured_ms": 2.0},
    ]
}


def test_prediction_errors_are_relative_to_what_was_measured():
    assert prediction_errors(MEASURED) == pytest.approx([0.05, -0.05])


def test_predictions_are_drawn_over_measurements_with_the_diagonal_and_its_band():
    ax = prediction_figure(MEASURED).axes[0]
    assert ax.collections[1].get_offsets().tolist() == [[1.0, 1.05], [2.0, 1.9]]
    (diagonal,) = ax.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == list(ax.get_xlim()) == list(ax.get_ylim())
    low, high = diagonal.get_xdata()
    corners = {tuple(xy) for xy in ax.collections[0].get_paths()[0].vertices}
    assert {(low, low * 0.95), (high, high * 1.05)} <= corners


@pytest.mark.parametrize("data", [{}, {"networks": [{"latency_ms": 1.0}, {"latency_ms": 1.0, "measured_ms": 0}]}])
def test_without_measurements_there_is_no_such_picture(data):
    assert prediction_figure(data) is None
