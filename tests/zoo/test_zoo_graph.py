"""python -m zoo graph: what gets a quantizer and why not, and pictures in which everything can be seen."""

import json
import re
from collections import Counter
from copy import deepcopy
from functools import cache

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

import quant
import zoo
from quant import QuantConfig
from quant.attach.graph_pass import trace
from zoo.__main__ import GraphConfig, counts, main, table
from zoo.drawing import COLOURS, as_dot, as_json, cuts, draw, graph_figure, layout, network, rows_of
from zoo.generators import build

SIZE = 32
CHOSEN = ("conv", "linear", "deconv")
DEMO = QuantConfig(op_types=CHOSEN)


@cache
def _model(name="preact_resnet18"):
    """Shared by the tests: quantizers are attached to graphs of it, it stays as it is."""
    torch.manual_seed(0)
    return zoo.build(name, 10, SIZE).eval()


def _images():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def _plan(config, name="preact_resnet18"):
    return quant.plan(_model(name), _images(), config)


# ---- what gets a quantizer ---------------------------------------------------------------------------------


def test_the_ancestors_network_has_its_operations():
    ops = Counter(row.op for row in _plan(DEMO))
    assert [ops[kind] for kind in ("conv", "linear", "batch_norm", "relu", "add", "pool")] == [21, 1, 19, 18, 8, 2]


def test_the_ancestors_placement():
    assert counts(_plan(DEMO)) == "22 weight quantizers, 18 activation quantizers, 4 of them shared by several layers"


