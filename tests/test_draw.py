"""Pictures are true to scale, say what they show, and keep no global state."""

import matplotlib
import pytest
from matplotlib.patches import FancyBboxPatch

from frostnet import architecture
from nas.cost import cost
from nas.draw import architecture_figure, curves_figure, front_figure, save

NET = architecture("small", 0.5, 10, 32)
NAMES = [row.name for row in cost(NET).rows]


def _boxes(figure):
    return [p.get_width() for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)]


def _texts(figure):
    return [t.get_text() for ax in figure.axes for t in ax.texts]


def test_boxes_are_as_long_as_their_latency():
    ms = {name: 0.1 * (i + 1) for i, name in enumerate(NAMES)}
    boxes = _boxes(architecture_figure(NET, ms))
    assert [box / boxes[0] for box in boxes] == pytest.approx([i + 1 for i in range(len(NAMES))])


@pytest.mark.parametrize("ms", [1e-4, 1.0, 1e3])
def test_the_longest_box_fits_the_page_whatever_the_unit(ms):
    boxes = _boxes(architecture_figure(NET, dict.fromkeys(NAMES, ms)))
    assert boxes == pytest.approx([4.0] * len(NAMES))


def test_without_latencies_boxes_are_as_long_as_their_macs():
    boxes = _boxes(architecture_figure(NET))
    macs = [row.macs for row in cost(NET).rows]
    assert [box / max(boxes) for box in boxes] == pytest.approx([m / max(macs) for m in macs], abs=0.01)


def test_every_block_is_labelled():
    texts = _texts(architecture_figure(NET))
    for block in NET.blocks:
        assert f"{block.op} {block.kernel_size}×{block.kernel_size}" in texts
        assert f"{block.in_channels} → {block.out_channels}" in texts
    assert texts.count("residual") == sum(block.residual for block in NET.blocks)
    assert any("frostnet_small_0_5" in text for text in texts)


def test_each_resolution_is_written_once():
    sizes = [text for text in _texts(architecture_figure(NET)) if text.endswith(" px")]
    assert sizes == ["32 px", "16 px", "8 px", "4 px", "2 px"]


ROWS = [{"step": i, "phase": "float" if i < 5 else "qat", "loss": 2.0 - 0.1 * i, "expected_ms": 3.0, "target_ms": 2.5} for i in range(10)]


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
    assert {"float", "qat"} <= set(_texts(figure))
    assert _lines(figure)["target_ms"].get_linestyle() == "--"


def test_a_long_curve_is_drawn_with_its_running_mean():
    figure = curves_figure([{"step": i, "loss": float(i % 2)} for i in range(1000)])
    assert _lines(figure)["loss"].get_ydata() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("rows", [[], [{"note": "x"}], [{"step": 1, "loss": None}], [{"loss": 1.0}], [{"step": 1, "ok": True}]])
def test_a_log_without_numbers_has_no_curves(rows):
    assert curves_figure(rows) is None


FRONT = {
    "target_ms": 3.0,
    "chosen": "a",
    "points": [{"latency_ms": 1.0, "score": 1.0}, {"latency_ms": 3.0, "score": 2.0}],
    "networks": [
        {"name": "a", "kind": "derived", "latency_ms": 3.0, "score": 2.0, "measured_ms": 2.9, "accuracy": 0.6},
        {"name": "b", "kind": "random", "latency_ms": 2.8, "measured_ms": 2.7, "accuracy": 0.5},
    ],
}


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


def test_a_figure_is_saved_as_png_and_no_global_figure_is_left(tmp_path):
    save(architecture_figure(NET), tmp_path / "figures" / "a.png")
    assert (tmp_path / "figures" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not matplotlib._pylab_helpers.Gcf.get_all_fig_managers()
