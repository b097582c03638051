"""The ONNX form of traced calls: of everything in an integer graph that is not integer arithmetic.

The functions in the tables take a `Site`, append nodes through it and return the name of the result (a list of names
where there are several).
"""

import operator

import torch
import torch.nn.functional as F
from torch import nn

from quant.attach import ops
from quant.export.onnx import arithmetic, moves, pooling
from quant.export.onnx.site import Site
from quant.export.onnx.writer import Writer
from quant.integer.graph import Op
from quant.integer.transforms import interleave_phases, pad_codes


def write_call(writer: Writer, op: Op, output: str) -> str | list[str]:
    """Write the call of a "function", "move" or "float" operation; QuantError where it has no ONNX form."""
    site = Site(writer, op, output)
    function = site.module
    names = type(function).__mro__ if isinstance(function, nn.Module) else (getattr(function, "name", function),)
    for name in names:
        write = _CALLS.get(name) or _KINDS.get(ops.kind_of(name))
        if write is not None:
            return write(site)
    if op.kind == "float" and not op.inputs and hasattr(function, "value"):
        return site.constant("value", function.value)
    raise site.unknown()


_KINDS = {
    "conv": arithmetic.conv,
    "deconv": arithmetic.conv,
    "linear": arithmetic.linear,
    "batch_norm": arithmetic.batch_norm,
    "instance_norm": arithmetic.instance_norm,
    "relu": arithmetic.unary("Relu"),
    "relu6": arithmetic.clip(0.0, 6.0),
    "add": arithmetic.binary("Add"),
    "mul": arithmetic.binary("Mul"),
    "cat": arithmetic.cat,
    "dropout": moves.same,
}

_CALLS = {
    function: write
    for functions, write in (
        ((nn.Hardswish, F.hardswish), arithmetic.unary("HardSwish")),
        ((nn.Hardsigmoid, F.hardsigmoid), arithmetic.unary("HardSigmoid", alpha=1 / 6, beta=0.5)),
        ((nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid"), arithmetic.unary("Sigmoid")),
        ((nn.Tanh, torch.tanh, F.tanh, "tanh"), arithmetic.unary("Tanh")),
        ((nn.SiLU, F.silu), arithmetic.silu),
        ((nn.LeakyReLU, F.leaky_relu), arithmetic.leaky_relu),
        ((nn.PReLU,), arithmetic.prelu),
        ((nn.Softmax, F.softmax, torch.softmax, "softmax"), arithmetic.softmax),
        ((nn.Hardtanh, F.hardtanh), arithmetic.hardtanh),
        ((operator.sub, torch.sub, "sub"), arithmetic.binary("Sub")),
        ((operator.truediv, torch.div, "div"), arithmetic.binary("Div")),
        ((nn.MaxPool2d, F.max_pool2d), pooling.max_pool),
        ((nn.AvgPool2d, F.avg_pool2d), pooling.average_pool),
        ((nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d), pooling.adaptive_average),
        ((torch.mean, "mean"), pooling.mean),
        ((nn.Upsample, F.interpolate), pooling.resize),
        ((nn.Identity, "contiguous"), moves.same),
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
            moves.reshape,
        ),
        ((torch.permute, "permute"), moves.permute),
        ((torch.transpose, "transpose"), moves.transpose),
        ((torch.chunk, torch.split, "chunk", "split"), moves.split),
        ((operator.getitem,), moves.getitem),
        ((interleave_phases,), moves.interleave),
        ((*ops.PADS, F.pad, pad_codes), moves.pad),
        ((nn.PixelShuffle, F.pixel_shuffle), moves.pixel_shuffle),
    )
    for function in functions
}
