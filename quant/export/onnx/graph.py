"""An integer graph in ONNX's language: quantize and dequantize pairs around float operators, which runtimes fuse to
integer kernels.

    codes -> DequantizeLinear -> Conv (weights and biases dequantized by channel) -> QuantizeLinear -> codes

Every number is the integer graph's own: int8 weights with one scale a channel, int32 biases in units of input scale
times weight scale. What only moves codes (max-pool, reshape, slices) works on the uint8 tensors themselves. The batch
is the one dynamic dimension.
"""

import re
from dataclasses import replace

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from quant.attach import ops
from quant.errors import QuantError
from quant.executors.reference import Reference
from quant.export.onnx.calls import write_call
from quant.integer.graph import IntGraph, Op, Ref

OPSET, IR_VERSION = 18, 8  # read by onnxruntime from 1.14 on
Shape = tuple[int | None, ...]  # None: as many as the batch has pictures


def to_onnx(graph: IntGraph, shapes: list[tuple[int, ...]] | None = None) -> onnx.ModelProto:
    """The ONNX model of an integer graph, from inputs "name" (N, ...) to outputs; uint8 where the graph takes or gives
    codes.

    shapes: of each input, batch included (default: as the network was attached). The same graph gives the same bytes.
    Raises QuantError naming an operation that has no ONNX form.
    """
    return _Writer(graph, shapes or [op.attrs["shape"] for op in graph.ops if op.kind == "input"]).model()


class Values:
    """Shapes of every operation's result, tensor or tuple of such, from running it without data for two sizes of
    batch.
    """

    def __init__(self, graph: IntGraph, shapes: list[tuple[int, ...]]):
        self._two, self._three = (_shapes(graph, [(n, *shape[1:]) for shape in shapes]) for n in (2, 3))

    def __contains__(self, name: str) -> bool:
        return name in self._two

    def shape(self, name: str) -> Shape | list[Shape] | None:
        """Its shape (a list of such where there are several tensors), None for what is no tensor."""
        return _merge(self._two[name], self._three[name])


