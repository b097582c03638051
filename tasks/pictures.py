"""Labelled pictures, held decoded or read as needed, and the stream of training batches drawn from them.

A batch is a pure function of (seed, step): the epoch's permutation draws from (seed, epoch), augmentation from (seed,
step). So exact resume needs the number of the step and nothing else. Ranks (common.distributed) take turns at the
batches of one such stream.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common import distributed

SMALL = 64  # up to this input size pictures are shifted by up to PAD pixels; above it, cropped at random scales
PAD = 4
CENTRE = 224 / 256  # evaluation above SMALL looks at this share of the shorter side
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of random crops, as in torchvision's RandomResizedCrop


def stored_size(input_size: int) -> int:
    """The side at which decoded pictures are kept for networks that see `input_size` pixels."""
    return input_size if input_size <= SMALL else math.ceil(input_size / CENTRE)


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator seeded by several whole numbers, e.g. (seed, step); unlike tuples give unrelated streams."""
    words = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


@dataclass(frozen=True)
class Memory:
    """Decoded images: images (N, 3, S, S) uint8 with S = stored_size(input_size), labels (N,) int64.

    mean and std are (3,) in [0, 1].
    """

    images: Tensor
    labels: Tensor
    input_size: int
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "Memory":
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def to(self, device) -> "Memory":
        moved = {name: getattr(self, name).to(device) for name in ("images", "labels", "mean", "std")}
        return replace(self, **moved)

    def pixels(self, indices: Tensor, draw: torch.Generator | None = None) -> Tensor:
        """(B, 3, input_size, input_size) uint8, augmented when there is a generator to draw from."""
        images = self.images[indices.to(self.images.device)]
        if draw is None:
            return centre_crop(images, self.input_size)
        if self.input_size <= SMALL:
            return shift_and_flip(images, draw)
        u = torch.rand(len(images), 5, generator=draw)
        return resized_crops(images, crop_windows(u, 1.0, 1.0), u[:, 4] < 0.5, self.input_size)


@dataclass(frozen=True)
class Lazy:
    """Pictures read when they are needed: read(key) -> PIL image of any size; the rest as in Memory."""

    read: Callable[[int], Image.Image]
    keys: Tensor
    labels: Tensor
    input_size: int
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "Lazy":
        return replace(self, keys=self.keys[indices], labels=self.labels[indices])

    def to(self, device) -> "Lazy":
        return replace(self, labels=self.labels.to(device), mean=self.mean.to(device), std=self.std.to(device))

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_pool"}

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(thread_name_prefix="read")

    def pixels(self, indices: Tensor, draw: torch.Generator | None = None) -> Tensor:
        """(B, 3, input_size, input_size) uint8, augmented when there is a generator to draw from."""
        keys, size = self.keys[indices].tolist(), self.input_size
        if draw is None or size <= SMALL:
            images = _stack(
                self._pool.map(lambda key: fit_square(self.read(key), size, 1.0 if size <= SMALL else CENTRE), keys)
            )
            images = images if draw is None else shift_and_flip(images, draw)
        else:
            u = torch.rand(len(keys), 5, generator=draw)
            images = _stack(self._pool.map(lambda key, row: _random_crop(self.read(key), row, size), keys, u))
        return images.to(self.mean.device)


Pictures = Memory | Lazy


