"""Pictures with boxes or masks, read as they are needed, and the stream of training batches drawn from them.

A batch is a pure function of (seed, step), as in tasks.pictures: so exact resume needs the number of the step and
nothing else. Worker processes read ahead. Ranks (common.distributed) take turns at the batches of one such stream.
"""

import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import distributed
from common.errors import UserError
from tasks.pictures import generator

STATISTICS = 256  # training pictures that mean and std are computed from
WAITING = 4  # batches' worth of pictures that wait for others of their size
NAMED = 5  # bad pictures that are named, of however many
Bad = Literal["refuse", "skip"]
Target = Any  # what belongs to a picture: a dict of tensors, or a mask


class BadSample(UserError):
    """A picture, or what belongs to it, that cannot be used."""

    def __init__(self, name: str, why: str):
        super().__init__(name, why)
        self.name, self.why = name, why

    def __str__(self) -> str:
        return f"{self.name}: {self.why}; mend or remove it, or add --bad-data skip"


class Source(Protocol):
    """Where pictures come from; travels to worker processes."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def read(self, index: int) -> tuple[Tensor, Target]:
        """A picture (3, H, W) uint8 and its target. Raises BadSample."""


@dataclass(frozen=True)
class Samples:
    """Images number `indices` of a source.

    fit      (image, target) -> the same as the network is to see them in evaluation
    augment  the same for training, at random: it draws from torch's global generator
    mean std (3,) of the pixels in [0, 1]
    workers  processes that read training batches ahead, and threads that read for evaluation; 0: the caller reads
    bad      "refuse" raises for an image that cannot be used, "skip" leaves it out, prints it and adds it to `skipped`
    """

    source: Source
    indices: Tensor
    input_size: int
    fit: Callable[[Tensor, Target], tuple[Tensor, Target]]
    augment: Callable[[Tensor, Target], tuple[Tensor, Target]]
    mean: Tensor = field(default_factory=lambda: torch.zeros(3))
    std: Tensor = field(default_factory=lambda: torch.ones(3))
    workers: int = 0
    bad: Bad = "refuse"
    skipped: dict[str, str] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.indices)

    def select(self, indices: Tensor) -> "Samples":
        return replace(self, indices=self.indices[indices])

    def to(self, device) -> "Samples":
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def note(self, bad: dict[str, str]) -> None:
        """Say which pictures are left out, each once."""
        for name, why in bad.items():
            if name not in self.skipped:
                self.skipped[name] = why
                if len(self.skipped) <= NAMED:
                    print(f"warning: {name} is left out: {why}", file=sys.stderr)
                elif len(self.skipped) == NAMED + 1:
                    print(
                        "warning: further pictures are left out without a line each; metrics.json counts them",
                        file=sys.stderr,
                    )

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 to float32 (x - mean) / std, channels_last, on the samples' device."""
        images = images.to(self.mean.device).float().div_(255)
        images = images.sub_(self.mean.view(3, 1, 1)).div_(self.std.view(3, 1, 1))
        return images.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Data:
    """Images of each split, Samples or for classification Pictures.

    test is None where the data has none, and then val is what gets reported. `problems` lists what was left out of the
    annotations before an image was opened.
    """

    train: Samples
    val: Samples
    test: Samples | None
    classes: tuple[str, ...]
    problems: tuple[str, ...] = ()

    @property
    def mean(self) -> Tensor:
        return self.train.mean

    @property
    def std(self) -> Tensor:
        return self.train.std

    @property
    def held_out(self) -> dict[str, Samples]:
        """The splits to report, by name."""
        return {"val": self.val} | ({"test": self.test} if self.test is not None else {})

    def to(self, device) -> "Data":
        moved = {name: part.to(device) for name, part in (self.held_out | {"train": self.train}).items()}
        return replace(self, **moved)


def check_wanted(data: str, data_root: str | os.PathLike | None, known: Sequence[str]) -> None:
    """Raise UserError unless `data` is one of `known` and has a folder named, which scenes alone do not need."""
    if data not in known:
        raise UserError(f"data: {data!r} is not known; choose one of {', '.join(known)}")
    if data != "scenes" and data_root is None:
        raise UserError(f"data_root: missing; data {data!r} needs the folder that holds it (--data-root FOLDER)")


def folder_of(data: str, data_root: str | os.PathLike | None, known: Sequence[str]) -> Path:
    """The folder of `data`, which is one of `known` and is there. Raises UserError."""
    check_wanted(data, data_root, known)
    root = Path(data_root or ".")
    if not root.is_dir():
        raise UserError(f"data_root: there is no folder {root}")
    return root


