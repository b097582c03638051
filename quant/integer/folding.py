"""Layers whose group is not yet at its end, and what is folded into them: batch norm, and the bounds of a ReLU.

Folding (arXiv:1712.05877, section 3.2, per channel): y = gamma (W x + b - mean) / sqrt(var + eps) + beta has weight
scale scale_c |gamma_c| / sqrt(var_c + eps_c) on the same codes, negated where gamma is negative; gamma 0 leaves a
constant channel.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from quant.errors import QuantError
from quant.integer.graph import Op
from quant.quantizers.grid import QParams

_UNBOUNDED = (float("-inf"), float("inf"))
_LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class Pending:
    """A layer, sum, product or concatenation that waits for its group's quantizer to say which grid it lands on.

    Several nodes may read it, and each folds and bounds its own: no method changes it.
    """

    op: Op
    bounds: tuple[float, float] = _UNBOUNDED  # of a ReLU before the quantizer, which is not the quantizer's own

    @property
    def is_bounded(self) -> bool:
        return self.bounds != _UNBOUNDED

    def bounded(self, bounds: tuple[float, float]) -> "Pending":
        """With the ReLU behind it."""
        return replace(self, bounds=bounds)

    def with_batch_norm(self, bn: nn.Module) -> "Pending":
        """With the batch norm behind a convolution or linear layer in weight_scale and bias."""
        factor, offset = batch_norm_as_affine(bn, self.op.name)
        op = copy.copy(self.op)
        op.bias = (op.bias.double() * factor + offset).float()
        op.weight = op.weight * _per_channel(torch.sign(factor).to(torch.int8), op.weight)
        op.weight_scale = (op.weight_scale.double() * factor.abs()).float()
        return replace(self, op=op)

    def on_grid(self, name: str, qparams: QParams, input_scale: float | None) -> Op:
        """The operation, its result on a grid without the codes that the ReLU cuts off.

        Args:
            name: of its result.
            qparams: the grid that the group's quantizer gives.
            input_scale: of the input's grid; None for operations without a weight.
        """
        op = replace(self.op, name=name, qparams=self._clamped(qparams))
        if op.weight is not None:
            _fit_bias(op, input_scale)
        return op

    def _clamped(self, qparams: QParams) -> QParams:
        floor, ceiling = self.bounds
        qmin, qmax = qparams.qmin, qparams.qmax
        if floor == 0.0:
            qmin = qparams.zero_point
        if ceiling != float("inf"):
            qmax = min(qmax, qparams.zero_point + round(ceiling / qparams.scale))
        return replace(qparams, qmin=qmin, qmax=qmax)


def batch_norm_as_affine(bn: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """(factor, offset) per channel, float64: batch norm in evaluation is x * factor + offset."""
    if bn.running_var is None:
        raise QuantError(f"{name}: its batch norm keeps no running statistics, so that it has no integer form")
    gamma = bn.weight.detach() if bn.affine else torch.ones_like(bn.running_var)
    beta = bn.bias.detach() if bn.affine else torch.zeros_like(bn.running_mean)
    factor = (gamma.double() / torch.sqrt(bn.running_var.double() + bn.eps)).cpu()
    return factor, beta.double().cpu() - bn.running_mean.double().cpu() * factor


def _fit_bias(op: Op, input_scale: float) -> None:
    """Coarsen the weights of channels so small beside their bias that it would not fit 32 bits in their units."""
    smallest = op.bias.double().abs() / (input_scale * _LARGEST_BIAS)
    scale = torch.maximum(op.weight_scale.double(), smallest)
    scale[scale == 0] = 1.0  # a channel of zeros
    shrink = _per_channel(op.weight_scale.double() / scale, op.weight)
    op.weight, op.weight_scale = torch.round(op.weight * shrink).to(torch.int8), scale.float()


def _per_channel(values: Tensor, weight: Tensor) -> Tensor:
    """One value per output channel, shaped to multiply a weight."""
    return values.view(-1, *[1] * (weight.dim() - 1))
