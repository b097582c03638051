"""Biases that integer arithmetic can hold, so that every engine adds what fake-quant adds: the last step of training.

An engine adds a bias to the sum of integer products, so it rounds it to a multiple of input scale times weight scale
(arXiv:1712.05877, section 2.4). Some engines do, some add the real number. Where a channel's scale is large beside its
output's the difference shows: a code in a thousand moves by a step, and a deep network names another class for a few
pictures in a hundred.
"""

import torch
from torch import Tensor, fx, nn

from quant.attach import ops
from quant.integer.lowering import lower
from quant.quantizers import Quantizer


@torch.no_grad()
def snap_biases(graph: fx.GraphModule) -> None:
    """Move the biases of an attached, trained graph onto their integer grids, in place: by at most half a unit each.

    A layer's bias is that of the batch norm behind it, if there is one. Call it when training or calibration has ended:
    ranges or weights that change later move the grids. Layers that are used twice keep their biases, as do batch norms
    without a layer before them.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    calls = [node.target for node in nodes.values() if node.op == "call_module"]
    integers = lower(graph)
    for op in integers.ops:
        if op.weight is None:
            continue
        holder = _holder(graph, nodes[op.name.removesuffix("_phases")])
        if holder is not None and calls.count(holder) == 1:
            unit = op.weight_scale.double() * integers.op(op.inputs[0]).qparams.scale
            change = torch.round(op.bias.double() / unit) * unit - op.bias.double()
            bias = graph.get_submodule(holder).bias
            bias.add_(_once(change, len(bias)).to(bias))


def _holder(graph: fx.GraphModule, node: fx.Node) -> str | None:
    """The name of the module whose bias is added last in the group that ends at a quantizer node."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        if node.op == "call_module" and isinstance(graph.get_submodule(node.target), Quantizer):
            return None  # an average over windows, which has no bias
        kind = ops.kind(graph, node)
        if node.op == "call_module" and (kind == "batch_norm" or kind in ops.LAYERS):
            module: nn.Module = graph.get_submodule(node.target)
            return node.target if module.bias is not None else None
    return None


def _once(change: Tensor, channels: int) -> Tensor:
    """One value a channel, where a transposed convolution has one for each of its phases."""
    return change.view(channels, -1)[:, 0]
