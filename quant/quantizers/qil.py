"""`qil`, quantization interval learning, arXiv:1808.05779: what to prune and where to clip is learned.

The interval [c - d, c + d] is mapped onto [0, 1] (equations 3 to 5); below it is 0, above it 1. Then v is rounded to q
steps:

    weights      v = sign(w) (|w| / 2d + 1/2 - c / 2d)^gamma        q = 2^(bits-1) - 1 (2 bits: ternary)
    activations  v = x / 2d + 1/2 - c / 2d                          q = 2^bits - 1

Values are in [-1, 1] and [0, 1] whatever the input's size is: a batch norm behind the layer absorbs that. Bits are best
lowered step by step (Schedule(bits=(5, 4, 3, 2))), with a learning rate for intervals 100 times smaller than for
weights.
"""

import torch
from torch import Tensor, nn

from common import distributed
from quant.quantizers.base import (
    INF,
    ActivationQuantizer,
    WeightQuantizer,
    check_range,
    choose,
    inner,
    quantiles,
)
from quant.quantizers.fake_quant import Number, at_least, clamp_backward, numbers
from quant.quantizers.grid import QParams, symmetric_levels

SMALLEST_DISTANCE = 1e-3


class _WeightInterval(torch.autograd.Function):
    """round(q v) / q; the gradient passes the rounding straight through."""

    @staticmethod
    def forward(ctx, w, c, d, gamma, q):
        c, d = in_order(c, d)
        b = ((w.abs() - (c - d)) / (2.0 * d)).clamp_(0.0, 1.0)
        ctx.save_for_backward(w, c, d, gamma, b)
        return torch.round(b**gamma * q).div_(q).mul_(torch.sign(w))

    @staticmethod
    def backward(ctx, grad):
        w, c, d, gamma, b = ctx.saved_tensors
        size = w.abs()
        within = (size >= c - d) & (size <= c + d)
        b = b.clamp(1e-6, 1.0)  # gamma < 1 has an infinite slope at 0
        dv = torch.where(within, grad * gamma * b ** (gamma - 1.0), 0.0)  # with respect to |w| / 2d, up to the sign
        signed = dv * torch.sign(w)
        dc = (signed * (-0.5 / d)).sum()
        dd = (signed * (-0.5 / d**2) * (size - c)).sum()
        dgamma = torch.where(within, grad * torch.sign(w) * b**gamma * torch.log(b), 0.0).sum()
        return dv * (0.5 / d), dc, dd, dgamma, None


class _LinearInterval(torch.autograd.Function):
    """The same with gamma = 1: sign(x) max(0, min(|x|, c + d) - (c - d)) is the difference of two clamps."""

    @staticmethod
    def forward(ctx, x, c, d, q, signed):
        ctx.interval, ctx.signed = (c, d), signed = in_order(*numbers(c, d)), signed
        ctx.save_for_backward(x)
        y = (
            torch.clamp(x, -(c + d), c + d).sub_(torch.clamp(x, d - c, c - d))
            if signed
            else torch.clamp(x, c - d, c + d).sub_(c - d)
        )
        return y.mul_(q / (2.0 * d)).round_().mul_(1.0 / q)

    @staticmethod
    def backward(ctx, grad):
        (x,), (c, d) = ctx.saved_tensors, ctx.interval
        dx = clamp_backward(grad, x, -(c + d) if ctx.signed else c - d, c + d)
        if ctx.signed:
            dx -= clamp_backward(grad, x, d - c, c - d, open_below=True, open_above=True)
        dx.mul_(0.5 / d)
        total = inner(dx, torch.sign(x)) if ctx.signed else dx.sum()
        return dx, -total, (c * total - inner(dx, x)) / d, None, None


def in_order(c: Number, d: Number) -> tuple[Number, Number]:
    """c and d with d above 0 and c - d at or above 0, which a step of the optimizer may have crossed."""
    d = at_least(d, SMALLEST_DISTANCE)
    return (torch.maximum(c, d) if isinstance(d, Tensor) else max(c, d)), d


