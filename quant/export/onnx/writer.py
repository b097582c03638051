"""Writes the nodes of an ONNX model one by one, and remembers what each operation of the integer graph has become."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quant.errors import QuantError
from quant.export.onnx.outputs import output_paths
from quant.export.onnx.shapes import Shape, Shapes
from quant.integer.graph import IntGraph, Op, Ref

OPSET, IR_VERSION = 18, 8  # read by onnxruntime from 1.14 on


class Writer:
    """The model of one integer graph, as far as it is written.

    Attributes:
        shapes: of every operation's result.
        tensors: of each operation that makes any: the names of its results.
        real_of: from an operation's name to the name of its dequantized values.
    """

    def __init__(self, graph: IntGraph, input_shapes: list[tuple[int, ...]]):
        self.graph, self.shapes = graph, Shapes(graph, input_shapes)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.tensors: dict[str, str | list[str]] = {}
        self.real_of: dict[str, str] = {}

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        outputs = [self._output(path, ref) for path, ref in output_paths(self.graph.output)]
        inputs = [self._value(op.name, op.name, op.qparams is not None) for op in self.graph.ops if op.kind == "input"]
        body = helper.make_graph(self.nodes, "network", inputs, outputs, list(self.constants.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(body, producer_name="frostnet-search", ir_version=IR_VERSION, opset_imports=opsets)

    # nodes and constants

    def node(self, kind: str, inputs: list[str], output: str | list[str], **attrs) -> str | list[str]:
        """Append a node, named as its (first) output; returns `output`."""
        outputs = [output] if isinstance(output, str) else output
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attrs))
        return output

    def constant(self, name: str, value) -> str:
        made = numpy_helper.from_array(np.asarray(value, order="C"), name)
        if self.constants.setdefault(name, made) != made:
            raise QuantError(f"{name}: two constants of the network would have this name; rename the layer")
        return name

    def reshape(self, tensor: str, shape: Shape, output: str) -> str:
        sizes = np.array([-1 if size is None else size for size in shape], np.int64)
        return self.node("Reshape", [tensor, self.constant(f"{output}_shape", sizes)], output)

    def per_channel(self, name: str, values: np.ndarray, scale: np.ndarray) -> str:
        """A constant's real values, from quantized ones with one scale for each entry of their first axis."""
        zeros = np.zeros(len(scale), values.dtype)
        inputs = [
            self.constant(name, values),
            self.constant(f"{name}_scale", scale),
            self.constant(f"{name}_zero", zeros),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}_real", axis=0)

    # results of operations

    def tensor(self, name: str) -> str:
        """The one tensor that an operation makes."""
        found = self.tensors.get(name)
        if not isinstance(found, str):
            raise QuantError(
                f"{name}: does not make one tensor, but an operation that has an ONNX form reads it as one"
            )
        return found

    def real(self, name: str) -> str:
        """The dequantized values of an operation's codes."""
        if name not in self.real_of:
            self.real_of[name] = self.node(
                "DequantizeLinear", [self.tensor(name), *self.grid(self.graph.op(name))], f"{name}_dequantized"
            )
        return self.real_of[name]

    def plain_real(self, name: str) -> str:
        """A "dequantize" operation's values by float arithmetic.

        A runtime would quantize the weights of a float layer behind a DequantizeLinear.
        """
        codes = self.graph.op(self.graph.op(name).inputs[0])
        scale, zero = codes.qparams.scale, codes.qparams.zero_point
        wide = self.node("Cast", [self.tensor(codes.name)], f"{name}_wide", to=TensorProto.FLOAT)
        moved = self.node("Sub", [wide, self.constant(f"{name}_zero_float", np.float32(zero))], f"{name}_centred")
        return self.node("Mul", [moved, self.constant(f"{name}_scale_float", np.float32(scale))], f"{name}_plain")

    def grid(self, op: Op) -> list[str]:
        """An operation's scale and zero point."""
        return [self.constant(f"{op.name}_scale", np.float32(op.qparams.scale)), self.zero(op)]

    def zero(self, op: Op) -> str:
        return self.constant(f"{op.name}_zero", np.uint8(op.qparams.zero_point))

    def quantize(self, op: Op, real: str) -> None:
        """Put a real tensor on an operation's grid: its result."""
        grid, clipped = op.qparams, (op.qparams.qmin, op.qparams.qmax) != (0, 255)
        name = f"{op.name}_wide" if clipped else op.name
        self.tensors[op.name] = self.node("QuantizeLinear", [real, *self.grid(op)], name)
        if clipped:
            ends = [self.constant(f"{op.name}_{end}", np.uint8(getattr(grid, end))) for end in ("qmin", "qmax")]
            self.tensors[op.name] = self.node("Clip", [name, *ends], op.name)

    # the model's inputs and outputs

    def _output(self, path: str, ref: Ref) -> onnx.ValueInfoProto:
        """An output of the model under a name that no operation has."""
        name = f"output{path}"
        while name in self.shapes:
            name += "_"
        self.node("Identity", [self.tensor(ref.name)], name)
        return self._value(name, ref.name, self.graph.op(ref.name).qparams is not None)

    def _value(self, name: str, source: str, codes: bool) -> onnx.ValueInfoProto:
        shape = ["N" if size is None else size for size in self.shapes[source]]
        return helper.make_tensor_value_info(name, TensorProto.UINT8 if codes else TensorProto.FLOAT, shape)
