"""What training gathers beside gradients: batch-norm statistics and ranges, frozen or measured anew for a whole model.

freeze_bn, FrozenBatchNorm1d/2d   running statistics normalise, in training too
set_mode                          observers and fake-quant on or off
frozen_statistics                 training mode without a trace: normalise by the batch and forget it
frozen_weights                    no gradients for parameters
recalibrate                       replace the statistics by those of some batches
weight_decay_groups               which parameters an optimizer decays
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from quant.quantizers import ActivationQuantizer, Quantizer
from quant.range_bn import RangeBN1d, RangeBN2d

BatchNorm = nn.modules.batchnorm._BatchNorm
Dropout = nn.modules.dropout._DropoutNd
RECALIBRATION_MOMENTUM = 0.3  # of moving ranges, which go on from where they are


class FrozenBatchNorm1d(nn.BatchNorm1d):
    """Batch norm that keeps to its running statistics; gamma and beta still learn."""

    def train(self, mode: bool = True):
        return super().train(False)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """FrozenBatchNorm1d for images (N, C, H, W)."""

    def train(self, mode: bool = True):
        return super().train(False)


FROZEN = {nn.BatchNorm1d: FrozenBatchNorm1d, nn.BatchNorm2d: FrozenBatchNorm2d}


def freeze_bn(model: nn.Module) -> None:
    """Stop batch-norm statistics: running values normalise from here on. Call again after each `model.train()`."""
    for module in model.modules():
        if isinstance(module, (BatchNorm, RangeBN1d, RangeBN2d)):
            module.eval()


def set_mode(model: nn.Module, *, observe: bool, fake_quant: bool) -> None:
    """Switch range tracking and rounding of all quantizers in a model."""
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.observer_enabled, module.fake_quant_enabled = observe, fake_quant


@contextlib.contextmanager
def frozen_statistics(model: nn.Module, dropout: bool = False) -> Iterator[None]:
    """Training mode without a trace: batch norms normalise by the batch and forget it, ranges stand still.

    Args:
        model: Its modules keep their modes.
        dropout: Whether dropout acts inside; off by default, so that a forward pass draws no random number.
    """
    modules = list(model.modules())
    norms, quantizers, dropouts = (_of(kind, modules) for kind in (BatchNorm, Quantizer, Dropout))
    with (
        _set(norms, "momentum", 0.0),
        _set(quantizers, "observer_enabled", False),
        _set([] if dropout else dropouts, "training", False),
    ):
        yield


@contextlib.contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """No gradients for a model's parameters inside."""
    with _set(list(model.parameters()), "requires_grad", False):
        yield


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace batch-norm statistics by their plain average over some batches, and move the ranges towards these.

    Everything else (dropout, frozen batch norms) is in evaluation mode meanwhile, so the result does not depend on what
    was drawn before. Modes and momenta are then as they were.

    Args:
        model: Float or with quantizers attached.
        batches: Inputs of the model, each of at least two values per channel.
    """
    modules = list(model.modules())
    norms = [m for m in _of(BatchNorm, modules) if not isinstance(m, tuple(FROZEN.values()))]
    quantizers = _of(Quantizer, modules)
    moving = [q for q in _of(ActivationQuantizer, quantizers) if q.momentum is not None]
    for norm in norms:
        norm.reset_running_stats()
    with (
        _set(modules, "training", False),
        _set([*norms, *quantizers], "training", True),
        _set(norms, "momentum", None),  # torch's word for the cumulative average: 1/n at the n-th batch
        _set(moving, "momentum", RECALIBRATION_MOMENTUM),
    ):
        for batch in batches:
            model(batch)


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups for an optimizer: weights with decay, vectors (batch norms, biases) without."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _of(kind: type, modules: list[nn.Module]) -> list:
    return [m for m in modules if isinstance(m, kind)]


@contextlib.contextmanager
def _set(owners: list, name: str, value: Any) -> Iterator[None]:
    """One value for an attribute of all owners inside, and what each had outside."""
    before = [getattr(owner, name) for owner in owners]
    for owner in owners:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, had in zip(owners, before, strict=True):
            setattr(owner, name, had)