def test_the_shared_quantizers_are_those_of_each_stages_first_relu():
    readers = Counter(row.reads for row in _plan(DEMO) if row.reads)
    assert [name for name, number in readers.items() if number == 2] == [
        f"stage{i}.0.relu1_quant" for i in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize(
    ("config", "weights", "activations", "shared"),
    [
        (QuantConfig(op_types=("conv",)), 21, 17, 4),
        (QuantConfig(op_types=("linear",)), 1, 1, 0),
        (QuantConfig(op_types=(*CHOSEN, "add", "pool", "cat")), 22, 36, 4),  # 16 sums' inputs and 2 poolings' more
        (QuantConfig(op_types=CHOSEN, skip_first={"conv": 1}, skip_last={"linear": 1}), 20, 16, 4),
        (QuantConfig(op_types=CHOSEN, skip_first={"conv": 2}), 20, 17, 3),  # the first ReLU's still serves the shortcut
        (QuantConfig(op_types=CHOSEN, skip_first={"conv": 99}), 1, 1, 0),
        (QuantConfig(op_types=CHOSEN, skip_last={"conv": 99}), 1, 1, 0),
        (QuantConfig(op_types=CHOSEN, ignore=("stage4.*",)), 17, 14, 3),
        (QuantConfig(op_types=CHOSEN, overrides=(quant.Override("*shortcut", "float", "float"),)), 18, 18, 0),
        (QuantConfig(op_types=CHOSEN, overrides=(quant.Override("*shortcut", activation="pact:4"),)), 22, 22, 0),
    ],
)
def test_rules_change_the_counts(config, weights, activations, shared):
    expected = (
        f"{weights} weight quantizers, {activations} activation quantizers, {shared} of them shared by several layers"
    )
    assert counts(_plan(config)) == expected


MIXED = QuantConfig(op_types=CHOSEN, skip_first={"conv": 3}, weight="dorefa:3", activation="pact:4")
PAIRS = [
    ("preact_resnet18", DEMO),
    ("resnet20", MIXED),
    ("mobilenet_v3_small", QuantConfig()),
    ("resnet20", QuantConfig(share=(("stage1.*.relu2", "relu"),))),
]


@pytest.mark.parametrize(("name", "config"), PAIRS)
def test_a_dry_run_decides_what_attach_does(name, config):
    rows, graph = _plan(config, name), quant.attach(_model(name), _images(), config)
    assert rows == graph.plan_rows
    weights, activations = (int(n) for n in re.findall(r"(\d+) \w+ quantizers", counts(rows)))
    assert len(quant.quantizers_of(graph)) == weights + activations
    assert sum(hasattr(module, "weight_quant") for module in graph.modules()) == weights


@pytest.mark.parametrize(("name", "config"), PAIRS)
def test_with_all_quantizers_off_the_outputs_are_the_float_models_bit_for_bit(name, config):
    model, images = deepcopy(_model(name)), _images()
    graph = quant.attach(model, images, config)
    quant.set_mode(graph, observe=False, fake_quant=False)
    assert torch.equal(graph(images), model(images))
    quant.set_mode(graph, observe=True, fake_quant=True)
    graph.train()(images)
    assert not torch.equal(graph.eval()(images), model.eval()(images))


@pytest.mark.parametrize("config", [DEMO, MIXED, QuantConfig()])
def test_every_node_without_a_quantizer_says_why(config):
    for row in _plan(config, "mobilenet_v3_small"):
        assert row.weight or row.output or row.reason, row


# ---- pictures: a graph laid out ----------------------------------------------------------------------------


ADD = {"kind": "add", "title": "add"}
CONV = {"kind": "conv", "title": "conv 3×3", "weight": "64×64×3×3", "weight_quantizer": "int8:8"}
QUANTIZER = {"kind": "quantizer", "title": "int8:8"}


def _flow(edges, attributes=()):
    """A graph of nodes 0, 1, .., additions unless their attributes say otherwise."""
    flow = nx.DiGraph(edges)
    for n, at in flow.nodes(data=True):
        at |= (attributes[n] if attributes else ADD) | {"name": f"block{n}"}
    return flow


@st.composite
def flows(draw):
    """A directed graph without cycles."""
    attributes = draw(st.lists(st.sampled_from([ADD, CONV, QUANTIZER]), min_size=2, max_size=14))
    readers = range(1, len(attributes))
    return _flow(
        [(a, b) for b in readers for a in draw(st.sets(st.integers(0, b - 1), min_size=1, max_size=3))], attributes
    )


@settings(max_examples=40, deadline=None)
@given(flows())
def test_no_two_boxes_and_no_two_tensors_share_a_place(flow):
    rows = rows_of(flow, {})
    plan = layout(flow, rows)
    boxes = [(plan.lanes[n], rows[n]) for n in flow]
    assert len(set(boxes)) == len(flow)
    lines = {(plan.via[a, b], row, a) for a, b in flow.edges for row in range(rows[a] + 1, rows[b])}
    assert not {(lane, row) for lane, row, _ in lines} & set(boxes)
    assert len({(lane, row) for lane, row, _ in lines}) == len(lines)


@settings(max_examples=40, deadline=None)
@given(flows())
def test_rows_follow_the_longest_path_which_keeps_the_first_lane(flow):
    rows = rows_of(flow, {})
    assert all(rows[a] < rows[b] for a, b in flow.edges)
    assert max(rows.values()) + 1 == nx.dag_longest_path_length(flow) + 1
    lanes = layout(flow, rows).lanes
    assert {rows[n] for n in flow if lanes[n] == 0} >= set(range(max(rows.values()) + 1))


@settings(max_examples=40, deadline=None)
@given(flows(), st.integers(2, 6))
def test_columns_cover_all_rows_once(flow, most):
    rows = rows_of(flow, {})
    edges = cuts(flow, rows, most)
    assert edges == sorted(set(edges)) and edges[0] == 0 and edges[-1] == max(rows.values()) + 1


def test_a_chain_of_blocks_is_cut_between_them():
    """Between blocks one tensor crosses, inside them two."""
    flow = _flow([edge for i in range(0, 12, 3) for edge in [(i, i + 1), (i + 1, i + 2), (i + 2, i + 3), (i, i + 3)]])
    assert cuts(flow, rows_of(flow, {}), 7)[1] % 3 == 1


def test_a_constant_stands_just_above_its_first_reader():
    flow = _flow([(0, 1), (1, 2), (2, 3), (4, 2), (4, 3)])
    flow.nodes[4]["kind"] = "get_attr"
    assert rows_of(flow, {}) == {0: 0, 1: 1, 2: 2, 3: 3, 4: 1}


# ---- pictures: as drawn ------------------------------------------------------------------------------------

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
    model = _model(name)
    figure = graph_figure(trace(model), quant.attach(model, _images(), config), "title", start, count)
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


@settings(max_examples=20, deadline=None)
@given(flows())
@example(_flow([(0, 1), (1, 2), (2, 3), (2, 5), (3, 4), (3, 6)]))  # 3 -> 6 bends right above the box in which it ends
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


@pytest.fixture(scope="module")
def demo():
    model = _model()
    return trace(model), quant.attach(model, _images(), DEMO)


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


def test_json_holds_the_graph_and_the_shared_quantizers(demo):
    data = json.loads(json.dumps(as_json(demo[1])))
    ids = {node["id"] for node in data["nodes"]}
    assert {end for edge in data["edges"] for end in edge} == ids
    kinds = Counter(q["kind"] for q in data["quantizers"])
    assert kinds == {"weight": 22, "activation": 18}
    assert [len(q["read_by"]) for q in data["quantizers"]].count(2) == 4


def test_dot_has_every_node_and_edge(demo):
    flow, text = network(demo[1]), as_dot(demo[1])
    assert text.startswith("digraph") and text.count("{") == text.count("}") == 1
    assert text.count(" -> ") == flow.number_of_edges() + 2 * 22
    assert text.count("fillcolor=") == flow.number_of_nodes() + 2 * 22
    assert text.count(f'fillcolor="{COLOURS["quantizer"]}", fontcolor=white') == 22 + 18


# ---- the program -------------------------------------------------------------------------------------------


def _run(*argv):
    main(["graph", "--input-size", str(SIZE), "--classes", "10", *map(str, argv)])


@pytest.fixture
def demo_file(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"op_types": list(CHOSEN), "skip_first": {"conv": 1}, "ignore": ["fc"]}))
    return path


