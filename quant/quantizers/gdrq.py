"""`gdrq`, group-based distribution reshaping, arXiv:1908.01477: clips at a multiple of the mean.

    y = s round(clip(x, -T, T) / s), T = k mean|x|, s = T / levels

A bell-shaped distribution becomes nearly uniform. k = 2, as a uniform one on [-T, T] has mean|x| = T / 2.

Weights take T from their current values; activations keep T <- T - momentum (T - k mean|x|). Two stages: for the first
`reshape` training batches values are clipped only, then rounded as well. One T a tensor, or one for each group of
`group_size` filters (weights) or channels (activations).
"""

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.quantizers.base import INF, ActivationQuantizer, WeightQuantizer, check_range, choose
from quant.quantizers.fake_quant import fake_quantize, numbers, straight_through
from quant.quantizers.grid import SMALLEST_SCALE, QParams, symmetric_levels, symmetric_qparams


class GdrqWeight(WeightQuantizer):
    """k, group_size (-1: one group), reshape as above; grad "ste" (gradient everywhere) or "clip" (none beyond T)."""

    def __init__(
        self,
        bits: int = 4,
        limit: int = 127,
        axis: int = 0,
        k: float = 2.0,
        group_size: int = -1,
        grad: str = "ste",
        reshape: int = 0,
    ):
        super().__init__(bits, limit, axis)
        self.k, self.group_size = check_range("k", k, 0.0), group_size
        self.reshape = check_range("reshape", reshape, 0) or -1  # without it codes exist before the first batch
        self.grad = choose("grad", grad, "ste", "clip")

    def levels(self) -> tuple[int, int]:
        return symmetric_levels(self.bits, limit=self.limit)

    def forward(self, weight: Tensor) -> Tensor:
        self.batches += self.training
        return super().forward(weight)

    def init_from(self, weight: Tensor) -> None:
        check_groups(self.group_size, weight.shape[self.axis])

    def codes(self, weight: Tensor) -> Tensor:
        if self.batches <= self.reshape:
            raise QuantError(
                f"reshape: {self.reshape} batches are only clipped, {self.batches} have passed; train on to convert"
            )
        return super().codes(weight)

    def quantize(self, weight: Tensor) -> Tensor:
        scale = self.scale(weight)
        largest = scale * self.levels()[1]
        if self.batches <= self.reshape:
            return clip(weight, largest, self.grad == "ste")
        return fake_quantize(weight, -largest, largest, scale, through=self.grad == "ste")

    @torch.no_grad()
    def scale(self, weight: Tensor) -> Tensor:
        largest = grouped_mean(weight.abs(), self.group_size, self.axis) * self.k
        return (largest / self.levels()[1]).clamp_(min=SMALLEST_SCALE)


class GdrqActivation(ActivationQuantizer):
    """k, group_size, momentum, reshape as above."""

    def __init__(
        self,
        bits: int = 4,
        floor: float = -INF,
        ceiling: float = INF,
        signed: bool = True,
        k: float = 2.0,
        group_size: int = -1,
        momentum: float = 1e-3,
        reshape: int = 0,
    ):
        super().__init__(bits, floor, ceiling, signed)
        self.k, self.group_size = check_range("k", k, 0.0), group_size
        self.reshape = check_range("reshape", reshape, 0)
        self.momentum = check_range("momentum", momentum, 0.0, 1.0)
        self.register_buffer("largest", torch.tensor(0.0))  # T: 0-dim, or (1, channels, 1, ..) with groups

    def levels(self) -> tuple[int, int]:
        return symmetric_levels(self.bits, self.signed)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        x = x.clamp(self.floor, self.ceiling) if self.floor == 0.0 else x
        now = self.k * grouped_mean(x.abs(), self.group_size, 1)
        now = now if self.group_size > 0 else now.reshape(())
        if self.batches == 0:
            self.largest = now
        else:
            self.largest.lerp_(now, self.momentum)

    def across_ranks(self) -> dict[str, list[Tensor]]:
        """The mean of all ranks; see common.distributed.average."""
        return {"mean": [self.largest]} if self.training and self.observer_enabled else {}

    def quantize(self, x: Tensor) -> Tensor:
        below, above = self.levels()
        (scale,) = numbers((self.largest / above).clamp(min=SMALLEST_SCALE))
        lo, hi = (-below * scale if self.signed else 0.0 * scale), above * scale
        if self.batches <= self.reshape:
            return clip(self.clamp_to_ceiling(x), hi, False, lo)
        return fake_quantize(self.clamp_to_ceiling(x), lo, hi, scale)

    def grid(self) -> QParams:
        if self.batches <= self.reshape:
            raise QuantError(
                f"reshape: {self.reshape} batches are only clipped, {self.batches} have passed; train on to convert"
            )
        if self.largest.dim():
            raise QuantError(
                f"group_size {self.group_size}: activations with one scale a group have no integer form; leave it out"
            )
        levels = self.levels()
        scale = max(self.largest.item() / levels[1], SMALLEST_SCALE)
        return symmetric_qparams(scale, levels, self.floor, self.ceiling)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        saved = state_dict.get(f"{prefix}largest")
        if saved is not None and self.group_size > 0:  # its shape comes with the first batch
            self.largest = torch.empty_like(saved, device=self.largest.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def grouped_mean(x: Tensor, group_size: int, axis: int) -> Tensor:
    """The mean of x within each group of `group_size` slices along `axis`, repeated so that it broadcasts over x; -1:
    of all of x.

    >>> grouped_mean(torch.tensor([[1.0], [3.0], [5.0], [5.0]]), 2, 0).flatten()
    tensor([2., 2., 5., 5.])
    """
    if group_size <= 0:
        return x.mean().reshape([1] * x.dim())
    check_groups(group_size, x.shape[axis])
    means = x.movedim(axis, 0).reshape(x.shape[axis] // group_size, -1).mean(1)
    return means.repeat_interleave(group_size).view([-1 if d == axis else 1 for d in range(x.dim())])


def check_groups(group_size: int, channels: int) -> None:
    if group_size > 0 and channels % group_size:
        raise QuantError(f"group_size: {group_size} does not divide {channels} channels")


def clip(x: Tensor, hi, through: bool, lo=None) -> Tensor:
    """x within [lo, hi] (lo: -hi by default), not rounded; `through` gives clipped values a gradient too."""
    lo = -hi if lo is None else lo
    y = torch.clamp(x, lo, hi)
    return straight_through(x, y) if through else y
