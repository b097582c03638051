"""Pictures with masks of classes: read from files, drawn from COCO's outlines, painted.

A mask holds ids, which need not be contiguous; a table turns them into class indices 0 .. num_classes - 1, or IGNORE where there is none.
"""

import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from torch import Tensor
from torchvision.tv_tensors import Mask

from tasks import scenes
from tasks.samples import NAMED, Bad, BadSample

IGNORE = 255  # in masks: a pixel that belongs to no class, is not learned and not judged
UNKNOWN = 254  # in tables alone: an id that no class has
BACKGROUND = 2**16 - 1  # the id of what no instance covers
SCENE_SIZE = 192  # scenes are painted at this size, so that what is judged does not depend on the network's input
MODES = ("1", "L", "P", "I;16")  # of masks that hold ids; a palette's colours are for the eye
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Masked:
    """Picture files and their masks. ids(index) gives (H, W) unsigned integers, table (65536,) uint8 the class of each id."""

    pictures: tuple[str, ...]
    ids: Callable[[int], np.ndarray]
    table: np.ndarray
    bad: Bad = "refuse"

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def num_classes(self) -> int:
        return len(set(self.table.tolist()) - {IGNORE, UNKNOWN})

    def name(self, index: int) -> str:
        return self.pictures[index]

    def read(self, index: int) -> tuple[Tensor, Mask]:
        """The picture (3, H, W) uint8, channels last in memory, and its mask (H, W) uint8. Raises BadSample."""
        with _opened(self.name(index), self.name(index), "picture") as image:
            pixels = np.array(image.convert("RGB"))
        mask, unknown = self.look(index, pixels.shape[:2])
        if unknown and self.bad == "refuse":
            raise BadSample(self.name(index), f"its mask has {in_words(unknown)}, which no class has")
        return torch.from_numpy(pixels).permute(2, 0, 1), Mask(torch.from_numpy(mask))

    def look(self, index: int, shape: tuple[int, int] | None = None) -> tuple[np.ndarray, dict[int, int]]:
        """The mask of classes, and how many pixels have each id that is no class: those are IGNORE. `shape` is the picture's."""
        if shape is None:
            with _opened(self.name(index), self.name(index), "picture") as image:
                shape = image.size[::-1]
        ids = self.ids(index)
        if ids.shape != shape:
            raise BadSample(self.name(index), f"the picture has {shape[1]}x{shape[0]} pixels, its mask {ids.shape[1]}x{ids.shape[0]}")
        mask = np.take(self.table, ids)
        where = mask == UNKNOWN
        if not where.any():
            return mask, {}
        mask[where] = IGNORE
        return mask, dict(zip(*(found.tolist() for found in np.unique(ids[where], return_counts=True)), strict=True))


def in_words(pixels: Mapping[int, int]) -> str:
    """Pixels by id, the most frequent first."""
    rows = sorted(pixels.items(), key=lambda row: -row[1])
    return ", ".join(f"{count} pixels of id {number}" for number, count in rows[:NAMED]) + (" and others" if len(rows) > NAMED else "")


@contextlib.contextmanager
def _opened(name: str, path: str, what: str) -> Iterator[Image.Image]:
    """The file of the picture `name` or of its mask, open; what goes wrong while it is open is a BadSample."""
    it = what if path == name else f"{what} {path}"
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise BadSample(name, f"there is no {it}") from error
    except UNREADABLE as error:
        raise BadSample(name, f"the {it} cannot be read ({error})") from error


@dataclass(frozen=True)
class Files:
    """Ids out of picture files (PNG); `pictures` and `masks` are their paths."""

    pictures: tuple[str, ...]
    masks: tuple[str, ...]

    def __call__(self, index: int) -> np.ndarray:
        with _opened(self.pictures[index], self.masks[index], "mask") as image:
            if image.mode not in MODES:
                raise BadSample(self.pictures[index], f"the mask {self.masks[index]} holds colours (mode {image.mode}), not class ids")
            ids = np.asarray(image)
        return ids.astype(np.uint8) if ids.dtype == bool else ids


@dataclass(frozen=True)
class Instances:
    """Ids out of COCO's outlines: per picture its name, height, width and (category id, segmentation) of each object."""

    rows: tuple[tuple[str, int, int, list], ...]

    def __call__(self, index: int) -> np.ndarray:
        name, height, width, objects = self.rows[index]
        shapes = []
        for number, (category, shape) in enumerate(objects):
            if not _drawable(shape, height, width):
                raise BadSample(name, f"object {number} of this picture (category {category}) has a segmentation that cannot be drawn")
            shapes.append((category, rle.decode(_encoded(shape, height, width)).astype(bool)))
        ids = np.full((height, width), BACKGROUND, np.uint16)
        for category, shape in sorted(shapes, key=lambda found: -found[1].sum()):  # what is small lies on top
            ids[shape] = category
        return ids


def _encoded(shape: list | dict, height: int, width: int) -> dict:
    """Polygons, or plain or compressed run lengths, as one compressed run length."""
    if isinstance(shape, list):
        return rle.merge(rle.frPyObjects(shape, height, width))
    return rle.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape


def _drawable(shape, height: int, width: int) -> bool:
    """Whether it is polygons near the picture, or run lengths that fill it."""
    if isinstance(shape, dict):
        counts = shape.get("counts")
        if shape.get("size") != [height, width] or not isinstance(counts, list | str):
            return False
        return isinstance(counts, str) or (all(_whole(count) for count in counts) and sum(counts) == height * width)
    far = 2 * max(height, width)
    return isinstance(shape, list) and len(shape) > 0 and all(
        isinstance(line, list) and len(line) >= 6 and len(line) % 2 == 0
        and all(isinstance(value, int | float) and -far <= value <= far for value in line) for line in shape)  # fmt: skip


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass(frozen=True)
class Painted:
    """The embedded scenes: class 0 is background."""

    world: int
    count: int

    def __len__(self) -> int:
        return self.count

    @property
    def num_classes(self) -> int:
        return len(scenes.CLASSES) + 1

    def name(self, index: int) -> str:
        return f"scene {index} of world {self.world}"

    def read(self, index: int) -> tuple[Tensor, Mask]:
        scene = scenes.scene(self.world, index, SCENE_SIZE)
        return torch.from_numpy(scene.image).permute(2, 0, 1), Mask(torch.from_numpy(scene.mask))

    def look(self, index: int) -> tuple[np.ndarray, dict[int, int]]:
        """The mask at a small size; scenes look alike at every size."""
        return scenes.scene(self.world, index, SCENE_SIZE // 4).mask, {}