def test_a_dry_run_prints_every_node_with_its_quantizer_or_the_reason_and_writes_nothing(demo_file, tmp_path, capsys):
    _run("--model", "preact_resnet18", "--settings", demo_file, "--dry-run")
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["node", "op", "weight", "gradient", "reads", "makes", "reason"]
    assert len(lines) == 1 + len(_plan(DEMO))
    words = {line.split()[0]: line for line in lines}
    assert words["conv0"].endswith("skip_first conv: 1") and words["fc"].endswith("ignored by 'fc'")
    assert words["stage1.0.conv2"].split() == ["stage1.0.conv2", "conv", "int8:8", ".", "stage1.0.relu2_quant", "."]
    assert last == "20 weight quantizers, 16 activation quantizers, 4 of them shared by several layers"
    assert list(tmp_path.iterdir()) == [demo_file]


def test_without_a_dry_run_the_same_is_printed_and_files_are_written(demo_file, tmp_path, capsys):
    arguments = ("--model", "resnet20", "--settings", demo_file)
    _run(*arguments, "--dry-run")
    dry = capsys.readouterr().out
    files = [tmp_path / f"g.{kind}" for kind in ("png", "dot", "json")]
    _run(*arguments, "--picture", files[0], "--nodes", 12, "--dot", files[1], "--json", files[2])
    assert capsys.readouterr().out == dry
    assert files[0].read_bytes().startswith(b"\x89PNG") and files[1].read_text().startswith("digraph")
    data = json.loads(files[2].read_text())
    assert data["settings"]["skip_first"] == {"conv": 1} and data["model"] == "resnet20"
    assert [row["name"] for row in data["rows"]] == [row.name for row in _plan(DEMO, "resnet20")]


