"""Pictures are true to scale, say what they show, and keep no global state."""

import re

import matplotlib
import pytest
from matplotlib.patches import FancyBboxPatch

from common.errors import UserError
from frostnet import architecture
from nas import Architecture, BlockSpec, HeadSpec, StemSpec
from nas.cost import cost
from nas.report.architecture import architecture_figure, full_name, text_drawing, words
from nas.report.curves import curves_figure
from nas.report.front import front_figure, prediction_errors, prediction_figure
from nas.report.style import FILLS, inline_svg, save

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
    assert boxes == pytest.approx([3.4] * len(NAMES))


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


def _every_op() -> Architecture:
    """One block of each op, the last with another activation."""

    def block(op, squeeze, act="relu"):
        return BlockSpec(op, 5, 32, 32, 1, 3, squeeze, act)

    blocks = (block("mb", 0), block("frost", 4), block("se", 4), block("add", 2, "hard_swish"))
    return Architecture("every_op", 32, StemSpec(3, 32, 3, 1, "relu"), blocks, HeadSpec(32, 64, 10, 0, "relu"))


def test_each_op_has_a_colour_of_its_own():
    boxes = [p for p in architecture_figure(_every_op()).axes[0].patches if isinstance(p, FancyBboxPatch)]
    colours = [matplotlib.colors.to_hex(box.get_facecolor()) for box in boxes]
    assert colours == [FILLS[op] for op in ("ends", "mb", "frost", "se", "add", "ends")] and len(set(colours)) == 5


def test_blocks_in_words():
    blocks = _every_op().blocks
    assert [full_name(b) for b in blocks] == [
        "mb 5×5 e3",
        "frost 5×5 e3 r4",
        "se 5×5 e3 r4",
        "add 5×5 hard_swish e3 r2",
    ]
    assert [words(b).squeeze for b in blocks] == ["", "+8  (r4)", "24  (r4)", "16  (r2)"]
    assert [words(b).hidden for b in blocks] == ["96  (e3)", "120  (e3)", "96  (e3)", "96  (e3)"]
    assert {words(b).stride for b in blocks} == {"residual"}


def test_the_text_drawing_has_a_line_a_part_and_can_be_ascii():
    arch = _every_op()
    lines = text_drawing(arch).splitlines()
    assert len(lines) == 6 and "add 5×5 hard_swish e3 r2" in lines[4] and lines[0].startswith("   32 px  stem 3×3")
    assert max(line.count("█") for line in lines) == 40
    plain = text_drawing(arch, unicode=False)
    assert plain.isascii() and plain.splitlines()[0].count("#") == lines[0].count("█")


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
    assert {"float", "qat"} <= set(_texts(figure))
    assert _lines(figure)["target_ms"].get_linestyle() == "--"


def test_a_long_curve_is_drawn_with_its_running_mean():
    figure = curves_figure([{"step": i, "loss": float(i % 2)} for i in range(1000)])
    assert _lines(figure)["loss"].get_ydata() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "rows", [[], [{"note": "x"}], [{"step": 1, "loss": None}], [{"loss": 1.0}], [{"step": 1, "ok": True}]]
)
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


def test_an_inline_svg_keeps_its_ids_apart_and_its_text_as_text():
    one, two = (inline_svg(front_figure(FRONT), name, "a <front>") for name in ("one", "two"))
    assert one.startswith('<svg class="plot" role="img" aria-label="a &lt;front&gt;"') and one.rstrip().endswith(
        "</svg>"
    )
    ids = [set(re.findall(' id="([^"]*)"', svg)) for svg in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    assert ">target 3 ms</text>" in one
    assert inline_svg(front_figure(FRONT), "one", "a <front>") == one


def test_a_figure_is_saved_as_svg_where_the_name_says_so(tmp_path):
    save(architecture_figure(NET), tmp_path / "a.SVG")
    assert "<svg" in (tmp_path / "a.SVG").read_text()
    with pytest.raises(UserError, match=r"picture: '.*a\.pdf', must end in \.png or \.svg"):
        save(architecture_figure(NET), tmp_path / "a.pdf")


def test_a_figure_is_saved_as_png_and_no_global_figure_is_left(tmp_path):
    save(architecture_figure(NET), tmp_path / "figures" / "a.png")
    assert (tmp_path / "figures" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not matplotlib._pylab_helpers.Gcf.get_all_fig_managers()
