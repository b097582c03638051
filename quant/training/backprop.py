"""Quantized back-propagation, gradient bifurcation (arXiv:1805.11046, section 4): all three products are low-bit.

    forward    y  = conv(Q8(x), Q8(w)) + Q16(b)
    backward   dx = conv_transposed(Q8(g), Q8(w))      the 8-bit copy of the gradient: sequential, on the critical path
               dw = correlate(Q16(g), Q8(x))           the 16-bit copy (or g itself): off the critical path, and it
                                                       decides the update
               db = sum Q16(g)

    x    one affine grid; its ends are the means over the samples of each sample's minimum and maximum, so the largest
         samples are clipped
    w    an affine grid for each output channel; b: 2 * bits on one grid
    g    affine over the whole tensor, rounded stochastically (quant.quantizers.gradients)

Roundings of x, w and b pass gradients straight through. A tensor whose range is zero is not rounded: a bias starts at
zero, and so do the gradients behind a batch norm that starts at weight zero; dividing by such a range is what made the
published code train on NaN. One autograd function does each operation, forward once. Arithmetic under autocast:
rounding in float32, products in the autocast type.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.attach.layers import take_over
from quant.errors import QuantError
from quant.quantizers.fake_quant import widen
from quant.quantizers.gradients import MinMaxGradient, NoiseStream, minmax_gradient, on_grid, slice_range
from quant.range_bn import RangeBN1d, RangeBN2d


class _RoundToNearest(torch.autograd.Function):
    """x on the affine grid lo, lo + step, .. of 2^bits values; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx, x, lo, span, bits):
        levels = 2**bits - 1
        return on_grid(widen(x), lo, span / levels, 0, levels).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None, None


def round_affine(x: Tensor, bits: int, per_slice: bool = False) -> Tensor:
    """x on the grid between its minimum and maximum, or (`per_slice`) each slice along axis 0 between its own."""
    lo, hi = slice_range(x.detach()) if per_slice else (x.detach().amin(), x.detach().amax())
    return _RoundToNearest.apply(x, lo, hi - lo, bits)


class SampleRange(nn.Module):
    """Rounds activations (N, ..) to 2^bits values between the mean of the samples' minima and that of their maxima.

    In training the range is the batch's own, on each rank, and the running one follows it with weight `momentum`
    (torch's sense; the first batch sets it; ranks take their mean). Evaluation uses the running range; before any
    training it leaves x as it is.
    """

    def __init__(self, bits: int = 8, momentum: float = 0.1):
        super().__init__()
        self.bits, self.momentum = bits, momentum
        self.register_buffer("lo", torch.tensor(0.0))
        self.register_buffer("span", torch.tensor(0.0))
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        lo, span = self._batch_range(x.detach()) if self.training else (self.lo, self.span)
        return _RoundToNearest.apply(x, lo, span, self.bits)

    @torch.no_grad()
    def _batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lo, hi = (widen(ends).mean() for ends in slice_range(x))
        weight = torch.where(self.batches == 0, 1.0, self.momentum).to(self.lo.dtype)
        self.lo.lerp_(lo.to(self.lo.dtype), weight)
        self.span.lerp_((hi - lo).to(self.lo.dtype), weight)
        self.batches.add_(1)
        return lo, hi - lo

    def across_ranks(self) -> dict[str, list[Tensor]]:
        """The mean of all ranks; see common.distributed.average."""
        return {"mean": [self.lo, self.span]} if self.training else {}

    def extra_repr(self) -> str:
        return f"bits={self.bits}, momentum={self.momentum}"


class Bifurcation(nn.Module):
    """A gradient's two unbiased copies (of `bits` for layers below, `weight_bits` for weights) from one draw of noise.

    weight_bits  16, or 32 for the gradient itself
    zero_point   keep zeros exactly zero in both
    """

    def __init__(self, bits: int = 8, weight_bits: int = 16, zero_point: bool = False, seed: int = 0):
        super().__init__()
        self.bits, self.weight_bits, self.zero_point = bits, weight_bits, zero_point
        self.noise = NoiseStream(seed)

    @torch.no_grad()
    def forward(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        uniform = self.noise.uniform_like(grad)
        below = minmax_gradient(grad, self.bits, uniform, self.zero_point)
        return below, grad if self.weight_bits == 32 else minmax_gradient(
            grad, self.weight_bits, uniform, self.zero_point
        )

    def extra_repr(self) -> str:
        return f"bits={self.bits}, weight_bits={self.weight_bits}, zero_point={self.zero_point}"


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation, groups, bifurcation):
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.bifurcation = (stride, padding, dilation, False, (0, 0), groups), bifurcation
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        for_input, for_weight = ctx.bifurcation(grad)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        back = torch.ops.aten.convolution_backward
        dx = back(for_input, x, weight, None, *ctx.options, (True, False, False))[0] if needs_x else None
        _, dweight, dbias = back(
            for_weight, x, weight, weight.shape[:1], *ctx.options, (False, needs_weight, needs_bias)
        )
        return dx, dweight, dbias, None, None, None, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, bifurcation):
        ctx.save_for_backward(x, weight)
        ctx.bifurcation = bifurcation
        return F.linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        for_input, for_weight = ctx.bifurcation(grad)
        rows = for_weight.reshape(-1, weight.shape[0])
        dbias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return for_input @ weight, rows.T @ x.reshape(-1, weight.shape[1]), dbias, None


class _QBPLayer:
    """Mixed into a float layer class: adds the range of its input and the split of its gradient."""

    @classmethod
    def from_float(
        cls, layer: nn.Module, bits: int = 8, grad_weight_bits: int = 16, zero_point: bool = False, seed: int = 0
    ) -> nn.Module:
        """The layer in `bits`; weight and bias stay the same objects, so optimizer state stays valid.

        QuantError where it has hooks.
        """
        new = take_over(cls, layer)
        new.bits = bits
        new.input_range, new.bifurcation = SampleRange(bits), Bifurcation(bits, grad_weight_bits, zero_point, seed)
        return new.to(layer.weight.device).train(layer.training)

    def operands(self, x: Tensor) -> list[Tensor | None]:
        """Input, weight and bias on their grids, in the type that autocast asks for."""
        rounded = [self.input_range(x), round_affine(self.weight, self.bits, per_slice=True)]
        rounded.append(None if self.bias is None else round_affine(self.bias, 2 * self.bits))
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            return [None if tensor is None else tensor.to(dtype) for tensor in rounded]
        return rounded


class QBPConv2d(_QBPLayer, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise QuantError(f"QBPConv2d: got shape {tuple(x.shape)}, needs a batch (N, C, H, W)")
        x, weight, bias = self.operands(x)
        padding = self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode), (0, 0)
        return _Conv2d.apply(x, weight, bias, self.stride, padding, self.dilation, self.groups, self.bifurcation)


class QBPLinear(_QBPLayer, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return _Linear.apply(*self.operands(x), self.bifurcation)


class _QBPRangeBN:
    """Mixed into a Range BN: its input rounded like a layer's, its gradient rounded to `bits` as it arrives."""

    def __init__(self, *args, bits: int = 8, zero_point: bool = False, seed: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.input_range, self.gradient_quant = SampleRange(bits), MinMaxGradient(bits, seed, zero_point)

    def forward(self, x: Tensor) -> Tensor:
        return self.gradient_quant(super().forward(self.input_range(x)))


class QBPRangeBN1d(_QBPRangeBN, RangeBN1d):
    pass


class QBPRangeBN2d(_QBPRangeBN, RangeBN2d):
    pass
