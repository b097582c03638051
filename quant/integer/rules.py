"""What each kind of operation of an attached graph becomes as integers: one function for each, in the table RULES.

A rule gives the name of the operation that it has emitted, a Pending where the group's quantizer is still to come, or
None where the operation has no integer form here and stays as it was traced.
"""

import torch
import torch.nn.functional as F
from torch import fx, nn

from quant.attach import ops
from quant.errors import QuantError
from quant.integer.builder import Builder
from quant.integer.folding import Pending, batch_norm_as_affine
from quant.integer.graph import Op
from quant.integer.transforms import AVERAGE_POOLS, average_pool_as_conv, deconv_weight_as_conv, pad_codes

Value = str | Pending


def apply_rule(builder: Builder, node: fx.Node) -> Value:
    """The value of a node that is no quantizer."""
    kind = ops.kind(builder.graph, node)
    is_average = node.op.startswith("call") and ops.target(builder.graph, node) in AVERAGE_POOLS
    rule = _average_pool if is_average else RULES.get(kind)
    return (rule and rule(builder, node, kind)) or _as_traced(builder, node, kind)


def _as_traced(builder: Builder, node: fx.Node, kind: str) -> str:
    """A node's call: on codes where it only moves them, else on real values."""
    moves = kind == "move" and not builder.reads_real(node)
    op = builder.called(node, "move", builder.settled) if moves else builder.called(node, "float", builder.real)
    is_float = node.meta["is_float"]
    if moves and is_float:
        op.qparams = next((builder.grids[i] for i in op.inputs if i in builder.grids), None)
    op.attrs["computes"] = is_float and node.op != "get_attr"
    op.attrs["several"] = is_float and node.meta["shape"] is None
    return builder.emit(op)


