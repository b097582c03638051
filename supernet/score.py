"""Scores of candidates and depths by the supernet.

They blend the alphas' log probabilities and the change of the held-out loss that each candidate and each depth causes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import distributed
from nas.derive import Scores
from nas.space import Choice, SearchSpace
from quant.statistics import frozen_statistics
from supernet.alphas import Alphas
from supernet.loop import Search
from supernet.model import Supernet

LazyBatch = Callable[[], tuple[Tensor, Tensor]]  # () -> (images, targets)


def score_candidates(search: Search, batches: Sequence[LazyBatch]) -> Scores:
    """Scores of a trained search: alphas and perturbation losses on held-out batches, blended. Shows a progress bar.

    Ranks divide the batches; all get the scores.
    """
    base = most_probable(search.alphas)
    total = len(batches[distributed.share()]) * evaluations(search.supernet.space)
    with tqdm(total=total, desc="scoring ops and depths", unit="path") as bar:

        def losses_on(batch: LazyBatch) -> Scores:
            return perturbation_losses(search.supernet, base, *batch(), search.loss, bar.update)

        losses = distributed.each(losses_on, batches)
    return blended_scores(search.alphas, mean_scores(losses))


def most_probable(alphas: Alphas) -> Choice:
    """Every stage at full depth, every slot with its most probable candidate."""
    stages = alphas.space.stages
    return Choice(
        tuple(len(s.slots) for s in stages), tuple(tuple(int(a.argmax()) for a in stage) for stage in alphas.ops)
    )


# ---- perturbation losses -----------------------------------------------------------------------------------


@torch.no_grad()
def perturbation_losses(
    supernet: Supernet,
    base: Choice,
    images: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    tick: Callable[[], object] = lambda: None,
) -> Scores:
    """How much each candidate and each depth raises the loss, one change of `base` at a time (after arXiv:2108.04392).

    Batch norm normalises by the batch, so that a path needs no statistics. In a tied space a candidate changes in all
    slots together; its change is the `shared` row.

    Args:
        supernet: The trained supernet.
        base: A path that runs every slot.
        images: (N, C, H, W).
        targets: (N,).
        loss: (outputs, targets) -> 0-dim loss.
        tick: Called after each of the `evaluations`.

    Returns:
        Differences of losses; 0 for the candidates and depths of `base`. Lower is better.
    """
    perturb = _tied_losses if supernet.space.tied else _untied_losses
    with frozen_statistics(supernet):
        return perturb(supernet, base, images, targets, loss, tick)


def _untied_losses(
    supernet: Supernet, base: Choice, images: Tensor, targets: Tensor, loss: Callable, tick: Callable
) -> Scores:
    """Shares the path's activations before the change."""

    def rest(x: Tensor, modules: list[nn.Module]) -> float:
        for module in modules:
            x = module(x)
        tick()
        return loss(x, targets).item()

    path = supernet.path(base)
    reference = rest(images, path)
    x = path[0](images)
    position = 1
    ops = []
    depths = []
    for stage, slots, base_ops in zip(supernet.space.stages, supernet.stages, base.ops, strict=True):
        end = position + len(slots)
        rows = []
        cut = []
        for slot, base_op in zip(slots, base_ops):
            rows.append(
                [
                    0.0 if i == base_op else rest(candidate(x), path[position + 1 :]) - reference
                    for i, candidate in enumerate(slot)
                ]
            )
            x, position = path[position](x), position + 1
            depth = len(rows)
            if depth >= stage.min_depth:
                cut.append(0.0 if depth == len(slots) else rest(x, path[end:]) - reference)
        ops.append(rows)
        depths.append(cut)
    return Scores(ops, depths)


def _tied_losses(
    supernet: Supernet, base: Choice, images: Tensor, targets: Tensor, loss: Callable, tick: Callable
) -> Scores:
    space = supernet.space

    def value(choice: Choice) -> float:
        tick()
        return loss(supernet(images, choice), targets).item()

    def with_depth(stage: int, depth: int) -> Choice:
        depths = [*base.depths[:stage], depth, *base.depths[stage + 1 :]]
        return space.choice(tuple(depths), [list(row) for row in base.ops])

    reference = value(base)
    shared = [value(space.with_candidate(base, i)) - reference for i in range(space.tied_count)]
    depths = [
        [
            0.0 if depth == len(stage.slots) else value(with_depth(i, depth)) - reference
            for depth in range(stage.min_depth, len(stage.slots) + 1)
        ]
        for i, stage in enumerate(space.stages)
    ]
    zeros = [[[0.0] * len(slot.candidates) for slot in stage.slots] for stage in space.stages]
    return Scores(zeros, depths, shared)


def evaluations(space: SearchSpace) -> int:
    """How often `perturbation_losses` evaluates the supernet."""
    depths = sum(len(stage.slots) - stage.min_depth for stage in space.stages)
    ops = (
        space.tied_count
        if space.tied
        else sum(len(slot.candidates) - 1 for stage in space.stages for slot in stage.slots)
    )
    return 1 + ops + depths


# ---- combined ----------------------------------------------------------------------------------------------


def mean_scores(several: list[Scores]) -> Scores:
    """The mean of scores of several batches."""

    def mean(*rows: list[float]) -> list[float]:
        return [sum(values) / len(values) for values in zip(*rows, strict=True)]

    return several[0].combine(mean, *several[1:])


def blended_scores(alphas: Alphas, losses: Scores) -> Scores:
    """log p of the alphas minus the change of the loss, each divided by its spread over all candidates and depths."""
    log_p = alphas.log_scores()
    a, b = _spread(log_p), _spread(losses)

    def blend(log_row: list[float], loss_row: list[float]) -> list[float]:
        return [p / a - change / b for p, change in zip(log_row, loss_row, strict=True)]

    return log_p.combine(blend, losses)


def _spread(scores: Scores) -> float:
    """Standard deviation of the scores within their rows, over all slots and stages with a choice; 1 without any."""
    ops = [row for stage in scores.ops for row in stage if len(row) > 1]
    if scores.shared:
        # One choice serves len(ops) slots: its squares count once, while the divisor counts every slot, as in a space
        # that is not tied. Zeros fill the places of the other slots.
        others = len(ops) - 1
        ops = [scores.shared] + others * [[0.0] * len(scores.shared)]
    rows = [torch.tensor(row) for row in [*ops, *scores.depths] if len(row) > 1]
    if not rows:
        return 1.0
    return max(torch.cat([row - row.mean() for row in rows]).square().mean().sqrt().item(), 1e-12)
