"""The integer graph: what a trained network is once every number has its grid. Executors run it (quant/executors).

A list of operations in order. Each names its inputs by the names of earlier operations; those that make an integer tensor carry its grid.

kind         makes                                                  fields used
input        the network's input, real                              -
quantize     codes of a real tensor                                 qparams
dequantize   real values of codes                                   -
conv         W * x + b, requantized                                 weight, weight_scale, bias, attrs: stride padding dilation groups
linear       W x + b, requantized                                   weight, weight_scale, bias
add mul cat  of codes on unlike grids, requantized                  attrs (cat): dim
relu         codes not below the zero point                         -
function     any function of real values, requantized               attrs: call
move         any selection or rearrangement, on codes               attrs: call
float        any function, its result real or not a tensor at all   attrs: call
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, fx

from quant.grid import QParams


@dataclass(frozen=True)
class Call:
    """A call as traced: `function(*args, **kwargs)`, where strings wrapped in Ref stand for earlier results."""

    function: Callable
    args: tuple
    kwargs: dict

    def __call__(self, lookup: Callable[[str], object]):
        """Run it with every Ref replaced by lookup(name)."""

        def fill(value):
            return lookup(value.name) if isinstance(value, Ref) else value

        return self.function(*fx.node.map_aggregate(self.args, fill), **fx.node.map_aggregate(self.kwargs, fill))


@dataclass(frozen=True)
class Ref:
    """The result of the operation called `name`."""

    name: str


@dataclass(eq=False)
class Op:
    """One operation of an integer graph; see the module's table for which fields a kind uses.

    weight       int8, laid out as the float layer's
    weight_scale float32, one per output channel, batch norm folded in
    bias         float32, real units, batch norm folded in
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    qparams: QParams | None = None
    weight: Tensor | None = None
    weight_scale: Tensor | None = None
    bias: Tensor | None = None
    attrs: dict = field(default_factory=dict)


@dataclass(eq=False)
class IntGraph:
    """Operations in order, and what comes out: `output` is a (nested) structure of Refs."""

    ops: list[Op]
    output: object

    @cached_property
    def _by_name(self) -> dict[str, Op]:
        return {op.name: op for op in self.ops}

    def op(self, name: str) -> Op:
        return self._by_name[name]

    @property
    def float_ops(self) -> list[str]:
        """Operations whose arithmetic is done on real values, between dequantize and quantize."""
        return [op.name for op in self.ops if op.kind in ("function", "float") and op.attrs.get("computes", True)]

    def weight_bytes(self) -> int:
        """Size of all weights, scales and biases."""
        tensors = [t for op in self.ops for t in (op.weight, op.weight_scale, op.bias) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)
