"""Data for semantic segmentation: pictures, a class for each pixel, and the weights of the classes.

Training sees squares out of randomly scaled pictures. Evaluation sees whole pictures at the size of the network's
input, but judges them at the size of their masks, so that figures do not depend on that input. The test part chooses
nothing.
"""

import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import Mask
from tqdm import tqdm

from common.errors import UserError
from tasks.mask_layouts import DATA, class_names, sources
from tasks.mask_sources import IGNORE, Masked, in_words
from tasks.samples import NAMED, Bad, BadSample, Data, Samples, normalise, some_of, split_off

__all__ = ["DATA", "IGNORE", "class_names", "class_weights", "segmentation", "training"]

VAL_SHARE = 0.1  # of train, where a data set brings no validation part
SCALES = (0.5, 2.0)  # of training pictures, log-uniform; at 1 the square is as long as the picture's shorter side
JITTER = 0.3  # largest change of brightness, contrast and saturation
WEIGHED = 500  # training masks that the class weights are computed from
SIDE = 512  # pixels are counted on a grid of about so many rows and columns


def segmentation(
    data: str = "scenes",
    data_root: str | os.PathLike | None = None,
    input_size: int = 96,
    seed: int = 0,
    train_images: int | None = None,
    workers: int = 0,
    bad: Bad = "refuse",
) -> Data:
    """Pictures and masks of one of DATA, normalised by the mean and std of the training part.

    input_size  length of the shorter side of a picture in evaluation, and of the squares that are trained on
    seed        decides what is split off: a validation part where the data has none, the `train_images` kept
    bad         what is to happen to pictures and masks that do not fit together: "refuse" raises, "skip" leaves them
                out and says so; pixels whose ids no class has are then IGNORE. All masks are looked at here, pictures
                as they are needed.
    Targets are (H, W) uint8 of class indices, or IGNORE; in evaluation of the size that the mask has in its file.
    """
    if train_images is not None and train_images < 2:
        raise UserError(f"train_images: {train_images}, must be at least 2")
    found, classes = sources(data, data_root, bad)
    parts = {
        name: Samples(
            source, torch.arange(len(source)), input_size, Fit(input_size), Fit(input_size), workers=workers, bad=bad
        )
        for name, source in found.items()
    }
    if "val" not in parts:
        parts["train"], parts["val"] = split_off(parts["train"], VAL_SHARE, seed)
    parts["train"] = some_of(parts["train"], train_images, seed)
    parts = {name: checked(replace(part, skipped={})) for name, part in parts.items()}
    made = normalise(Data(parts["train"], parts["val"], parts.get("test"), classes))
    return replace(made, train=replace(made.train, augment=training(input_size, made.mean)))


# ---- what pictures and masks go through --------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """Evaluation: the shorter side resized to `size`, the mask as it is."""

    size: int

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return F.resize(image, [self.size], antialias=True), mask


def training(size: int, mean: Tensor) -> v2.Compose:
    """Augmentation of (picture, mask): random scale and place, mirrored half of the time, slightly other colours.

    (3, S, S) and (S, S).
    """
    return v2.Compose([RandomSquare(size, mean), v2.RandomHorizontalFlip(), v2.ColorJitter(JITTER, JITTER, JITTER)])


class RandomSquare(v2.Transform):
    """A square of random scale and place, resized to `size`; beyond the picture lie the mean colour and IGNORE.

    Cut first, then resized: what is not seen costs nothing.
    """

    def __init__(self, size: int, mean: Tensor):
        super().__init__()
        self.size, self.colour = size, (mean.cpu() * 255).round().to(torch.uint8).view(3, 1, 1)

    def make_params(self, flat_inputs: list) -> dict[str, list[int]]:
        """Rows and columns (from, to) of the source, and where they come to lie in the square."""
        height, width = v2.query_size(flat_inputs)
        u = torch.rand(3).tolist()
        side = min(height, width) / math.exp(math.log(SCALES[0]) + math.log(SCALES[1] / SCALES[0]) * u[0])
        rows, columns = (
            _span(length, side, share * (length - side), self.size) for length, share in ((height, u[1]), (width, u[2]))
        )
        return {"rows": rows, "columns": columns}

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        (y0, y1, top, bottom), (x0, x1, left, right) = params["rows"], params["columns"]
        is_mask = isinstance(inpt, Mask)
        beyond = torch.full((1, 1, 1), IGNORE, dtype=torch.uint8) if is_mask else self.colour
        # nearest-exact looks at the middle of a pixel, as bilinear does for the picture; nearest, the default for
        # masks, at its corner
        how = v2.InterpolationMode.NEAREST_EXACT if is_mask else v2.InterpolationMode.BILINEAR
        plain = inpt.as_subclass(Tensor)
        cut = (plain[None] if is_mask else plain)[:, y0:y1, x0:x1]
        square = beyond.repeat(1, self.size, self.size)
        square[:, top:bottom, left:right] = F.resize_image(
            cut, [bottom - top, right - left], how, antialias=not is_mask
        )
        return Mask(square[0]) if is_mask else square


