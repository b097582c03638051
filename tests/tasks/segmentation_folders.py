"""Folders of images with masks: the colour of a pixel shows its class."""

import json

import numpy as np
import torch
from PIL import Image

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)  # of classes 0 .. 3
NAMES = "0 Red\n1 Green\n2 Blue\n3 White\n7 Void\n"


def blobs(number: int, height: int = 24, width: int = 32) -> np.ndarray:
    """Ids (H, W): tiles of 8 pixels of random classes, with a void corner."""
    tiles = np.random.default_rng(number).integers(0, 4, (height // 8, width // 8), dtype=np.uint8)
    ids = tiles.repeat(8, 0).repeat(8, 1)
    ids[:4, :4] = 7
    return ids


def picture(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where((ids < 4)[..., None], COLOURS[ids % 4], np.uint8(0)))


def write(root, splits=("train", "val", "test"), count=4, names=NAMES):
    """A folder as CamVid's, whose pictures show the class of each pixel by its colour."""
    for offset, split in enumerate(splits):
        for part in ("images", "labels"):
            (root / split / part).mkdir(parents=True)
        for number in range(count):
            ids = blobs(10 * offset + number)
            picture(ids).save(root / split / "images" / f"{number}.png")
            Image.fromarray(ids).save(root / split / "labels" / f"{number}.png")
    (root / "classes.txt").write_text(names)
    return root


def nearest(image: torch.Tensor) -> torch.Tensor:
    """The class whose colour each pixel of (3, H, W) is closest to."""
    colours = torch.from_numpy(COLOURS).float()
    return (image.float()[None] - colours[:, :, None, None]).square().sum(1).argmin(0)


def coco(root, annotations, categories=((1, "cat"), (44, "dog"))):
    for split in ("train", "val"):
        (root / f"images/{split}2017").mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        for name in "ab":
            picture(blobs(0)).save(root / f"images/{split}2017/{name}.jpg")
        content = {
            "images": [
                {"id": 700_000 + i, "file_name": f"{name}.jpg", "width": 32, "height": 24}
                for i, name in enumerate("ab")
            ],
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in categories],
        }
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return root


def square(x: int, y: int, side: int, category: int, image: int = 700_000) -> dict:
    outline = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {"image_id": image, "category_id": category, "segmentation": [outline], "iscrowd": 0}
