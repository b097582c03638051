"""`pact`, arXiv:1805.06085: a ReLU whose ceiling is learned.

    y = round(clip(x, 0, alpha) n / alpha) alpha / n, n = 2^bits - 1
    dx = g [0 <= x < alpha]
    d alpha = sum g [x >= alpha]

Loss + l2 * alpha^2 pulls alpha down (the paper: with the coefficient of the weights' L2 term). Where values can be
negative (a sum without ReLU, the pictures) the clip is to [-alpha, alpha], with 2^(bits-1) - 1 levels on either side.
"""

import torch
from torch import Tensor, nn

from common import distributed
from quant.errors import QuantError
from quant.quantizers.base import INF, ActivationQuantizer, check_range, choose, inner, quantiles
from quant.quantizers.fake_quant import at_least, clamp_backward, numbers, round_to_grid
from quant.quantizers.grid import QParams, symmetric_levels, symmetric_qparams

SMALLEST_ALPHA = 1e-3


class _LearnedClip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, alpha, steps, signed, lsq):
        ceiling = at_least(*numbers(alpha), SMALLEST_ALPHA)
        ctx.bounds, ctx.signed, ctx.lsq = (-ceiling if signed else 0.0 * ceiling, ceiling), signed, lsq
        y = round_to_grid(x, *ctx.bounds, ceiling / steps)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        lo, hi = ctx.bounds
        dx = clamp_backward(grad, x, lo, hi, open_below=ctx.signed, open_above=True)
        # y / alpha is 1 above, -1 below where signed, else 0; inside the rounding error is (y - x) / alpha
        total = inner(grad, y) - inner(dx, x) if ctx.lsq else inner(grad - dx, y)
        return dx, total / hi, None, None, None


def learned_clip(x: Tensor, alpha: Tensor, steps: int, signed: bool = False, alpha_grad: str = "paper") -> Tensor:
    """x clipped at the Parameter `alpha` (below at 0, or at -alpha if `signed`) and rounded to `steps` steps up to it.

    alpha_grad  "paper": only clipped elements pull at alpha; "lsq": rounding errors inside do too, as in
                arXiv:1902.08153
    """
    return _LearnedClip.apply(x, alpha, steps, signed, alpha_grad == "lsq")


class PactActivation(ActivationQuantizer):
    """alpha starts at the given number (the paper: 10), or for None at the first batch's 99.9 % quantile.

    l2          coefficient of alpha^2 in extra_loss()
    alpha_grad  "paper" or "lsq" (learned_clip)
    """

    def __init__(
        self,
        bits: int = 4,
        floor: float = -INF,
        ceiling: float = INF,
        signed: bool = True,
        alpha: float | None = None,
        l2: float = 2e-4,
        alpha_grad: str = "paper",
    ):
        super().__init__(bits, floor, ceiling, signed)
        if alpha is not None and alpha <= 0:
            raise QuantError(f"alpha: {alpha}, must be above 0")
        self.alpha0, self.l2 = alpha, check_range("l2", l2, 0.0)
        self.alpha_grad = choose("alpha_grad", alpha_grad, "paper", "lsq")
        self.alpha = nn.Parameter(torch.tensor(8.0 if alpha is None else float(alpha)))

    def levels(self) -> tuple[int, int]:
        return symmetric_levels(self.bits, self.signed)

    @torch.no_grad()
    def init_from(self, x: Tensor) -> None:
        if self.alpha0 is None:
            lo, hi = quantiles(x, 0.001)
            self.alpha.copy_(distributed.mean_(torch.maximum(hi, -lo) if self.signed else hi))

    def quantize(self, x: Tensor) -> Tensor:
        if self.training:
            self.alpha.data.clamp_(min=SMALLEST_ALPHA)  # .data: a step of the optimizer may have crossed zero
        return learned_clip(self.clamp_to_ceiling(x), self.alpha, self.levels()[1], self.signed, self.alpha_grad)

    def grid(self) -> QParams:
        levels = self.levels()
        scale = max(self.alpha.item(), SMALLEST_ALPHA) / levels[1]
        return symmetric_qparams(scale, levels, self.floor, self.ceiling)

    def extra_loss(self) -> Tensor:
        return self.l2 * self.alpha.square()
