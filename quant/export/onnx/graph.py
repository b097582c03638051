"""An integer graph as ONNX: quantize and dequantize pairs around float operators, which runtimes fuse.

    codes -> DequantizeLinear -> Conv (weights and biases dequantized per channel) -> QuantizeLinear -> codes

Every number is the integer graph's own: int8 weights with one scale per channel, int32 biases in units of input scale
times weight scale. What only moves codes (max-pool, reshape, slices) works on the uint8 tensors themselves. The batch
is the one dynamic dimension.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import torch
from torch import Tensor

from quant.attach import ops
from quant.errors import QuantError
from quant.export.onnx.calls import write_call
from quant.export.onnx.writer import Writer
from quant.integer.graph import IntGraph, Op


def to_onnx(graph: IntGraph, shapes: list[tuple[int, ...]] | None = None) -> onnx.ModelProto:
    """The ONNX model of an integer graph, from inputs "name" (N, ...) to outputs. The same graph gives the same bytes.

    Args:
        graph: with real inputs and outputs, or such that takes and gives codes, which are then uint8.
        shapes: of each input, batch included (default: as the network was attached).

    Raises:
        QuantError: an operation, which is named, has no ONNX form.
    """
    writer = Writer(graph, shapes or [op.attrs["shape"] for op in graph.ops if op.kind == "input"])
    for op in graph.ops:
        try:
            _WRITE[op.kind](writer, op)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise QuantError(f"{op.name}: has no ONNX form here ({error}); keep to a torch engine") from error
    return writer.model()


def _input(writer: Writer, op: Op) -> None:
    writer.tensors[op.name] = op.name


def _quantize(writer: Writer, op: Op) -> None:
    writer.quantize(op, writer.tensor(op.inputs[0]))


def _dequantize(writer: Writer, op: Op) -> None:
    parts = writer.tensors.get(op.inputs[0])
    if isinstance(parts, list):
        grid = writer.grid(writer.graph.op(op.inputs[0]))
        writer.tensors[op.name] = [
            writer.node("DequantizeLinear", [part, *grid], f"{part}_dequantized") for part in parts
        ]
    else:
        writer.tensors[op.name] = writer.real(op.inputs[0])


def _conv(writer: Writer, op: Op) -> None:
    stride, padding, dilation = (ops.pair(op.attrs[name]) for name in ("stride", "padding", "dilation"))
    attrs = {"strides": stride, "pads": 2 * padding, "dilations": dilation, "kernel_shape": list(op.weight.shape[2:])}
    _weighted(writer, op, "Conv", op.weight, op.weight_scale, **attrs, group=op.attrs["groups"])


def _linear(writer: Writer, op: Op) -> None:
    if len(writer.shapes[op.inputs[0]]) == 2:
        _weighted(writer, op, "Gemm", op.weight, op.weight_scale, transB=1)
    else:  # as vectors, because that has an integer kernel
        source, flat = writer.graph.op(op.inputs[0]), replace(op, name=f"{op.name}_vectors")
        vectors = writer.reshape(writer.tensor(source.name), (None, op.weight.shape[1]), f"{op.name}_input")
        real = writer.node("DequantizeLinear", [vectors, *writer.grid(source)], f"{op.name}_input_dequantized")
        _weighted(writer, flat, "Gemm", op.weight, op.weight_scale, real, transB=1)
        writer.tensors[op.name] = writer.reshape(writer.tensor(flat.name), writer.shapes[op.name], op.name)


def _batch_norm(writer: Writer, op: Op) -> None:
    """A depthwise 1x1 convolution: the channel's factor is its weight's scale, the weight's code a constant."""
    channels, top = len(op.bias), 63  # no engine saturates at 63
    smallest = op.bias.double().abs() / (writer.graph.op(op.inputs[0]).qparams.scale * 2**30)
    scale = torch.maximum(op.weight_scale.double().abs() / top, smallest).clamp(min=1e-30)
    codes = torch.round(op.weight_scale.double() / scale).to(torch.int8).view(-1, 1, 1, 1)
    _weighted(writer, op, "Conv", codes, scale.float(), kernel_shape=[1, 1], group=channels)


def _weighted(
    writer: Writer, op: Op, kind: str, weight: Tensor, scale: Tensor, source: str | None = None, **attrs
) -> None:
    """A layer with int8 weights and an int32 bias, on `source` or the dequantized input of the operation."""
    unit = np.float32(writer.graph.op(op.inputs[0]).qparams.scale) * scale.numpy()
    bias = np.round(op.bias.double().numpy() / unit.astype(np.float64)).astype(np.int32)
    source = source or writer.real(op.inputs[0])
    weights = writer.per_channel(f"{op.name}_weight", weight.numpy(), scale.numpy())
    inputs = [source, weights, writer.per_channel(f"{op.name}_bias", bias, unit)]
    writer.quantize(op, writer.node(kind, inputs, f"{op.name}_result", **attrs))


def _instance_norm(writer: Writer, op: Op) -> None:
    """By float arithmetic: no runtime has it for integers."""
    affine = [
        writer.constant(f"{op.name}_{name}", values.numpy())
        for name, values in (("gamma", op.weight_scale), ("beta", op.bias))
    ]
    inputs = [writer.real(op.inputs[0]), *affine]
    writer.quantize(op, writer.node("InstanceNormalization", inputs, f"{op.name}_result", epsilon=op.attrs["eps"]))


def _combine(kind: str, writer: Writer, op: Op, **attrs) -> None:
    inputs = [writer.real(name) for name in op.inputs]
    writer.quantize(op, writer.node(kind, inputs, f"{op.name}_result", **attrs))


def _cat(writer: Writer, op: Op) -> None:
    _combine("Concat", writer, op, axis=op.attrs["dim"] % len(writer.shapes[op.name]))


def _relu(writer: Writer, op: Op) -> None:
    writer.tensors[op.name] = writer.node("Max", [writer.tensor(op.inputs[0]), writer.zero(op)], op.name)


def _function(writer: Writer, op: Op) -> None:
    writer.quantize(op, write_call(writer, op, f"{op.name}_result"))


def _resize(writer: Writer, op: Op) -> None:
    """On the codes as numbers: runtimes cut off fractions where they are given integers."""
    averages = write_call(writer, op, f"{op.name}_result")
    whole = [writer.constant(f"{op.name}_one", np.float32(1)), writer.zero(op)]
    writer.tensors[op.name] = writer.node("QuantizeLinear", [averages, *whole], op.name)


def _call(writer: Writer, op: Op) -> None:
    """A "move" or "float" operation; those that make no tensor (sizes) were worked out with the shapes."""
    if writer.shapes[op.name] is not None:
        writer.tensors[op.name] = write_call(writer, op, op.name)


_WRITE = {
    "input": _input,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "conv": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "add": partial(_combine, "Add"),
    "mul": partial(_combine, "Mul"),
    "cat": _cat,
    "relu": _relu,
    "function": _function,
    "resize": _resize,
    "move": _call,
    "float": _call,
}
