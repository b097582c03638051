"""The integer graph: what a trained network is once every number has its grid. Executors run it (quant/executors).

A list of operations in order. Each names its inputs by the names of earlier operations; those that make an integer
tensor carry its grid.

kind         makes                                                  fields used
input        an input of the network: real, with qparams codes      attrs: shape (of the example at attaching)
quantize     codes of a real tensor                                 qparams
dequantize   real values of codes                                   -
conv         W * x + b, requantized; also averages over windows     weight, weight_scale, bias,
                                                                    attrs: stride padding dilation groups
linear       W x + b, requantized                                   weight, weight_scale, bias
batch_norm   a x + b by channel, requantized                        weight_scale (a, of either sign), bias
instance_norm  the same after (x - mean) / deviation by picture     weight_scale, bias, attrs: eps
add mul cat  of codes on unlike grids, requantized                  attrs (cat): dim
relu         codes not below the zero point                         -
function     any function of real values, requantized               attrs: call
resize       averages of codes of one tensor, rounded, same grid    attrs: call (a bilinear resizing)
move         any selection or rearrangement, on codes               attrs: call, several (whether it makes several)
float        any function, its result real or not a tensor at all   attrs: call, computes (whether it does arithmetic)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, fx

from quant.errors import QuantError
from quant.quantizers.grid import QParams


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

    def given(self, known: dict[str, object]) -> "Call":
        """The same call with the Refs to what is in `known` replaced by it."""

        def fill(value):
            return known.get(value.name, value) if isinstance(value, Ref) else value

        return Call(self.function, fx.node.map_aggregate(self.args, fill), fx.node.map_aggregate(self.kwargs, fill))


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
    """Operations in order, and what comes out: `output` is a Ref or a (nested) tuple of Refs."""

    ops: list[Op]
    output: object

    @cached_property
    def _by_name(self) -> dict[str, Op]:
        return {op.name: op for op in self.ops}

    def op(self, name: str) -> Op:
        return self._by_name[name]

    @property
    def outputs(self) -> list[Op]:
        """The operations whose results come out, in order."""
        return [self.op(ref.name) for ref in leaves(self.output)]

    def on_codes(self) -> "IntGraph":
        """The graph between the first quantize and the last dequantize: codes in, codes out."""
        stubs = {op.inputs[0]: op for op in self.ops if op.kind == "quantize" and self.op(op.inputs[0]).kind == "input"}
        ends = {op.name: op.inputs[0] for op in self.outputs if op.kind == "dequantize"}
        kept = [op for op in self.ops if op.name not in ends and op not in stubs.values()]
        ops = [
            Op(stubs[op.name].name, "input", (), stubs[op.name].qparams, attrs=op.attrs) if op.name in stubs else op
            for op in kept
        ]
        known = {op.name for op in ops}
        missing = sorted({name for op in ops for name in op.inputs} - known)
        if missing:
            raise QuantError(
                f"codes_io: {missing[0]} is read as a real value inside the network too; convert it with real inputs"
            )
        return IntGraph(
            ops,
            fx.node.map_aggregate(self.output, lambda v: Ref(ends.get(v.name, v.name)) if isinstance(v, Ref) else v),
        )

    @property
    def float_ops(self) -> list[str]:
        """Operations whose arithmetic is done on real values, between dequantize and quantize."""
        return [op.name for op in self.ops if op.kind in ("function", "float") and op.attrs.get("computes", True)]


def leaves(value: object) -> list:
    """What a (nested) tuple or list holds, in order; of anything else, itself."""
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, (tuple, list)) else [value]
