"""Curves show the numbers of a log, by kind."""

import pytest

from nas.report.curves import curves_figure
from tests.nas.report.pages import texts

ROWS = [
    {"step": i, "phase": "float" if i < 5 else "qat", "loss": 2.0 - 0.1 * i, "expected_ms": 3.0, "target_ms": 2.5}
    for i in range(10)
]


def _lines(figure):
    return {line.get_label(): line for ax in figure.axes for line in ax.lines}


def test_curves_show_the_logs_numbers_by_kind():
    figure = curves_figure([*ROWS, {"step": 10, "top1": 0.5}, {"step": 20, "top1": 0.6}])
    assert [ax.get_title("left") for ax in figure.axes if ax.lines] == ["loss", "accuracy", "latency (ms)"]
    lines = _lines(figure)
    assert list(lines["loss"].get_ydata()) == [row["loss"] for row in ROWS]
    assert list(lines["top1"].get_xdata()) == [10, 20]


def test_phases_are_named_and_the_target_is_dashed():
    figure = curves_figure(ROWS)
    assert {"float", "qat"} <= set(texts(figure))
    assert _lines(figure)["target_ms"].get_linestyle() == "--"


def test_a_long_curve_is_drawn_with_its_running_mean():
    figure = curves_figure([{"step": i, "loss": float(i % 2)} for i in range(1000)])
    assert _lines(figure)["loss"].get_ydata() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "rows", [[], [{"note": "x"}], [{"step": 1, "loss": None}], [{"loss": 1.0}], [{"step": 1, "ok": True}]]
)
def test_a_log_without_numbers_has_no_curves(rows):
    assert curves_figure(rows) is None
