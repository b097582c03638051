"""What the two tasks of style transfer share. Pictures are normalised to [-1, 1], which generators take and give.

Only generators are quantized; see tasks.rival for discriminators.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import distributed
from common.errors import UserError
from tasks.data import VAL_SHARE
from tasks.samples import Samples, in_order

EVALUATION_BATCH = 8
ALIKE = 100.0  # decibels that stand for equal pictures
Batch = tuple[Tensor, Tensor]  # both pictures of each sample, (B, 3, H, W) in [-1, 1]


def both(batch: tuple[Tensor, Sequence[Tensor]]) -> Batch:
    """Both pictures of the samples of a batch, of which the second ones are still bytes."""
    images, targets = batch
    others = torch.stack(list(targets)).to(images.device).float().div_(127.5).sub_(1)
    return images, others.contiguous(memory_format=torch.channels_last)


def batches(samples: Samples, part: slice = slice(None)) -> Iterator[Batch]:
    """All samples, or a part of them, in order, with a progress bar."""
    total = -(-len(samples) // (EVALUATION_BATCH * (part.step or 1)))
    found = in_order(samples, EVALUATION_BATCH, part)
    return map(both, tqdm(found, desc="evaluating", total=total, unit="batch", delay=3, leave=False))


def mine(samples: Samples) -> Iterator[Batch]:
    """This rank's part of the samples."""
    return batches(samples, distributed.share())


def check_parts(held_out: Mapping[str, Samples]) -> None:
    """Raise UserError for a part with fewer pictures than a feature distance needs."""
    for name, part in held_out.items():
        if len(part) < 2:
            raise UserError(
                f"data_root: the {name} part has {len(part)} picture, must be at least 2; "
                f"add some (without a part of its own, val is {VAL_SHARE:.0%} of train)"
            )


def likeness(
    ours: Callable[[Batch], Sequence[Tensor]], theirs: Callable[[Batch], Sequence[Tensor]], samples: Samples
) -> float:
    """PSNR in dB between what two networks make of the samples, over all pixels; ALIKE where it is the same."""
    squares, count = 0.0, 0
    for batch in batches(samples):
        for one, other in zip(ours(batch), theirs(batch), strict=True):
            squares += (one.float() - other.float()).double().square().sum().item()
            count += one.numel()
    return round(ALIKE if not squares else min(ALIKE, 10 * math.log10(4 * count / squares)), 3)


def rows(columns: Callable[[Batch], dict[str, Tensor]], samples: Samples) -> list[dict[str, Tensor]]:
    """Pictures (3, H, W) of each sample to look at, by the name of their column."""
    found: list[dict[str, Tensor]] = []
    for batch in batches(samples):
        made = {name: pictures.float().cpu() for name, pictures in columns(batch).items()}
        found += [{name: pictures[i] for name, pictures in made.items()} for i in range(len(batch[0]))]
    return found


Models = dict[str, nn.Module]  # by what they are called on a sheet
