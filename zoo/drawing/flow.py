"""A traced model as a networkx graph, whole or a section of it, with the titles that a reader sees."""

import networkx as nx
from torch import fx, nn

from quant.attach import ops
from quant.attach.groups import node_names
from quant.errors import QuantError
from quant.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, Quantizer, SameGrid


def network(graph: fx.GraphModule) -> nx.DiGraph:
    """The nodes and edges of a traced model, in its order.

    Attributes of a node: `kind` (an operation, "input", "output" or "quantizer"), `title` (what a reader calls it),
    `name` (where it stands in the model), and for layers with a weight quantizer `weight` (the shape) and
    `weight_quantizer` (method:bits).
    """
    flow = nx.DiGraph()
    names = node_names([n for n in graph.graph.nodes if n.op.startswith("call")])
    for node in graph.graph.nodes:
        flow.add_node(node.name, **_attributes(graph, node, names.get(node, node.name)))
        flow.add_edges_from((source.name, node.name) for source in node.all_input_nodes)
    return flow


def _attributes(graph: fx.GraphModule, node: fx.Node, name: str) -> dict[str, str]:
    module = graph.get_submodule(node.target) if node.op == "call_module" else None
    if isinstance(module, Quantizer):
        return {"kind": "quantizer", "title": spec(module), "name": name}
    if not node.op.startswith("call"):
        kind = "input" if node.op == "placeholder" else node.op
        return {"kind": kind, "title": kind, "name": "" if kind == name else name}
    found = {"kind": ops.op_type(graph, node), "title": _title(graph, node, module), "name": name}
    if hasattr(module, "weight_quant"):
        found |= {"weight": "×".join(map(str, module.weight.shape)), "weight_quantizer": spec(module.weight_quant)}
    return found


def spec(quantizer: Quantizer) -> str:
    """method:bits of a quantizer; "same grid" of one that rounds to another's."""
    if isinstance(quantizer, SameGrid):
        return "same grid"
    methods = [*WEIGHT_QUANTIZERS.items(), *ACTIVATION_QUANTIZERS.items()]
    name = next((name for name, cls in methods if cls is type(quantizer)), type(quantizer).__name__)
    return f"{name}:{quantizer.bits}"


def _title(graph: fx.GraphModule, node: fx.Node, module: nn.Module | None) -> str:
    kind = ops.op_type(graph, node)
    if kind in ("conv", "deconv") and module is not None:
        size, stride = "×".join(map(str, module.kernel_size)), max(module.stride)
        depthwise = module.groups == module.in_channels > 1
        return f"{'dw' if depthwise else kind} {size}" + (f" /{stride}" if stride > 1 else "")
    if kind == "pool":
        return "max pool" if ops.target(graph, node) in ops.MAXIMA else "avg pool"
    if kind in ("move", "function", "dropout", "relu"):
        return type(module).__name__.lower() if module is not None else ops.label(node)
    return kind.replace("_", " ")


def section(
    before: nx.DiGraph, after: nx.DiGraph, start: str | None, count: int | None
) -> tuple[nx.DiGraph, nx.DiGraph]:
    """Both graphs from the node `start` on (its id, name or place in the model), `count` nodes of the float graph long.

    Raises QuantError where no node has that name.
    """
    order = list(before)
    at = 0 if start is None else next((i for i, n in enumerate(order) if start in (n, before.nodes[n]["name"])), None)
    if at is None:
        raise QuantError(f"from: no node is called {start!r}; the table's first column has the names")
    members = set(order[at : None if count is None else at + count])
    kept = set()
    for n in after:  # what was inserted stands where its source does
        if n in members or (n not in before and any(source in kept for source in after.pred[n])):
            kept.add(n)
    return cut(before, members), cut(after, kept)


def cut(flow: nx.DiGraph, members: set[str]) -> nx.DiGraph:
    """The members of a graph; what is outside and reads from or feeds them becomes a node of kind "elsewhere"."""
    part = nx.DiGraph()
    part.add_nodes_from((n, flow.nodes[n]) for n in flow if n in members)
    for a, b in flow.edges:
        if a in members and b in members:
            part.add_edge(a, b)
        elif b in members:
            part.add_node(f"from {a}", kind="elsewhere", title="from", name=_called(flow, a))
            part.add_edge(f"from {a}", b)
        elif a in members:
            part.add_node(f"to {a}", kind="elsewhere", title="to", name=_called(flow, b))
            part.add_edge(a, f"to {a}")
    return part


def _called(flow: nx.DiGraph, n: str) -> str:
    return flow.nodes[n]["name"] or flow.nodes[n]["title"]
