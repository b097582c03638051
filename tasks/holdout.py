"""How a search divides the training images: to train weights, to train and score alphas, to evaluate networks."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import UserError
from tasks.pictures import Pictures, balanced, generator, labelled

HELD_OUT = 0.1  # share of the images for alphas, and as much again for evaluation
MAX_EVALUATION = 10_000
BATCH_PIXELS = 256 * 32**2  # of an evaluation batch


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of the training images."""

    weights: Pictures
    alphas: Pictures
    evaluation: Pictures


def split(pictures: Pictures, seed: int) -> Split:
    """HELD_OUT of the images for alphas and as many, up to MAX_EVALUATION, for evaluation; the rest for weights.

    All are balanced over the classes. Raises UserError where a part would hold fewer than two images.
    """
    labels = pictures.labels.cpu()
    held = balanced(labels, 2 * round(len(pictures) * HELD_OUT), seed)
    alphas = held[balanced(labels[held], len(held) // 2, seed)]
    evaluation = _without(held, alphas)
    evaluation = evaluation[balanced(labels[evaluation], MAX_EVALUATION, seed)]
    weights = _without(torch.arange(len(pictures)), held)
    if min(len(part) for part in (weights, alphas, evaluation)) < 2:
        raise UserError(
            f"train_images: {len(pictures)} pictures are too few to hold some out; give at least {round(4 / HELD_OUT)}"
        )
    return Split(*(pictures.select(part) for part in (weights, alphas, evaluation)))


def _without(indices: Tensor, others: Tensor) -> Tensor:
    """The indices, in order, that are not among the others."""
    return indices[~torch.isin(indices, others)]


def even_batches(pictures: Pictures) -> list[Callable[[], tuple[Tensor, Tensor]]]:
    """All images once, in batches of nearly equal size that are made when they are called.

    Batch norm may normalise by the batch, and so no batch may be small.
    """
    most = max(32, BATCH_PIXELS // pictures.input_size**2)
    # shuffled: they are sorted by class, and a batch of one class has other statistics
    order = torch.randperm(len(pictures), generator=generator(0, 0))
    parts = order.tensor_split(-(-len(pictures) // most))
    return [functools.partial(labelled, pictures, part) for part in parts]
