"""Residual branches that begin silent: with the last batch norm of each at weight 0 a block starts as the identity.

Deep networks then learn from their first step, as one that grows (arXiv:1706.02677, section 5.1).
"""

import operator

import torch
from torch import fx, nn

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


@torch.no_grad()
def silence_residuals(model: nn.Module) -> list[str]:
    """Zero the weight of the batch norm that ends each residual branch of a traceable model, in place.

    Returns their names. The branch is the side of an addition with more operations behind it; where that does not end
    in a batch norm, nothing is done.
    """
    graph, found = fx.symbolic_trace(model).graph, []
    depth: dict[fx.Node, int] = {}
    for node in graph.nodes:  # inputs stand before what reads them
        depth[node] = 1 + max((depth[n] for n in node.all_input_nodes), default=0)
        if node.target in ADDITIONS and len(node.all_input_nodes) == 2:
            branch = max(node.all_input_nodes, key=depth.__getitem__)
            found += [branch.target] if _norm(model, branch) is not None else []
    for name in found:
        model.get_submodule(name).weight.zero_()
    return found


def _norm(model: nn.Module, node: fx.Node) -> nn.Module | None:
    """The batch norm that a node calls, if it does and has a weight."""
    module = model.get_submodule(node.target) if node.op == "call_module" else None
    return module if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine else None
