"""Images of two kinds, A and B, unpaired: folders as CycleGAN keeps them (arXiv:1703.10593), scenes in two styles."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks import scenes
from tasks.data import VAL_SHARE
from tasks.folders import (
    SCENES,
    SPLITS,
    Apart,
    PictureFiles,
    centred,
    checked,
    enlarged,
    pictures_in,
    refuse_few,
    samples_of,
)
from tasks.pictures import generator
from tasks.reading import opened, read_picture, refuse_depth
from tasks.samples import Bad, BadSample, Data, Samples, Source, folder_of, some_of, split_off

DATA = ("scenes", "unpaired")
SIDES = ("A", "B")
TONES = 4  # steps of brightness in a cartoon


def unpaired(
    data: str = "scenes",
    data_root: str | os.PathLike | None = None,
    input_size: int = 64,
    seed: int = 0,
    train_images: int | None = None,
    workers: int = 0,
    bad: Bad = "refuse",
) -> Data:
    """Images A and B of one of DATA for generators that see squares of `input_size` pixels.

    Both lie in [-1, 1] once normalised.

    data          "unpaired": FOLDER/trainA and trainB, and valA and valB or testA and testB or all of them, with images
                  of any size; "scenes": A are images, B cartoons of other scenes
    seed          decides what is split off (a validation part where the data has none, the `train_images` kept) and the
                  order of trainB
    train_images  how many are kept of A and how many of B
    bad           what becomes of files that are no images (tasks.samples). All are opened here, and read as they are
                  needed.

    Sample i is image i of A and, as its target, image i of B; where one side has fewer it begins again. Both are (3, S,
    S) uint8: in training a crop of each, mirrored or not, independently; in evaluation whole images squeezed into the
    square. Raises UserError.
    """
    root = folder_of(data, data_root, DATA)
    refuse_few(train_images)
    sources = _scenes(input_size) if data == "scenes" else _files(root)
    a, b = (
        _parts({name: pair[side] for name, pair in sources.items()}, input_size, seed, train_images, bad)
        for side in (0, 1)
    )
    b["train"] = _shuffled(b["train"], seed)
    return centred({name: _joined(a[name], b[name], workers) for name in a})


def _parts(
    sources: dict[str, Source], input_size: int, seed: int, train_images: int | None, bad: Bad
) -> dict[str, Samples]:
    """The splits of one side: so a picture that is split off to validate meets none to train on."""
    parts = {name: samples_of(source, input_size, Apart, 0, bad) for name, source in sources.items()}
    if "val" not in parts:
        parts["train"], parts["val"] = split_off(parts["train"], VAL_SHARE, seed)
    parts["train"] = some_of(parts["train"], train_images, seed)
    return {name: checked(part) if isinstance(part.source, Files) else part for name, part in parts.items()}


def _shuffled(samples: Samples, seed: int) -> Samples:
    """In another order: else neighbours by name, maybe frames of one film, would meet in every batch like a pair."""
    return samples.select(torch.randperm(len(samples), generator=generator(seed, 4)))


def _joined(a: Samples, b: Samples, workers: int) -> Samples:
    both = samples_of(Both(a, b), a.input_size, Apart, workers, a.bad)
    return replace(both, skipped=a.skipped | b.skipped)


@dataclass(frozen=True)
class Both:
    """Picture i of A with picture i of B; the shorter side begins again."""

    a: Samples
    b: Samples

    def __len__(self) -> int:
        return max(len(self.a), len(self.b))

    def name(self, index: int) -> str:
        return " with ".join(side.source.name(at) for side, at in self._places(index))

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Pictures (3, H, W) uint8, each of its own size. Raises BadSample."""
        try:
            (a, _), (b, _) = (side.source.read(at) for side, at in self._places(index))
        except BadSample as error:
            raise BadSample(self.name(index), f"{error.name}: {error.why}") from error
        return a, b

    def _places(self, index: int) -> list[tuple[Samples, int]]:
        return [(side, int(side.indices[index % len(side)])) for side in (self.a, self.b)]


# ---- files -------------------------------------------------------------------------------------------------


def _files(root: Path) -> dict[str, list["Files"]]:
    """A and B of each split; a split is there with one of its folders, and then needs the other."""
    layout = f"{root} should hold trainA and trainB, and may hold valA and valB, testA and testB, with pictures in each"
    there = [name for name in SPLITS if name == "train" or any((root / f"{name}{side}").is_dir() for side in SIDES)]
    return {name: [Files(pictures_in(root / f"{name}{side}", layout)) for side in SIDES] for name in there}


class Files(PictureFiles):
    """Picture files of one side."""

    def look(self, index: int) -> None:
        """Raises BadSample for a file that is no picture; pixels are not read."""
        with opened(self.name(index)) as image:
            refuse_depth(self.name(index), image)

    def read(self, index: int) -> tuple[Tensor, None]:
        return read_picture(self.name(index)), None


# ---- scenes ------------------------------------------------------------------------------------------------


def _scenes(input_size: int) -> dict[str, list["Scenes"]]:
    """Painted at the size they are needed at, so that lines are as wide in evaluation as in training.

    B shows other worlds than A.
    """
    sizes = {"train": enlarged(input_size)}
    return {
        name: [
            Scenes(len(SCENES) * side + world, count, sizes.get(name, input_size), style)
            for side, style in enumerate(STYLES)
        ]
        for world, (name, count) in enumerate(SCENES.items())
    }


def photo(scene: scenes.Scene) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(scene.image).permute(2, 0, 1)


def cartoon(scene: scenes.Scene) -> Tensor:
    """Few steps of brightness, no noise, the outlines in ink: (3, H, W) uint8."""
    smooth = F.avg_pool2d(photo(scene).float(), 3, stride=1, padding=1, count_include_pad=False)
    brightness = smooth.amax(0).clamp(min=1)
    steps = torch.ceil(brightness * TONES / 255) * (255 / TONES)
    ink = torch.from_numpy(scene.edges) / 255
    return (smooth * (steps / brightness * ink)).round().to(torch.uint8)


STYLES: tuple[Callable[[scenes.Scene], Tensor], ...] = (photo, cartoon)


@dataclass(frozen=True)
class Scenes:
    """Scenes of tasks.scenes in one style, painted when they are read."""

    world: int
    count: int
    size: int
    style: Callable[[scenes.Scene], Tensor]

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"scene {index} of world {self.world}"

    def read(self, index: int) -> tuple[Tensor, None]:
        return self.style(scenes.scene(self.world, index, self.size)), None
