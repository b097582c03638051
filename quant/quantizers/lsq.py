"""`lsq`, learned step size, arXiv:1902.08153.

    y = s round(clip(v, -Qn, Qp)), v = x / s
    dx = g [-Qn < v < Qp]                                                   (equation 5)
    ds = sum g * (round(v) - v inside, -Qn below, Qp above) / sqrt(N Qp)    (equation 3, section 2.2)

Qn, Qp are 2^(bits-1), 2^(bits-1) - 1 for signed values, 0, 2^bits - 1 for unsigned ones; N is the number of weights, or
of one picture's features. s starts at 2 mean|x| / sqrt(Qp).
"""

import torch
from torch import Tensor, nn

from common import distributed
from quant.quantizers.base import INF, ActivationQuantizer, WeightQuantizer, choose, inner
from quant.quantizers.fake_quant import at_least, clamp_backward, numbers, round_to_grid
from quant.quantizers.grid import QParams, symmetric_levels, symmetric_qparams

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
        dx = clamp_backward(grad, x, *ctx.bounds, open_below=True, open_above=True)
        # y / s is round(v) inside and the bound outside, so that all three cases are (g y - dx x) / s
        total = (grad * y).sub_(dx * x).sum_to_size(ctx.shape) if ctx.shape else inner(grad, y) - inner(dx, x)
        return dx, total / ctx.step * ctx.gradient_scale, None, None, None


def learned_step(x: Tensor, step: Tensor, qn: int, qp: int, gradient_scale: float = 1.0) -> Tensor:
    """x on the grid of the Parameter `step` (0-dim or broadcasting over x), codes -qn..qp."""
    return _LearnedStep.apply(x, step, qn, qp, gradient_scale)


def signed_levels(bits: int) -> tuple[int, int]:
    """(Qn, Qp) of signed values: one more step below zero than above, as two's complement has it."""
    return 2 ** (bits - 1), 2 ** (bits - 1) - 1


class _LearnedStepSize:
    """Mixed into a quantizer whose Parameter `step` is learned."""

    def set_bits(self, bits: int) -> None:
        """Keep the clipping range: the step widens as levels go."""
        before = self.levels()[1] if self.bits else None
        super().set_bits(bits)
        if before:
            self.step.data.mul_(before / self.levels()[1])

    def quantize_with(self, x: Tensor, numel: float) -> Tensor:
        """Fake-quantize x; `numel` values (weights, or features of one image) share the step."""
        if self.training:
            self.step.data.clamp_(min=SMALLEST_STEP)
        qn, qp = self.levels()
        return learned_step(x, self.step, qn, qp, (numel * qp) ** -0.5)


class LsqWeight(_LearnedStepSize, WeightQuantizer):
    """granularity "tensor" (the paper's) or "channel"."""

    def __init__(self, bits: int = 4, limit: int = 127, axis: int = 0, granularity: str = "tensor"):
        super().__init__(bits, limit, axis)
        self.granularity = choose("granularity", granularity, "tensor", "channel")
        self.step = nn.Parameter(torch.tensor(1.0))

    def levels(self) -> tuple[int, int]:
        return tuple(min(steps, self.limit) for steps in signed_levels(self.bits))

    def init_from(self, weight: Tensor) -> None:
        size = weight.detach().abs()
        mean = size.mean() if self.granularity == "tensor" else size.mean(self.reduce_dims(weight), keepdim=True)
        self.step = nn.Parameter((2.0 * mean / self.levels()[1] ** 0.5).clamp_(min=SMALLEST_STEP))

    def quantize(self, weight: Tensor) -> Tensor:
        return self.quantize_with(weight, weight.numel() / self.step.numel())

    def scale(self, weight: Tensor) -> Tensor:
        return self.step.detach().clamp(min=SMALLEST_STEP)


class LsqActivation(_LearnedStepSize, ActivationQuantizer):
    def __init__(self, bits: int = 4, floor: float = -INF, ceiling: float = INF, signed: bool = True):
        super().__init__(bits, floor, ceiling, signed)
        self.step = nn.Parameter(torch.tensor(1.0))

    def levels(self) -> tuple[int, int]:
        return signed_levels(self.bits) if self.signed else symmetric_levels(self.bits, signed=False)

    @torch.no_grad()
    def init_from(self, x: Tensor) -> None:
        x = x if self.signed else x.clamp(min=0.0)
        self.step.copy_(distributed.mean_(2.0 * x.abs().mean() / self.levels()[1] ** 0.5))

    def quantize(self, x: Tensor) -> Tensor:
        return self.quantize_with(self.clamp_to_ceiling(x), x.numel() / len(x))

    def grid(self) -> QParams:
        return symmetric_qparams(max(self.step.item(), SMALLEST_STEP), self.levels(), self.floor, self.ceiling)
