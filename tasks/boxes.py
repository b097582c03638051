"""Where pictures with boxes come from: the embedded scenes, Pascal VOC, COCO json.

The validation part is separate from training and the test part chooses nothing: it is only ever reported.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError
from tasks import scenes
from tasks.annotations import Annotations, Problems, apart, checked
from tasks.annotations_coco import read_coco
from tasks.annotations_voc import read_voc
from tasks.box_transforms import Augment, Fit, Target
from tasks.data import VAL_SHARE
from tasks.reading import read_picture
from tasks.samples import Bad, BadSample, Data, Samples, Source, check_wanted, normalise, some_of, split_off

DATA = ("scenes", "voc", "coco")
SPLITS = ("train", "val", "test")
SCENES = {"train": 2_000, "val": 200, "test": 400}  # each split is a world (a seed) of its own, the same in every run
READERS = {"voc": read_voc, "coco": read_coco}


def detection(
    data: str = "scenes",
    data_root: str | os.PathLike | None = None,
    input_size: int = 300,
    seed: int = 0,
    train_images: int | None = None,
    workers: int = 0,
    bad: Bad = "refuse",
) -> Data:
    """Pictures, boxes and class names of one of DATA, for networks that see `input_size` pixels square.

    Targets are dicts: boxes (K, 4) float32 x0 y0 x1 y1, labels (K,) int64, difficult (K,) and crowd (K,) bool, size
    (2,) the picture's own height and width, number () its number in the split. In training boxes are in input pixels,
    in evaluation in the picture's own. `seed` decides what is split off (a validation part where the data has none, the
    `train_images` kept); `bad` what becomes of bad annotations and pictures (tasks.samples). Where val is split off (of
    several years of VOC it always is), the validation pictures of one seed may have been trained on under another:
    judge each network on its own seed's. Raises UserError.
    """
    check_wanted(data, data_root, DATA)
    if train_images is not None and train_images < 2:
        raise UserError(f"train_images: {train_images}, must be at least 2")
    problems = Problems()
    sources, classes = _scenes(input_size) if data == "scenes" else _files(data, Path(data_root), bad, problems)
    fit, augment = Fit(input_size), Augment(input_size, (0, 0, 0))
    parts = {
        name: Samples(source, torch.arange(len(source)), input_size, fit, augment, workers=workers, bad=bad)
        for name, source in sources.items()
    }
    if "val" not in parts:
        parts["train"], parts["val"] = split_off(parts["train"], VAL_SHARE, seed)
    parts["train"] = some_of(parts["train"], train_images, seed)
    found = normalise(Data(parts["train"], parts["val"], parts.get("test"), classes, tuple(problems.found)))
    fill = tuple((255 * found.mean).round().int().tolist())
    return replace(found, train=replace(found.train, augment=Augment(input_size, fill)))


def class_names(data: str = "scenes", data_root: str | os.PathLike | None = None) -> tuple[str, ...]:
    """The names of the classes, in the order of their numbers, without reading a picture. Raises UserError."""
    check_wanted(data, data_root, DATA)
    return scenes.CLASSES if data == "scenes" else READERS[data](Path(data_root), SPLITS[:1], Problems())[1]


def _scenes(input_size: int) -> tuple[dict[str, Source], tuple[str, ...]]:
    return {
        name: Scenes(world, count, input_size) for world, (name, count) in enumerate(SCENES.items())
    }, scenes.CLASSES


def _files(data: str, root: Path, bad: Bad, problems: Problems) -> tuple[dict[str, Source], tuple[str, ...]]:
    raw, classes = READERS[data](root, SPLITS, problems)
    splits = apart({name: checked(split, classes, problems) for name, split in raw.items()}, problems)
    problems.settle(bad)
    for name, split in splits.items():
        if not (~split.difficult & ~split.crowd).any():
            raise UserError(f"data_root: the pictures of {name} in {root} have no objects")
    return {name: Files(split) for name, split in splits.items()}, classes


@dataclass(frozen=True)
class Scenes:
    """Pictures of tasks.scenes, painted when they are read."""

    world: int
    count: int
    size: int

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"scene {index} of world {self.world}"

    def read(self, index: int) -> tuple[Tensor, Target]:
        scene = scenes.scene(self.world, index, self.size)
        no = torch.zeros(len(scene.boxes), dtype=torch.bool)
        target = {
            "boxes": torch.from_numpy(scene.boxes),
            "labels": torch.from_numpy(scene.box_labels),
            "difficult": no,
            "crowd": no,
        }
        return torch.from_numpy(scene.image).permute(2, 0, 1), target | _identity(index, (self.size, self.size))


@dataclass(frozen=True)
class Files:
    """Pictures in files."""

    annotations: Annotations

    def __len__(self) -> int:
        return len(self.annotations)

    def name(self, index: int) -> str:
        return self.annotations.paths[index]

    def read(self, index: int) -> tuple[Tensor, Target]:
        image, size = read_picture(self.name(index)), tuple(self.annotations.sizes[index].tolist())
        if tuple(image.shape[1:]) != size:
            raise BadSample(
                self.name(index),
                f"has {image.shape[2]}x{image.shape[1]} pixels, its annotation says {size[1]}x{size[0]}",
            )
        target = {name: torch.from_numpy(value.copy()) for name, value in self.annotations.of(index).items()}
        return image, target | _identity(index, size)


def _identity(index: int, size: tuple[int, int]) -> Target:
    return {"size": torch.tensor(size), "number": torch.tensor(index)}
