"""Lower a trained, attached graph to an integer graph: fold batch norm, turn weights into codes, give each tensor its
grid.

Folding (arXiv:1712.05877, section 3.2, per channel): y = gamma (W x + b - mean) / sqrt(var + eps) + beta has weight
scale scale_c |gamma_c| / sqrt(var_c + eps_c) on the same codes, negated where gamma is negative; gamma 0 leaves a
constant channel. Codes of few bits are stored as multiples (scale * code = scale / 9 * 9 code), because biases are
rounded to the product of the scales.
"""

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from quant.attach import ops
from quant.errors import QuantError
from quant.integer import pooling
from quant.integer.deconv import as_convolution, interleave, out_first
from quant.integer.graph import Call, IntGraph, Op, Ref
from quant.integer.padding import pad
from quant.quantizers import Quantizer, SameGrid
from quant.quantizers.grid import QParams

UNBOUNDED = (float("-inf"), float("inf"))


@dataclass
class _Pending:
    """A layer, sum, product or concatenation that waits for its group's quantizer to say which grid it lands on."""

    op: Op
    bounds: tuple[float, float] = UNBOUNDED  # of a ReLU before the quantizer, which is not the quantizer's own

    def copy(self) -> "_Pending":
        """For one of several readers: each folds and bounds its own."""
        return replace(self, op=copy.copy(self.op))

    def clamped(self, qparams: QParams) -> QParams:
        """The grid without the codes that the ReLU cuts off."""
        floor, ceiling = self.bounds
        qmin = qparams.zero_point if floor == 0.0 else qparams.qmin
        qmax = (
            qparams.qmax
            if ceiling == float("inf")
            else min(qparams.qmax, qparams.zero_point + round(ceiling / qparams.scale))
        )
        return replace(qparams, qmin=qmin, qmax=qmax)

    def fold(self, bn: nn.Module) -> None:
        """Take the batch norm behind a convolution or linear layer into weight_scale and bias."""
        factor, offset = _affine(bn, self.op.name)
        op = self.op
        op.bias = (op.bias.double() * factor + offset).float()
        op.weight = op.weight * _per_channel(torch.sign(factor).to(torch.int8), op.weight)
        op.weight_scale = (op.weight_scale.double() * factor.abs()).float()

    def fit_bias(self, input_scale: float) -> None:
        """Coarsen the weights of channels so small beside their bias that it would not fit 32 bits in their units."""
        op = self.op
        smallest = op.bias.double().abs() / (input_scale * _LARGEST_BIAS)
        scale = torch.maximum(op.weight_scale.double(), smallest)
        scale[scale == 0] = 1.0  # a channel of zeros
        shrink = _per_channel(op.weight_scale.double() / scale, op.weight)
        op.weight, op.weight_scale = torch.round(op.weight * shrink).to(torch.int8), scale.float()


_LARGEST_BIAS = 2**30


