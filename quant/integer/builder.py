"""An integer graph while it is built from an attached graph: what each node has become, and what is asked about it."""

import copy
import operator
from collections.abc import Callable

from torch import Tensor, fx, nn

from quant.attach import ops
from quant.errors import QuantError
from quant.integer.folding import Pending
from quant.integer.graph import Call, Op, Ref
from quant.quantizers import Quantizer, SameGrid
from quant.quantizers.grid import QParams


class Builder:
    """The operations so far.

    Attributes:
        graph: the attached graph.
        ops: in order.
        grids: of the operations whose results are codes.
        values: from each node to the name of its operation, or to a Pending.
    """

    def __init__(self, graph: fx.GraphModule):
        self.graph = graph
        self.ops: list[Op] = []
        self.grids: dict[str, QParams] = {}
        self.values: dict[fx.Node, str | Pending] = {}

    # operations

    def emit(self, op: Op) -> str:
        self.ops.append(op)
        if op.qparams is not None:
            self.grids[op.name] = op.qparams
        return op.name

    def emit_move(self, name: str, source: str, qparams: QParams, function: Callable, *settings) -> str:
        """An operation that computes function(source, *settings) on codes."""
        call = Call(function, (Ref(source), *settings), {})
        return self.emit(Op(name, "move", (source,), qparams, attrs={"call": call, "computes": True}))

    def called(self, node: fx.Node, kind: str, name_of: Callable[[fx.Node], str]) -> Op:
        """A node as an operation that makes its call, inputs as `name_of` gives them."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: Ref(name_of(n)))
        inputs = tuple(name_of(n) for n in node.all_input_nodes)
        return Op(node.name, kind, inputs, attrs={"call": Call(self._function(node), tuple(args), dict(kwargs))})

    def _function(self, node: fx.Node) -> Callable:
        """What a node calls: a copy, because what is shipped must not move with a model that trains on."""
        if node.op == "call_module":
            return copy.deepcopy(self.module(node)).cpu().eval().requires_grad_(False)
        if node.op == "get_attr":
            return _Attribute(operator.attrgetter(node.target)(self.graph).detach().cpu().clone())
        # codes may lie in memory in another order than the values traced
        name = "reshape" if node.target == "view" else node.target
        return _Method(name) if node.op == "call_method" else node.target

    # values

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return self.graph.get_submodule(node.target) if node.op == "call_module" else None

    def source(self, node: fx.Node) -> str | Pending:
        """The value of a node's first argument; "" where that is no node."""
        return self.values[node.args[0]] if node.args and isinstance(node.args[0], fx.Node) else ""

    def settled(self, node: fx.Node) -> str:
        """The name of a node's value."""
        value = self.values[node]
        if isinstance(value, Pending):
            raise QuantError(f"{node.name}: no quantizer on its output; attach one, or leave its inputs unquantized")
        return value

    def real(self, node: fx.Node) -> str:
        """The name of a node's value in real units, dequantized first where it is codes."""
        name = self.settled(node)
        if name not in self.grids or not node.meta.get("is_float"):
            return name
        known = next((op.name for op in self.ops if op.kind == "dequantize" and op.inputs == (name,)), None)
        return known or self.emit(Op(f"{name}_real", "dequantize", (name,)))

    # questions

    def is_code(self, value: str | Pending) -> bool:
        return isinstance(value, str) and value in self.grids

    def on_grids(self, node: fx.Node) -> bool:
        """Whether all that a node reads is codes."""
        return all(self.settled(n) in self.grids for n in node.all_input_nodes)

    def reads_real(self, node: fx.Node) -> bool:
        """Whether a node reads a float tensor that is on no grid."""
        return any(n.meta.get("is_float") and self.settled(n) not in self.grids for n in node.all_input_nodes)

    def is_quantized(self, node: fx.Node) -> bool:
        """Whether everything that reads a node, perhaps through its ReLU, is a quantizer."""

        def is_end(user: fx.Node) -> bool:
            through_relu = ops.kind(self.graph, user) in ("relu", "relu6") and self.is_quantized(user)
            return isinstance(self.module(user), Quantizer) or through_relu

        return all(is_end(user) for user in node.users)

    def is_rounded(self, node: fx.Node) -> bool:
        """Whether a node's values go back to the grid of its input."""
        return all(isinstance(self.module(user), SameGrid) for user in node.users)


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