def weight_interval(w: Tensor, c: Tensor, d: Tensor, gamma: Tensor, q: int) -> Tensor:
    """Weights transformed and rounded, values in [-1, 1]; gradients to w, c, d and gamma."""
    return _WeightInterval.apply(w, c, d, gamma, q)


def activation_interval(x: Tensor, c: Tensor, d: Tensor, q: int) -> Tensor:
    """Activations transformed and rounded, values in [0, 1]; gradients to x, c and d."""
    return _LinearInterval.apply(x, c, d, q, False)


def signed_interval(x: Tensor, c: Tensor, d: Tensor, q: int) -> Tensor:
    """weight_interval with gamma = 1: values in [-1, 1]; gradients to x, c and d."""
    return _LinearInterval.apply(x, c, d, q, True)


class _Interval:
    """c and d of an interval that starts as [0, largest]: nothing pruned, nothing clipped."""

    lr_scale = 0.01

    def make_interval(self) -> None:
        self.c, self.d = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.5))

    @torch.no_grad()
    def cover(self, largest: Tensor) -> None:
        for parameter in (self.c, self.d):
            parameter.copy_(largest / 2.0)
        self.keep_order()

    @torch.no_grad()
    def keep_order(self) -> None:
        c, d = in_order(self.c, self.d)
        self.c.data.copy_(c)
        self.d.data.copy_(d)


class QilWeight(_Interval, WeightQuantizer):
    """gamma "fixed" at 1 or "learned"; levels as in the paper.

    The interval starts as [0, reach * rms(w)], but not beyond the largest weight: intervals learn slowly, and two bits
    over all of a bell's tails would leave most weights at zero.
    """

    def __init__(
        self,
        bits: int = 4,
        limit: int = 127,
        axis: int = 0,
        gamma: str = "fixed",
        reach: float = 2.0,
    ):
        super().__init__(bits, limit, axis)
        self.reach = check_range("reach", reach, 0.0)
        self.make_interval()
        # fixed: 1
        self.gamma = nn.Parameter(
            torch.tensor(1.0), requires_grad=choose("gamma", gamma, "fixed", "learned") == "learned"
        )

    def levels(self) -> tuple[int, int]:
        return symmetric_levels(self.bits, limit=self.limit)

    def init_from(self, weight: Tensor) -> None:
        size = weight.detach().abs()
        self.cover(torch.minimum(self.reach * size.square().mean().sqrt(), size.max()))

    def quantize(self, weight: Tensor) -> Tensor:
        if self.training:
            self.keep_order()
        if self.gamma.requires_grad:
            return weight_interval(weight, self.c, self.d, self.gamma, self.levels()[1])
        return signed_interval(weight, self.c, self.d, self.levels()[1])

    def scale(self, weight: Tensor) -> Tensor:
        return weight.new_tensor(1.0 / self.levels()[1])


class QilActivation(_Interval, ActivationQuantizer):
    """Starts at the first batch's 99.9 % quantile. Where values can be negative it works on their size and puts the
    sign back, with the levels of weights."""

    transforms = True

    def __init__(self, bits: int = 4, floor: float = -INF, ceiling: float = INF, signed: bool = True):
        super().__init__(bits, floor, ceiling, signed)
        self.make_interval()

    def levels(self) -> tuple[int, int]:
        return symmetric_levels(self.bits, self.signed)

    def init_from(self, x: Tensor) -> None:
        lo, hi = quantiles(x, 0.001)
        self.cover(distributed.mean_(torch.maximum(hi, -lo) if self.signed else hi))

    def quantize(self, x: Tensor) -> Tensor:
        if self.training:
            self.keep_order()
        if self.signed:
            return signed_interval(self.clamp_to_ceiling(x), self.c, self.d, self.levels()[1])
        return activation_interval(self.clamp_to_ceiling(x), self.c, self.d, self.levels()[1])

    def grid(self) -> QParams:
        """Of the transformed values.

        The ceiling of a fused ReLU6 acts before the transform, so it does not bound them.
        """
        below, above = self.levels()
        return QParams(1.0 / above, below, 0, below + above)
