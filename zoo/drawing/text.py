"""A graph as text: Graphviz's DOT, and JSON."""

import json

import networkx as nx
from torch import fx

from zoo.drawing.flow import network
from zoo.drawing.style import colour


def as_json(graph: fx.GraphModule) -> dict:
    """The graph as JSON: nodes, edges and quantizers.

    {"nodes": [{"id", "kind", "title", "name", ..}], "edges": [[from, to]],
     "quantizers": [{"name", "quantizer", "kind" (weight or activation), "of", "read_by"}]}
    """
    flow = network(graph)
    whole, quantizers = _with_weights(flow), []
    for n, at in whole.nodes(data=True):
        if at["kind"] == "quantizer":
            (source,) = whole.pred[n]
            kind = "weight" if whole.nodes[source]["kind"] == "weight" else "activation"
            about = {"name": at["name"], "quantizer": at["title"], "kind": kind}
            quantizers.append(about | {"of": source, "read_by": list(whole.succ[n])})
    nodes = [{"id": n, **at} for n, at in flow.nodes(data=True)]
    return {"nodes": nodes, "edges": [list(edge) for edge in flow.edges], "quantizers": quantizers}


def as_dot(graph: fx.GraphModule) -> str:
    """The graph in Graphviz's language; weights with quantizers are nodes too."""
    flow = _with_weights(network(graph))
    lines = ["digraph model {", "  node [shape=box, style=filled, fontname=Helvetica, fontsize=10];"]
    for n, at in flow.nodes(data=True):
        label = at["title"] if at["kind"] in ("weight", "quantizer") else f"{at['title']}\n{at['name']}"
        font = "white" if at["kind"] == "quantizer" else "black"
        lines.append(f'  {_quoted(n)} [label={_quoted(label)}, fillcolor="{colour(at["kind"])}", fontcolor={font}];')
    lines += [f"  {_quoted(a)} -> {_quoted(b)};" for a, b in flow.edges]
    return "\n".join([*lines, "}"]) + "\n"


def _with_weights(flow: nx.DiGraph) -> nx.DiGraph:
    """The graph with quantized weights, and their quantizers, as further nodes."""
    whole = nx.DiGraph()
    for n, at in flow.nodes(data=True):
        if "weight" in at:
            weight, quantizer = f"{at['name']}.weight", f"{at['name']}.weight_quant"
            whole.add_node(weight, kind="weight", title=at["weight"], name=weight)
            whole.add_node(quantizer, kind="quantizer", title=at["weight_quantizer"], name=quantizer)
            nx.add_path(whole, [weight, quantizer, n])
        whole.add_node(n, **at)
    whole.add_edges_from(flow.edges)
    return whole


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