def labelled(pictures: Pictures, indices: Tensor, draw: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """x (B, 3, S, S) float32, normalised, channels_last; y (B,) int64."""
    x = pictures.pixels(indices, draw).float()
    x = x.div_(255).sub_(pictures.mean.view(3, 1, 1)).div_(pictures.std.view(3, 1, 1))
    return x.contiguous(memory_format=torch.channels_last), pictures.labels[indices.to(pictures.labels.device)]


def in_order(pictures: Pictures, batch_size: int, part: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
    """Every picture once, or a `part` of them, in order, unaugmented, for evaluation."""
    for indices in torch.arange(len(pictures))[part].split(batch_size):
        if len(indices):
            yield labelled(pictures, indices)


class Stream:
    """Endless training batches. Each epoch is a fresh permutation, of which what fills no whole step is dropped.

    batch_size  images in a step, of all ranks together, a multiple of their number; fewer where there are not enough
    shared      each rank takes an equal share of a step, so that n ranks see in a step what one would; else each takes
                whole steps
    Raises UserError for fewer images than ranks.
    """

    def __init__(self, pictures: Pictures, batch_size: int, seed: int, augment: bool = True, shared: bool = True):
        self.pictures, self.seed, self.augment = pictures, seed, augment
        self.rank, self.ranks = (distributed.rank(), distributed.world_size()) if shared else (0, 1)
        self.share = distributed.share_of(batch_size, len(pictures), self.ranks)
        self.batch_size = self.share * self.ranks
        self.steps_per_epoch = len(pictures) // self.batch_size
        self._permutation = (-1, torch.empty(0))
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="prefetch") if isinstance(pictures, Lazy) else None
        self._next = (-1, None)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This rank's batch of step `step` from the beginning of training, a pure function of (seed, step, rank).

        See `labelled`.
        """
        if self._ahead is None:
            return self._make(step)
        waiting, future = self._next
        batch = future.result() if waiting == step else self._make(step)
        self._next = (step + 1, self._ahead.submit(self._make, step + 1))
        return batch

    def _make(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(step, self.steps_per_epoch)
        indices = self._order(epoch)[position * self.batch_size + self.rank * self.share :][: self.share]
        return labelled(
            self.pictures, indices, generator(self.seed, 1, step * self.ranks + self.rank) if self.augment else None
        )

    def _order(self, epoch: int) -> Tensor:
        kept = self._permutation
        if kept[0] != epoch:  # replaced as a whole: the thread that reads ahead may be in another epoch
            kept = self._permutation = (
                epoch,
                torch.randperm(len(self.pictures), generator=generator(self.seed, 0, epoch)),
            )
        return kept[1]


def balanced(labels: Tensor, count: int, seed: int) -> Tensor:
    """Sorted indices of `count` random pictures, as many of each class as there are to be had."""
    order = torch.randperm(len(labels), generator=generator(seed, 2))
    rank = torch.empty(len(labels), dtype=torch.int64)
    for label in labels.unique():
        members = order[labels[order] == label]
        rank[members] = torch.arange(len(members))
    return order[rank[order].argsort(stable=True)][:count].sort().values


def subset(pictures: Pictures, count: int | None, seed: int) -> Pictures:
    """A class-balanced part of `count` pictures; all of them for None or a larger count."""
    whole = count is None or count >= len(pictures)
    return pictures if whole else pictures.select(balanced(pictures.labels.cpu(), count, seed))


def centre_crop(images: Tensor, size: int) -> Tensor:
    start = (images.shape[-1] - size) // 2
    return images[..., start : start + size, start : start + size]


def shift_and_flip(images: Tensor, draw: torch.Generator) -> Tensor:
    """Pad by PAD black pixels, crop at a random place, mirror half of the pictures. (B, 3, S, S) uint8 to the same."""
    count, _, size, _ = images.shape
    rows, columns = torch.randint(0, 2 * PAD + 1, (2, count), generator=draw).to(images.device)
    flip = (torch.rand(count, 1, 1, 1, generator=draw) < 0.5).to(images.device)
    # (B, 3, 2 PAD + 1, 2 PAD + 1, S, S), a view
    windows = F.pad(images, (PAD,) * 4).unfold(2, size, 1).unfold(3, size, 1)
    shifted = windows[torch.arange(count, device=images.device), :, rows, columns]
    return torch.where(flip, shifted.flip(3), shifted)


def crop_windows(u: Tensor, width: float, height: float) -> Tensor:
    """Random windows x0, y0, x1, y1 as shares of the picture: (B, 4) from u (B, >= 4) uniform in [0, 1).

    The area is uniform in AREA of the picture's, the aspect log-uniform in RATIO; a window too wide or too high is cut
    to fit.
    """
    area = AREA[0] + (AREA[1] - AREA[0]) * u[:, 0]
    ratio = torch.exp(math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * u[:, 1]) * (height / width)
    w, h = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = u[:, 2] * (1 - w), u[:, 3] * (1 - h)
    return torch.stack([x, y, x + w, y + h], dim=1)


def resized_crops(images: Tensor, windows: Tensor, flip: Tensor, size: int) -> Tensor:
    """Cut windows (B, 4) out of square images (B, 3, S, S), mirror where flip (B,), resize bilinearly.

    Returns (B, 3, size, size) uint8.
    """
    x0, y0, x1, y1 = windows.unbind(1)
    zero, mirror = torch.zeros_like(x0), torch.where(flip, -1.0, 1.0)
    theta = (
        torch.stack([(x1 - x0) * mirror, zero, x0 + x1 - 1, zero, y1 - y0, y0 + y1 - 1], dim=1)
        .view(-1, 2, 3)
        .to(images.device)
    )
    grid = F.affine_grid(theta, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False).round_().to(torch.uint8)


def fit_square(image: Image.Image, size: int, share: float = 1.0) -> np.ndarray:
    """The central square, `share` of the shorter side, resized to (size, size, 3) uint8."""
    side = min(image.size) * share
    left, top = (image.width - side) / 2, (image.height - side) / 2
    if image.size == (size, size) and share == 1:
        return np.asarray(image)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)))


def _random_crop(image: Image.Image, u: Tensor, size: int) -> np.ndarray:
    scale = torch.tensor([image.width, image.height] * 2)
    box = (crop_windows(u[None], *image.size)[0] * scale).tolist()
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return pixels[:, ::-1] if u[4] < 0.5 else pixels


def _stack(rows) -> Tensor:
    """(H, W, 3) arrays to (B, 3, H, W) uint8, channels last in memory."""
    return torch.from_numpy(np.stack(list(rows))).permute(0, 3, 1, 2)
