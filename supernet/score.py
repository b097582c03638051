"""How good the supernet thinks a choice is: what the alphas say, and what each op and depth changes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nas.space import Choice, SearchSpace
from quant.statistics import frozen_statistics
from supernet.alphas import Alphas
from supernet.model import Supernet

# ops [stage][slot][candidate], depths [stage][depth - min_depth]
Scores = tuple[list[list[list[float]]], list[list[float]]]


@torch.no_grad()
def perturbation_scores(
    supernet: Supernet, base: Choice, images: Tensor, targets: Tensor, loss: Callable, tick=lambda: None
) -> Scores:
    """How much each candidate and each depth raises the loss against `base`, one change at a time (after
    arXiv:2108.04392).

    `base` runs every slot. Batch norm normalises by the batch, so a path needs no statistics of its own. `tick()` is
    called after each of the evaluations. In a tied space a candidate changes in all slots together, and the change
    stands in the first slot with a choice.
    """
    space = supernet.space
    if space.tied:
        return _tied_scores(supernet, base, images, targets, loss, tick)

    def rest(x: Tensor, modules: list[nn.Module]) -> float:
        for module in modules:
            x = module(x)
        tick()
        return loss(x, targets).item()

    with frozen_statistics(supernet):
        path = supernet.path(base)
        reference = rest(images, path)
        x, position, ops, depths = path[0](images), 1, [], []
        for stage, slots, base_ops in zip(space.stages, supernet.stages, base.ops, strict=True):
            end, rows, cut = position + len(slots), [], []
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
    return ops, depths


def _tied_scores(
    supernet: Supernet, base: Choice, images: Tensor, targets: Tensor, loss: Callable, tick: Callable
) -> Scores:
    space = supernet.space

    def value(choice: Choice) -> float:
        tick()
        return loss(supernet(images, choice), targets).item()

    def depth(stage: int, d: int) -> Choice:
        depths = [*base.depths[:stage], d, *base.depths[stage + 1 :]]
        return space.choice(tuple(depths), [list(row) for row in base.ops])

    with frozen_statistics(supernet):
        reference = value(base)
        changes = [value(space.with_candidate(base, i)) - reference for i in range(space.tied_count)]
        cut = [
            [
                0.0 if d == len(stage.slots) else value(depth(i, d)) - reference
                for d in range(stage.min_depth, len(stage.slots) + 1)
            ]
            for i, stage in enumerate(space.stages)
        ]
    return first_choice_only(space, changes), cut


def first_choice_only(space: SearchSpace, row: list[float]) -> list[list[list[float]]]:
    """Scores of a tied space's candidates: `row` in the first slot with a choice, zeros in the others."""
    zeros = [[[0.0] * len(slot.candidates) for slot in stage.slots] for stage in space.stages]
    i, j = next((i, j) for i, stage in enumerate(zeros) for j, slot in enumerate(stage) if len(slot) > 1)
    zeros[i][j] = list(row)
    return zeros


def mean_scores(several: list[Scores]) -> Scores:
    """The mean of scores found on several batches."""

    def mean(rows):
        return [sum(values) / len(values) for values in zip(*rows, strict=True)]

    ops = [
        [mean(slot) for slot in zip(*stage, strict=True)] for stage in zip(*(ops for ops, _ in several), strict=True)
    ]
    return ops, [mean(stage) for stage in zip(*(depths for _, depths in several), strict=True)]


def evaluations(space: SearchSpace) -> int:
    """How often `perturbation_scores` evaluates the supernet."""
    depths = sum(len(stage.slots) - stage.min_depth for stage in space.stages)
    ops = (
        space.tied_count
        if space.tied
        else sum(len(slot.candidates) - 1 for stage in space.stages for slot in stage.slots)
    )
    return 1 + ops + depths


def favourite(alphas: Alphas) -> Choice:
    """Every stage at full depth, every slot with its most probable candidate."""
    stages = alphas.space.stages
    return Choice(
        tuple(len(s.slots) for s in stages), tuple(tuple(int(a.argmax()) for a in stage) for stage in alphas.ops)
    )


def blended_scores(alphas: Alphas, losses: Scores) -> Scores:
    """log p of the alphas minus the loss that a change causes, each in units of its own spread over all ops and
    depths.
    """
    favour = alphas.log_scores()
    if alphas.space.tied:
        favour = first_choice_only(alphas.space, max((row for stage in favour[0] for row in stage), key=len)), favour[1]
    a, b = _spread(favour), _spread(losses)

    def blend(log_p, loss):
        return [p / a - change / b for p, change in zip(log_p, loss, strict=True)]

    ops = [[blend(p, d) for p, d in zip(ps, ds, strict=True)] for ps, ds in zip(favour[0], losses[0], strict=True)]
    return ops, [blend(p, d) for p, d in zip(favour[1], losses[1], strict=True)]


def _spread(scores: Scores) -> float:
    """Standard deviation of the scores within their slots, over all slots and stages with a choice;

    1 where there is none.
    """
    rows = [torch.tensor(row) for row in [*(r for stage in scores[0] for r in stage), *scores[1]] if len(row) > 1]
    if not rows:
        return 1.0
    return max(torch.cat([row - row.mean() for row in rows]).square().mean().sqrt().item(), 1e-12)
