"""Pictures with masks of classes: read from files, painted; tasks.mask_outlines draws others.

A mask holds ids, which need not be contiguous; a table turns them into class indices 0 .. num_classes - 1, or IGNORE
where there is none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.tv_tensors import Mask

from tasks import scenes
from tasks.reading import MASKS, opened, read_picture
from tasks.samples import NAMED, Bad, BadSample

IGNORE = 255  # in masks: a pixel that belongs to no class, is not learned and not judged
UNKNOWN = 254  # in tables alone: an id that no class has
SCENE_SIZE = 192  # scenes are painted at this size, so that what is judged does not depend on the network's input
Names = dict[int, str | None]  # of each id, in the order of the class indices; None: pixels to be ignored
MODES = ("1", "L", "P", "I;16")  # of masks that hold ids; a palette's colours are for the eye


@dataclass(frozen=True)
class Masked:
    """Image files and their masks.

    ids    (index, (H, W)) -> (H, W) unsigned integers; raises BadSample for masks that give another size than the
           image's, before it fills a single pixel
    table  (65536,) uint8, the class of each id
    """

    pictures: tuple[str, ...]
    ids: Callable[[int, tuple[int, int]], np.ndarray]
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
        """The mask of classes, and how many pixels have each id that is no class: those are IGNORE.

        `shape` is the picture's.
        """
        if shape is None:
            with opened(self.name(index)) as image:
                shape = image.size[::-1]
        ids = self.ids(index, shape)
        mask = np.take(self.table, ids)
        where = mask == UNKNOWN
        if not where.any():
            return mask, {}
        mask[where] = IGNORE
        return mask, dict(zip(*(found.tolist() for found in np.unique(ids[where], return_counts=True)), strict=True))


def same_size(name: str, picture: tuple[int, int], mask: tuple[int, int]) -> None:
    """Raises BadSample where the (height, width) of a picture are not those that its mask says."""
    if picture != mask:
        raise BadSample(name, f"the picture has {picture[1]}x{picture[0]} pixels, its mask {mask[1]}x{mask[0]}")


def in_words(pixels: Mapping[int, int]) -> str:
    """Pixels by id, the most frequent first."""
    rows = sorted(pixels.items(), key=lambda row: -row[1])
    return ", ".join(f"{count} pixels of id {number}" for number, count in rows[:NAMED]) + (
        " and others" if len(rows) > NAMED else ""
    )


@dataclass(frozen=True)
class Files:
    """Ids out of picture files (PNG); `pictures` and `masks` are their paths."""

    pictures: tuple[str, ...]
    masks: tuple[str, ...]

    def __call__(self, index: int, shape: tuple[int, int]) -> np.ndarray:
        with opened(self.masks[index], self.pictures[index], "mask", MASKS) as image:
            same_size(self.pictures[index], shape, image.size[::-1])
            if image.mode not in MODES:
                raise BadSample(
                    self.pictures[index],
                    f"the mask {self.masks[index]} holds colours (mode {image.mode}), not class ids",
                )
            ids = np.asarray(image)
        return ids.astype(np.uint8) if ids.dtype == bool else ids


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
