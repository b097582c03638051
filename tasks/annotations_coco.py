"""Boxes of COCO json: annotations/instances_NAME.json, pictures in images/NAME, NAME or images; NAME begins with train, val or test."""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from nas import UserError
from tasks.annotations import LARGEST, Problems, Raw, files_of

# Outlines are most of the file and not wanted: without them it is read three times as fast, in a quarter of the memory.
OUTLINE = re.compile(rb'"segmentation"\s*:\s*(?:\[[\d\s.,eE+\-\[\]]*\]|\{[^{}]*\})')
PARTS = ("images", "annotations", "categories")
Numbers = dict[int, int | None]  # a picture's id -> its number in the split, None where it is left out


def read_coco(root: Path, splits: Sequence[str], problems: Problems) -> tuple[dict[str, Raw], tuple[str, ...]]:
    """The splits, and the names of train's categories in the order of their ids. Raises UserError."""
    files = {name: _file(root, name) for name in splits}
    if files["train"] is None:
        raise UserError(f"data_root: there is no {root / 'annotations'}/instances_train*.json")
    contents = {name: _content(file) for name, file in files.items() if file is not None}
    found = {name: _split(content, files[name], root, problems) for name, content in contents.items()}
    return found, tuple(_categories(contents["train"], files["train"]).values())


def _file(root: Path, split: str) -> Path | None:
    files = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if len(files) > 1:
        raise UserError(f"data_root: {root / 'annotations'} has {files[0].name} and {files[1].name}; keep the one that {split} is to be")
    return files[0] if files else None


def _content(file: Path) -> dict[str, list]:
    try:
        content = json.loads(OUTLINE.sub(b'"segmentation":0', file.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"data_root: {file} cannot be read as JSON ({error})") from error
    for part in PARTS:
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"data_root: {file}: {part}: missing; an object with the lists {', '.join(PARTS)} is wanted")
    return content


def _categories(content: dict[str, list], file: Path) -> dict[int, str]:
    """Names by id."""
    rows = content["categories"]
    if not all(isinstance(row, dict) and type(row.get("id")) is int and isinstance(row.get("name"), str) for row in rows):
        raise UserError(f"data_root: {file}: categories: each must have a whole number as its id, and a name")
    names = {row["id"]: row["name"].strip() for row in sorted(rows, key=lambda row: row["id"])}
    if len(set(names.values())) < len(rows):
        raise UserError(f"data_root: {file}: categories: their ids and their names must differ from one another")
    return names


def _split(content: dict[str, list], file: Path, root: Path, problems: Problems) -> Raw:
    raw, names = Raw(), _categories(content, file)
    numbers = _add_pictures(content["images"], raw, _folder(root, file), partial(problems.add, file))
    for row in content["annotations"]:
        try:
            image, box = _object(row, numbers, names)
            if numbers[image] is not None:
                raw.add_box(numbers[image], *box)
        except ValueError as error:
            problems.add(f"{file}, annotation {_id(row)!r}", str(error))
    return raw


def _folder(root: Path, file: Path) -> Path:
    name = file.stem.removeprefix("instances_")
    folders = (root / "images" / name, root / name, root / "images")
    for folder in folders:
        if folder.is_dir():
            return folder
    raise UserError(f"data_root: the pictures of {file} are in none of {', '.join(map(str, folders))}")


def _add_pictures(rows: list, raw: Raw, folder: Path, report: Callable[[str], None]) -> Numbers:
    numbers: Numbers = {}
    there = files_of(folder)
    for row in rows:
        key = _id(row)
        if type(key) is not int or key in numbers:
            report(f"images: id {key!r}, must be a whole number and differ from the others")
            continue
        numbers[key] = None
        name, size = row.get("file_name"), (row.get("height"), row.get("width"))
        if not isinstance(name, str) or not _stays_inside(name):
            report(f"image {key}: file_name {name!r}, must be a path inside the folder of the pictures")
        elif not all(type(side) is int and 0 < side < LARGEST for side in size):
            report(f"image {key} ({name}): height {size[0]!r} and width {size[1]!r}, must be numbers of pixels")
        elif name not in there and not (folder / name).is_file():
            report(f"image {key}: there is no {folder / name}")
        else:
            numbers[key] = len(raw.paths)
            raw.add_picture(folder / name, size)
    return numbers


def _object(row: Any, numbers: Numbers, names: dict[int, str]) -> tuple[int, tuple]:
    """The id of the picture, and (name, box, never difficult, whether a crowd). Raises ValueError."""
    if not isinstance(row, dict):
        raise ValueError("is no object of JSON")
    image, category, box, crowd = row.get("image_id"), row.get("category_id"), row.get("bbox"), row.get("iscrowd", 0)
    if type(image) is not int or image not in numbers:
        raise ValueError(f"image_id: {image!r} is not the id of a picture")
    if type(category) is not int or category not in names:
        raise ValueError(f"category_id: {category!r} is not the id of a category")
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) is float or type(v) is int and abs(v) < LARGEST**2 for v in box):
        raise ValueError(f"bbox: {box!r}, must be four numbers x, y, width, height")
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd: {crowd!r}, must be 0 or 1")
    x, y, width, height = box
    return image, (names[category], (x, y, x + width, y + height), False, crowd == 1)


def _id(row: Any) -> Any:
    return row.get("id") if isinstance(row, dict) else None


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
