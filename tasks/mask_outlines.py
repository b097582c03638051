"""Masks drawn from the outlines of COCO's instances (tasks.coco_files), which may come from anywhere."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from common.errors import UserError
from tasks.coco_files import content, stamp, stays_inside
from tasks.mask_sources import UNKNOWN, Masked, Names, same_size
from tasks.samples import BadSample

BACKGROUND = 2**16 - 1  # the id of what no instance covers
Rows = list[dict]


# ---- out of the file ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outlines:
    """What one file says; large parts are one piece of memory each, which forked workers share.

    names       of the categories by id, background among them
    pictures    the names of their files; sizes (N, 2) height and width
    first       (N + 1,): picture i has the objects first[i] to first[i + 1]
    categories  (M,) uint16; the outline of object j is the JSON text[ends[j] : ends[j + 1]], which takes less than its
                numbers would
    """

    names: Names
    pictures: tuple[str, ...]
    sizes: np.ndarray
    first: np.ndarray
    categories: np.ndarray
    text: bytes
    ends: np.ndarray

    def objects(self, index: int) -> list[tuple[int, bytes]]:
        """(category, outline) of each object of a picture."""
        rows = range(self.first[index], self.first[index + 1])
        return [(int(self.categories[j]), self.text[self.ends[j] : self.ends[j + 1]]) for j in rows]


def category_names(file: Path) -> Names:
    """Background and the categories. Raises UserError."""
    return _outlines(file, *stamp(file)).names


def instances(file: Path, folder: Path) -> Masked:
    """The pictures of a file, which lie in `folder`; the table of classes comes later. Raises UserError."""
    outlines = _outlines(file, *stamp(file))
    pictures = tuple(str(folder / name) for name in outlines.pictures)
    return Masked(pictures, Instances(pictures, outlines), np.empty(0))


@lru_cache(maxsize=4)  # the classes are asked for before the masks
def _outlines(file: Path, size: int, changed: int) -> Outlines:
    texts: list[bytes] = []
    found = content(file, texts)
    pictures = _rows(
        found, file, "images", {"id": _is_whole, "file_name": stays_inside, "width": _is_side, "height": _is_side}
    )
    objects = _rows(
        found, file, "annotations", {"image_id": _is_whole, "category_id": _is_id, "segmentation": _is_outline}
    )
    numbers = {row["id"]: number for number, row in enumerate(pictures)}
    if len(numbers) < len(pictures) or not pictures:
        raise UserError(
            f"data_root: {file}: images: {len(pictures)} with {len(numbers)} ids; each must have one of its own"
        )
    objects = sorted((row for row in objects if row["image_id"] in numbers), key=lambda row: numbers[row["image_id"]])
    mine = [_text(row["segmentation"], texts) for row in objects]
    return Outlines(
        _names(found, file),
        tuple(row["file_name"] for row in pictures),
        np.array([(row["height"], row["width"]) for row in pictures], np.int64),
        np.searchsorted([numbers[row["image_id"]] for row in objects], np.arange(len(pictures) + 1)),
        np.array([row["category_id"] for row in objects], np.uint16),
        b"".join(mine),
        np.cumsum([0, *map(len, mine)]),
    )


def _names(found: dict[str, list], file: Path) -> Names:
    names: Names = {BACKGROUND: "background"}
    for category in sorted(
        _rows(found, file, "categories", {"id": _is_id, "name": _is_name}), key=lambda row: row["id"]
    ):
        if category["id"] in names or category["name"] in names.values():
            raise UserError(f"data_root: {file}: categories: {category['id']} {category['name']} comes twice")
        names[category["id"]] = category["name"]
    if not 2 <= len(names) <= UNKNOWN:
        raise UserError(f"data_root: {file}: {len(names) - 1} categories; masks of one byte hold 1 to {UNKNOWN - 1}")
    return names


def _rows(found: dict[str, list], file: Path, field: str, checks: dict[str, Callable]) -> Rows:
    """found[field], once it is known that each row has the fields it should."""
    for number, row in enumerate(found[field]):
        for name, right in checks.items():
            value = row.get(name) if isinstance(row, dict) else None
            if not right(value):
                why = (
                    "must be a path inside the pictures' folder"
                    if name == "file_name"
                    else "is not what COCO's instances have there"
                )
                raise UserError(f"data_root: {file}: {field}[{number}].{name}: {value!r} {why}")
    return found[field]


def _is_whole(value) -> bool:
    return type(value) is int


def _is_id(value) -> bool:
    return type(value) is int and 0 <= value < BACKGROUND


def _is_side(value) -> bool:
    return type(value) is int and 0 < value < 2**16


def _is_name(value) -> bool:
    return isinstance(value, str)


def _is_outline(value) -> bool:
    return isinstance(value, list | dict)


def _text(outline: list | dict, texts: list[bytes]) -> bytes:
    """An outline that was set aside; what was not (NaN in it, say) cannot be drawn, and nothing stands for it."""
    if isinstance(outline, list) and len(outline) == 1 and type(outline[0]) is int and 0 <= outline[0] < len(texts):
        return texts[outline[0]]
    return b""


# ---- onto masks --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instances:
    """Ids (H, W) uint16 out of outlines; `pictures` are the paths."""

    pictures: tuple[str, ...]
    outlines: Outlines

    def __call__(self, index: int, shape: tuple[int, int]) -> np.ndarray:
        name = self.pictures[index]
        same_size(name, shape, tuple(self.outlines.sizes[index].tolist()))
        objects = []
        for number, (category, text) in enumerate(self.outlines.objects(index)):
            runs = run_lengths(text, *shape)
            if runs is None:
                raise BadSample(
                    name,
                    f"object {number} of this picture (category {category}) has a segmentation that cannot be drawn",
                )
            objects.append((category, runs))
        return drawn(objects, *shape)


def drawn(objects: list[tuple[int, list[int]]], height: int, width: int) -> np.ndarray:
    """Ids (H, W) of (category, run lengths): what is small lies on top, and BACKGROUND where nothing is."""
    ids = np.full(width * height, BACKGROUND, np.uint16)  # down the columns, as the runs go
    for category, runs in sorted(objects, key=lambda found: -sum(found[1][1::2])):
        ends = np.cumsum(runs)
        for start, end in zip(ends[::2].tolist(), ends[1::2].tolist()):
            ids[start:end] = category
    return ids.reshape(width, height).T


def run_lengths(text: bytes, height: int, width: int) -> list[int] | None:
    """COCO's run lengths of an outline: pixels outside, inside, outside, .. down the columns.

    None for what cannot be drawn.
    """
    try:
        shape = json.loads(text)
    except (ValueError, RecursionError):
        return None
    counts = _stated(shape, height, width) if isinstance(shape, dict) else _polygons(shape, height, width)
    if (
        not isinstance(counts, list)
        or not all(type(count) is int and count >= 0 for count in counts)
        or sum(counts) != height * width
    ):
        return None
    return counts


def _polygons(lines: list, height: int, width: int) -> list[int] | None:
    """Of polygons x, y, x, y, .. near the picture; None where they are none such."""
    far = 2 * max(height, width)
    for line in lines:
        if not isinstance(line, list) or len(line) < 6 or len(line) % 2:
            return None
        if not all(isinstance(value, int | float) and -far <= value <= far for value in line):
            return None
    return uncompressed(rle.merge(rle.frPyObjects(lines, height, width))["counts"].decode()) if lines else None


def _stated(shape: dict, height: int, width: int) -> list | None:
    """The run lengths in a file, plain or compressed, for an image of this size.

    pycocotools writes beyond its memory where they do not fill it.
    """
    counts = shape.get("counts") if shape.get("size") == [height, width] else None
    return uncompressed(counts) if isinstance(counts, str) else counts


def uncompressed(text: str) -> list[int] | None:
    """Run lengths out of COCO's text: five bits a letter, lowest first; from the third on, differences to two back."""
    counts, value, shift = [], 0, 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 30:  # no picture has so many pixels
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts if shift == 0 else None
