"""COCO's instances: annotations/instances_NAME.json, images in images/NAME, NAME or images.

NAME begins with train, val or test.
"""

import json
import re
from pathlib import Path, PurePosixPath

from common.errors import UserError

# Outlines are most of the file: with them set aside it is read three times as fast, in a quarter of the memory.
OUTLINE = re.compile(rb'"segmentation"\s*:\s*(\[[\d\s.,eE+\-\[\]]*\]|\{[^{}]*\})')
PARTS = ("images", "annotations", "categories")


def instances_file(root: Path, split: str) -> Path | None:
    """The file of a split, None where there is none. Raises UserError for several."""
    files = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if len(files) > 1:
        raise UserError(
            f"data_root: {root / 'annotations'} has {files[0].name} "
            f"and {files[1].name}; keep the one that {split} is to be"
        )
    return files[0] if files else None


def picture_folder(root: Path, file: Path) -> Path:
    """The folder with the pictures of an instances file. Raises UserError."""
    name = file.stem.removeprefix("instances_")
    folders = (root / "images" / name, root / name, root / "images")
    for folder in folders:
        if folder.is_dir():
            return folder
    raise UserError(f"data_root: the pictures of {file} are in none of {', '.join(map(str, folders))}")


def stays_inside(name: object) -> bool:
    """Whether a picture's file_name is a path that does not leave the folder of the pictures."""
    if not isinstance(name, str) or not name or re.search("[\0\ud800-\udfff]", name):  # no file has these in its name
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def stamp(file: Path) -> tuple[int, int]:
    """Size and time of change: as long as they stay, so does what was read. Raises UserError."""
    try:
        found = file.stat()
    except OSError as error:
        raise UserError(f"data_root: {file} cannot be read ({error})") from error
    return found.st_size, found.st_mtime_ns


def content(file: Path, outlines: list[bytes] | None = None) -> dict[str, list]:
    """The lists PARTS of an instances file. Raises UserError.

    Outlines are left out. Where a list for them is given their texts are put there, and "segmentation" is [number in
    that list]: nothing else in the file can look like this, since a list of a number is an outline itself.
    """

    def aside(match: re.Match) -> bytes:
        if outlines is None:
            return b'"segmentation":0'
        outlines.append(match[1])
        return b'"segmentation":[%d]' % (len(outlines) - 1)

    try:
        found = json.loads(OUTLINE.sub(aside, file.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"data_root: {file} cannot be read as JSON ({error})") from error
    for part in PARTS:
        if not isinstance(found, dict) or not isinstance(found.get(part), list):
            raise UserError(
                f"data_root: {file}: {part}: missing; an object with the lists {', '.join(PARTS)} is wanted"
            )
    return found