def _affine(bn: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """(factor, offset) by channel, float64: batch norm in evaluation is x * factor + offset."""
    if bn.running_var is None:
        raise QuantError(f"{name}: its batch norm keeps no running statistics, so that it has no integer form")
    gamma = bn.weight.detach() if bn.affine else torch.ones_like(bn.running_var)
    beta = bn.bias.detach() if bn.affine else torch.zeros_like(bn.running_mean)
    factor = (gamma.double() / torch.sqrt(bn.running_var.double() + bn.eps)).cpu()
    return factor, beta.double().cpu() - bn.running_mean.double().cpu() * factor


def _per_channel(values: Tensor, weight: Tensor) -> Tensor:
    """One value per output channel, shaped to multiply a weight."""
    return values.view(-1, *[1] * (weight.dim() - 1))


def lower(graph: fx.GraphModule) -> IntGraph:
    """The integer graph of an attached model, from its running statistics and ranges as they are.

    Raises QuantError where a quantizer has seen no data or something real is read by an integer operation.
    """
    state = _Lowering(graph)
    for node in graph.graph.nodes:
        state.visit(node)
    return IntGraph(state.ops, state.output)


class _Lowering:
    """Walks the nodes; `values` maps each to the name of its operation, to a _Pending, or to another node's value."""

    def __init__(self, graph: fx.GraphModule):
        self.graph = graph
        self.ops: list[Op] = []
        self.grids: dict[str, QParams] = {}  # of the operations whose results are codes
        self.values: dict[fx.Node, str | _Pending] = {}
        self.output = None

    def visit(self, node: fx.Node) -> None:
        module = self.graph.get_submodule(node.target) if node.op == "call_module" else None
        if node.op == "output":
            self.output = self.outputs(node.args[0])
        elif node.op == "placeholder":
            self.values[node] = self.emit(Op(node.name, "input", attrs={"shape": node.meta.get("shape")}))
        elif isinstance(module, Quantizer):
            self.values[node] = self.quantized(node, module)
        else:
            self.values[node] = self.operation(node, module)

    def outputs(self, value: object) -> Ref | tuple:
        """The structure of what the network gives, in tuples."""
        if isinstance(value, fx.Node):
            return Ref(self.real(value))
        if isinstance(value, (tuple, list)):
            return tuple(self.outputs(part) for part in value)
        raise QuantError(
            f"the network gives a {type(value).__name__}; let it give tensors, alone or in (nested) tuples"
        )

    def operation(self, node: fx.Node, module: nn.Module | None) -> str | _Pending:
        kind = ops.kind(self.graph, node)
        if kind in ops.LAYERS and hasattr(module, "weight_quant"):
            return self.layer(node, kind, module)
        source = self.values[node.args[0]] if node.args and isinstance(node.args[0], fx.Node) else ""
        if (
            kind == "batch_norm"
            and isinstance(source, _Pending)
            and source.bounds == UNBOUNDED
            and ops.folds(self.graph, node.args[0])
        ):
            folded = source.copy()
            folded.fold(module)
            return folded
        if kind == "batch_norm" and self.is_code(source) and len(node.meta["shape"]) == 4 and self.is_quantized(node):
            factor, offset = _affine(module, node.target)
            return _Pending(Op(node.name, kind, (source,), weight_scale=factor.float(), bias=offset.float()))
        if (
            kind == "instance_norm"
            and self.is_code(source)
            and len(node.meta["shape"]) == 4
            and self.is_quantized(node)
        ):
            return self.instance_norm(node, module, source)
        if kind in ("add", "mul", "cat") and self.on_grids(node):
            return self.combination(node, kind)
        if kind == "dropout":
            return self.values[node.args[0]]
        if kind in ("relu", "relu6") and isinstance(source, _Pending) and source.bounds == UNBOUNDED:
            return replace(source.copy(), bounds=ops.clamp_bounds(self.graph, node))
        if kind == "relu" and self.on_grids(node):
            return self.emit(Op(node.name, "relu", (self.values[node.args[0]],), self.grid(node.args[0])))
        if kind == "move" and self.is_code(source) and (padding := ops.padding(self.graph, node)):
            call = Call(pad, (Ref(source), *padding, self.grids[source].zero_point), {})
            return self.emit(
                Op(node.name, "move", (source,), self.grids[source], attrs={"call": call, "computes": True})
            )
        if kind == "resize" and self.is_code(source) and self.is_rounded(node):
            return _Pending(self.called(node, module, "resize", self.settled))
        if (
            node.op.startswith("call")
            and ops.target(self.graph, node) in pooling.AVERAGES
            and (conv := self.pooling(node, module, source))
        ):
            return _Pending(conv)
        return self.call(node, kind, module)

    def layer(self, node: fx.Node, kind: str, module: nn.Module) -> _Pending:
        source = self.values[node.args[0]]
        if source not in self.grids:
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
            codes, scale = (out_first(t, module.groups) for t in (codes, scale))
        scale = scale.flatten(1)[:, 0]  # one for each output channel
        bias = module.bias.detach() if module.bias is not None else torch.zeros(len(codes))
        finer = max(1, quantizer.limit // max(1, int(codes.abs().max())))
        return _Pending(Op(node.name, kind, (source,), None, codes * finer, scale / finer, bias.float().cpu(), attrs))

    def instance_norm(self, node: fx.Node, norm: nn.Module, source: str) -> _Pending:
        gamma, beta = (
            (norm.weight, norm.bias) if norm.affine else (torch.ones(norm.num_features), torch.zeros(norm.num_features))
        )
        gamma, beta = (t.detach().float().cpu().clone() for t in (gamma, beta))
        return _Pending(
            Op(node.name, "instance_norm", (source,), weight_scale=gamma, bias=beta, attrs={"eps": norm.eps})
        )

    def combination(self, node: fx.Node, kind: str) -> _Pending:
        sources = node.args[0] if kind == "cat" else node.args[:2]
        attrs = {"dim": ops.argument(node, 1, "dim", 0)} if kind == "cat" else {}
        return _Pending(Op(node.name, kind, tuple(self.values[s] for s in sources), attrs=attrs))

    def pooling(self, node: fx.Node, module: nn.Module | None, source: str | _Pending) -> Op | None:
        """Averages over windows of codes as an integer convolution, where that has the same values and is fast."""
        if not self.is_code(source) or not self.is_quantized(node) or len(node.meta["shape"]) != 4:
            return None
        call = self.called(node, module, "conv", self.settled).attrs["call"]
        return pooling.as_convolution(node.name, call, source, node.meta["shape"][1])

    def quantized(self, node: fx.Node, quantizer: Quantizer) -> str:
        """What a quantizer node makes of its source: it ends a group, or quantizes a real value."""
        try:
            qparams = quantizer.qparams()
        except QuantError as error:
            raise QuantError(f"{node.target}: {error}") from error
        source = self.values[node.args[0]]
        if getattr(quantizer, "transforms", False):
            return self.transformed(node, quantizer, qparams)
        if self.is_code(source):
            return self.emit(Op(node.name, "quantize", (self.real(node.args[0]),), qparams))
        if isinstance(source, _Pending):
            source = source.copy()
            op = source.op
            op.name, op.qparams = node.name, source.clamped(qparams)
            if op.weight is not None:
                source.fit_bias(self.grids[op.inputs[0]].scale)
            return self.emit(op) if op.kind != "deconv" else self.phases(op)
        source_op = next(op for op in self.ops if op.name == source)
        if source_op.kind == "float" and len(node.args[0].users) == 1:
            self.ops.remove(source_op)  # one operation: dequantize, compute, quantize
            if _is_global_average(node.args[0]):
                return self.global_average(node.name, source_op, qparams)
            return self.emit(Op(node.name, "function", source_op.inputs, qparams, attrs=source_op.attrs))
        return self.emit(Op(node.name, "quantize", (source,), qparams))

    def global_average(self, name: str, op: Op, qparams: QParams) -> str:
        """A mean over rows and columns as pooling and a flattening of codes, which engines know as integer
        operations.
        """
        pool = Call(nn.AdaptiveAvgPool2d(1), op.attrs["call"].args[:1], {})
        pooled = self.emit(Op(f"{name}_pooled", "function", op.inputs, qparams, attrs=op.attrs | {"call": pool}))
        flatten = Call(nn.Flatten(), (Ref(pooled),), {})
        return self.emit(Op(name, "move", (pooled,), qparams, attrs={"call": flatten, "computes": True}))

    def phases(self, op: Op) -> str:
        """A transposed convolution: the convolution of its phases, and their interleaving."""
        conv, stride, keep = as_convolution(op)
        call = Call(interleave, (Ref(self.emit(conv)), stride, keep), {})
        return self.emit(Op(op.name, "move", (conv.name,), op.qparams, attrs={"call": call, "computes": True}))

    def transformed(self, node: fx.Node, quantizer: Quantizer, qparams: QParams) -> str:
        """A quantizer whose values are a function of its input, computed in real numbers and then on its grid
        exactly.
        """
        real = self.real(node.args[0])
        call = Call(copy.deepcopy(quantizer).cpu().eval(), (Ref(real),), {})
        return self.emit(Op(node.name, "function", (real,), qparams, attrs={"call": call}))

    def call(self, node: fx.Node, kind: str, module: nn.Module | None) -> str:
        """Everything else, as it was traced: on codes where it only moves them, else on real values."""
        moves = kind == "move" and not self.reads_real(node)
        op = self.called(node, module, *(("move", self.settled) if moves else ("float", self.real)))
        if moves and node.meta["is_float"]:
            op.qparams = next((self.grids[i] for i in op.inputs if i in self.grids), None)
        op.attrs["computes"] = node.meta["is_float"] and node.op != "get_attr"
        op.attrs["several"] = node.meta["is_float"] and node.meta["shape"] is None
        return self.emit(op)

    def called(self, node: fx.Node, module: nn.Module | None, kind: str, name_of: Callable[[fx.Node], str]) -> Op:
        """A node as an operation that makes its call, inputs as `name_of` gives them."""
        # a copy: what is shipped must not move with a model that trains on
        function = (
            copy.deepcopy(module).cpu().eval().requires_grad_(False)
            if module is not None
            else _function(self.graph, node)
        )
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: Ref(name_of(n)))
        inputs = tuple(name_of(n) for n in node.all_input_nodes)
        return Op(node.name, kind, inputs, attrs={"call": Call(function, tuple(args), dict(kwargs))})

    def emit(self, op: Op) -> str:
        self.ops.append(op)
        if op.qparams is not None:
            self.grids[op.name] = op.qparams
        return op.name

    def settled(self, node: fx.Node) -> str:
        value = self.values[node]
        if isinstance(value, _Pending):
            raise QuantError(f"{node.name}: no quantizer on its output; attach one, or leave its inputs unquantized")
        return value

    def real(self, node: fx.Node) -> str:
        """The name of a node's value in real units, dequantized first where it is codes."""
        name = self.settled(node)
        if name not in self.grids or not node.meta.get("is_float"):
            return name
        return next(
            (op.name for op in self.ops if op.kind == "dequantize" and op.inputs == (name,)), None
        ) or self.emit(Op(f"{name}_real", "dequantize", (name,)))

    def grid(self, node: fx.Node) -> QParams:
        return self.grids[self.values[node]]

    def is_code(self, value: str | _Pending) -> bool:
        return isinstance(value, str) and value in self.grids

    def on_grids(self, node: fx.Node) -> bool:
        return all(self.settled(n) in self.grids for n in node.all_input_nodes)

    def is_quantized(self, node: fx.Node) -> bool:
        """Whether everything that reads a node, perhaps through its ReLU, is a quantizer."""

        def is_end(user: fx.Node) -> bool:
            ends = user.op == "call_module" and isinstance(self.graph.get_submodule(user.target), Quantizer)
            return ends or (ops.kind(self.graph, user) in ("relu", "relu6") and self.is_quantized(user))

        return all(is_end(user) for user in node.users)

    def is_rounded(self, node: fx.Node) -> bool:
        """Whether a node's values go back to the grid of its input."""
        return all(
            u.op == "call_module" and isinstance(self.graph.get_submodule(u.target), SameGrid) for u in node.users
        )

    def reads_real(self, node: fx.Node) -> bool:
        """Whether a node reads a float tensor that is on no grid."""
        return any(n.meta.get("is_float") and self.settled(n) not in self.grids for n in node.all_input_nodes)


def _geometry(node: fx.Node, module: nn.Module) -> dict:
    """Stride, padding and so on of a convolution, as numbers."""
    names = ("stride", "padding", "dilation", "groups") + (
        ("output_padding",) if isinstance(module, nn.ConvTranspose2d) else ()
    )
    found = {name: getattr(module, name) for name in names} | {"padding": ops.zero_padding(module)}
    if "output_padding" in found:  # a call may choose the output's size
        (*_, height, width), (*_, h, w) = node.args[0].meta["shape"], node.meta["shape"]
        least = F.conv_transpose2d(
            torch.empty(1, module.in_channels, height, width, device="meta"),
            module.weight.to("meta"),
            None,
            *(found[name] for name in ("stride", "padding")),
            0,
            module.groups,
            module.dilation,
        ).shape
        found["output_padding"] = (h - least[2], w - least[3])
    return found


def _is_global_average(node: fx.Node) -> bool:
    """Whether a node is the mean over rows and columns that leaves (N, C)."""
    if node.target not in (torch.mean, "mean") or len(node.meta["shape"]) != 2:
        return False
    dims = ops.argument(node, 1, "dim", ())
    return len(node.args[0].meta["shape"]) == 4 and sorted(
        d % 4 for d in (dims if isinstance(dims, (tuple, list)) else ())
    ) == [2, 3]


class _Attribute:
    """Reads a constant tensor of the model."""

    def __init__(self, value: Tensor):
        self.value = value

    def __call__(self) -> Tensor:
        return self.value


class _Method:
    """Calls a method by name: x.view(..)."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, x, *args, **kwargs):
        return getattr(x, self.name)(*args, **kwargs)


def _function(graph: fx.GraphModule, node: fx.Node):
    if node.op == "get_attr":
        return _Attribute(operator.attrgetter(node.target)(graph).detach().cpu().clone())
    # codes may lie in memory in another order than the values traced
    name = "reshape" if node.target == "view" else node.target
    return _Method(name) if node.op == "call_method" else node.target
