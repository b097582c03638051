"""Boxes of a Pascal VOC devkit: VOCdevkit/VOC2007 with Annotations/*.xml, ImageSets/Main/*.txt and JPEGImages.

VOC counts pixels from 1, and the far corner belongs to the box.
"""

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError
from tasks.annotations import Problems, Raw, files_of
from tasks.reading import opened
from tasks.samples import BadSample

CORNERS = ("xmin", "ymin", "xmax", "ymax")
Object = tuple[str, tuple[float, ...], bool]  # name, box, whether it is difficult
Pairs = list[tuple[Path, str]]  # the folder of a year, the name of a picture in it


def read_voc(root: Path, splits: Sequence[str], problems: Problems) -> tuple[dict[str, Raw], tuple[str, ...]]:
    """The splits and the sorted class names of train. Raises UserError.

    Of several years all their trainval is to train on, and no validation part is left: the one that is then split off
    follows a seed, so that the validation pictures of another seed may have been trained on.
    """
    years = _years(root)
    lists = {name: _list(years, name) for name in splits}
    if len(years) > 1 or not lists["train"]:
        lists = lists | {"train": _list(years, "trainval") or lists["train"], "val": []}
    if not lists["train"]:
        raise UserError(
            f"data_root: {years[0] / 'ImageSets/Main'} has no "
            "train.txt or trainval.txt with the names of pictures in it"
        )
    found = {name: _split(name, pairs, problems) for name, pairs in lists.items() if pairs}
    return found, tuple(sorted(set(found["train"].names)))


def _years(root: Path) -> list[Path]:
    devkit = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    years = sorted(path for path in devkit.glob("VOC[0-9][0-9][0-9][0-9]") if path.is_dir())
    if not years:
        raise UserError(
            f"data_root: {root} holds no VOCdevkit/VOC2007 (or another "
            "year) with Annotations, ImageSets/Main and JPEGImages"
        )
    return years


def _list(years: list[Path], split: str) -> Pairs:
    """The pictures of a split in all years that have it."""
    files = [(year, year / "ImageSets/Main" / f"{split}.txt") for year in years]
    return [(year, line.split()[0]) for year, file in files if file.is_file() for line in _lines(file)]


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data_root: {file} cannot be read ({error})") from error


def _split(split: str, pairs: Pairs, problems: Problems) -> Raw:
    raw = Raw()
    pictures = {
        year: {os.path.splitext(name)[0]: name for name in files_of(year / "JPEGImages")}
        for year in {year for year, _ in pairs}
    }
    for year, name in tqdm(pairs, desc=f"reading boxes of {split}", unit="file", delay=2, leave=False):
        file, folder = year / "Annotations" / f"{name}.xml", year / "JPEGImages"
        if name not in pictures[year]:
            problems.add(folder / f"{name}.jpg", "there is no such picture")
            continue
        try:
            found = file.stat()
            _add(*_annotation(file, found.st_size, found.st_mtime_ns), folder / pictures[year][name], raw, problems)
        except BadSample as error:
            problems.add(file, f"the size is not stated, and {error.why}")
        except (OSError, SyntaxError, ValueError, LookupError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            problems.add(file, f"the annotation cannot be read ({why})")
    return raw


def _add(
    size: tuple[int, int], objects: Sequence[Object], faults: Sequence[str], picture: Path, raw: Raw, problems: Problems
) -> None:
    raw.add_picture(picture, size if all(size) else _size_of(picture))
    problems.found.extend(faults)
    for thing in objects:
        raw.add_box(len(raw.paths) - 1, *thing)


@lru_cache(maxsize=2**15)  # the classes are asked for before the boxes
def _annotation(file: Path, size: int, changed: int) -> tuple[tuple[int, int], tuple[Object, ...], tuple[str, ...]]:
    """Height and width as they are stated, or 0; objects; faults.

    Raises OSError, SyntaxError (XML's, too), ValueError, LookupError.
    """
    annotation, objects, problems = ET.fromstring(file.read_bytes()), [], Problems()
    if annotation.tag != "annotation":
        raise ValueError(f"<annotation> is wanted, not <{annotation.tag}>")
    for number, thing in enumerate(annotation.iterfind("object"), 1):
        try:
            objects.append(_object(thing))
        except ValueError as error:
            problems.add(f"{file}, object {number}", str(error))
    height, width = (_whole(annotation.findtext(f"size/{side}")) for side in ("height", "width"))
    return (height, width), tuple(objects), tuple(problems.found)


def _object(thing: ET.Element) -> Object:
    """Name, box and whether it is difficult. Raises ValueError."""
    name, difficult = (thing.findtext("name") or "").strip(), (thing.findtext("difficult") or "0").strip()
    if not name:
        raise ValueError("has no name")
    if difficult not in ("0", "1"):
        raise ValueError(f"difficult: {difficult!r}, must be 0 or 1")
    texts = [thing.findtext(f"bndbox/{corner}") for corner in CORNERS]
    try:
        x0, y0, x1, y1 = map(float, texts)
    except (TypeError, ValueError):
        raise ValueError(f"bndbox: {', '.join(map(str, texts))}; must be four numbers {', '.join(CORNERS)}") from None
    return name, (x0 - 1, y0 - 1, x1, y1), difficult == "1"


def _whole(text: str | None) -> int:
    """A size as it is stated, 0 where none is."""
    return int(text) if text and text.strip().isdecimal() and len(text) < 7 else 0


def _size_of(picture: Path) -> tuple[int, int]:
    with opened(str(picture)) as image:
        return image.height, image.width