class _Writer:
    def __init__(self, graph: IntGraph, shapes: list[tuple[int, ...]]):
        self.graph, self.values = graph, Values(graph, shapes)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.tensors: dict[str, str | list[str]] = {}  # of each operation that makes any: the names of its results
        self.real_of: dict[str, str] = {}  # codes -> their dequantized values

    def model(self) -> onnx.ModelProto:
        inputs = [op for op in self.graph.ops if op.kind == "input"]
        for op in self.graph.ops:
            self.write(op)
        outputs = [self.output(path, ref) for path, ref in _paths(self.graph.output)]
        given = [self.value(op.name, op.name, op.qparams is not None) for op in inputs]
        body = helper.make_graph(self.nodes, "network", given, outputs, list(self.constants.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(body, producer_name="frostnet-search", ir_version=IR_VERSION, opset_imports=opsets)

    def write(self, op: Op) -> None:
        try:
            (getattr(self, op.kind, None) or self.call)(op)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise QuantError(f"{op.name}: has no ONNX form here ({error}); keep to a torch engine") from error

    # operations

    def input(self, op: Op) -> None:
        self.tensors[op.name] = op.name

    def quantize(self, op: Op) -> None:
        self.land(op, self.tensor(op.inputs[0]))

    def dequantize(self, op: Op) -> None:
        parts = self.tensors.get(op.inputs[0])
        if isinstance(parts, list):
            grid = self.grid(self.graph.op(op.inputs[0]))
            self.tensors[op.name] = [
                self.node("DequantizeLinear", [part, *grid], f"{part}_dequantized") for part in parts
            ]
        else:
            self.tensors[op.name] = self.real(op.inputs[0])

    def conv(self, op: Op) -> None:
        stride, padding, dilation = (ops.pair(op.attrs[name]) for name in ("stride", "padding", "dilation"))
        attrs = {
            "strides": stride,
            "pads": 2 * padding,
            "dilations": dilation,
            "kernel_shape": list(op.weight.shape[2:]),
        }
        self.weighted(op, "Conv", op.weight, op.weight_scale, **attrs, group=op.attrs["groups"])

    def linear(self, op: Op) -> None:
        if len(self.values.shape(op.inputs[0])) == 2:
            self.weighted(op, "Gemm", op.weight, op.weight_scale, transB=1)
        else:  # as vectors, because that has an integer kernel
            source, flat = self.graph.op(op.inputs[0]), replace(op, name=f"{op.name}_vectors")
            vectors = self.reshape(self.tensor(source.name), (None, op.weight.shape[1]), f"{op.name}_input")
            self.real_of[flat.name] = self.node(
                "DequantizeLinear", [vectors, *self.grid(source)], f"{op.name}_input_dequantized"
            )
            self.weighted(flat, "Gemm", op.weight, op.weight_scale, self.real_of[flat.name], transB=1)
            self.tensors[op.name] = self.reshape(self.tensor(flat.name), self.values.shape(op.name), op.name)

    def batch_norm(self, op: Op) -> None:
        """A depthwise 1x1 convolution: the channel's factor is its weight's scale, the weight's code a constant."""
        channels, top = len(op.bias), 63  # no engine saturates at 63
        smallest = op.bias.double().abs() / (self.graph.op(op.inputs[0]).qparams.scale * 2**30)
        scale = torch.maximum(op.weight_scale.double().abs() / top, smallest).clamp(min=1e-30)
        codes = torch.round(op.weight_scale.double() / scale).to(torch.int8).view(-1, 1, 1, 1)
        self.weighted(op, "Conv", codes, scale.float(), kernel_shape=[1, 1], group=channels)

    def instance_norm(self, op: Op) -> None:
        """By float arithmetic: no runtime has it for integers."""
        affine = [
            self.constant(f"{op.name}_{name}", values.numpy())
            for name, values in (("gamma", op.weight_scale), ("beta", op.bias))
        ]
        self.land(
            op,
            self.node(
                "InstanceNormalization",
                [self.real(op.inputs[0]), *affine],
                f"{op.name}_result",
                epsilon=op.attrs["eps"],
            ),
        )

    def add(self, op: Op) -> None:
        self.combine(op, "Add")

    def mul(self, op: Op) -> None:
        self.combine(op, "Mul")

    def cat(self, op: Op) -> None:
        dims = len(self.values.shape(op.name))
        self.combine(op, "Concat", axis=op.attrs["dim"] % dims)

    def relu(self, op: Op) -> None:
        self.tensors[op.name] = self.node(
            "Max", [self.tensor(op.inputs[0]), self.constant(f"{op.name}_zero", _uint8(op))], op.name
        )

    def function(self, op: Op) -> None:
        self.land(op, write_call(self, op, f"{op.name}_result"))

    def resize(self, op: Op) -> None:
        """On the codes as numbers: runtimes cut off fractions where they are given integers."""
        averages = write_call(self, op, f"{op.name}_result")
        whole = [self.constant(f"{op.name}_one", np.float32(1)), self.constant(f"{op.name}_zero", _uint8(op))]
        self.tensors[op.name] = self.node("QuantizeLinear", [averages, *whole], op.name)

    def call(self, op: Op) -> None:
        """A "move" or "float" operation; those that make no tensor (sizes) were worked out with the shapes."""
        if self.values.shape(op.name) is not None:
            self.tensors[op.name] = write_call(self, op, op.name)

    # their parts

    def weighted(self, op: Op, kind: str, weight: Tensor, scale: Tensor, source: str = "", **attrs) -> None:
        step = np.float32(self.graph.op(op.inputs[0]).qparams.scale) * scale.numpy()
        bias = np.round(op.bias.double().numpy() / step.astype(np.float64)).astype(np.int32)
        inputs = [
            source or self.real(op.inputs[0]),
            self.by_channel(f"{op.name}_weight", weight.numpy(), scale.numpy()),
        ]
        inputs.append(self.by_channel(f"{op.name}_bias", bias, step))
        self.land(op, self.node(kind, inputs, f"{op.name}_result", **attrs))

    def by_channel(self, name: str, codes: np.ndarray, scale: np.ndarray) -> str:
        """A constant's real values, from codes with one scale for each entry of their first axis."""
        zeros = np.zeros(len(scale), codes.dtype)
        inputs = [
            self.constant(name, codes),
            self.constant(f"{name}_scale", scale),
            self.constant(f"{name}_zero", zeros),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}_real", axis=0)

    def combine(self, op: Op, kind: str, **attrs) -> None:
        self.land(op, self.node(kind, [self.real(name) for name in op.inputs], f"{op.name}_result", **attrs))

    def land(self, op: Op, real: str) -> None:
        """Put a real tensor on an operation's grid."""
        grid, clipped = op.qparams, (op.qparams.qmin, op.qparams.qmax) != (0, 255)
        name = f"{op.name}_wide" if clipped else op.name
        self.tensors[op.name] = self.node("QuantizeLinear", [real, *self.grid(op)], name)
        if clipped:
            ends = [self.constant(f"{op.name}_{end}", np.uint8(getattr(grid, end))) for end in ("qmin", "qmax")]
            self.tensors[op.name] = self.node("Clip", [name, *ends], op.name)

    def real(self, name: str) -> str:
        """The dequantized values of an operation's codes."""
        if name not in self.real_of:
            self.real_of[name] = self.node(
                "DequantizeLinear", [self.tensor(name), *self.grid(self.graph.op(name))], f"{name}_dequantized"
            )
        return self.real_of[name]

    def plain_real(self, name: str) -> str:
        """A "dequantize" operation's values by float arithmetic: a runtime would quantize the weights of a float layer
        behind the other.
        """
        codes = self.graph.op(self.graph.op(name).inputs[0])
        scale, zero = codes.qparams.scale, codes.qparams.zero_point
        wide = self.node("Cast", [self.tensor(codes.name)], f"{name}_wide", to=TensorProto.FLOAT)
        moved = self.node("Sub", [wide, self.constant(f"{name}_zero_float", np.float32(zero))], f"{name}_centred")
        return self.node("Mul", [moved, self.constant(f"{name}_scale_float", np.float32(scale))], f"{name}_plain")

    def grid(self, op: Op) -> list[str]:
        return [
            self.constant(f"{op.name}_scale", np.float32(op.qparams.scale)),
            self.constant(f"{op.name}_zero", _uint8(op)),
        ]

    # plumbing

    def tensor(self, name: str) -> str:
        """The one tensor that an operation makes."""
        found = self.tensors.get(name)
        if not isinstance(found, str):
            raise QuantError(
                f"{name}: does not make one tensor, but an operation that has an ONNX form reads it as one"
            )
        return found

    def node(self, kind: str, inputs: list[str], output: str | list[str], **attrs) -> str | list[str]:
        """Append a node, named as its (first) output; returns `output`."""
        outputs = [output] if isinstance(output, str) else output
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attrs))
        return output

    def reshape(self, tensor: str, shape: Shape, output: str) -> str:
        sizes = np.array([-1 if size is None else size for size in shape], np.int64)
        return self.node("Reshape", [tensor, self.constant(f"{output}_shape", sizes)], output)

    def constant(self, name: str, value) -> str:
        made = numpy_helper.from_array(np.asarray(value, order="C"), name)
        if self.constants.setdefault(name, made) != made:
            raise QuantError(f"{name}: two constants of the network would have this name; rename the layer")
        return name

    def output(self, path: str, ref: Ref) -> onnx.ValueInfoProto:
        """An output of the model, under a name of its own:

        "output", or with its place where there are several, as in "output_1".
        """
        name = f"output{path}"
        while name in self.values:
            name += "_"
        self.node("Identity", [self.tensor(ref.name)], name)
        return self.value(name, ref.name, self.graph.op(ref.name).qparams is not None)

    def value(self, name: str, source: str, codes: bool) -> onnx.ValueInfoProto:
        shape = ["N" if size is None else size for size in self.values.shape(source)]
        return helper.make_tensor_value_info(name, TensorProto.UINT8 if codes else TensorProto.FLOAT, shape)


