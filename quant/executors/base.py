"""What every executor does: walk an integer graph. A subclass says what codes are and how each kind computes them."""

from abc import ABC, abstractmethod

from torch import Tensor, fx, nn

from quant.integer.graph import IntGraph, Op, Ref
from quant.quantizers.grid import HALVES_AWAY, QParams


class Executor(nn.Module, ABC):
    """Runs an integer graph: real inputs to real outputs, or the executor's own code tensors where the graph takes and
    gives codes (IntGraph.on_codes), as between two layers of a network.
    """

    def __init__(self, graph: IntGraph, engine: str):
        super().__init__()
        self.graph, self.engine = graph, engine
        self.expiring = _expiring(graph)

    @classmethod
    def runs_here(cls, engine: str) -> bool:
        """Whether this machine can run `engine`, whose runtime is installed."""
        return True

    @property
    def float_ops(self) -> list[str]:
        """Operations that this engine computes on real values, between dequantize and quantize."""
        return self.graph.float_ops

    @property
    def float_convs(self) -> int:
        """How many convolutions are among `float_ops`."""
        calls = (self.graph.op(name).attrs.get("call") for name in self.float_ops)
        return sum(_is_convolution(call.function) for call in calls if call is not None)

    def forward(self, *inputs):
        values, inputs = {}, list(inputs)
        for op, expiring in zip(self.graph.ops, self.expiring):
            if op.kind == "input":
                values[op.name] = inputs.pop(0)
            else:
                values[op.name] = self.step(op, values)
            for name in expiring:
                del values[name]
        return fx.node.map_aggregate(self.graph.output, lambda v: values[v.name] if isinstance(v, Ref) else v)

    def step(self, op: Op, values: dict) -> object:
        """One operation, its inputs looked up in `values`."""
        if op.kind == "quantize":
            return self.quantize(values[op.inputs[0]], op.qparams)
        if op.kind == "dequantize":
            codes, grid = values[op.inputs[0]], self.graph.op(op.inputs[0]).qparams
            several = isinstance(codes, (tuple, list))  # parts of a split
            return tuple(self.dequantize(c, grid) for c in codes) if several else self.dequantize(codes, grid)
        if op.kind == "function":
            return self.function(op, values)
        if op.kind == "resize":
            return self.resize(op, values)
        if op.kind == "move":
            return self.move(op, values)
        if op.kind == "float":
            return op.attrs["call"](values.__getitem__)
        return getattr(self, op.kind)(op, *(values[name] for name in op.inputs))

    def function(self, op: Op, values: dict):
        """A function of real values, its result quantized."""
        return self.quantize(op.attrs["call"](values.__getitem__), op.qparams)

    def resize(self, op: Op, values: dict):
        """Averages of a tensor's values, back on its grid: by float arithmetic. torch's kernel for code tensors takes
        several times as long, and is wrong for pictures of one pixel."""

        def real(name: str):
            return self.dequantize(values[name], op.qparams) * HALVES_AWAY if name == op.inputs[0] else values[name]

        return self.quantize(op.attrs["call"](real), op.qparams)

    def move(self, op: Op, values: dict):
        """A selection or rearrangement, done on the code tensors themselves."""
        return op.attrs["call"](values.__getitem__)

    def input_grids(self, op: Op) -> list[QParams]:
        return [self.graph.op(name).qparams for name in op.inputs]

    @abstractmethod
    def quantize(self, x: Tensor, qparams: QParams): ...

    @abstractmethod
    def dequantize(self, value, qparams: QParams) -> Tensor: ...

    @abstractmethod
    def codes(self, value) -> Tensor:
        """The uint8 codes of a value."""

    @abstractmethod
    def from_codes(self, codes: Tensor, qparams: QParams):
        """The executor's own tensor from uint8 codes."""

    @abstractmethod
    def conv(self, op: Op, x): ...

    @abstractmethod
    def batch_norm(self, op: Op, x): ...

    @abstractmethod
    def instance_norm(self, op: Op, x): ...

    @abstractmethod
    def linear(self, op: Op, x): ...

    @abstractmethod
    def add(self, op: Op, x, y): ...

    @abstractmethod
    def mul(self, op: Op, x, y): ...

    @abstractmethod
    def cat(self, op: Op, *xs): ...

    @abstractmethod
    def relu(self, op: Op, x): ...


def _is_convolution(function: object) -> bool:
    return isinstance(function, (nn.Conv2d, nn.ConvTranspose2d)) or "conv" in getattr(function, "__name__", "")


def _expiring(graph: IntGraph) -> list[list[str]]:
    """For each operation the values that nothing reads after it, so that their memory is freed."""
    last = {}
    for i, op in enumerate(graph.ops):
        behind = [
            name for source in op.inputs for name in graph.op(source).inputs if graph.op(source).kind == "dequantize"
        ]
        last |= dict.fromkeys((op.name, *op.inputs, *behind), i)
    fx.node.map_aggregate(graph.output, lambda v: last.pop(v.name, None) if isinstance(v, Ref) else v)
    return [[name for name, at in last.items() if at == i] for i in range(len(graph.ops))]
