"""Activations, float layers and arithmetic as ONNX: one function for each sort of call (quant/export/onnx/calls.py)."""

import numpy as np
import torch
from torch import nn

from quant.export.onnx.site import Site
from quant.integer.graph import Ref


def unary(kind: str, **attrs):
    return lambda site: site.node(kind, [site.source()], **attrs)


def clip(low: float, high: float):
    return lambda site: site.node(
        "Clip", [site.source(), site.constant("low", np.float32(low)), site.constant("high", np.float32(high))]
    )


def hardtanh(site: Site) -> str:
    return clip(site.setting(1, "min_val", -1.0), site.setting(2, "max_val", 1.0))(site)


def silu(site: Site) -> str:
    return site.node("Mul", [site.source(), site.node("Sigmoid", [site.source()], "gate")])


def leaky_relu(site: Site) -> str:
    return site.node("LeakyRelu", [site.source()], alpha=site.setting(1, "negative_slope", 0.01))


def prelu(site: Site) -> str:
    slope = site.module.weight.detach().view(-1, *[1] * (len(site.shape) - 2))
    return site.node("PRelu", [site.source(), site.constant("slope", slope)])


def softmax(site: Site) -> str:
    return site.node("Softmax", [site.source()], axis=site.setting(1, "dim", -1))


def binary(kind: str):
    def write(site: Site) -> str:
        if site.call.kwargs or len(site.call.args) > 2:
            raise site.unknown("with further arguments")
        return site.node(kind, [site.source(0), site.source(1)])

    return write


def cat(site: Site) -> str:
    parts = site.call.args[0]
    tensors = (
        site.writer.tensors[parts.name] if isinstance(parts, Ref) else [site.writer.tensor(ref.name) for ref in parts]
    )
    return site.node("Concat", tensors, axis=site.setting(1, "dim", 0) % len(site.shape))


def conv(site: Site) -> str:
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


def linear(site: Site) -> str:
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


def batch_norm(site: Site) -> str:
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


def instance_norm(site: Site) -> str:
    norm, channels = site.module, site.shape[1]
    if norm.track_running_stats:
        return batch_norm(site)
    gamma, beta = (norm.weight, norm.bias) if norm.affine else (torch.ones(channels), torch.zeros(channels))
    inputs = [site.source(), site.constant("gamma", gamma), site.constant("beta", beta)]
    return site.node("InstanceNormalization", inputs, epsilon=norm.eps)
