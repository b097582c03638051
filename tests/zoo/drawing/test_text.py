"""Graphs as DOT text and as JSON."""

import json
from collections import Counter

from zoo.drawing import as_dot, as_json
from zoo.drawing.flow import network
from zoo.drawing.style import COLOURS


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
