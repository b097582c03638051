"""One call of the integer graph, while it is written as ONNX."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto
from torch import Tensor, nn

from quant.attach import ops
from quant.errors import QuantError
from quant.export.onnx.shapes import Shape
from quant.export.onnx.writer import Writer
from quant.integer.graph import Call, Op, Ref
from quant.quantizers.grid import HALVES_AWAY


@dataclass(frozen=True)
class Site:
    """One call.

    Attributes:
        writer: of the model.
        op: the operation that makes the call.
        output: the name that its result gets.
    """

    writer: Writer
    op: Op
    output: str

    @property
    def call(self) -> Call:
        return self.op.attrs["call"]

    @property
    def module(self) -> nn.Module:
        return self.call.function

    @property
    def shape(self) -> Shape | list[Shape]:
        """Of the result, or of each where there are several."""
        return self.writer.shapes[self.op.name]

    def setting(self, position: int, name: str, default=None):
        """An argument: a module's attribute, else as it was passed."""
        return ops.setting(self.call, position, name, default)

    def source(self, position: int = 0) -> str:
        """The tensor that an argument is; numbers become constants."""
        value = self.call.args[position] if len(self.call.args) > position else None
        if isinstance(value, Ref):
            return self.writer.tensor(value.name)
        if isinstance(value, (int, float)):
            return self.constant(f"operand_{position}", np.float32(value))
        raise self.unknown()

    def real_source(self) -> str:
        """The first argument by float arithmetic, so that no runtime makes integers of what it is given to."""
        name, writer = self.call.args[0].name, self.writer
        return writer.plain_real(name) if writer.graph.op(name).kind == "dequantize" else writer.tensor(name)

    def codes_as_numbers(self) -> str:
        """The first argument's codes less their zero point, as float numbers, ready to be averaged."""
        wide = self.node("Cast", [self.source()], "codes", to=TensorProto.FLOAT)
        centred = self.node(
            "Sub", [wide, self.constant("zero_float", np.float32(self.op.qparams.zero_point))], "centred"
        )
        return self.node("Mul", [centred, self.constant("halves_away", np.float32(HALVES_AWAY))], "ready")

    def source_shape(self) -> Shape | list[Shape]:
        return self.writer.shapes[self.call.args[0].name]

    def node(self, kind: str, inputs: list[str], suffix: str = "", **attrs) -> str:
        return self.writer.node(kind, inputs, f"{self.output}_{suffix}" if suffix else self.output, **attrs)

    def constant(self, suffix: str, value) -> str:
        value = value.detach().numpy() if isinstance(value, Tensor) else value
        return self.writer.constant(f"{self.op.name}_{suffix}", value)

    def unknown(self, why: str = "") -> QuantError:
        """The error for a call that has no ONNX form."""
        function = type(self.module) if isinstance(self.module, nn.Module) else self.module
        name = getattr(function, "name", getattr(function, "__name__", "?"))
        return QuantError(
            f"{self.op.name}: {name} has no ONNX form here{why and f' ({why})'}; replace it, or keep to a torch engine"
        )
