"""Pictures with masks of classes: read from files, drawn from COCO's outlines, painted.

A mask holds ids, which need not be contiguous; a table turns them into class indices 0 .. num_classes - 1, or IGNORE where there is none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torchvision.tv_tensors import Mask

from tasks import scenes
from tasks.reading import opened, read_picture
from tasks.samples import NAMED, Bad, BadSample

IGNORE = 255  # in masks: a pixel that belongs to no class, is not learned and not judged
UNKNOWN = 254  # in tables alone: an id that no class has
BACKGROUND = 2**16 - 1  # the id of what no instance covers
SCENE_SIZE = 192  # scenes are painted at this size, so that what is judged does not depend on the network's input
MODES = ("1", "L", "P", "I;16")  # of masks that hold ids; a palette's colours are for the eye


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
        return int(np.count_nonzero(self.table < UNKNOWN))  # each class has one id

    def name(self, index: int) -> str:
        return self.pictures[index]

    def read(self, index: int) -> tuple[Tensor, Mask]:
        """The picture (3, H, W) uint8, channels last in memory, and its mask (H, W) uint8. Raises BadSample."""
        image = read_picture(self.name(index))
        mask, unknown = self.look(index, tuple(image.shape[1:]))
        if unknown and self.bad == "refuse":
            raise BadSample(self.name(index), f"its mask has {in_words(unknown)}, which no class has")
        return image, Mask(torch.from_numpy(mask))

    def look(self, index: int, shape: tuple[int, int] | None = None) -> tuple[np.ndarray, dict[int, int]]:
        """The mask of classes, and how many pixels have each id that is no class: those are IGNORE. `shape` is the picture's."""
        if shape is None:
            with opened(self.name(index)) as image:
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


@dataclass(frozen=True)
class Files:
    """Ids out of picture files (PNG); `pictures` and `masks` are their paths."""

    pictures: tuple[str, ...]
    masks: tuple[str, ...]

    def __call__(self, index: int) -> np.ndarray:
        with opened(self.masks[index], self.pictures[index], "mask") as image:
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
            drawn = _run_lengths(shape, height, width) if isinstance(shape, dict) else _polygons(shape, height, width)
            if drawn is None:
                raise BadSample(name, f"object {number} of this picture (category {category}) has a segmentation that cannot be drawn")
            shapes.append((category, drawn))
        ids = np.full((height, width), BACKGROUND, np.uint16)
        for category, drawn in sorted(shapes, key=lambda found: -found[1].sum()):  # what is small lies on top
            ids[drawn] = category
        return ids


def _polygons(lines: list, height: int, width: int) -> np.ndarray | None:
    """What polygons x, y, x, y, .. near the picture cover, (H, W) bool; None where there are none such."""
    far = 2 * max(height, width)
    for line in lines:
        if not isinstance(line, list) or len(line) < 6 or len(line) % 2:
            return None
        if not all(isinstance(value, int | float) and -far <= value <= far for value in line):
            return None
    return rle.decode(rle.merge(rle.frPyObjects(lines, height, width))).astype(bool) if lines else None


def _run_lengths(shape: dict, height: int, width: int) -> np.ndarray | None:
    """What COCO's run lengths, plain or compressed, cover; None where they do not fill the picture.

    Not by pycocotools, which writes beyond its memory where they do not.
    """
    counts = shape.get("counts")
    counts = _uncompressed(counts) if isinstance(counts, str) else counts
    if shape.get("size") != [height, width] or not isinstance(counts, list):
        return None
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != height * width:
        return None
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _uncompressed(text: str) -> list[int] | None:
    """Run lengths out of COCO's text: five bits a letter, the lowest first, from the third on the difference to the last but one."""
    counts, value, shift = [], 0, 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts if shift == 0 else None


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
