"""The ONNX form of traced calls: of everything in an integer graph that is not integer arithmetic. One function for
each sort of call.

A function here takes a `Site`, appends nodes through it and returns the name of the result (a list of names where there
are several).
"""

import operator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor, nn

from quant.attach import ops
from quant.errors import QuantError
from quant.integer.deconv import interleave
from quant.integer.graph import Call, Op, Ref
from quant.integer.padding import pad
from quant.quantizers.grid import HALVES_AWAY


@dataclass(frozen=True)
class Site:
    """One call:

    `writer` (quant.export.onnx.export.onnx.graph) that it is written to, its operation, the name that its result gets.
    """

    writer: object
    op: Op
    output: str

    @property
    def call(self) -> Call:
        return self.op.attrs["call"]

    @property
    def module(self) -> nn.Module:
        return self.call.function

    @property
    def shape(self):
        """Of the result: a tuple with None for what depends on the batch, or a list of such."""
        return self.writer.values.shape(self.op.name)

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
        name = self.call.args[0].name
        return (
            self.writer.plain_real(name)
            if self.writer.graph.op(name).kind == "dequantize"
            else self.writer.tensor(name)
        )

    def codes_as_numbers(self) -> str:
        """The first argument's codes less their zero point, as float numbers, ready to be averaged."""
        wide = self.node("Cast", [self.source()], "codes", to=TensorProto.FLOAT)
        centred = self.node(
            "Sub", [wide, self.constant("zero_float", np.float32(self.op.qparams.zero_point))], "centred"
        )
        return self.node("Mul", [centred, self.constant("halves_away", np.float32(HALVES_AWAY))], "ready")

    def source_shape(self):
        return self.writer.values.shape(self.call.args[0].name)

    def node(self, kind: str, inputs: list[str], suffix: str = "", **attrs) -> str:
        return self.writer.node(kind, inputs, f"{self.output}_{suffix}" if suffix else self.output, **attrs)

    def constant(self, suffix: str, value) -> str:
        return self.writer.constant(
            f"{self.op.name}_{suffix}", value.detach().numpy() if isinstance(value, Tensor) else value
        )

    def unknown(self, why: str = "") -> QuantError:
        function = self.module
        name = (
            type(function).__name__
            if isinstance(function, nn.Module)
            else getattr(function, "name", getattr(function, "__name__", "?"))
        )
        return QuantError(
            f"{self.op.name}: {name} has no ONNX form here{why and f' ({why})'}; replace it, or keep to a torch engine"
        )


def write_call(writer, op: Op, output: str) -> str | list[str]:
    """Write the call of a "function", "move" or "float" operation; QuantError where it has no ONNX form."""
    site = Site(writer, op, output)
    function = site.module
    names = type(function).__mro__ if isinstance(function, nn.Module) else (getattr(function, "name", function),)
    for name in names:
        write = _CALLS.get(name) or _KINDS.get(ops.KIND_OF.get(name))
        if write is not None:
            return write(site)
    if op.kind == "float" and not op.inputs and hasattr(function, "value"):
        return site.constant("value", function.value)
    raise site.unknown()


# activations


def _unary(kind: str, **attrs):
    return lambda site: site.node(kind, [site.source()], **attrs)


def _clip(low: float, high: float):
    return lambda site: site.node(
        "Clip", [site.source(), site.constant("low", np.float32(low)), site.constant("high", np.float32(high))]
    )


def _hardtanh(site: Site) -> str:
    return _clip(site.setting(1, "min_val", -1.0), site.setting(2, "max_val", 1.0))(site)


def _silu(site: Site) -> str:
    return site.node("Mul", [site.source(), site.node("Sigmoid", [site.source()], "gate")])


def _leaky_relu(site: Site) -> str:
    return site.node("LeakyRelu", [site.source()], alpha=site.setting(1, "negative_slope", 0.01))


def _prelu(site: Site) -> str:
    slope = site.module.weight.detach().view(-1, *[1] * (len(site.shape) - 2))
    return site.node("PRelu", [site.source(), site.constant("slope", slope)])


def _softmax(site: Site) -> str:
    return site.node("Softmax", [site.source()], axis=site.setting(1, "dim", -1))


# float layers


