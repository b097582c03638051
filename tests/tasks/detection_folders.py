"""Folders of images with boxes, as VOC and as COCO."""

import json

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 48, 32


def picture(path, seed=0, size=(WIDTH, HEIGHT)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)


def thing(name="cat", box=(5, 3, 20, 30), difficult=None):
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{corners}</bndbox><part><name>head</name></part></object>"


def xml(*things, size=(WIDTH, HEIGHT)):
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{''.join(things)}</annotation>"


def write_voc(root, year="2007", **splits):
    """Each split: texts of annotations, or how many ordinary ones."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    (folder / "Annotations").mkdir(parents=True)
    (folder / "ImageSets/Main").mkdir(parents=True)
    for number, (split, texts) in enumerate(splits.items()):
        texts = [xml(thing("cat"), thing("dog", (21, 2, 48, 32)))] * texts if isinstance(texts, int) else texts
        names = [f"{split}_{i}" for i in range(len(texts))]
        for i, (name, text) in enumerate(zip(names, texts)):
            picture(folder / "JPEGImages" / f"{name}.jpg", 100 * number + i)
            (folder / "Annotations" / f"{name}.xml").write_text(text)
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


CATEGORIES = [{"id": 17, "name": "cat"}, {"id": 3, "name": "dog"}]  # ids neither contiguous nor in order


def row(number, image=1, category=17, box=(5, 3, 15, 25), **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "iscrowd": 0, **more}


def image(number, name, height=HEIGHT):
    return {"id": number, "file_name": name, "height": height, "width": WIDTH}


def coco(images=2, annotations=None, categories=CATEGORIES):
    pictures = [image(i, f"{i}.jpg") for i in range(1, images + 1)]
    return {
        "images": pictures,
        "annotations": [row(1), row(2, 2, 3)] if annotations is None else annotations,
        "categories": categories,
    }


def write_coco(root, folder="images/{}", **splits):
    (root / "annotations").mkdir(parents=True)
    for number, (name, content) in enumerate(splits.items()):
        for one in content["images"]:
            picture(root / folder.format(name) / one["file_name"], 100 * number + one["id"])
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return root


def cut_short(path):
    path.write_bytes(path.read_bytes()[:400])
