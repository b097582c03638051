"""The noise of GradBoost (arXiv:2006.09679, section on gradient boosting), which lengthens gradients.

With gradient g, a = |g|, t the number of gradients seen, c_t = 1 - beta^t:
    every step     n_min <- [beta c n_min + (1-beta) min(n_min, a)] / c_t
                   n_max <- [beta c n_max + (1-beta) max(n_max, a)] / c_t
    boosted steps  g     <- g + min(|Laplace(0,1)| b (n_max - n_min) d, bound) sign(g)        b ~ Bernoulli(1/2)

`paper`     c = c_(t-1): averages with their bias corrected, of the running extremes (both are a at the first step);
            weights alone are boosted, not the vectors of batch norms and biases; d = exp(-5 progress), progress of the
            schedule
`released`  c = 1, as in the published code: the correction is stored, so it compounds; n_min starts at 0 and stays
            there; every parameter is boosted; d = (1 - noise_decay)^k at the k-th boosted step
"""

import math

import torch
from torch import Tensor

NOISE_LEVELS = 2**15


def update_stats(n_min: Tensor, n_max: Tensor, a: Tensor, step: int, beta: float, mode: str) -> None:
    """One step of the recursion, in place on n_min and n_max, which have a's shape and start at 0.

    `step` counts from 1.
    """
    divisor = 1.0 - beta**step
    # n_min is 0 for ever; an n_max that overflows (beta above 0.98) stays finite, as coin 0 times infinity is not 0
    if mode == "released":
        largest = torch.maximum(n_max, a)
        n_max.mul_(beta / divisor).add_(largest, alpha=(1.0 - beta) / divisor).clamp_(max=torch.finfo(a.dtype).max)
    elif step == 1:
        n_min.copy_(a)
        n_max.copy_(a)
    else:  # the average with an extreme of n and a is the extreme of n and of the average with a
        share = (1.0 - beta) / divisor
        torch.maximum(n_max, torch.lerp(n_max, a, share), out=n_max)
        torch.minimum(n_min, torch.lerp(n_min, a, share), out=n_min)


def boost(grad: Tensor, spread: Tensor, noise: Tensor, bound: float = math.inf) -> Tensor:
    """Lengthen `grad` in place by min(noise * spread, bound); zeros stay.

    All of grad's shape; `noise`, not negative, is overwritten.
    """
    return grad.addcmul_(noise.mul_(spread).clamp_(max=bound), grad.sign())


def noise_levels() -> Tensor:
    """|Laplace(0,1)| times a fair coin as 2^16 equally likely values: zeros, and means of 2^15 shares of Exp(1)."""
    survival = torch.linspace(1.0, 0.0, NOISE_LEVELS + 1, dtype=torch.float64)
    integral = survival - torch.xlogy(survival, survival)  # of -log(survival)
    return torch.cat([torch.zeros(NOISE_LEVELS, dtype=torch.float64), -integral.diff() * NOISE_LEVELS])


class Noise:
    """Draws |Laplace(0,1)| b on one device: 16 random bits an element look it up, several times faster on a CPU than a
    logarithm of a uniform number. The levels lie 3e-5 apart in probability and have the exact mean."""

    def __init__(self, device: torch.device, seed: int):
        self.generator, self.levels = torch.Generator(device).manual_seed(seed), noise_levels().to(device)

    def draw(self, levels: Tensor, count: int) -> Tensor:
        """`count` of the levels, or of what was made of them."""
        words = torch.empty(-(-count // 4), dtype=torch.int64, device=self.levels.device).random_(
            -(2**63), None, generator=self.generator
        )
        return levels.index_select(0, words.view(torch.uint16)[:count].int())