def test_a_dry_run_can_be_pictured(tmp_path):
    _run("--model", "resnet20", "--dry-run", "--picture", tmp_path / "g.png", "--from", "stage1.0.conv1", "--nodes", 6)
    assert [path.name for path in tmp_path.iterdir()] == ["g.png"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "resnet19"], "arch: 'resnet19'"),
        (["--model", "resnet20", "--settings", "none.json"], "none.json: cannot be read"),
        (["--model", "resnet20", "--dry-run", "--dot", "g.dot"], "--dry-run: nothing is attached"),
        (["--model", "resnet20", "--from", "conv"], "add --picture"),
        (["--model", "resnet20", "--picture", "g.svg"], "must end in .png"),
        (
            ["--model", "resnet20", "--picture", "g.png", "--from", "stage9", "--input-size", "32"],
            "no node is called 'stage9'",
        ),
        (["--model", "resnet20", "--input-size", "0"], "input_size: 0, must be a whole number from 1 to 100000"),
        (["--model", "resnet20", "--classes", "x"], "invalid int value: 'x'"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["graph", *argv])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_list_names_what_can_be_built(capsys):
    main(["list"])
    names = capsys.readouterr().out.split()
    assert {"resnet20", "preact_resnet18", "mobilenet_v2", "frostnet_small_0_5"} <= set(names)


def test_the_table_keeps_its_columns_apart():
    rows = [
        quant.PlanRow("a" * 30, "conv", "int8", "", "", "", "", ""),
        quant.PlanRow("b", "add", "", "", "", "", "", "because"),
    ]
    assert [len(line.split()) for line in table(rows).splitlines()] == [7, 6, 7]


# ---- generators --------------------------------------------------------------------------------------------


def test_the_list_names_generators_and_discriminators_with_their_norms(capsys):
    main(["list"])
    *_, generators, discriminators = capsys.readouterr().out.splitlines()
    assert (
        "resnet_6blocks, resnet_9blocks, unet_128, unet_256, frost_generator; each with batch norm, also with "
        ":instance and :none" in generators
    )
    assert discriminators == "discriminators: patch, pixel; each with batch norm, also with :instance and :none"


@pytest.mark.parametrize("name", ["resnet_6blocks:instance", "frost_generator"])
def test_a_generator_is_attached_and_drawn(name, tmp_path, capsys):
    files = [tmp_path / f"g.{kind}" for kind in ("png", "json")]
    main(
        [
            "graph",
            "--model",
            name,
            "--input-size",
            "32",
            "--picture",
            str(files[0]),
            "--nodes",
            "12",
            "--json",
            str(files[1]),
        ]
    )
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in zoo_generator(name).modules())
    assert f"{convolutions} weight quantizers" in capsys.readouterr().out.splitlines()[-1]
    data = json.loads(files[1].read_text())
    assert (data["model"], data["input_size"], data["classes"]) == (name, 32, None) and files[
        0
    ].read_bytes().startswith(b"\x89PNG")


def zoo_generator(name):
    with torch.device("meta"):
        return build(name)


def test_sizes_left_out_are_what_networks_are_made_for():
    configs = [GraphConfig(name).with_defaults() for name in ("unet_256", "resnet18")]
    assert [(config.input_size, config.classes) for config in configs] == [(256, None), (224, 1000)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "unet_256", "--input-size", "224"], "input_size: 224, must be a multiple of 256"),
        (["--model", "frost_generator", "--input-size", "4"], "input_size: 4, must be a multiple of 8 from 8"),
        (
            ["--model", "resnet_6blocks:instance", "--classes", "10"],
            "--classes: 10, but resnet_6blocks:instance makes images",
        ),
    ],
)
def test_what_a_generator_does_not_take_is_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["graph", *argv])
    assert stop.value.code == 2 and message in capsys.readouterr().err
