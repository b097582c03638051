"""Lower a trained, attached graph to an integer graph: fold batch norm, code weights, give each tensor its grid.

A group of operations (a layer, its batch norm, its ReLU) ends at a quantizer. Rules (quant/integer/rules.py) say what
the operations become; the quantizer, here, puts the group's result on its grid.
"""

import copy

import torch
from torch import fx, nn

from quant.attach import ops
from quant.errors import QuantError
from quant.integer.builder import Builder
from quant.integer.folding import Pending
from quant.integer.graph import Call, IntGraph, Op, Ref
from quant.integer.rules import apply_rule
from quant.integer.transforms import deconv_as_conv, interleave_phases
from quant.quantizers import Quantizer
from quant.quantizers.grid import QParams


def lower(graph: fx.GraphModule) -> IntGraph:
    """The integer graph of an attached model, from its running statistics and ranges as they are.

    Raises:
        QuantError: a quantizer has seen no data, or something real is read by an integer operation.
    """
    builder, output = Builder(graph), None
    for node in graph.graph.nodes:
        if node.op == "output":
            output = _outputs(builder, node.args[0])
        elif node.op == "placeholder":
            builder.values[node] = builder.emit(Op(node.name, "input", attrs={"shape": node.meta.get("shape")}))
        elif isinstance(quantizer := builder.module(node), Quantizer):
            builder.values[node] = _quantized(builder, node, quantizer)
        else:
            builder.values[node] = apply_rule(builder, node)
    return IntGraph(builder.ops, output)


def _outputs(builder: Builder, value: object) -> Ref | tuple:
    """The structure of what the network gives, in tuples."""
    if isinstance(value, fx.Node):
        return Ref(builder.real(value))
    if isinstance(value, (tuple, list)):
        return tuple(_outputs(builder, part) for part in value)
    raise QuantError(f"the network gives a {type(value).__name__}; let it give tensors, alone or in (nested) tuples")


def _quantized(builder: Builder, node: fx.Node, quantizer: Quantizer) -> str:
    """What a quantizer node makes of its source: it ends a group, or quantizes a real value."""
    try:
        qparams = quantizer.qparams()
    except QuantError as error:
        raise QuantError(f"{node.target}: {error}") from error
    source = builder.values[node.args[0]]
    if getattr(quantizer, "transforms", False):
        return _transformed(builder, node, quantizer, qparams)
    if builder.is_code(source):
        return builder.emit(Op(node.name, "quantize", (builder.real(node.args[0]),), qparams))
    if isinstance(source, Pending):
        return _end_of_group(builder, node.name, source, qparams)
    return _computed(builder, node, source, qparams)


def _transformed(builder: Builder, node: fx.Node, quantizer: Quantizer, qparams: QParams) -> str:
    """A quantizer whose values are a function of its input, computed in real numbers and then on its grid exactly."""
    real = builder.real(node.args[0])
    call = Call(copy.deepcopy(quantizer).cpu().eval(), (Ref(real),), {})
    return builder.emit(Op(node.name, "function", (real,), qparams, attrs={"call": call}))


def _end_of_group(builder: Builder, name: str, pending: Pending, qparams: QParams) -> str:
    scale = builder.grids[pending.op.inputs[0]].scale if pending.op.weight is not None else None
    op = pending.on_grid(name, qparams, scale)
    if op.kind != "deconv":
        return builder.emit(op)
    conv, stride, keep = deconv_as_conv(op)
    return builder.emit_move(name, builder.emit(conv), op.qparams, interleave_phases, stride, keep)


def _computed(builder: Builder, node: fx.Node, source: str, qparams: QParams) -> str:
    """A real value on a grid: one operation with the function that computes it, if nothing else reads that."""
    op = next(op for op in builder.ops if op.name == source)
    if op.kind != "float" or len(node.args[0].users) != 1:
        return builder.emit(Op(node.name, "quantize", (source,), qparams))
    builder.ops.remove(op)
    if _is_global_average(node.args[0]):
        return _global_average(builder, node.name, op, qparams)
    return builder.emit(Op(node.name, "function", op.inputs, qparams, attrs=op.attrs))


def _global_average(builder: Builder, name: str, op: Op, qparams: QParams) -> str:
    """A mean over rows and columns as pooling and a flattening of codes, which engines know as integer operations."""
    pool = Call(nn.AdaptiveAvgPool2d(1), op.attrs["call"].args[:1], {})
    pooled = builder.emit(Op(f"{name}_pooled", "function", op.inputs, qparams, attrs=op.attrs | {"call": pool}))
    return builder.emit_move(name, pooled, qparams, nn.Flatten())


def _is_global_average(node: fx.Node) -> bool:
    """Whether a node is the mean over rows and columns that leaves (N, C)."""
    if node.target not in (torch.mean, "mean") or len(node.meta["shape"]) != 2:
        return False
    dims = ops.argument(node, 1, "dim", ())
    is_map = len(node.args[0].meta["shape"]) == 4
    return is_map and isinstance(dims, (tuple, list)) and sorted(d % 4 for d in dims) == [2, 3]
