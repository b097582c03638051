"""Where images with masks of classes lie: PNG folders (as CamVid), VOC 2012, Cityscapes, COCO, embedded scenes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torchvision
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights

from common.errors import UserError
from tasks import scenes
from tasks.coco_files import instances_file, picture_folder
from tasks.mask_outlines import category_names, instances
from tasks.mask_sources import IGNORE, UNKNOWN, Files, Masked, Names, Painted
from tasks.samples import Bad, folder_of

DATA = ("scenes", "camvid", "voc", "cityscapes", "coco")
SPLITS = ("train", "val", "test")
SCENES = {"train": 2_000, "val": 200, "test": 400}  # each split is a world (a seed) of its own
VOID = {"void", "unlabelled", "unlabeled", "ignore", "ignored"}  # names, in any case, of ids that are no class
Parts = dict[str, Masked]


def class_names(data: str, data_root=None) -> tuple[str, ...]:
    """Names of the real classes in the order of their indices; no picture is read. Raises UserError."""
    root = folder_of(data, data_root, DATA)
    if data == "scenes":
        return ("background", *scenes.CLASSES)
    return _real(LAYOUTS[data][0](root))


def sources(data: str, data_root=None, bad: Bad = "refuse") -> tuple[dict[str, Masked | Painted], tuple[str, ...]]:
    """Each split that the data has (train, and val or test or both), and the class names.

    Raises UserError for what is not there.
    """
    root = folder_of(data, data_root, DATA)
    if data == "scenes":
        return {name: Painted(world, count) for world, (name, count) in enumerate(SCENES.items())}, class_names(data)
    find_names, find_parts = LAYOUTS[data]
    names = find_names(root)
    table = _table(names)
    return {split: replace(source, table=table, bad=bad) for split, source in find_parts(root).items()}, _real(names)


def _real(names: Names) -> tuple[str, ...]:
    return tuple(name for name in names.values() if name is not None)


def _table(names: Names) -> np.ndarray:
    """(65536,) uint8: the class index of each id, IGNORE for those without a name and for 255."""
    table = np.full(2**16, UNKNOWN, np.uint8)
    table[IGNORE] = IGNORE
    table[[number for number, name in names.items() if name is None]] = IGNORE
    real = [number for number, name in names.items() if name is not None]
    table[real] = np.arange(len(real))
    return table


# ---- names -------------------------------------------------------------------------------------------------


def _folder_names(root: Path) -> Names:
    """Of classes.txt (lines `0 Sky`) or classes.json ({"0": "Sky", ..}); an id named Void or Unlabelled is no class."""
    if (root / "classes.txt").is_file():
        lines = [line.split(None, 1) for line in _text(root / "classes.txt").splitlines() if line.strip()]
        wrong = next((" ".join(line) for line in lines if len(line) < 2), None)
        if wrong is not None:
            raise UserError(
                f"data_root: {root / 'classes.txt'}: the line {wrong!r} is no id and name; write lines such as `0 Sky`"
            )
        return _checked(lines, root / "classes.txt")
    if (root / "classes.json").is_file():
        return _json_names(root / "classes.json")
    raise UserError(
        f"data_root: {root} has neither classes.txt nor classes.json; write one that names each id of the masks, "
        "in lines such as `0 Sky` (an id named Void is ignored)"
    )


def _json_names(path: Path) -> Names:
    """Of {"0": "Sky", ..}, which may be under "semantic_classes"."""
    found = _json(path)
    found = found.get("semantic_classes", found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise UserError(f'data_root: {path} holds no ids and names; write {{"0": "Sky", ..}}')
    return _checked(list(found.items()), path)


def _checked(pairs: list, path: Path) -> Names:
    """Ids and names from a file: whole numbers up to 254 (255 is always ignored), each id and each name once."""
    names: Names = {}
    for number, name in pairs:
        if not isinstance(name, str) or not str(number).isascii() or not str(number).isdigit() or int(number) > IGNORE:
            raise UserError(f"data_root: {path}: {number!r}: {name!r} is no id 0 .. {IGNORE} and name")
        name = name.strip()
        void = name.lower() in VOID
        if int(number) in names or (not void and name in names.values()):
            raise UserError(f"data_root: {path}: {number} {name} comes twice; each id and each name may come once")
        if int(number) == IGNORE and not void:
            raise UserError(
                f"data_root: {path}: id {IGNORE} is {name}, but {IGNORE} "
                "always means ignored; give the class another id"
            )
        names[int(number)] = None if void else name
    if not _real(names):
        raise UserError(f"data_root: {path} names no class")
    if len(_real(names)) > UNKNOWN:
        raise UserError(f"data_root: {path} names {len(_real(names))} classes; masks of one byte hold {UNKNOWN}")
    return dict(sorted(names.items()))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"data_root: {path} cannot be read ({error})") from error


def _json(path: Path):
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"data_root: {path} is no JSON ({error})") from error


# ---- CamVid and folders like it ----------------------------------------------------------------------------


def _folders(root: Path) -> Parts:
    """train, val and test, each with images/NAME.jpg (or another format) and labels/NAME.png."""
    return _splits(root, {split: (root / split / "images", root / split / "labels") for split in SPLITS})


def _splits(root: Path, folders: Mapping[str, tuple[Path, Path]]) -> Parts:
    """The splits whose folders are there; train must be."""
    there = {
        split: pair for split, pair in folders.items() if split == "train" or any(folder.is_dir() for folder in pair)
    }
    for folder in (folder for pair in there.values() for folder in pair):
        if not folder.is_dir():
            raise UserError(f"data_root: there is no folder {folder}; {root} should hold {folder.relative_to(root)}")
    return {split: _pairs(*pair) for split, pair in there.items()}


def _pairs(images: Path, labels: Path) -> Masked:
    """Pictures and masks of the same name; one without the other is kept, and named as bad when it is looked at."""
    pictures = {path.stem: path for path in sorted(images.iterdir()) if path.suffix.lower() in IMG_EXTENSIONS}
    masks = {path.stem: path for path in sorted(labels.iterdir()) if path.suffix.lower() == ".png"}
    for folder, found, what in ((images, pictures, "pictures"), (labels, masks, "masks (.png)")):
        if not found:
            raise UserError(f"data_root: {folder} holds no {what}")
    stems = sorted(pictures | masks)
    return _masked(
        [pictures.get(s, images / f"{s}.jpg") for s in stems], [masks.get(s, labels / f"{s}.png") for s in stems]
    )


def _masked(pictures: list, masks: list) -> Masked:
    """The table of classes comes later."""
    pictures = tuple(map(str, pictures))
    return Masked(pictures, Files(pictures, tuple(map(str, masks))), np.empty(0))


# ---- VOC and Cityscapes ------------------------------------------------------------------------------------


def _voc_names(root: Path) -> Names:
    return dict(enumerate(name.strip("_") for name in LRASPP_MobileNet_V3_Large_Weights.DEFAULT.meta["categories"]))


def _voc(root: Path) -> Parts:
    """VOCdevkit/VOC2012 with its lists train and val."""
    found = {
        split: _found(torchvision.datasets.VOCSegmentation, root, year="2012", image_set=split)
        for split in ("train", "val")
    }
    return {split: _masked(part.images, part.masks) for split, part in found.items()}


def _cityscapes_names(root: Path) -> Names:
    """The 19 classes that are trained, by the ids of *_labelIds.png."""
    classes = sorted(torchvision.datasets.Cityscapes.classes, key=lambda found: found.train_id)
    return {found.id: None if found.ignore_in_eval else found.name for found in classes}


def _cityscapes(root: Path) -> Parts:
    """leftImg8bit and gtFine; the test part has no truth."""
    options = {"mode": "fine", "target_type": "semantic"}
    found = {split: _found(torchvision.datasets.Cityscapes, root, split=split, **options) for split in ("train", "val")}
    return {split: _masked(part.images, [target for (target,) in part.targets]) for split, part in found.items()}


def _found(kind: Callable, root: Path, **options):
    """One of torchvision's data sets, or a UserError in its words."""
    try:
        return kind(str(root), **options)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f"data_root: {root} does not hold torchvision's {kind.__name__} ({', '.join(options.values())}): {error}"
        ) from error


