"""Quantized gradients: modules that are the identity going forward and round the gradient on its way back.

    q = clamp(floor((g - base) / step + u), low, high)      dx = base + step * q      u ~ U(0, 1)

Rounding up with probability equal to the fraction is unbiased: E[dx] = g. u = 1/2 rounds to the nearest. A gradient
whose range is zero passes unchanged, so nothing here divides by zero: behind a batch norm that starts at weight 0 every
gradient is zero.

    dorefa   base = -M, step = 2 M / (2^b - 1), M the largest |g| of each sample        (arXiv:1606.06160, equation 12)
    minmax   base = min g, step = (max g - min g) / (2^b - 1), over the whole tensor    (arXiv:1805.11046)

minmax with zero_point=True has base = 0 and a step over 2^b - 2: zeros (ReLU's) stay zero, and both ends stay inside
the codes.

Example:
    >>> layer = nn.Sequential(nn.Conv2d(3, 8, 3), DorefaGradient(6), nn.ReLU(inplace=True))
"""

import hashlib
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from common import distributed
from quant.errors import QuantError
from quant.quantizers.fake_quant import Number, numbers, widen

SMALLEST_STEP = torch.finfo(torch.float32).tiny  # below it 1 / step overflows


def on_grid(x: Tensor, base: Tensor, step: Tensor, low: Number, high: Number, uniform: Tensor | None = None) -> Tensor:
    """base + step * q, q integer in [low, high]; x where the step is zero. A new tensor of x's shape and memory format.

    base and step broadcast over x. `uniform` in [0, 1), of x's shape, is added before rounding down; None rounds to the
    nearest.
    """
    base, step = numbers(base, step)
    usable = step >= SMALLEST_STEP
    if not isinstance(step, Tensor):
        return _on_grid(x, base, step, low, high, uniform) if usable else x.clone()
    return torch.where(usable, _on_grid(x, base, torch.where(usable, step, 1.0), low, high, uniform), x)


def _on_grid(x, base, step, low, high, uniform):
    q = torch.sub(x, base).div_(step)
    q = q.round_() if uniform is None else q.add_(uniform).floor_()
    return q.clamp_(low, high).mul_(step).add_(base)


def slice_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """(min, max) of each slice along axis 0 (a sample of a batch, an output channel of a weight), shapes (N, 1, ..)."""
    inner = list(range(1, x.dim()))
    return (x.amin(inner, keepdim=True), x.amax(inner, keepdim=True)) if inner else (x, x)


def dorefa_gradient(grad: Tensor, bits: int, uniform: Tensor) -> Tensor:
    """arXiv:1606.06160, equation 12, on (N, ..): each sample on 2^bits values in [-M, M]. Zero is not among them."""
    grad, dtype = widen(grad), grad.dtype
    lo, hi = slice_range(grad)
    largest, levels = torch.maximum(hi, -lo), 2**bits - 1
    return on_grid(grad, -largest, 2.0 * largest / levels, 0, levels, uniform).to(dtype)


def minmax_gradient(grad: Tensor, bits: int, uniform: Tensor, zero_point: bool = False) -> Tensor:
    """g on an affine grid of at most 2^bits values between its extremes; with `zero_point` zero is one of them."""
    grad, dtype = widen(grad), grad.dtype
    lo, hi, levels = grad.amin(), grad.amax(), 2**bits - 1
    if not zero_point:
        return on_grid(grad, lo, (hi - lo) / levels, 0, levels, uniform).to(dtype)
    lo, hi = lo.clamp(max=0.0), hi.clamp(min=0.0)
    step = (hi - lo) / (levels - 1)
    low, high = numbers(torch.floor(lo / step), torch.ceil(hi / step))  # nan for a zero step, and then not used
    return on_grid(grad, torch.zeros_like(lo), step, low, high, uniform).to(dtype)


class NoiseStream(nn.Module):
    """Uniform noise. Draw k on rank r is a function of (seed, r, k): every rank has its own, and the checkpoint need
    only hold seed and k, so a run resumes bit for bit, from another rank's checkpoint too. The generator lives on the
    device of the tensor."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed, self.draws = seed, 0

    def uniform_like(self, x: Tensor) -> Tensor:
        """U(0, 1) of x's shape and memory format, float32 or wider: the middles of 2^16 cells.

        Four come from one random word, since on a CPU drawing is what costs.
        """
        self.draws += 1
        generator = torch.Generator(x.device).manual_seed(mix(self.seed, distributed.rank(), self.draws))
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(
            -(2**63), None, generator=generator
        )
        cells = words.view(torch.int16)[: x.numel()].to(torch.promote_types(x.dtype, torch.float32))
        return cells.add_(2**15 + 0.5).mul_(2**-16).as_strided(x.shape, torch.empty_like(x, device="meta").stride())

    def get_extra_state(self):
        return {"seed": self.seed, "draws": self.draws}

    def set_extra_state(self, state):
        self.seed, self.draws = int(state["seed"]), int(state["draws"])


def mix(*parts: int) -> int:
    """One 63-bit seed from several numbers; neighbours give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


class GradientQuantizer(nn.Module, ABC):
    """Identity forward (a copy, so that what follows may work in place); `quantize` on the gradient.

    bits  2..16, of the gradient; QuantError for others
    seed  of the noise; two modules with one seed draw the same noise
    """

    def __init__(self, bits: int, seed: int = 0):
        super().__init__()
        if not 2 <= bits <= 16:
            raise QuantError(f"bits: {bits}, a gradient takes 2 to 16")
        self.bits, self.noise = bits, NoiseStream(seed)

    def forward(self, x: Tensor) -> Tensor:
        return _RoundGradient.apply(x, self.quantize) if torch.is_grad_enabled() and x.requires_grad else x

    @abstractmethod
    def quantize(self, grad: Tensor) -> Tensor:
        """The gradient rounded, same shape and dtype."""

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class DorefaGradient(GradientQuantizer):
    def quantize(self, grad: Tensor) -> Tensor:
        return dorefa_gradient(grad, self.bits, self.noise.uniform_like(grad))


class MinMaxGradient(GradientQuantizer):
    """`zero_point` keeps zeros exactly zero."""

    def __init__(self, bits: int, seed: int = 0, zero_point: bool = False):
        super().__init__(bits, seed)
        self.zero_point = zero_point

    def quantize(self, grad: Tensor) -> Tensor:
        return minmax_gradient(grad, self.bits, self.noise.uniform_like(grad), self.zero_point)


class _RoundGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, quantize):
        ctx.quantize = quantize
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return ctx.quantize(grad), None
