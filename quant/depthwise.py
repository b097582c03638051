"""A faster weight gradient of 5x5 depthwise convolutions on small maps, on CPUs.

Where the map is hardly larger than the kernel, oneDNN takes many times as long for it as for the forward pass. The
gradient is put together from four 3x3 ones, whose kernel is fast: tap (i, j) of the large kernel is tap (i - a, j - b)
of a 3x3 kernel on the input shifted by (a, b), a and b in {0, 2}.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

KERNEL, PART = 5, 3
LARGEST_MAP = 64  # pixels of the input; above it oneDNN's kernel is as fast
_convolution_backward = torch.ops.aten.convolution_backward


def speed_up(model: nn.Module) -> nn.Module:
    """Let 5x5 depthwise convolutions of a float model compute their weight gradients the fast way; returns the model.

    The layers stay what they are: classes, parameters, forward results. Quantized layers do so by themselves.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_depthwise(module):
            module._conv_forward = functools.partial(conv_forward, module)
    return model


def conv_forward(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What `layer._conv_forward` computes: a convolution of x (N, C, H, W) with `weight`."""
    if _is_depthwise(layer) and _profits(x, weight):
        return _Depthwise.apply(x, weight, bias, layer.stride, layer.padding)
    return nn.Conv2d._conv_forward(layer, x, weight, bias)


def _is_depthwise(layer: nn.Conv2d) -> bool:
    depthwise = layer.groups == layer.in_channels == layer.out_channels
    plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str) and layer.dilation == (1, 1)
    return depthwise and plain and layer.kernel_size == (KERNEL, KERNEL)


def _profits(x: Tensor, weight: Tensor) -> bool:
    trains = torch.is_grad_enabled() and weight.requires_grad and not torch.jit.is_tracing()
    # autocast would hand the backward pass a gradient of another type than what was kept for it
    plain = x.device.type == "cpu" and x.dtype == weight.dtype and not torch.is_autocast_enabled("cpu")
    return trains and plain and x.dim() == 4 and x.shape[2] * x.shape[3] <= LARGEST_MAP


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        return F.conv2d(x, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = _gradients(grad, x, weight, ctx.stride, ctx.padding, (True, False, False))[0]
        if ctx.needs_input_grad[1]:
            dweight = _weight_gradient(grad, x, weight, ctx.stride, ctx.padding)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            dbias = grad.sum((0, 2, 3))
        return dx, dweight, dbias, None, None


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple, padding: tuple) -> Tensor:
    """(C, 1, 5, 5): four 3x3 gradients, which overlap in the middle row and column."""
    dweight, part = torch.empty_like(weight), weight[:, :, :PART, :PART].contiguous()
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height, width = ((size - 1) * step + PART for size, step in zip(grad.shape[2:], stride))
    for a in (0, KERNEL - PART):
        for b in (0, KERNEL - PART):
            shifted = padded[:, :, a : a + height, b : b + width].contiguous(memory_format=torch.channels_last)
            found = _gradients(grad, shifted, part, stride, (0, 0), (False, True, False))[1]
            dweight[:, :, a : a + PART, b : b + PART] = found
    return dweight


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple, padding: tuple, wanted: tuple) -> tuple:
    """Of a depthwise convolution: (of x, of the weight, of the bias), None for what is not wanted."""
    return _convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), list(wanted)
    )
