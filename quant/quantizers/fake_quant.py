"""The arithmetic of fake-quant: rounding onto a grid forward, gradients by a mask backward.

    y = scale * round(clamp(x, lo, hi) / scale)      (arXiv:1712.05877, section 3)
    dx = g where lo <= x <= hi, else 0               (arXiv:1308.3432)

Bounds and scales are Python numbers on a CPU (fastest: one new tensor, then in place, about the cost of two ReLUs) and
tensors elsewhere, where nothing may wait for the device. The mask is ours because library clamps differ at the bounds:
torch's hardtanh drops the gradient of the largest element, which sits exactly on an observed maximum.

Example:
    >>> x = torch.tensor([-1.0, 0.24, 0.26, 9.0])
    >>> fake_quantize(x, lo=0.0, hi=2.0, scale=0.5)
    tensor([0.0000, 0.0000, 0.5000, 2.0000])
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Number = float | Tensor


class _FakeQuantize(torch.autograd.Function):
    """With tensors for bounds."""

    @staticmethod
    def forward(ctx, x, lo, hi, scale, relu, through):
        ctx.save_for_backward(None if through else x)
        ctx.bounds, ctx.relu = (lo, hi), relu
        return round_to_grid(x, lo, hi, scale)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        dx = grad if x is None else clamp_backward(grad, x, *ctx.bounds, open_below=ctx.relu)
        return dx, None, None, None, None, None


def _fake_quantize(x: Tensor, lo: float, hi: float, scale: float, relu: bool, through: bool) -> Tensor:
    """With numbers: torch's own clamp and its gradient, the rounding done behind autograd's back.

    No Python runs in the backward pass.
    """
    y = x.clone() if through else F.hardtanh(x, lo if relu else _below(lo), _above(hi))
    values = y.detach()  # the same memory
    if through:
        values.clamp_(lo, hi)
    values.mul_(1.0 / scale).round_().mul_(scale)
    return y


def fake_quantize(
    x: Tensor, lo: Number, hi: Number, scale: Number, relu: bool = False, through: bool = False
) -> Tensor:
    """Fake-quantize x of any shape; keeps shape, dtype and memory format.

    lo, hi and scale are Python numbers or tensors that broadcast over x; lo and hi are multiples of scale. `relu` says
    that the clamp at lo = 0 is the group's ReLU: then x = 0 gets no gradient, as in torch's ReLU. `through` gives
    clamped values a gradient too. Arithmetic is float32 for a bfloat16 or float16 x, so autocast rounds once, at the
    end.
    """
    function = _FakeQuantize.apply if isinstance(scale, Tensor) else _fake_quantize
    return function(widen(x), lo, hi, scale, relu, through).to(x.dtype)


def fake_quantize_weight(w: Tensor, scale: Tensor) -> Tensor:
    """Round weights of any shape onto a symmetric grid, unclamped.

    `scale` broadcasts over w. The gradient passes straight through.
    """
    y = w.clone()
    y.detach().div_(scale).round_().mul_(scale)
    return y


def straight_through(x: Tensor, y: Tensor) -> Tensor:
    """The values of y with the gradient of x. Exactly y: the usual x + (y - x).detach() has a rounding error."""
    z = x.clone()
    z.detach().copy_(y)
    return z


def round_to_grid(x: Tensor, lo: Number, hi: Number, scale: Number) -> Tensor:
    """scale * round(clamp(x, lo, hi) / scale), without gradient."""
    y = torch.clamp(x, lo, hi)
    return (y.div_(scale) if isinstance(scale, Tensor) else y.mul_(1.0 / scale)).round_().mul_(scale)


def clamp_backward(
    grad: Tensor, x: Tensor, lo: Number, hi: Number, open_below: bool = False, open_above: bool = False
) -> Tensor:
    """A clamp's gradient: `grad` where lo <= x <= hi, 0 elsewhere; `open_below`, `open_above` exclude the bounds."""
    if isinstance(hi, Tensor):
        above_lo, below_hi = x > lo if open_below else x >= lo, x < hi if open_above else x <= hi
        return torch.where(above_lo & below_hi, grad, 0.0)
    # hardtanh's backward is one vectorised kernel with both bounds open: a little further out closes one
    return torch.ops.aten.hardtanh_backward(grad, x, lo if open_below else _below(lo), hi if open_above else _above(hi))


def numbers(*values: Tensor) -> tuple[Number, ...]:
    """0-dim tensors on a CPU as Python numbers, since asking costs nothing there; others as they are."""
    return tuple(v.item() if v.device.type == "cpu" and v.dim() == 0 else v.detach() for v in values)


def at_least(value: Number, bound: float) -> Number:
    return value.clamp(min=bound) if isinstance(value, Tensor) else max(value, bound)


def widen(x: Tensor) -> Tensor:
    """float32 for the half precisions, x itself otherwise."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _below(bound: float) -> float:
    """A little less than `bound`: by one or two float32 steps, so that a float32 `bound` itself lies above."""
    return bound - max(abs(bound) * 2.0**-23, 2.0**-149)


def _above(bound: float) -> float:
    return bound + max(abs(bound) * 2.0**-23, 2.0**-149)