def normalise(data: Data, mean: Tensor | None = None, std: Tensor | None = None) -> Data:
    """The data with mean and std, of its training part where none are given, in all its parts."""
    if mean is None or std is None:
        mean, std = statistics(data.train)
    parts = {name: replace(part, mean=mean, std=std) for name, part in (data.held_out | {"train": data.train}).items()}
    return replace(data, **parts)


def statistics(samples: Samples) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in [0, 1] over evenly spaced pictures, each of which counts alike."""
    some = samples.select(torch.linspace(0, len(samples) - 1, min(STATISTICS, len(samples))).long())
    sums, squares, count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    for image, _ in _read_in_order(some):
        pixels = image.flatten(1).double() / 255
        sums, squares, count = sums + pixels.mean(1), squares + pixels.square().mean(1), count + 1
    if not count:
        raise UserError("data_root: none of the training pictures that were looked at can be used; mend them")
    mean = sums / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float().clamp(min=1e-3)


def some_of(samples: Samples, count: int | None, seed: int) -> Samples:
    """So many pictures of the samples at random; all of them for None or a larger count."""
    if count is None or count >= len(samples):
        return samples
    return samples.select(torch.randperm(len(samples), generator=generator(seed, 2))[:count].sort().values)


def of_size(samples: Samples, size: tuple[int, int]) -> Samples:
    """Those of the samples that evaluation sees at `size`, height and width. Reads them."""
    found, singles = [], _Singles(samples)
    for position, (_, read) in enumerate(_in_threads(singles, range(len(samples)), samples.workers)):
        if not isinstance(read, UserError) and tuple(read[0].shape[1:]) == tuple(size):
            found.append(position)
    return samples.select(torch.tensor(found, dtype=torch.int64))


def split_off(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples]:
    """The samples without a random share of them, and that share. Raises UserError where there are fewer than two."""
    if len(samples) < 2:
        raise UserError(
            "data_root: train has fewer than two pictures, so that no validation part can be split off; add one"
        )
    order = torch.randperm(len(samples), generator=generator(seed, 3))
    count = max(1, round(share * len(samples)))
    train, off = (samples.select(part.sort().values) for part in (order[count:], order[:count]))
    return replace(train, skipped={}), replace(off, skipped={})


def noise(input_size: int, count: int, target: Target) -> Samples:
    """Square pictures of noise, all with the same target."""
    return Samples(_Noise(input_size, count, target), torch.arange(count), input_size, _unchanged, _unchanged)


@dataclass(frozen=True)
class _Noise:
    size: int
    count: int
    target: Target

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"noise {index}"

    def read(self, index: int) -> tuple[Tensor, Target]:
        return torch.randint(
            256, (3, self.size, self.size), generator=generator(0, index), dtype=torch.uint8
        ), self.target


def _unchanged(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, target


# ---- evaluation --------------------------------------------------------------------------------------------


def in_order(samples: Samples, batch_size: int, part: slice = slice(None)) -> Iterator[tuple[Tensor, list[Target]]]:
    """Every picture once, or a `part` of them, unaugmented: images (B, 3, H, W) and their targets.

    Pictures of unlike sizes come in batches of their own.
    """
    waiting: dict[tuple, list] = {}
    for image, target in _read_in_order(samples.select(torch.arange(len(samples))[part])):
        group = waiting.setdefault(tuple(image.shape), [])
        group.append((image, target))
        if len(group) == batch_size:
            yield _evaluation_batch(samples, waiting.pop(tuple(image.shape)))
        elif sum(map(len, waiting.values())) >= WAITING * batch_size:  # of many sizes: memory is bounded
            yield _evaluation_batch(samples, waiting.pop(max(waiting, key=lambda size: len(waiting[size]))))
    for group in waiting.values():
        yield _evaluation_batch(samples, group)


def _evaluation_batch(samples: Samples, group: list) -> tuple[Tensor, list[Target]]:
    device = samples.mean.device
    return samples.normalised(torch.stack([image for image, _ in group])), [
        _moved(target, device) for _, target in group
    ]


def _read_in_order(samples: Samples) -> Iterator[tuple[Tensor, Target]]:
    for name, found in _in_threads(_Singles(samples), range(len(samples)), samples.workers):
        if not isinstance(found, UserError):
            yield found
        elif samples.bad == "refuse" or not isinstance(found, BadSample):
            raise found
        else:
            samples.note({name: found.why})


class _Singles:
    """Pictures as they are evaluated, with their names; a picture that cannot be read is its error."""

    def __init__(self, samples: Samples):
        self.samples = samples

    def __getitem__(self, position: int):
        samples, index = self.samples, int(self.samples.indices[position])
        try:
            return samples.source.name(index), _plain(samples.fit(*samples.source.read(index)))
        except UserError as error:
            return samples.source.name(index), error


# ---- training ----------------------------------------------------------------------------------------------


class Stream:
    """Endless training batches. Each epoch is a fresh permutation, of which what fills no whole step is dropped.

    batch_size  images in a step, of all ranks together, a multiple of their number; fewer where there are not enough
    Each rank takes an equal share of a step: n ranks see in a step what one would. An image that cannot be used is,
    where that is wanted, replaced by the next that can. Raises UserError for fewer images than ranks.
    """

    def __init__(self, samples: Samples, batch_size: int, seed: int):
        ranks = distributed.world_size()
        share = distributed.share_of(batch_size, len(samples), ranks)
        self.samples, self.batch_size = samples, share * ranks
        self.steps_per_epoch = len(samples) // self.batch_size
        self._batches = _Batches(replace(samples, mean=torch.zeros(3), std=torch.ones(3)), share, seed)
        self._next, self._ahead = -1, iter(())

    def batch(self, step: int) -> tuple[Tensor, list[Target]]:
        """This rank's batch of step `step` from the beginning of training, a pure function of (seed, step, rank).

        images (B, 3, S, S) float32, normalised, channels_last; the targets of each.
        """
        if step != self._next:
            self._ahead = _in_processes(self._batches, _From(step), self.samples.workers)
        self._next = step + 1
        found = next(self._ahead)
        if isinstance(found, UserError):
            raise found
        images, targets, bad = found
        self.samples.note(bad)
        return self.samples.normalised(images), [_moved(target, self.samples.mean.device) for target in targets]


class _From:
    """Whole numbers from one on, for as long as anyone asks."""

    def __init__(self, first: int):
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


class _Batches(Dataset):
    """This rank's batches of `share` images by the number of their step; an error is a value."""

    def __init__(self, samples: Samples, share: int, seed: int):
        self.samples, self.share, self.seed = samples, share, seed
        self.rank, self.ranks = distributed.rank(), distributed.world_size()
        self.steps_per_epoch = len(samples) // (share * self.ranks)
        self._permutation = (-1, torch.empty(0))

    def __getitem__(self, step: int):
        epoch, position = divmod(step, self.steps_per_epoch)
        chosen = self._order(epoch)[(position * self.ranks + self.rank) * self.share :][: self.share]
        word = generator(self.seed, 1, step * self.ranks + self.rank).initial_seed()
        bad: dict[str, str] = {}
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(word)
                images, targets = zip(*(self._augmented(index, bad) for index in chosen.tolist()))
        except UserError as error:
            return error
        return torch.stack(images), list(targets), bad

    def _augmented(self, position: int, bad: dict[str, str]) -> tuple[Tensor, Target]:
        """The picture at a position, or the next one behind it that can be used."""
        samples = self.samples
        for ahead in range(len(samples)):
            index = int(samples.indices[(position + ahead) % len(samples)])
            try:
                return _plain(samples.augment(*samples.source.read(index)))
            except BadSample as error:
                if samples.bad == "refuse":
                    raise
                bad[samples.source.name(index)] = error.why
        raise UserError("data_root: none of the training pictures can be used; mend them")

    def _order(self, epoch: int) -> Tensor:
        if self._permutation[0] != epoch:
            self._permutation = (epoch, torch.randperm(len(self.samples), generator=generator(self.seed, 0, epoch)))
        return self._permutation[1]


