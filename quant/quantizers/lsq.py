"""`lsq`, learned step size, arXiv:1902.08153.

    v = x / s, y = s round(clip(v, -Qn, Qp))         dx = g [-Qn < v < Qp]
    ds = sum g * (round(v) - v inside, -Qn below, Qp above) / sqrt(N Qp)                    (equations 3 and 5, section
    2.2)
Qn, Qp are 2^(bits-1), 2^(bits-1) - 1 for signed values, 0, 2^bits - 1 for unsigned ones; N is the number of weights, or
of one picture's features. s starts at 2 mean|x| / sqrt(Qp).
"""

import torch
from torch import Tensor, nn

from common import distributed
from quant.quantizers.base import INF, ActivationQuantizer, WeightQuantizer, choose, inner
from quant.quantizers.fake_quant import at_least, inside, numbers, round_to_grid
from quant.quantizers.grid import QParams

SMALLEST_STEP = 1e-6


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, step, qn, qp, gradient_scale):
        s = at_least(*numbers(step), SMALLEST_STEP)
        ctx.bounds, ctx.step, ctx.shape, ctx.gradient_scale = (-qn * s, qp * s), s, step.shape, gradient_scale
        y = round_to_grid(x, *ctx.bounds, s)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        dx = inside(grad, x, *ctx.bounds, open_below=True, open_above=True)
        # y / s is round(v) inside and the bound outside, so that all three cases are (g y - dx x) / s
        total = (grad * y).sub_(dx * x).sum_to_size(ctx.shape) if ctx.shape else inner(grad, y) - inner(dx, x)
        return dx, total / ctx.step * ctx.gradient_scale, None, None, None


def learned_step(x: Tensor, step: Tensor, qn: int, qp: int, gradient_scale: float = 1.0) -> Tensor:
    """x on the grid of the Parameter `step` (0-dim or broadcasting over x), codes -qn..qp."""
    return _LearnedStep.apply(x, step, qn, qp, gradient_scale)


class LsqWeight(WeightQuantizer):
    """granularity "tensor" (the paper's) or "channel"."""

    def __init__(self, bits: int = 4, limit: int = 127, axis: int = 0, granularity: str = "tensor"):
        super().__init__(bits, limit, axis)
        self.granularity = choose("granularity", granularity, "tensor", "channel")
        self.step = nn.Parameter(torch.tensor(1.0))

    def levels(self) -> tuple[int, int]:
        return min(2 ** (self.bits - 1), self.limit), min(2 ** (self.bits - 1) - 1, self.limit)

    def start(self, weight: Tensor) -> None:
        size = weight.detach().abs()
        mean = size.mean() if self.granularity == "tensor" else size.mean(self.one_grid(weight), keepdim=True)
        self.step = nn.Parameter((2.0 * mean / self.levels()[1] ** 0.5).clamp_(min=SMALLEST_STEP))

    def set_bits(self, bits: int) -> None:
        """Keeps the clipping range: the step widens as levels go."""
        before = self.levels()[1] if self.bits else None
        super().set_bits(bits)
        if before:
            self.step.data.mul_(before / self.levels()[1])

    def quantize(self, weight: Tensor) -> Tensor:
        if self.training:
            self.step.data.clamp_(min=SMALLEST_STEP)
        qn, qp = self.levels()
        return learned_step(weight, self.step, qn, qp, (weight.numel() / self.step.numel() * qp) ** -0.5)

    def scale(self, weight: Tensor) -> Tensor:
        return self.step.detach().clamp(min=SMALLEST_STEP)


class LsqActivation(ActivationQuantizer):
    def __init__(self, bits: int = 4, floor: float = -INF, ceiling: float = INF, signed: bool = True):
        super().__init__(bits, floor, ceiling, signed)
        self.step = nn.Parameter(torch.tensor(1.0))

    def levels(self) -> tuple[int, int]:
        return (2 ** (self.bits - 1), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)

    def set_bits(self, bits: int) -> None:
        before = self.levels()[1] if self.bits else None
        super().set_bits(bits)
        if before:
            self.step.data.mul_(before / self.levels()[1])

    @torch.no_grad()
    def watch(self, x: Tensor) -> None:
        if self.batches == 0:
            x = x if self.signed else x.clamp(min=0.0)
            self.step.copy_(distributed.mean_(2.0 * x.abs().mean() / self.levels()[1] ** 0.5))

    def quantize(self, x: Tensor) -> Tensor:
        if self.training:
            self.step.data.clamp_(min=SMALLEST_STEP)
        qn, qp = self.levels()
        return learned_step(self.cut(x), self.step, qn, qp, (x.numel() / len(x) * qp) ** -0.5)

    def grid(self) -> QParams:
        scale, (qn, qp) = max(self.step.item(), SMALLEST_STEP), self.levels()
        top = qp if self.ceiling == INF else min(qp, round(self.ceiling / scale))
        return QParams(scale, qn, 0, qn + top)
