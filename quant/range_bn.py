"""Range Batch-Norm (arXiv:1805.11046, section 3): batch norm whose scale is a range instead of a standard deviation.

    y = gamma (x - mean) / S + beta      S = sqrt(scale^2 + eps)      scale = C(n) * mean over the chunks of (max - min)

The N * H * W values of a channel, in that order, are cut into at most 16 chunks of n values (`chunks_for`). C(n), by
`constant`:

    gauss     1 / E[range of n standard Gaussians]: the scale then follows sigma, so that a trained BatchNorm converts.
              The default
    released  0.175 (1 + sqrt(pi ln 4)) / sqrt(2 ln n), what the published code has: 0.81 to 0.99 sigma
    paper     1 / sqrt(2 ln n): 1.5 to 1.9 sigma

eps stands where batch norm has it (the published code has S = scale + eps: there a channel that is constant, say
because the rounding of its input swallowed it, multiplies gradients by 1 / eps).

The gradient passes through the mean and, by way of each chunk's first largest and smallest element, through the scale:

    dx_i    = gamma / S (g_i - mean g) + C / chunks * dscale * (1 at a chunk's maximum, -1 at its minimum)
    dscale  = -gamma scale / S^3 * sum_j g_j (x_j - mean)

In a distributed run each rank normalises with its own batch; the running statistics take the mean over the ranks.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.errors import QuantError
from quant.quantizers.base import choose

MOST_CHUNKS = SMALLEST_CHUNK = 16
CONSTANTS = ("gauss", "released", "paper")


def chunks_for(values: int) -> int:
    """The largest divisor of `values` up to 16 that leaves at least 16 values a chunk, else 1."""
    return next((k for k in range(MOST_CHUNKS, 1, -1) if values % k == 0 and values // k >= SMALLEST_CHUNK), 1)


@functools.cache
def range_constant(n: int, constant: str = "gauss") -> float:
    """C(n): what multiplies the range of n >= 2 values."""
    if constant == "gauss":
        return 1.0 / gaussian_range(n)
    return (1.0 if constant == "paper" else 0.175 * (1.0 + math.sqrt(math.pi * math.log(4.0)))) / math.sqrt(
        2.0 * math.log(n)
    )


def gaussian_range(n: int) -> float:
    """E[max - min] of n standard Gaussians: the integral of 1 - P^n - (1 - P)^n, P the normal distribution function."""
    below = torch.special.ndtr(torch.linspace(-12.0, 12.0, 4801, dtype=torch.float64, device="cpu"))
    return float((1.0 - below**n - (1.0 - below) ** n).sum() * 0.005)


class _RangeNorm(torch.autograd.Function):
    """x (N, C, ..), weight (C) and bias (C) -> y, and the batch's mean (C) and scale (C) without gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, chunks, factor):
        values = x.movedim(1, -1).reshape(chunks, -1, x.shape[1])  # no copy for channels_last
        (hi, top), (lo, bottom) = values.max(1), values.min(1)
        mean = x.mean([0, *range(2, x.dim())], dtype=weight.dtype)
        scale = (hi - lo).to(weight.dtype).mean(0).mul_(factor)
        ctx.save_for_backward(x, weight, mean, scale, top, bottom)
        ctx.eps, ctx.factor, ctx.chunk = eps, factor / chunks, values.shape[1]
        ctx.mark_non_differentiable(mean, scale)
        return _normalise(x, mean, scale, weight, bias, eps), mean, scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, *_):
        x, weight, mean, scale, top, bottom = ctx.saved_tensors
        # torch's kernel for fixed statistics: dx = gamma / S g, dweight = sum g (x - mean) / S, dbias = sum g, in one
        # pass
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, scale.square(), None, None, False, ctx.eps, [True, True, True]
        )
        variance = scale.square() + ctx.eps
        count = x.numel() // x.shape[1]
        dx.sub_((weight * dbias * variance.rsqrt() / count).view(-1, *[1] * (x.dim() - 2)))
        along = -ctx.factor * weight * dweight * scale / variance  # C / chunks * dscale
        _add_at(dx, top, along, ctx.chunk)
        _add_at(dx, bottom, -along, ctx.chunk)
        return dx, dweight, dbias, None, None, None


def _normalise(x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """weight (x - mean) / S + bias by torch's fused kernel."""
    return F.batch_norm(x, mean, scale.square(), weight, bias, False, 0.0, eps)


def _add_at(dx: Tensor, index: Tensor, value: Tensor, chunk: int) -> None:
    """Add value (C) to dx (N, C, ..) at the elements that `index` (chunks, C) picks inside each chunk, in place."""
    flat = dx.view(*dx.shape[:2], -1)
    chunks, channels = index.shape
    place = index + chunk * torch.arange(chunks, device=index.device)[:, None]
    channel = torch.arange(channels, device=index.device).expand_as(index)
    size = flat.shape[2]
    flat.index_put_((place // size, channel, place % size), value.to(dx.dtype).expand_as(index), accumulate=True)


class _RangeBN(nn.Module):
    """x (N, C, ..) -> same shape. Running statistics follow the batch with weight `momentum` (torch's sense) and serve
    in evaluation.

    constant  "gauss", "released" or "paper", see above; QuantError for others
    A batch with a single value per channel has no range; it is normalised with the running statistics, which stay as
    they are.
    """

    dims: tuple[int, ...]  # of x

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True, constant: str = "gauss"
    ):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.constant = choose("constant", constant, *CONSTANTS)
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_scale", torch.ones(num_features))

    @classmethod
    def from_float(cls, layer: nn.BatchNorm1d | nn.BatchNorm2d, constant: str = "gauss", **options) -> nn.Module:
        """A Range BN with the batch norm's Parameter objects that computes the same in evaluation.

        QuantError where none can.
        """
        if layer.running_var is None or layer.momentum is None:
            raise QuantError(
                f"{type(layer).__name__}: needs running statistics with a momentum (track_running_stats=True, "
                "momentum=0.1)"
            )
        new = cls(layer.num_features, layer.eps, layer.momentum, affine=False, constant=constant, **options)
        new.weight, new.bias = layer.weight, layer.bias
        new.running_mean = layer.running_mean.clone()
        new.running_scale = layer.running_var.sqrt()
        return new.to(layer.running_var.device).train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in self.dims or x.shape[1] != self.num_features:
            raise QuantError(
                f"{type(self).__name__}: got shape {tuple(x.shape)}, needs {self.num_features} channels in axis 1"
            )
        weight = torch.ones_like(self.running_scale) if self.weight is None else self.weight
        bias = torch.zeros_like(self.running_mean) if self.bias is None else self.bias
        values = x.numel() // self.num_features
        if not self.training or values < 2:
            return _normalise(x, self.running_mean, self.running_scale, weight, bias, self.eps)
        chunks = chunks_for(values)
        y, mean, scale = _RangeNorm.apply(
            x, weight, bias, self.eps, chunks, range_constant(values // chunks, self.constant)
        )
        self._follow(mean, scale)
        return y

    @torch.no_grad()
    def _follow(self, mean: Tensor, scale: Tensor) -> None:
        self.running_mean.lerp_(mean, self.momentum)
        self.running_scale.lerp_(scale, self.momentum)

    def across_ranks(self) -> dict[str, list[Tensor]]:
        """The mean of all ranks; see common.distributed.average."""
        return {"mean": [self.running_mean, self.running_scale]} if self.training else {}

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, constant={self.constant}"


class RangeBN1d(_RangeBN):
    dims = (2, 3)


class RangeBN2d(_RangeBN):
    dims = (4,)