def _layer(builder: Builder, node: fx.Node, kind: str) -> Pending | None:
    """A convolution, transposed convolution or linear layer.

    Codes of few bits are stored as multiples (scale * code = scale / 9 * 9 code), because biases are rounded to the
    product of the scales.
    """
    module = builder.module(node)
    if not hasattr(module, "weight_quant"):
        return None
    source = builder.values[node.args[0]]
    if source not in builder.grids:
        raise QuantError(f"{node.target}: its input ({node.args[0].name}) is on no grid; attach a quantizer there")
    weight, quantizer = module.weight.detach(), module.weight_quant
    attrs = _geometry(node, module) if kind != "linear" else {}
    if kind != "deconv" and (len(node.args) > 1 or node.kwargs):
        raise QuantError(f"{node.target}: is called with more than its input, which has no integer form")
    try:
        codes = quantizer.codes(weight).cpu()
    except QuantError as error:
        raise QuantError(f"{node.target}: {error}") from error
    scale = quantizer.scale(weight).float().cpu().expand(codes.shape)
    if kind == "deconv":
        codes, scale = (deconv_weight_as_conv(t, module.groups) for t in (codes, scale))
    scale = scale.flatten(1)[:, 0]  # one for each output channel
    bias = module.bias.detach() if module.bias is not None else torch.zeros(len(codes))
    finer = max(1, quantizer.limit // max(1, int(codes.abs().max())))
    return Pending(Op(node.name, kind, (source,), None, codes * finer, scale / finer, bias.float().cpu(), attrs))


def _geometry(node: fx.Node, module: nn.Module) -> dict:
    """Stride, padding and so on of a convolution, as numbers."""
    found = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
    found["padding"] = ops.zero_padding(module)
    if isinstance(module, nn.ConvTranspose2d):
        found["output_padding"] = _output_padding(node, module, found["padding"])
    return found


def _output_padding(node: fx.Node, module: nn.ConvTranspose2d, padding: tuple[int, int]) -> tuple[int, int]:
    """Of a transposed convolution whose call may choose the output's size."""
    (*_, height, width), (*_, h, w) = node.args[0].meta["shape"], node.meta["shape"]
    x, weight = torch.empty(1, module.in_channels, height, width, device="meta"), module.weight.to("meta")
    least = F.conv_transpose2d(x, weight, None, module.stride, padding, 0, module.groups, module.dilation).shape
    return h - least[2], w - least[3]


def _batch_norm(builder: Builder, node: fx.Node, kind: str) -> Pending | None:
    """Folded into the layer before it, or separate where there is none."""
    source, bn = builder.source(node), builder.module(node)
    if isinstance(source, Pending) and not source.is_bounded and ops.folds(builder.graph, node.args[0]):
        return source.with_batch_norm(bn)
    if not _normalizes_codes(builder, node):
        return None
    factor, offset = batch_norm_as_affine(bn, node.target)
    return Pending(Op(node.name, kind, (source,), weight_scale=factor.float(), bias=offset.float()))


def _instance_norm(builder: Builder, node: fx.Node, kind: str) -> Pending | None:
    if not _normalizes_codes(builder, node):
        return None
    norm = builder.module(node)
    gamma, beta = norm.weight, norm.bias
    if not norm.affine:
        gamma, beta = torch.ones(norm.num_features), torch.zeros(norm.num_features)
    gamma, beta = (t.detach().float().cpu().clone() for t in (gamma, beta))
    source = builder.source(node)
    return Pending(Op(node.name, kind, (source,), weight_scale=gamma, bias=beta, attrs={"eps": norm.eps}))


def _normalizes_codes(builder: Builder, node: fx.Node) -> bool:
    """Whether a norm maps images of codes to codes."""
    return builder.is_code(builder.source(node)) and len(node.meta["shape"]) == 4 and builder.is_quantized(node)


def _combination(builder: Builder, node: fx.Node, kind: str) -> Pending | None:
    """A sum, product or concatenation of tensors on unlike grids."""
    if not builder.on_grids(node):
        return None
    sources = node.args[0] if kind == "cat" else node.args[:2]
    attrs = {"dim": ops.argument(node, 1, "dim", 0)} if kind == "cat" else {}
    return Pending(Op(node.name, kind, tuple(builder.values[s] for s in sources), attrs=attrs))


def _dropout(builder: Builder, node: fx.Node, kind: str) -> Value:
    return builder.values[node.args[0]]


def _relu(builder: Builder, node: fx.Node, kind: str) -> Value | None:
    """Folded into the group's grid, or a clamp of codes; a ReLU6 of codes has another ceiling than its grid."""
    source = builder.source(node)
    if isinstance(source, Pending) and not source.is_bounded:
        return source.bounded(ops.clamp_bounds(builder.graph, node))
    if kind == "relu6" or not builder.on_grids(node):
        return None
    source = builder.values[node.args[0]]
    return builder.emit(Op(node.name, "relu", (source,), builder.grids[source]))


def _padding(builder: Builder, node: fx.Node, kind: str) -> str | None:
    source, padding = builder.source(node), ops.padding(builder.graph, node)
    if not builder.is_code(source) or not padding:
        return None
    grid = builder.grids[source]
    return builder.emit_move(node.name, source, grid, pad_codes, *padding, grid.zero_point)


def _resize(builder: Builder, node: fx.Node, kind: str) -> Pending | None:
    if not builder.is_code(builder.source(node)) or not builder.is_rounded(node):
        return None
    return Pending(builder.called(node, "resize", builder.settled))


def _average_pool(builder: Builder, node: fx.Node, kind: str) -> Pending | None:
    """Averages over windows of codes as a convolution, where that has the same values and is fast."""
    source = builder.source(node)
    if not builder.is_code(source) or not builder.is_quantized(node) or len(node.meta["shape"]) != 4:
        return None
    call = builder.called(node, "conv", builder.settled).attrs["call"]
    conv = average_pool_as_conv(node.name, call, source, node.meta["shape"][1])
    return conv and Pending(conv)


RULES = {
    "conv": _layer,
    "deconv": _layer,
    "linear": _layer,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "add": _combination,
    "mul": _combination,
    "cat": _combination,
    "dropout": _dropout,
    "relu": _relu,
    "relu6": _relu,
    "move": _padding,
    "resize": _resize,
}
