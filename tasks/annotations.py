"""Boxes around objects as files have them, and what is checked before a single picture is opened.

Files come from strangers: what cannot be used is named, and then refused or left out, as the user chose. Boxes are x0,
y0, x1, y1 in pixels from the corner of the picture.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from common.errors import UserError
from tasks.samples import NAMED, Bad

SLACK = 1.0  # pixels that a box may reach beyond its picture without a word: tools differ in where they count from
LARGEST = 1_000_000  # pixels of a picture's side that are believed


class Problems:
    """What was found wrong, in the order in which it was found."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, where: object, why: str) -> None:
        self.found.append(f"{where}: {why}")

    def settle(self, bad: Bad) -> None:
        """Refuse them (UserError), or say once what is left out."""
        if not self.found:
            return
        named = "; ".join(self.found[:NAMED]) + (
            f"; and {len(self.found) - NAMED} more" if len(self.found) > NAMED else ""
        )
        words = f"{len(self.found)} bad annotation{'s' if len(self.found) > 1 else ''}: {named}"
        if bad == "refuse":
            raise UserError(
                f"data_root: {words}; mend them, or add --bad-data skip "
                "to leave them out (boxes that reach out are clipped)"
            )
        print(f"warning: left out or clipped: {words}", file=sys.stderr)


@dataclass
class Raw:
    """A split as its files have it: pictures with their (height, width), and boxes with the number of their picture."""

    paths: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    boxes: list[Sequence[float]] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)

    def add_picture(self, path: Path, size: tuple[int, int]) -> None:
        self.paths.append(str(path))
        self.sizes.append(size)

    def add_box(
        self, owner: int, name: str, box: Sequence[float], difficult: bool = False, crowd: bool = False
    ) -> None:
        self.owners.append(owner)
        self.names.append(name)
        self.boxes.append(box)
        self.difficult.append(difficult)
        self.crowd.append(crowd)


@dataclass(frozen=True)
class Annotations:
    """A split that has been checked. Picture i has the boxes first[i] to first[i + 1].

    sizes (N, 2) height and width; boxes (M, 4) float32; labels (M,) int64; difficult, crowd (M,) bool
    """

    paths: list[str]
    sizes: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def of(self, index: int) -> dict[str, np.ndarray]:
        rows = slice(self.first[index], self.first[index + 1])
        return {name: getattr(self, name)[rows] for name in ("boxes", "labels", "difficult", "crowd")}

    def select(self, keep: np.ndarray) -> "Annotations":
        """The pictures `keep`, sorted numbers."""
        counts = np.diff(self.first)
        rows = np.isin(np.repeat(np.arange(len(self)), counts), keep)
        parts = {name: getattr(self, name)[rows] for name in ("boxes", "labels", "difficult", "crowd")}
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[keep])])
        return replace(self, paths=[self.paths[i] for i in keep], sizes=self.sizes[keep], first=first, **parts)


def checked(raw: Raw, classes: tuple[str, ...], problems: Problems) -> Annotations:
    """Boxes inside their pictures, of known classes, by picture; what is not is reported, and clipped or dropped."""
    sizes, owners = np.array(raw.sizes, np.int64).reshape(-1, 2), np.array(raw.owners, np.int64)
    boxes, numbers = np.array(raw.boxes, np.float64).reshape(-1, 4), {name: i for i, name in enumerate(classes)}
    labels = np.array([numbers.get(name, -1) for name in raw.names], np.int64)
    wrong = _wrong(boxes, labels, sizes[owners])
    for row in np.flatnonzero(wrong != ""):
        corners = " ".join(f"{value:g}" for value in boxes[row])
        problems.add(raw.paths[owners[row]], f"the box {corners} of {raw.names[row]!r} {wrong[row]}")
    height, width = sizes[owners].T
    boxes = np.clip(boxes, 0, np.stack([width, height, width, height], 1))
    keep = np.isin(wrong, ("", BEYOND))
    order = np.flatnonzero(keep)[np.argsort(owners[keep], kind="stable")]
    first = np.searchsorted(owners[order], np.arange(len(raw.paths) + 1))
    difficult, crowd = np.array(raw.difficult, bool), np.array(raw.crowd, bool)
    return Annotations(
        raw.paths, sizes, first, boxes[order].astype(np.float32), labels[order], difficult[order], crowd[order]
    )


BEYOND = "reaches out of its picture"  # the one fault that is clipped


def _wrong(boxes: np.ndarray, labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """What is wrong with each box, "" for nothing."""
    x0, y0, x1, y1 = boxes.T
    height, width = sizes.T
    with np.errstate(invalid="ignore"):
        beyond = np.stack([-x0, -y0, x1 - width, y1 - height], 1).max(1, initial=-np.inf) > SLACK
        outside = (np.minimum(x1, width) <= np.maximum(x0, 0)) | (np.minimum(y1, height) <= np.maximum(y0, 0))
        tests = [labels < 0, ~np.isfinite(boxes).all(1), (x1 <= x0) | (y1 <= y0), outside, beyond]
    words = [
        "is of a class that train does not have",
        "is not finite",
        "has no area",
        "lies outside its picture",
        BEYOND,
    ]
    return np.select(tests, words, "")


def apart(splits: dict[str, Annotations], problems: Problems) -> dict[str, Annotations]:
    """The splits without pictures that are in one of them twice or in two of them; held-out parts keep theirs."""
    seen: set[str] = set()
    kept = {}
    for name in sorted(splits, key=("test", "val", "train").index):
        keep = []
        for index, path in enumerate(splits[name].paths):
            if path in seen:
                problems.add(path, f"is in {name} and there or in another split once more")
            else:
                keep.append(index)
                seen.add(path)
        kept[name] = splits[name] if len(keep) == len(splits[name]) else splits[name].select(np.array(keep, np.int64))
    return kept


def files_of(folder: Path) -> set[str]:
    """The names in a folder. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"data_root: there is no folder {folder}")
    return set(os.listdir(folder))
