"""Pairs of images, an input and its target: folders as pix2pix keeps them (arXiv:1611.07004), embedded scenes."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from common.errors import UserError
from tasks import scenes
from tasks.data import VAL_SHARE
from tasks.folders import (
    SCENES,
    SPLITS,
    PictureFiles,
    Together,
    centred,
    checked,
    enlarged,
    pictures_in,
    refuse_few,
    samples_of,
)
from tasks.reading import opened, read_picture, refuse_depth
from tasks.samples import Bad, BadSample, Data, folder_of, some_of, split_off

DATA = ("scenes", "pairs")
Direction = Literal["a_to_b", "b_to_a"]


def pairs(
    data: str = "scenes",
    data_root: str | os.PathLike | None = None,
    input_size: int = 64,
    seed: int = 0,
    train_images: int | None = None,
    workers: int = 0,
    bad: Bad = "refuse",
    direction: Direction = "a_to_b",
) -> Data:
    """Inputs and targets of one of DATA for generators that see squares of `input_size` pixels.

    Both lie in [-1, 1] once normalised.

    data        "pairs": FOLDER/train, and val or test or both, with images that show A on the left and B on the right;
                "scenes": A is a line drawing, B the image
    seed        decides what is split off: a validation part where the data has none, the `train_images` kept
    bad         what becomes of files that are no such images (tasks.samples). All are opened here, and read as they are
                needed.
    direction   which of the two is the input

    Inputs and targets are (3, S, S) uint8: in training the same crop of both, mirrored together or not at all; in
    evaluation whole images squeezed into the square. Raises UserError.
    """
    root = folder_of(data, data_root, DATA)
    refuse_few(train_images)
    if direction not in get_args(Direction):
        raise UserError(f"direction: {direction!r}, must be one of {', '.join(get_args(Direction))}")
    sources = _scenes(input_size, direction) if data == "scenes" else _files(root, direction)
    parts = {name: samples_of(source, input_size, Together, workers, bad) for name, source in sources.items()}
    if "val" not in parts:
        parts["train"], parts["val"] = split_off(parts["train"], VAL_SHARE, seed)
    parts["train"] = some_of(parts["train"], train_images, seed)
    return centred({name: checked(part) if isinstance(part.source, Files) else part for name, part in parts.items()})


def _directed(a: Tensor, b: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    return (a, b) if direction == "a_to_b" else (b, a)


# ---- files -------------------------------------------------------------------------------------------------


def _files(root: Path, direction: Direction) -> dict[str, "Files"]:
    layout = f"{root} should hold train, and may hold val and test, with pictures that show A and B side by side"
    return {
        name: Files(pictures_in(root / name, layout), direction)
        for name in SPLITS
        if name == "train" or (root / name).is_dir()
    }


@dataclass(frozen=True)
class Files(PictureFiles):
    """Picture files of 2W x H pixels, A on the left, B on the right."""

    direction: Direction

    def look(self, index: int) -> None:
        """Raises BadSample for a file that is no picture of two halves; pixels are not read."""
        with opened(self.name(index)) as image:
            refuse_depth(self.name(index), image)
            _even(self.name(index), image.width, image.height)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Input and target (3, H, W) uint8. Raises BadSample."""
        image = read_picture(self.name(index))
        _even(self.name(index), image.shape[2], image.shape[1])
        return _directed(*image.chunk(2, 2), self.direction)


def _even(name: str, width: int, height: int) -> None:
    if width % 2:
        raise BadSample(
            name, f"has {width}x{height} pixels, an odd width; two pictures of one width are wanted side by side"
        )


# ---- scenes ------------------------------------------------------------------------------------------------


def _scenes(input_size: int, direction: Direction) -> dict[str, "Scenes"]:
    """Painted at the size they are needed at, so that lines are as wide in evaluation as in training."""
    sizes = {"train": enlarged(input_size)}
    return {
        name: Scenes(world, count, sizes.get(name, input_size), direction)
        for world, (name, count) in enumerate(SCENES.items())
    }


@dataclass(frozen=True)
class Scenes:
    """Line drawings and pictures of tasks.scenes, painted when they are read."""

    world: int
    count: int
    size: int
    direction: Direction

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"scene {index} of world {self.world}"

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        scene = scenes.scene(self.world, index, self.size)
        drawing, picture = torch.from_numpy(scene.edges), torch.from_numpy(scene.image)
        return _directed(drawing.expand(3, -1, -1), picture.permute(2, 0, 1), self.direction)
