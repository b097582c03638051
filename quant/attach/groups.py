"""Questions about a traced graph that placement asks: names of nodes, groups, readers and origins of values.

A group is a convolution or linear layer with the batch norm and the ReLU or ReLU6 that follow it alone (also an
addition, concatenation, batch or instance norm with its ReLU); its output is one tensor.
"""

from collections.abc import Iterator

from torch import fx

from quant.attach import ops


def node_names(nodes: list[fx.Node]) -> dict[fx.Node, str]:
    """A name for each node: the module that it calls, or `block.add` for an operation of it; numbered if repeated."""
    taken, names = set(), {}
    for node in nodes:
        base = node.target if node.op in ("call_module", "placeholder") else _scoped(node)
        name = next(n for i in range(len(nodes) + 1) if (n := f"{base}_{i}" if i else base) not in taken)
        taken.add(name)
        names[node] = name
    return names


def _scoped(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f"{stack[-1][0] if stack else ''}.{ops.label(node)}".lstrip(".")


def makes_values(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's value is a float tensor off its inputs' grids."""
    if not node.meta["is_float"] or node.meta["shape"] is None:
        return False
    return ops.kind(graph, node) not in ops.ON_INPUT_GRID or clamps_group(graph, node)


def clamps_group(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is the ReLU or ReLU6 that ends a group (alone on a tensor others read too, it works on the
    integers instead).
    """
    if ops.kind(graph, node) not in ("relu", "relu6"):
        return False
    source = node.args[0]
    return len(source.users) == 1 and ops.kind(graph, source) in ops.TAKES_CLAMP


def group_end(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The last node of the group that `node` is in: conv -> batch norm -> ReLU, as far as each has no other reader."""
    if len(node.users) != 1:
        return node
    (user,) = node.users
    folds = ops.kind(graph, user) == "batch_norm" and ops.kind(graph, node) in ops.LAYERS and ops.folds(graph, node)
    return group_end(graph, user) if folds or clamps_group(graph, user) else node


def group(graph: fx.GraphModule, end: fx.Node) -> Iterator[fx.Node]:
    """The nodes of the group that `end` ends, last first."""
    yield end
    for source in end.all_input_nodes[:1]:
        if group_end(graph, source) is end:
            yield from group(graph, source)


def readers(graph: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """Who reads a node's value, through operations that only move it."""
    for user in node.users:
        if ops.kind(graph, user) in ops.ON_INPUT_GRID and user.meta.get("is_float"):
            yield from readers(graph, user)
        elif user.op == "output" or user.meta.get("is_float"):
            yield user


def origin(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The node whose grid a value lies on: back through operations that only move values."""
    while not makes_values(graph, node) and node.op != "placeholder" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def data_inputs(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The nodes whose float values an operation reads as data, not as weights."""
    inputs = [n for n in node.all_input_nodes if n.meta.get("is_float") and n.op != "get_attr"]
    return inputs[:1] if ops.kind(graph, node) in ops.LAYERS else inputs