class _Shapes(Reference):
    """Runs a graph for its shapes alone: what changes only values is left out, which is three quarters of the time."""

    def conv(self, op: Op, x: Tensor) -> Tensor:
        return F.conv2d(x.float(), op.weight.float(), **op.attrs).to(torch.uint8)

    def linear(self, op: Op, x: Tensor) -> Tensor:
        return F.linear(x.float(), op.weight.float()).to(torch.uint8)

    def batch_norm(self, op: Op, x: Tensor) -> Tensor:
        return x

    instance_norm = batch_norm

    def add(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    mul = add

    def cat(self, op: Op, *xs: Tensor) -> Tensor:
        return torch.cat(xs, op.attrs["dim"])


def _shapes(graph: IntGraph, shapes: list[tuple[int, ...]]) -> dict[str, object]:
    """Every result of the graph, without data."""
    executor, rest, values = _Shapes(graph), list(shapes), {}
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for op in graph.ops:
            dtype = torch.uint8 if op.qparams else torch.float32
            try:
                values[op.name] = (
                    torch.empty(rest.pop(0), dtype=dtype) if op.kind == "input" else executor.step(op, values)
                )
            except RuntimeError as error:  # a method whose values are more than rounded reads its own parameters
                raise QuantError(
                    f"{op.name}: has no ONNX form here ({str(error).splitlines()[0]}); keep to a torch engine"
                ) from error
    return values


def _merge(two: object, three: object) -> Shape | list[Shape] | None:
    if isinstance(two, Tensor):
        return tuple(a if a == b else None for a, b in zip(two.shape, three.shape))
    if isinstance(two, (tuple, list)) and two and all(isinstance(v, Tensor) for v in two):
        return [_merge(a, b) for a, b in zip(two, three)]
    return None


def _paths(output: Ref | tuple, path: str = "") -> list[tuple[str, Ref]]:
    """Every output with its place:

    "" where it is the only one, "_1" for the second one, "_1_0" for the first part of that.
    """
    if isinstance(output, Ref):
        return [(path, output)]
    return [found for i, part in enumerate(output) for found in _paths(part, f"{path}_{i}")]


def structure(names: list[str]) -> int | tuple:
    """What a model gives, by the names of its outputs: the number of one, or (nested) tuples of such.

    Of foreign names, a flat tuple.
    """
    found = [re.fullmatch(r"output((?:_[0-9]{1,3}){0,5})_*", name) for name in names]
    places = {tuple(int(i) for i in match[1].split("_")[1:]): number for number, match in enumerate(found) if match}
    nested = _nested(places) if len(places) == len(names) else None
    if nested is not None:
        return nested
    return tuple(range(len(names))) if len(names) > 1 else 0


def _nested(places: dict[tuple[int, ...], int]) -> int | tuple | None:
    """Numbers by place as (nested) tuples; None where places are missing, or in each other's way."""
    if () in places:
        return places[()] if len(places) == 1 else None
    groups = [
        {place[1:]: n for place, n in places.items() if place[0] == first}
        for first in range(1 + max(p[0] for p in places))
    ]
    parts = [_nested(group) if group else None for group in groups]
    return None if None in parts else tuple(parts)


def _uint8(op: Op) -> np.uint8:
    return np.uint8(op.qparams.zero_point)