def _pad(site: Site) -> str:
    """Rows and columns around a picture, of real values or of codes: torch counts from the last dimension, ONNX from
    the first.
    """
    pads, mode = (
        site.setting(1, "padding" if isinstance(site.module, nn.Module) else "pad"),
        ops.PADS.get(type(site.module)),
    )
    mode = mode or site.setting(2, "mode", "constant")
    if len(pads) != 4 or len(site.shape) != 4 or mode not in ("constant", "reflect", "replicate"):
        raise site.unknown(f"{mode}, {pads}")
    left, right, top, bottom = pads
    ends = site.constant("pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
    number = np.uint8 if site.module is pad else np.float32
    value = [site.constant("filling", number(site.setting(3, "value", 0) or 0))] if mode == "constant" else []
    return site.node("Pad", [site.source(), ends, *value], mode="edge" if mode == "replicate" else mode)


def _conv(site: Site) -> str:
    layer = site.module
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise site.unknown(f"padding {layer.padding!r}, {layer.padding_mode!r}")
    transposed = isinstance(layer, nn.ConvTranspose2d)
    attrs = {"output_padding": list(layer.output_padding)} if transposed else {}
    attrs |= {
        "strides": list(layer.stride),
        "pads": 2 * list(layer.padding),
        "dilations": list(layer.dilation),
        "group": layer.groups,
    }
    return site.node("ConvTranspose" if transposed else "Conv", [site.real_source(), *_parameters(site)], **attrs)


def _linear(site: Site) -> str:
    if len(site.shape) == 2:
        return site.node("Gemm", [site.real_source(), *_parameters(site)], transB=1)
    weight, *bias = _parameters(site)
    product = site.node(
        "MatMul",
        [site.real_source(), site.node("Transpose", [weight], "transposed", perm=[1, 0])],
        "product" if bias else "",
    )
    return site.node("Add", [product, *bias]) if bias else product


def _parameters(site: Site) -> list[str]:
    layer = site.module
    weight = layer.weight_quant(layer.weight) if hasattr(layer, "weight_quant") else layer.weight
    return [site.constant("weight", weight)] + ([site.constant("bias", layer.bias)] if layer.bias is not None else [])


def _batch_norm(site: Site) -> str:
    bn = site.module
    if bn.running_var is None:
        raise site.unknown("it keeps no running statistics")
    ones = torch.ones_like(bn.running_var)
    parts = {
        "gamma": bn.weight if bn.affine else ones,
        "beta": bn.bias if bn.affine else 0 * ones,
        "mean": bn.running_mean,
    }
    inputs = [site.constant(name, value) for name, value in (parts | {"var": bn.running_var}).items()]
    return site.node("BatchNormalization", [site.source(), *inputs], epsilon=bn.eps)


def _instance_norm(site: Site) -> str:
    norm, channels = site.module, site.shape[1]
    if norm.track_running_stats:
        return _batch_norm(site)
    gamma, beta = (norm.weight, norm.bias) if norm.affine else (torch.ones(channels), torch.zeros(channels))
    inputs = [site.source(), site.constant("gamma", gamma), site.constant("beta", beta)]
    return site.node("InstanceNormalization", inputs, epsilon=norm.eps)


# arithmetic


def _binary(kind: str):
    def write(site: Site) -> str:
        if site.call.kwargs or len(site.call.args) > 2:
            raise site.unknown("with further arguments")
        return site.node(kind, [site.source(0), site.source(1)])

    return write


def _cat(site: Site) -> str:
    parts = site.call.args[0]
    tensors = (
        site.writer.tensors[parts.name] if isinstance(parts, Ref) else [site.writer.tensor(ref.name) for ref in parts]
    )
    return site.node("Concat", tensors, axis=site.setting(1, "dim", 0) % len(site.shape))


# pooling and resizing


def _window(site: Site) -> dict:
    kernel, padding = site.setting(1, "kernel_size"), site.setting(3, "padding", 0)
    stride = site.setting(2, "stride") or kernel
    return {"kernel_shape": ops.pair(kernel), "strides": ops.pair(stride), "pads": 2 * ops.pair(padding)}


def _max_pool(site: Site) -> str:
    dilations, ceil = ops.pair(site.setting(4, "dilation", 1)), int(site.setting(5, "ceil_mode", False))
    return site.node("MaxPool", [site.source()], **_window(site), dilations=dilations, ceil_mode=ceil)


def _average_pool(site: Site) -> str:
    ceil, include = int(site.setting(4, "ceil_mode", False)), int(site.setting(5, "count_include_pad", True))
    if site.setting(6, "divisor_override") is not None:
        raise site.unknown("divisor_override")
    # by float arithmetic: onnxruntime's integer kernel takes 3 to 14 times as long, and is wrong at a last window cut
    # short
    return site.node("AveragePool", [site.real_source()], **_window(site), ceil_mode=ceil, count_include_pad=include)


def _adaptive_average(site: Site) -> str:
    """Even windows are an average pool; uneven ones two matrix products: rows of weights 1 / length over each
    window.
    """
    (*_, height, width), (*_, h, w) = site.source_shape(), site.shape
    if (h, w) == (1, 1):
        return site.node("GlobalAveragePool", [site.source()])
    if height % h == 0 and width % w == 0:
        kernel = [height // h, width // w]
        return site.node("AveragePool", [site.real_source()], kernel_shape=kernel, strides=kernel)
    columns = site.node("MatMul", [site.source(), site.constant("columns", _windows(width, w).T)], "columns_averaged")
    return site.node("MatMul", [site.constant("rows", _windows(height, h)), columns])


def _windows(size: int, parts: int) -> np.ndarray:
    """(parts, size): the weights by which adaptive pooling averages."""
    rows = np.zeros((parts, size), np.float32)
    for i, row in enumerate(rows):
        start, end = i * size // parts, -(-(i + 1) * size // parts)
        row[start:end] = 1 / (end - start)
    return rows


def _mean(site: Site) -> str:
    dims, keep = site.setting(1, "dim"), int(site.setting(2, "keepdim", False))
    rank = len(site.source_shape())
    if dims is None:
        raise site.unknown("over the batch too")
    dims = sorted(d % rank for d in (dims if isinstance(dims, (tuple, list)) else [dims]))
    if rank == 4 and dims == [2, 3]:  # the form that runtimes know as an integer operation
        pooled = site.node("GlobalAveragePool", [site.source()], "" if keep else "pooled")
        return pooled if keep else _reshape_to(site, pooled)
    return site.node("ReduceMean", [site.source(), site.constant("axes", np.array(dims))], keepdims=keep)


def _resize(site: Site) -> str:
    mode, corners = site.setting(3, "mode", "nearest"), bool(site.setting(4, "align_corners", False))
    if mode not in ("nearest", "bilinear"):
        raise site.unknown(f"mode {mode!r}")
    if site.setting(6, "antialias", False) or len(site.shape) != 4:
        raise site.unknown("antialias, or no picture")
    factor, again = site.setting(2, "scale_factor"), site.setting(5, "recompute_scale_factor")
    source = site.codes_as_numbers() if site.op.kind == "resize" else site.source()
    if factor is not None and not again:  # torch's grid then follows the factor, not the two sizes
        size = ["", site.constant("factors", np.array([1, 1, *ops.pair(factor)], np.float32))]
    else:  # of all four dimensions: onnxruntime reorders them, and does not heed `axes` then
        batch = site.node("Shape", [source], "batch", start=0, end=2)
        size = [
            "",
            "",
            site.node("Concat", [batch, site.constant("size", np.array(site.shape[2:], np.int64))], "sizes", axis=0),
        ]
    half = "align_corners" if corners else "pytorch_half_pixel"
    how = {"mode": "linear", "coordinate_transformation_mode": half} if mode == "bilinear" else _NEAREST
    return site.node("Resize", [source, *size], **how)


_NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


# moving values


def _same(site: Site) -> str:
    return site.source()


def _reshape(site: Site) -> str:
    return _reshape_to(site, site.source())


def _reshape_to(site: Site, tensor: str) -> str:
    if sum(size is None for size in site.shape) > 1:
        raise site.unknown(f"several sizes of {site.shape} depend on the batch")
    shape = np.array([-1 if size is None else size for size in site.shape], np.int64)
    return site.node("Reshape", [tensor, site.constant("shape", shape)])


def _permute(site: Site) -> str:
    order = site.setting(1, "dims")
    order = site.call.args[1:] if isinstance(order, int) else order
    return site.node("Transpose", [site.source()], perm=[d % len(order) for d in order])


def _transpose(site: Site) -> str:
    order = list(range(len(site.shape)))
    a, b = site.setting(1, "dim0"), site.setting(2, "dim1")
    order[a], order[b] = order[b], order[a]
    return site.node("Transpose", [site.source()], perm=order)


def _split(site: Site) -> list[str]:
    axis = site.setting(2, "dim", 0)
    if any(shape[axis] is None for shape in site.shape):
        raise site.unknown("of the batch")
    parts = [f"{site.output}_{i}" for i in range(len(site.shape))]
    sizes = site.constant("sizes", np.array([shape[axis] for shape in site.shape], np.int64))
    return site.writer.node("Split", [site.source(), sizes], parts, axis=axis)


def _getitem(site: Site) -> str:
    """One of several tensors, or a part of one: slices, and whole numbers, which drop their axis."""
    source, index = site.call.args[0], site.call.args[1]
    tensors = site.writer.tensors.get(source.name)
    if isinstance(tensors, list):
        return tensors[index]
    rank, index = len(site.source_shape()), index if isinstance(index, tuple) else (index,)
    if not all(isinstance(i, (int, slice)) or i is Ellipsis for i in index):
        raise site.unknown("only slices and whole numbers")
    # a size worked out in the network: the result's
    if Ellipsis not in index and not any(isinstance(i, int) for i in index):
        index = tuple(
            slice(i.start, (i.start or 0) + n) if isinstance(i.stop, Ref) and n else i
            for i, n in zip(index, site.shape)
        )
    missing = rank - sum(i is not Ellipsis for i in index)
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    full = [*index[:at], *[slice(None)] * missing, *index[at + 1 :]]
    sliced = _slice(site, site.source(), {axis: i for axis, i in enumerate(full) if i != slice(None)})
    return _reshape_to(site, sliced) if any(isinstance(i, int) for i in full) else sliced


def _slice(site: Site, tensor: str, kept: dict[int, slice | int]) -> str:
    """`tensor` with the axes in `kept` cut; a whole number keeps one entry.

    The result is the site's unless an axis is dropped.
    """
    if not kept:
        return tensor
    last = np.iinfo(np.int64).max
    slices = [slice(i, i + 1 or None) if isinstance(i, int) else i for i in kept.values()]
    parts = {
        "starts": [s.start or 0 for s in slices],
        "ends": [last if s.stop is None else s.stop for s in slices],
        "axes": list(kept),
        "steps": [s.step or 1 for s in slices],
    }
    constants = [site.constant(name, np.array(values, np.int64)) for name, values in parts.items()]
    return site.node("Slice", [tensor, *constants], "sliced" if any(isinstance(i, int) for i in kept.values()) else "")


def _interleave(site: Site) -> str:
    (sh, sw), keep = site.call.args[1:]
    return _interleaved(site, sh, sw, {axis: part for axis, part in zip((2, 3), keep) if part != slice(0, None)})


def _pixel_shuffle(site: Site) -> str:
    factor = site.setting(1, "upscale_factor")
    return _interleaved(site, factor, factor, {})


def _interleaved(site: Site, sh: int, sw: int, kept: dict[int, slice]) -> str:
    """Channels (C, sh, sw) into rows and columns, as quant.integer.deconv.interleave does."""
    _, channels, height, width = site.source_shape()
    apart = site.constant("apart_shape", np.array([-1, channels // (sh * sw), sh, sw, height, width], np.int64))
    ordered = site.node(
        "Transpose", [site.node("Reshape", [site.source(), apart], "apart")], "ordered", perm=[0, 1, 4, 2, 5, 3]
    )
    together = site.constant("together_shape", np.array([-1, channels // (sh * sw), height * sh, width * sw], np.int64))
    return _slice(site, site.node("Reshape", [ordered, together], "together" if kept else ""), kept)


_KINDS = {
    "conv": _conv,
    "deconv": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "relu": _unary("Relu"),
    "relu6": _clip(0.0, 6.0),
    "add": _binary("Add"),
    "mul": _binary("Mul"),
    "cat": _cat,
    "dropout": _same,
}

_CALLS = {
    function: write
    for functions, write in (
        ((nn.Hardswish, F.hardswish), _unary("HardSwish")),
        ((nn.Hardsigmoid, F.hardsigmoid), _unary("HardSigmoid", alpha=1 / 6, beta=0.5)),
        ((nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid"), _unary("Sigmoid")),
        ((nn.Tanh, torch.tanh, F.tanh, "tanh"), _unary("Tanh")),
        ((nn.SiLU, F.silu), _silu),
        ((nn.LeakyReLU, F.leaky_relu), _leaky_relu),
        ((nn.PReLU,), _prelu),
        ((nn.Softmax, F.softmax, torch.softmax, "softmax"), _softmax),
        ((nn.Hardtanh, F.hardtanh), _hardtanh),
        ((operator.sub, torch.sub, "sub"), _binary("Sub")),
        ((operator.truediv, torch.div, "div"), _binary("Div")),
        ((nn.MaxPool2d, F.max_pool2d), _max_pool),
        ((nn.AvgPool2d, F.avg_pool2d), _average_pool),
        ((nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d), _adaptive_average),
        ((torch.mean, "mean"), _mean),
        ((nn.Upsample, F.interpolate), _resize),
        ((nn.Identity, "contiguous"), _same),
        (
            (
                nn.Flatten,
                torch.flatten,
                torch.reshape,
                torch.squeeze,
                torch.unsqueeze,
                "flatten",
                "view",
                "reshape",
                "squeeze",
                "unsqueeze",
            ),
            _reshape,
        ),
        ((torch.permute, "permute"), _permute),
        ((torch.transpose, "transpose"), _transpose),
        ((torch.chunk, torch.split, "chunk", "split"), _split),
        ((operator.getitem,), _getitem),
        ((interleave,), _interleave),
        ((*ops.PADS, F.pad, pad), _pad),
        ((nn.PixelShuffle, F.pixel_shuffle), _pixel_shuffle),
    )
    for function in functions
}