def _span(length: int, side: float, start: float, size: int) -> tuple[int, int, int, int]:
    """What a window of a line shows, `side` of `length` pixels from `start`, and where in its `size` pixels."""
    first = min(round(max(start, 0)), length - 1)
    last = max(round(min(start + side, length)), first + 1)
    at = min(round(max(-start, 0) / side * size), size - 1)
    end = max(round(min((length - start) / side, 1) * size), at + 1)
    return first, last, at, end


# ---- looking at masks beforehand ---------------------------------------------------------------------------


def checked(samples: Samples) -> Samples:
    """The samples without those whose masks cannot be used.

    Raises UserError, where bad pictures are refused, for these and for ids that no class has; else the pixels of such
    ids are counted.
    """
    if not isinstance(samples.source, Masked):
        return samples
    bad, unknown = {}, {}
    for index, found in zip(samples.indices.tolist(), _each(samples, _problem, "checking masks"), strict=True):
        if isinstance(found, BadSample):
            bad[index] = found
        elif found:
            unknown[index] = found
    _settle(samples, bad, unknown)
    return samples.select(torch.tensor([i not in bad for i in samples.indices.tolist()]).nonzero()[:, 0])


def _problem(samples: Samples, index: int) -> BadSample | dict[int, int]:
    """What is wrong with a mask: an error, or pixels by unknown id."""
    try:
        return samples.source.look(index)[1]
    except BadSample as error:
        return error


def _settle(samples: Samples, bad: dict[int, BadSample], unknown: dict[int, dict[int, int]]) -> None:
    """Refuse what was found, or say it."""
    source = samples.source
    words = [f"{error.name}: {error.why}" for error in bad.values()]
    words += [
        f"{source.name(index)}: its mask has {in_words(ids)}, which no class has" for index, ids in unknown.items()
    ]
    if words and samples.bad == "refuse":
        more = f"; and {len(words) - NAMED} more" if len(words) > NAMED else ""
        raise UserError(
            f"data_root: {len(words)} of {len(samples)} pictures cannot be used: {'; '.join(words[:NAMED])}{more}; "
            "mend or remove them, or add --bad-data skip"
        )
    samples.note({source.name(index): error.why for index, error in bad.items()})
    if len(bad) == len(samples):
        raise UserError(f"data_root: none of the {len(samples)} pictures can be used, the first for this: {words[0]}")
    if unknown:
        pixels = sum(map(Counter, unknown.values()), Counter())
        first = source.name(next(iter(unknown)))
        print(
            f"warning: {len(unknown)} masks, the first that of {first}, "
            f"have ids that no class has; ignored are {in_words(pixels)}",
            file=sys.stderr,
        )


def class_weights(samples: Samples) -> Tensor:
    """ENet's weights (num_classes,) 1 / ln(1.02 + share of pixels) (arXiv:1606.02147), from spaced training masks."""
    some = samples.select(torch.linspace(0, len(samples) - 1, min(WEIGHED, len(samples))).long())
    pixels = sum(_each(some, _pixels, "weighing classes"))
    if not pixels.any():
        raise UserError("data_root: the masks of the training part show no class at all")
    return weights_of(pixels / pixels.sum()).to(samples.mean.device)


def weights_of(shares: Tensor) -> Tensor:
    """ENet's weights for classes with these shares of all pixels that have a class."""
    return 1 / torch.log(1.02 + shares)


def _pixels(samples: Samples, index: int) -> Tensor:
    """How many pixels (num_classes,) of a mask, or of a grid of pixels out of a large one, show each class."""
    mask = samples.source.look(index)[0]
    step = max(1, max(mask.shape) // SIDE)
    found = torch.from_numpy(mask[::step, ::step]).flatten()
    return torch.bincount(found, minlength=256)[: samples.source.num_classes].float()


def _each(samples: Samples, look: Callable, words: str) -> Iterator:
    """look(samples, index) of all samples, in their order."""
    with ThreadPoolExecutor() as pool:
        found = pool.map(partial(look, samples), samples.indices.tolist())
        yield from tqdm(found, desc=words, total=len(samples), unit="img", delay=2, leave=False)
