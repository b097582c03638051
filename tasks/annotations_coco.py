"""Boxes of COCO's instances (tasks.coco_files)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from tasks.annotations import LARGEST, Problems, Raw, files_of
from tasks.coco_files import content, instances_file, picture_folder, stamp, stays_inside

Numbers = dict[int, int | None]  # a picture's id -> its number in the table, None where it cannot be used
Picture = tuple[int, str, tuple[int, int]]  # id, name of its file, height and width


@dataclass(frozen=True)
class Table:
    """The content of one file: categories and images, the columns of the boxes, and what is wrong.

    names  of the categories in the order of their ids
    owner  (M,) number of the image of each box
    label  (M,) of its category
    box    (M, 4) x0 y0 x1 y1 float64
    crowd  (M,) bool
    """

    names: tuple[str, ...]
    pictures: tuple[Picture, ...]
    owner: np.ndarray
    label: np.ndarray
    box: np.ndarray
    crowd: np.ndarray
    problems: tuple[str, ...]


def read_coco(root: Path, splits: Sequence[str], problems: Problems) -> tuple[dict[str, Raw], tuple[str, ...]]:
    """The splits, and the names of train's categories in the order of their ids. Raises UserError."""
    files = {name: instances_file(root, name) for name in splits}
    if files["train"] is None:
        raise UserError(f"data_root: there is no {root / 'annotations'}/instances_train*.json")
    tables = {name: _table(file, *stamp(file)) for name, file in files.items() if file is not None}
    found = {
        name: _split(table, files[name], picture_folder(root, files[name]), problems) for name, table in tables.items()
    }
    return found, tables["train"].names


def _split(table: Table, file: Path, folder: Path, problems: Problems) -> Raw:
    """What the file says of pictures that are there."""
    problems.found.extend(table.problems)
    raw, there, numbers = Raw(), files_of(folder), []
    for key, name, size in table.pictures:
        found = name in there or os.path.isfile(folder / name)  # False, too, for names that no file can have
        numbers.append(len(raw.paths) if found else None)
        if found:
            raw.add_picture(folder / name, size)
        else:
            problems.add(file, f"image {key}: there is no {folder / name}")
    for owner, label, box, crowd in zip(
        *(column.tolist() for column in (table.owner, table.label, table.box, table.crowd)), strict=True
    ):
        if numbers[owner] is not None:
            raw.add_box(numbers[owner], table.names[label], box, crowd=crowd)
    return raw


@lru_cache(maxsize=4)  # the classes are asked for before the boxes
def _table(file: Path, size: int, changed: int) -> Table:
    found, problems = content(file), Problems()
    names = _categories(found, file)
    labels = {key: label for label, key in enumerate(names)}
    pictures, numbers = _pictures(found["images"], file, problems)
    rows = []
    for row in found["annotations"]:
        try:
            image, *box = _object(row, numbers, labels)
            if numbers[image] is not None:
                rows.append((numbers[image], *box))
        except ValueError as error:
            problems.add(f"{file}, annotation {_id(row)!r}", str(error))
    owner, label, box, crowd = zip(*rows, strict=True) if rows else ((), (), (), ())
    columns = (
        np.array(owner, np.int64),
        np.array(label, np.int64),
        np.array(box, np.float64).reshape(-1, 4),
        np.array(crowd, bool),
    )
    return Table(tuple(names.values()), tuple(pictures), *columns, tuple(problems.found))


def _categories(found: dict[str, list], file: Path) -> dict[int, str]:
    """Names by id, in the order of the ids."""
    rows = found["categories"]
    if not all(
        isinstance(row, dict) and type(row.get("id")) is int and isinstance(row.get("name"), str) for row in rows
    ):
        raise UserError(f"data_root: {file}: categories: each must have a whole number as its id, and a name")
    names = {row["id"]: row["name"].strip() for row in sorted(rows, key=lambda row: row["id"])}
    if len(set(names.values())) < len(rows):
        raise UserError(f"data_root: {file}: categories: their ids and their names must differ from one another")
    return names


def _pictures(rows: list, file: Path, problems: Problems) -> tuple[list[Picture], Numbers]:
    pictures: list[Picture] = []
    numbers: Numbers = {}
    for row in rows:
        key = _id(row)
        if type(key) is not int or key in numbers:
            problems.add(file, f"images: id {key!r}, must be a whole number and differ from the others")
            continue
        numbers[key] = None
        name, size = row.get("file_name"), (row.get("height"), row.get("width"))
        if not stays_inside(name):
            problems.add(file, f"image {key}: file_name {name!r}, must be a path inside the folder of the pictures")
        elif not all(type(side) is int and 0 < side < LARGEST for side in size):
            problems.add(
                file, f"image {key} ({name}): height {size[0]!r} and width {size[1]!r}, must be numbers of pixels"
            )
        else:
            numbers[key] = len(pictures)
            pictures.append((key, name, size))
    return pictures, numbers


def _object(row: Any, numbers: Numbers, labels: dict[int, int]) -> tuple[int, int, tuple, bool]:
    """The id of the picture, label, box and whether a crowd. Raises ValueError."""
    if not isinstance(row, dict):
        raise ValueError("is no object of JSON")
    image, category, box, crowd = row.get("image_id"), row.get("category_id"), row.get("bbox"), row.get("iscrowd", 0)
    if type(image) is not int or image not in numbers:
        raise ValueError(f"image_id: {image!r} is not the id of a picture")
    if type(category) is not int or category not in labels:
        raise ValueError(f"category_id: {category!r} is not the id of a category")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(type(v) is float or type(v) is int and abs(v) < LARGEST**2 for v in box)
    ):
        raise ValueError(f"bbox: {box!r}, must be four numbers x, y, width, height")
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd: {crowd!r}, must be 0 or 1")
    x, y, width, height = box
    return image, labels[category], (x, y, x + width, y + height), crowd == 1


def _id(row: Any) -> Any:
    return row.get("id") if isinstance(row, dict) else None