# ---- common ------------------------------------------------------------------------------------------------


def _in_threads(data: _Singles, keys: Iterable[int], workers: int) -> Iterator:
    """data[key] for each of the keys in their order, read ahead by so many threads: nothing is drawn at random here."""
    if not workers:
        yield from (data[key] for key in keys)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        waiting: deque = deque()
        for key in keys:
            waiting.append(pool.submit(data.__getitem__, key))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _in_processes(data: Dataset, keys: Iterable[int], workers: int) -> Iterator:
    """data[key] for each of the keys, read ahead by so many processes, each with a global generator of its own.

    They are started afresh, not forked: other libraries' threads may run by now, and a fork is no place for them.
    """
    if not workers:
        return (data[key] for key in keys)
    # else making it would draw from the global one, from which a resumed run draws at other moments
    own = torch.Generator()
    return iter(
        DataLoader(
            data,
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            collate_fn=_same,
            generator=own,
            multiprocessing_context="spawn",
        )
    )


def _same(value):
    return value


def _plain(sample: tuple[Tensor, Target]) -> tuple[Tensor, Target]:
    """Ordinary tensors instead of torchvision's, which cost at each operation."""
    image, target = sample
    bare = (
        {key: value.as_subclass(Tensor) for key, value in target.items()}
        if isinstance(target, dict)
        else target.as_subclass(Tensor)
    )
    return image.as_subclass(Tensor).contiguous(), bare


def _moved(target: Target, device) -> Target:
    return {key: value.to(device) for key, value in target.items()} if isinstance(target, dict) else target.to(device)
