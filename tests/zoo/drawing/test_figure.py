"""Figures in which everything can be seen: no overlaps, nothing behind a box."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

import quant
from quant import QuantConfig
from quant.attach.graph_pass import trace
from tests.strategies import examples
from tests.zoo.graphs import DEMO, example_images, flow_of, flows, shared_model
from zoo.drawing import graph_figure
from zoo.drawing.figure import draw
from zoo.drawing.layout import layout, rows_of
from zoo.drawing.style import COLOURS

CASES = [
    ("preact_resnet18", DEMO, None, 16),
    ("resnet18", QuantConfig(), "layer1.1.bn2", 14),
    ("mobilenet_v3_small", QuantConfig(weight="dorefa:3"), "features.4.block.2.avgpool", 12),
    ("shufflenet_v2_x1_0", QuantConfig(), None, 30),
    ("frostnet_small_0_5", QuantConfig(), "blocks.5.squeeze.conv", 20),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0])
def figure(request):
    name, config, start, count = request.param
    model = shared_model(name)
    figure = graph_figure(trace(model), quant.attach(model, example_images(), config), "title", start, count)
    FigureCanvasAgg(figure)
    return figure


@pytest.fixture(scope="module")
def texts(figure):
    """(x0, y0, x1, y1) of every text, in inches."""
    found = [text.get_window_extent(figure.canvas.get_renderer()) for text in figure.axes[0].texts if text.get_text()]
    extents = np.array([box.transformed(figure.axes[0].transData.inverted()).extents for box in found])
    return np.hstack([np.minimum(extents[:, :2], extents[:, 2:]), np.maximum(extents[:, :2], extents[:, 2:])])


def _boxes(figure):
    """(x0, y0, x1, y1) of every box, in inches."""
    boxes = [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    return np.array([[p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()] for p in boxes])


def _overlaps(a, b, slack):
    return (np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2]) > slack).all(-1)


def test_boxes_do_not_overlap(figure):
    boxes = _boxes(figure)
    assert (_overlaps(boxes, boxes, 1e-6) == np.eye(len(boxes), dtype=bool)).all()


def _inside(points, boxes, margin):
    """(points, boxes): whether a point lies in a box and `margin` inches away from its border."""
    return ((points[:, None] > boxes[None, :, :2] + margin) & (points[:, None] < boxes[None, :, 2:] - margin)).all(-1)


def _check_lines(figure):
    """Every line runs from one box to another and behind none."""
    boxes = _boxes(figure)
    lines = [p.get_path() for p in figure.axes[0].patches if not isinstance(p, Rectangle)]
    assert lines
    for line in lines:
        at_box = _inside(line.vertices, boxes, -0.03)
        assert at_box[0].any() and at_box[1:].any(0)[~at_box[0]].any()
        corners = np.concatenate(line.to_polygons(closed_only=False))
        points = np.concatenate([a + (b - a) * np.linspace(0, 1, 30)[:, None] for a, b in zip(corners, corners[1:])])
        assert not _inside(points, boxes, 0.01).any()


def test_lines_run_behind_no_box(figure):
    _check_lines(figure)


@examples(20)
@given(flows())
@example(flow_of([(0, 1), (1, 2), (2, 3), (2, 5), (3, 4), (3, 6)]))  # 3 -> 6 bends right above the box in which it ends
def test_lines_run_behind_no_box_in_any_graph(flow):
    _check_lines(draw([[layout(flow, rows_of(flow, {}))]], "any"))


def test_texts_do_not_overlap_and_stay_on_the_page(figure, texts):
    assert (_overlaps(texts, texts, 0) == np.eye(len(texts), dtype=bool)).all()
    assert (texts >= 0).all() and (texts[:, 2:] <= figure.get_size_inches()).all()


def test_texts_stay_in_their_boxes(figure, texts):
    boxes = _boxes(figure)
    text, box = np.nonzero(_inside((texts[:, :2] + texts[:, 2:]) / 2, boxes, 0))
    assert len(text) > len(boxes) / 2
    assert (texts[text, 0] >= boxes[box, 0]).all() and (texts[text, 2] <= boxes[box, 2]).all()


def _coloured(figure, kind):
    return [
        p for p in figure.axes[0].patches if isinstance(p, Rectangle) and to_hex(p.get_facecolor()) == COLOURS[kind]
    ]


def test_the_whole_network_is_pictured_with_each_quantizer_and_weight_once(demo):
    figure = graph_figure(*demo, "demo")
    legend = 1
    assert len(_coloured(figure, "quantizer")) == 22 + 18 + legend
    assert len(_coloured(figure, "weight")) == 22 + legend
    assert len(_coloured(figure, "conv")) == 2 * 21 + legend
    texts = Counter(text.get_text() for text in figure.axes[0].texts)
    assert texts["int8:8"] == 22 + 18 and texts["512×256×1×1"] == 1
    assert all(texts[name] >= 2 for name in ("conv0", "stage4.1.conv2", "stage2.0.shortcut", "fc"))


def test_before_and_after_stand_on_the_same_rows(demo):
    figure = graph_figure(*demo, "demo", None, 20)
    heights = {}
    for text in figure.axes[0].texts:
        heights.setdefault(text.get_text(), []).append(text.get_position()[1])
    for name in ("conv0", "stage1.0.conv2", "stage1.0.shortcut"):
        first, second = heights[name]
        assert first == second


def test_a_part_says_what_it_hangs_on(demo):
    texts = [text.get_text() for text in graph_figure(*demo, "demo", "stage2.0.bn1", 7).axes[0].texts]
    assert texts.count("from") == 2 and texts.count("stage1.1.add") == 2
    assert texts.count("to") == 4 and "stage2.0.shortcut" in texts and "bn_data" not in texts


def test_an_unknown_start_is_refused(demo):
    with pytest.raises(quant.QuantError, match="from: no node is called 'stage9'"):
        graph_figure(*demo, "demo", "stage9", 3)
