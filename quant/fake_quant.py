"""Fake quantization as autograd functions: real values in, the nearest real values on an integer grid out.

Forward   y = scale * round(clamp(x, lo, hi) / scale)     lo, hi on the grid, so the zero point cancels
Backward  dx = dy where lo <= x <= hi, else 0             (straight-through, arXiv:1712.05877 section 3; arXiv:1308.3432)

The clamp can be the ReLU of the group too: then lo is 0, and x = 0 gets no gradient, as in torch's ReLU. The mask is ours: library clamps
differ at the bounds (torch's hardtanh drops the gradient of the largest element, which sits exactly on an observed maximum).

Example:
    >>> x = torch.tensor([-1.0, 0.24, 0.26, 9.0])
    >>> fake_quantize(x, lo=0.0, hi=2.0, scale=0.5)
    tensor([0.0000, 0.0000, 0.5000, 2.0000])
"""

import numpy as np
import torch
from torch import Tensor


class _FakeQuantizeCPU(torch.autograd.Function):
    """Bounds and scale as Python numbers; one new tensor, then in place: about the cost of two ReLUs."""

    @staticmethod
    def forward(ctx, x, lo, hi, scale, relu):
        ctx.save_for_backward(x)
        ctx.bounds = (lo if relu else _below(lo), _above(hi))
        return torch.clamp(x, lo, hi).mul_(1.0 / scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, x, *ctx.bounds), None, None, None, None


class _FakeQuantizeTensor(torch.autograd.Function):
    """Bounds and scale as 0-dim tensors on x's device: nothing synchronises with the host."""

    @staticmethod
    def forward(ctx, x, lo, hi, scale, relu):
        ctx.save_for_backward(x, lo, hi)
        ctx.relu = relu
        return torch.clamp(x, lo, hi).div_(scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx, grad):
        x, lo, hi = ctx.saved_tensors
        inside = (x > lo if ctx.relu else x >= lo) & (x <= hi)
        return torch.where(inside, grad, 0.0), None, None, None, None


class _RoundThrough(torch.autograd.Function):
    """Weights: y = scale * round(w / scale) with the identity as gradient; `scale` broadcasts over w and gets none."""

    @staticmethod
    def forward(ctx, w, scale):
        return torch.div(w, scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def _below(bound: float) -> float:
    return float(np.nextafter(np.float32(bound), np.float32(-np.inf)))


def _above(bound: float) -> float:
    return float(np.nextafter(np.float32(bound), np.float32(np.inf)))


def fake_quantize(x: Tensor, lo, hi, scale, relu: bool = False) -> Tensor:
    """Fake-quantize activations of any shape; keeps shape, dtype and memory format.

    `lo`, `hi` and `scale` are Python numbers (fastest on a CPU) or 0-dim tensors (no synchronisation on a GPU); lo and hi are multiples
    of scale. `relu` says that the clamp at lo = 0 is the group's ReLU. Arithmetic is float32 whatever the dtype of x, so bfloat16
    autocast rounds once, at the end.
    """
    function = _FakeQuantizeTensor if isinstance(scale, Tensor) else _FakeQuantizeCPU
    if x.dtype in (torch.bfloat16, torch.float16):
        return function.apply(x.float(), lo, hi, scale, relu).to(x.dtype)
    return function.apply(x, lo, hi, scale, relu)


def fake_quantize_weight(w: Tensor, scale: Tensor) -> Tensor:
    """Fake-quantize weights of any shape on a symmetric grid; `scale` broadcasts over w; the gradient passes straight through."""
    return _RoundThrough.apply(w, scale)