# ---- COCO --------------------------------------------------------------------------------------------------


def _coco_names(root: Path) -> Names:
    """Of semantic_classes.json with semantic masks, else background and the categories of training instances."""
    if (root / "semantic").is_dir():
        return _json_names(root / "semantic_classes.json")
    return category_names(_training_instances(root))


def _coco(root: Path) -> Parts:
    """semantic/NAME/*.png with images in images/NAME or NAME (NAME begins with train, val, test); else instances."""
    if (root / "semantic").is_dir():
        masks = {split: _one(root / "semantic", f"{split}*") or root / "semantic" / split for split in SPLITS}
        return _splits(root, {split: (_images(root, folder.name), folder) for split, folder in masks.items()})
    files = {"train": _training_instances(root)} | {split: instances_file(root, split) for split in SPLITS[1:]}
    return {split: instances(file, picture_folder(root, file)) for split, file in files.items() if file is not None}


def _one(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise UserError(f"data_root: {folder} has {found[0].name} and {found[1].name}; keep the one that is to be used")
    return found[0] if found else None


def _images(root: Path, name: str) -> Path:
    return next((folder for folder in (root / "images" / name, root / name) if folder.is_dir()), root / "images" / name)


def _training_instances(root: Path) -> Path:
    found = instances_file(root, "train")
    if found is None:
        raise UserError(f"data_root: {root} holds neither semantic/train2017 nor annotations/instances_train2017.json")
    return found


LAYOUTS = {
    "camvid": (_folder_names, _folders),
    "voc": (_voc_names, _voc),
    "cityscapes": (_cityscapes_names, _cityscapes),
    "coco": (_coco_names, _coco),
}
