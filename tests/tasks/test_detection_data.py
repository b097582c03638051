"""Pictures with boxes: three layouts, what augmentation does to boxes, and whatever can be wrong with files of
strangers.
"""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from common.errors import UserError
from tasks import annotations_coco, annotations_voc, box_transforms, boxes
from tasks.box_transforms import Augment, Fit, Window, iou_window, look, zoomed_out
from tasks.boxes import class_names, detection
from tasks.coco_files import OUTLINE
from tasks.reading import PICTURES, read_picture
from tasks.samples import BadSample, Stream, in_order

WIDTH, HEIGHT = 48, 32


def picture(path, seed=0, size=(WIDTH, HEIGHT)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)


# ---- layouts of files --------------------------------------------------------------------------------------


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


def test_voc_counts_pixels_from_one(tmp_path):
    text = xml(thing("dog", (1, 1, 48, 32), 1), thing("cat", (3, 2, 10, 4), 0))
    found = detection("voc", write_voc(tmp_path, train=[text, text], val=1, test=2), 16)
    assert found.classes == class_names("voc", tmp_path) == ("cat", "dog")
    assert (len(found.train), len(found.val), len(found.test)) == (2, 1, 2)
    image, target = found.train.source.read(1)
    assert image.shape == (3, HEIGHT, WIDTH) and image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[0, 0, 48, 32], [2, 1, 10, 4]] and target["boxes"].dtype == torch.float32
    assert (
        target["labels"].tolist() == [1, 0]
        and target["difficult"].tolist() == [True, False]
        and target["crowd"].tolist() == [False] * 2
    )
    assert target["size"].tolist() == [HEIGHT, WIDTH] and target["number"] == 1


def test_trainval_of_all_years_is_trained_on_and_a_part_of_it_chooses(tmp_path):
    write_voc(tmp_path, "2007", train=5, val=5, trainval=10, test=3)
    write_voc(tmp_path, "2012", train=5, val=5, trainval=10)
    found = detection("voc", tmp_path, 16)
    assert (len(found.train), len(found.val), len(found.test)) == (18, 2, 3)
    names = [{part.source.name(int(i)) for i in part.indices} for part in (found.train, found.val, found.test)]
    assert len(set.union(*names)) == 23 and all("trainval" in name for name in names[0] | names[1])
    assert {"VOC2007", "VOC2012"} == {Path(name).parts[-3] for name in names[0]} and all(
        "VOC2007/JPEGImages/test" in name for name in names[2]
    )
    assert torch.equal(found.val.indices, detection("voc", tmp_path, 16).val.indices)
    assert any(
        not torch.equal(found.val.indices, detection("voc", tmp_path, 16, seed=seed).val.indices) for seed in (1, 2, 3)
    )


def test_a_test_part_is_never_the_validation_part(tmp_path):
    found = detection("voc", write_voc(tmp_path, train=10, test=4), 16)
    assert (len(found.train), len(found.val), len(found.test)) == (9, 1, 4)


def test_what_one_part_leaves_out_is_not_counted_in_another(tmp_path):
    root = write_voc(tmp_path, train=10, test=4)
    found = detection("voc", root, 16, bad="skip")
    _cut(Path(found.val.source.name(int(found.val.indices[0]))))
    list(in_order(found.val, 4))
    assert (len(found.train.skipped), len(found.val.skipped), len(found.test.skipped)) == (0, 1, 0)


def test_annotations_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    read = []
    really, parse = annotations_coco.content, annotations_voc.ET.fromstring
    monkeypatch.setattr(annotations_coco, "content", lambda file: read.append(file.name) or really(file))
    monkeypatch.setattr(annotations_voc.ET, "fromstring", lambda text: read.append("xml") or parse(text))
    root = write_coco(tmp_path / "coco", train=coco(), val=coco())
    for _ in range(2):
        assert class_names("coco", root) == detection("coco", root, 16).classes == ("dog", "cat")
    assert sorted(read) == ["instances_train.json", "instances_val.json"]
    (root / "annotations/instances_train.json").write_text(json.dumps(coco(annotations=[row(1), row(2, 2), row(3, 2)])))
    assert [len(detection("coco", root, 16).train.source.read(i)[1]["boxes"]) for i in range(2)] == [1, 2]
    (root / "images/train/1.jpg").unlink()
    with pytest.raises(UserError, match="there is no .*1.jpg"):
        detection("coco", root, 16)
    read.clear()
    root = write_voc(tmp_path / "voc", train=3, val=2)
    assert class_names("voc", root) == detection("voc", root, 16).classes and len(read) == 5


@pytest.mark.parametrize("folder", ["images/{}", "{}", "images"])
def test_coco_classes_follow_their_ids_and_are_matched_by_name(tmp_path, folder):
    other = coco(2, [row(1, 1, 1), row(2, 2, 2, iscrowd=1)], [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}])
    other["images"] = [image(11, "11.jpg"), image(12, "12.jpg")]
    other["annotations"] = [row | {"image_id": row["image_id"] + 10} for row in other["annotations"]]
    found = detection("coco", write_coco(tmp_path, folder, train2017=coco(), val2017=other), 16)
    assert found.classes == class_names("coco", tmp_path) == ("dog", "cat") and found.test is None
    assert [found.train.source.read(i)[1]["labels"].tolist() for i in range(2)] == [[1], [0]]
    targets = [found.val.source.read(i)[1] for i in range(2)]
    assert [t["labels"].tolist() for t in targets] == [[1], [0]] and [t["crowd"].tolist() for t in targets] == [
        [False],
        [True],
    ]
    assert targets[0]["boxes"].tolist() == [[5, 3, 20, 28]]


@pytest.mark.parametrize(
    "outline",
    [
        [[1.5, 2, 3e-2, 4]],
        [],
        [[1], [2, 3]],
        {"counts": [1, 2, 3], "size": [4, 5]},
        {"counts": 'ab[]"cd', "size": [4, 5]},
        None,
        "x",
    ],
)
def test_outlines_are_left_out_and_nothing_else_is(outline):
    rows = [{"id": 1, "segmentation": outline, "bbox": [1, 2, 3, 4]}, {"bbox": [5, 6, 7, 8], "segmentation": outline}]
    whole = {"rows": rows, "name": 'a "segmentation": [1] b', "segmentations": [1]}
    for indent in (None, 1):
        read = json.loads(OUTLINE.sub(b'"segmentation":0', json.dumps(whole, indent=indent).encode()))
        for one in (*whole["rows"], *read["rows"]):
            one.pop("segmentation", None)
        assert read == whole
        whole["rows"] = [dict(one, segmentation=outline) for one in whole["rows"]]


def test_scenes_need_nothing_and_their_splits_are_worlds_apart(monkeypatch):
    monkeypatch.setattr(boxes, "SCENES", {"train": 12, "val": 4, "test": 6})
    found = detection(input_size=24)
    assert (
        (len(found.train), len(found.val), len(found.test)) == (12, 4, 6)
        and found.classes == class_names()
        and len(found.classes) == 10
    )
    images, targets = next(in_order(found.val, 4))
    assert images.shape == (4, 3, 24, 24) and all(len(t["boxes"]) == len(t["labels"]) >= 1 for t in targets)
    first = [part.source.read(0)[0] for part in (found.train, found.val, found.test)]
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    assert len(detection(input_size=24, train_images=5).train) == 5


# ---- what the network sees ---------------------------------------------------------------------------------


def test_evaluation_squeezes_pictures_and_leaves_boxes_alone(tmp_path):
    found = detection("voc", write_voc(tmp_path, train=4, val=3), 16)
    images, targets = next(in_order(found.val, 3))
    assert images.shape == (3, 3, 16, 16) and images.is_contiguous(memory_format=torch.channels_last)
    assert targets[0]["boxes"].tolist() == [[4, 2, 20, 30], [20, 1, 48, 32]] and targets[0]["size"].tolist() == [
        HEIGHT,
        WIDTH,
    ]
    pixels = torch.cat([x for x, _ in in_order(found.train, 4)])
    assert pixels.mean((0, 2, 3)).abs().max() < 1e-4
    assert (
        found.train.augment.fill == tuple((255 * found.mean).round().int().tolist())
        and found.val.augment.fill is not None
    )


def test_a_training_batch_follows_from_seed_and_step(tmp_path):
    root = write_voc(tmp_path, train=6, val=1)
    first, again = (Stream(detection("voc", root, 16).train, 3, 0) for _ in range(2))
    for step in (3, 0):
        (x, targets), (y, others) = first.batch(step), again.batch(step)
        assert torch.equal(x, y) and all(torch.equal(a[name], b[name]) for a, b in zip(targets, others) for name in a)
    assert not torch.equal(first.batch(0)[0], first.batch(2)[0])


def painted(width, height):
    """Red, green and blue rectangles on black, and their boxes."""
    places = {0: (0.05, 0.1, 0.3, 0.5), 1: (0.4, 0.15, 0.65, 0.9), 2: (0.7, 0.55, 0.95, 0.95)}
    image, rows = torch.zeros(3, height, width, dtype=torch.uint8), []
    for channel, place in places.items():
        x0, y0, x1, y1 = (round(share * side) for share, side in zip(place, (width, height) * 2))
        image[channel, y0:y1, x0:x1] = 255
        rows.append([x0, y0, x1, y1])
    no = torch.zeros(3, dtype=torch.bool)
    target = {"boxes": torch.tensor(rows).float(), "labels": torch.tensor([0, 1, 2]), "difficult": no, "crowd": no}
    return image, target | {"size": torch.tensor([height, width]), "number": torch.tensor(0)}


def enclosing(channel):
    rows, columns = (channel > 127).any(1).nonzero()[:, 0], (channel > 127).any(0).nonzero()[:, 0]
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


@pytest.mark.parametrize("width, height", [(200, 150), (90, 240), (64, 64)])
def test_augmented_boxes_enclose_their_colours(monkeypatch, width, height):
    monkeypatch.setattr(box_transforms, "distort", lambda image: image)
    torch.manual_seed(width)
    size, augment, kept, worst = 96, Augment(96, (0, 0, 0)), [], 0.0
    for _ in range(150):
        image, target = augment(*painted(width, height))
        assert image.shape == (3, size, size) and image.dtype == torch.uint8
        assert target["boxes"].min() >= 0 and target["boxes"].max() <= size
        assert len(target["boxes"]) == len(target["labels"]) == len(target["difficult"]) == len(target["crowd"])
        for box, label in zip(target["boxes"], target["labels"].tolist()):
            if (box[2:] - box[:2]).min() > 4:  # less is too small to be seen whole
                worst = max(worst, (box - enclosing(image[label])).abs().max().item())
        kept.append(len(target["labels"]))
    assert worst < 2 and min(kept) < 3 and max(kept) == 3


def test_boxes_go_exactly_when_their_centre_leaves_the_window():
    _, target = painted(200, 150)
    window = Window(left=35, top=0, width=100, height=150)  # centres at x 35, 105, 165
    seen = box_transforms.seen(target, window, 50)
    assert seen["labels"].tolist() == [1] and seen["boxes"].tolist() == [[22.5, pytest.approx(22 / 3), 47.5, 45]]
    assert box_transforms.seen(target, window._replace(left=34), 50)["labels"].tolist() == [0, 1]
    # less than a pixel
    assert box_transforms.seen(target, Window(-2000, -1000, 6000, 6000), 50)["labels"].tolist() == []


def test_difficult_objects_and_crowds_are_not_trained_on():
    image, target = painted(64, 64)
    target |= {"difficult": torch.tensor([True, False, False]), "crowd": torch.tensor([False, True, False])}
    torch.manual_seed(0)
    labels = [Augment(32, (0, 0, 0))(image, target)[1]["labels"].tolist() for _ in range(20)]
    assert [2] in labels and all(row in ([2], []) for row in labels)
    assert Fit(32)(image, target)[1]["labels"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (2, 500), (7, 9)])
def test_pictures_without_objects_and_tiny_ones_are_augmented(size):
    none = torch.zeros(0, dtype=torch.bool)
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "difficult": none, "crowd": none}
    full = {
        "boxes": torch.tensor([[0.0, 0, size[1], size[0]]]),
        "labels": torch.tensor([1]),
        "difficult": torch.tensor([False]),
        "crowd": torch.tensor([False]),
    }
    torch.manual_seed(0)
    image = torch.full((3, *size), 200, dtype=torch.uint8)
    for _ in range(40):
        for there in (target, full):
            out, found = Augment(32, (9, 9, 9))(image, there)
            assert out.shape == (3, 32, 32) and found["boxes"].shape == (len(found["labels"]), 4)


@pytest.mark.parametrize("least", [0.1, 0.5, 0.9])
def test_the_least_iou_of_a_crop_holds(monkeypatch, least):
    monkeypatch.setattr(box_transforms, "LEAST_IOU", (least,))
    torch.manual_seed(0)
    there = torch.tensor([[10.0, 20, 180, 140], [100.0, 5, 190, 60]])
    for _ in range(60):
        x0, y0, w, h = iou_window(Window(0, 0, 200, 150), there)
        assert 0 <= x0 and 0 <= y0 and x0 + w <= 200 and y0 + h <= 150 and 0.5 <= w / h <= 2 and w >= 60 and h >= 45
        best = 0.0
        for a0, b0, a1, b1 in there.tolist():
            inside = x0 < (a0 + a1) / 2 < x0 + w and y0 < (b0 + b1) / 2 < y0 + h
            shared = max(0, min(a1, x0 + w) - max(a0, x0)) * max(0, min(b1, y0 + h) - max(b0, y0))
            best = max(best, inside * shared / ((a1 - a0) * (b1 - b0) + w * h - shared))
        assert best >= least - 1e-6


def test_crops_and_canvases_are_drawn_as_torchvision_draws_them():
    """Mean share of the picture that is seen, and of the canvas that is picture, over many draws."""
    torch.manual_seed(0)
    there = tv_tensors.BoundingBoxes([[10.0, 20, 180, 140], [100.0, 5, 190, 60]], format="XYXY", canvas_size=(150, 200))
    library, count = v2.RandomIoUCrop(), 600

    def share(crop):
        return crop["height"] * crop["width"] / 30_000 if crop else 1.0

    expected = torch.tensor([share(library.make_params([there])) for _ in range(count)])
    windows = [iou_window(Window(0, 0, 200, 150), there.as_subclass(torch.Tensor)) for _ in range(count)]
    found = torch.tensor([window.width * window.height / 30_000 for window in windows])
    assert abs(found.mean() - expected.mean()) < 4 * (2 / count) ** 0.5 * expected.std()
    assert abs((found == 1).float().mean() - (expected == 1).float().mean()) < 4 * (2 / count) ** 0.5 * 0.5
    canvases = [zoomed_out(200, 150) for _ in range(count)]
    times = torch.tensor([canvas.width / 200 for canvas in canvases])
    assert (
        0.42 < (times == 1).float().mean() < 0.58
        and times[times > 1].mean() == pytest.approx(2.5, abs=0.25)
        and times.max() <= 4
    )
    assert all(c.left <= 0 and c.left + c.width >= 200 and c.top <= 0 and c.top + c.height >= 150 for c in canvases)


def test_beyond_the_picture_there_is_the_mean_colour():
    image = torch.full((3, 20, 10), 200, dtype=torch.uint8)
    out = look(image, Window(left=-10, top=0, width=40, height=20), 8, (1, 2, 3))
    assert (out[:, :, 2:4] == 200).all() and torch.equal(out[:, 0, 0], torch.tensor([1, 2, 3], dtype=torch.uint8))
    assert (out[:, :, :2] < 4).all() and (out[:, :, 4:] < 4).all()
    assert torch.equal(look(image, Window(0, 0, 10, 20), 8, (1, 2, 3)), torch.full((3, 8, 8), 200, dtype=torch.uint8))


# ---- mistakes: refused by name, or left out ----------------------------------------------------------------

GOOD = xml(thing())


@pytest.mark.parametrize(
    "text, message, boxes_left",
    [
        (
            xml(thing(box=(40, 5, 60, 20)), thing()),
            r"train_0\.jpg: the box 39 4 60 20 of 'cat' reaches out of its picture",
            2,
        ),
        (
            xml(thing(box=(60, 5, 70, 20)), thing()),
            r"train_0\.jpg: the box 59 4 70 20 of 'cat' lies outside its picture",
            1,
        ),
        (xml(thing(box=(20, 5, 10, 20)), thing()), r"train_0\.jpg: the box 19 4 10 20 of 'cat' has no area", 1),
        (xml(thing(box=("nan", 5, 10, 20)), thing()), r"train_0\.jpg: the box nan 4 10 20 of 'cat' is not finite", 1),
        (xml(thing(box=("inf", 5, "inf", 20)), thing()), r"the box inf 4 inf 20 of 'cat' is not finite", 1),
        (
            xml(thing(box=("ten", 5, 10, 20)), thing()),
            r"train_0\.xml, object 1: bndbox: ten, 5, 10, 20; must be four numbers",
            1,
        ),
        (
            xml(thing(box=(5, 10)), thing()),
            r"train_0\.xml, object 1: bndbox: 5, 10, None, None; must be four numbers xmin, ymin, xmax",
            1,
        ),
        (xml(thing(difficult=2), thing()), r"train_0\.xml, object 1: difficult: '2', must be 0 or 1", 1),
        (xml("<object><bndbox/></object>", thing()), r"train_0\.xml, object 1: has no name", 1),
        ("<annotation><object>", r"train_0\.xml: the annotation cannot be read \(no element found", None),
        (
            '<?xml version="1.0" encoding="klingon"?><annotation/>',
            r"train_0\.xml: the annotation cannot be read \(.*unknown encoding",
            None,
        ),
        ("<html></html>", r"train_0\.xml: the annotation cannot be read \(<annotation> is wanted, not <html>\)", None),
    ],
)
def test_bad_boxes_of_voc(tmp_path, capsys, text, message, boxes_left):
    root = write_voc(tmp_path, train=[text, GOOD, GOOD], val=[GOOD])
    with pytest.raises(
        UserError, match=rf"^data_root: 1 bad annotation: .*{message}.*; mend them, or add --bad-data skip"
    ):
        detection("voc", root, 16)
    found = detection("voc", root, 16, bad="skip")
    assert capsys.readouterr().err.startswith("warning: left out or clipped: 1 bad annotation: ")
    assert len(found.train) == (2 if boxes_left is None else 3)
    assert boxes_left is None or len(found.train.source.read(0)[1]["boxes"]) == boxes_left
    assert len(next(in_order(found.train, 3))[1]) == len(found.train)


def test_boxes_that_reach_out_are_clipped_and_a_pixel_is_nobodys_mistake(tmp_path):
    out, near = xml(thing(box=(-5, 5, 60, 20))), xml(thing(box=(0, 0, 49, 33)))  # counted from 0, or one too far
    root = write_voc(tmp_path, train=[out, near], val=[GOOD])
    found = detection("voc", root, 16, bad="skip")
    assert [found.train.source.read(i)[1]["boxes"].tolist() for i in range(2)] == [[[0, 4, 48, 20]], [[0, 0, 48, 32]]]


def test_classes_that_train_does_not_have_are_bad_and_parts_are_no_classes(tmp_path, capsys):
    root = write_voc(tmp_path, train=[GOOD, GOOD], val=[xml(thing("cow"), thing())], test=[xml(thing("eel"), thing())])
    with pytest.raises(
        UserError, match=r"2 bad annotations: .*'cow' is of a class that train does not have; .*'eel' is of a class"
    ):
        detection("voc", root, 16)
    found = detection("voc", root, 16, bad="skip")
    assert found.classes == ("cat",) and found.val.source.read(0)[1]["labels"].tolist() == [0]


def test_five_of_many_are_named(tmp_path):
    root = write_voc(
        tmp_path, train=[xml(*[thing(box=(9, 9, 9, 9)), thing(box=(9, 9, 8, 9))] * 4, thing())] * 2, val=[GOOD]
    )
    with pytest.raises(UserError) as error:
        detection("voc", root, 16)
    assert str(error.value).startswith("data_root: 8 bad annotations: ") and str(error.value).count("has no area") == 5
    assert "; and 3 more; mend them" in str(error.value)


def test_pictures_of_two_splits_stay_in_the_one_that_is_held_out(tmp_path, capsys):
    root = write_voc(tmp_path, train=4, val=2)
    names = root / "VOCdevkit/VOC2007/ImageSets/Main/train.txt"
    names.write_text(names.read_text() + "val_1\ntrain_0\n")
    with pytest.raises(
        UserError, match=r"2 bad annotations: .*val_1\.jpg: is in train and .*train_0\.jpg: is in train"
    ):
        detection("voc", root, 16)
    found = detection("voc", root, 16, bad="skip")
    assert (len(found.train), len(found.val)) == (4, 2)
    assert [len(found.train.source.read(i)[1]["boxes"]) for i in range(4)] == [2] * 4


def test_sizes_that_are_not_stated_are_read_from_the_picture(tmp_path):
    root = write_voc(tmp_path, train=[xml(thing(), size=(0, 0)), xml(thing()).replace("size", "room")], val=[GOOD])
    assert [detection("voc", root, 16).train.source.read(i)[1]["size"].tolist() for i in range(2)] == [
        [HEIGHT, WIDTH]
    ] * 2


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda c: c["annotations"].append(row(9, 5)), r"annotation 9: image_id: 5 is not the id of a picture"),
        (lambda c: c["annotations"].append(row(9, 1, 4)), r"annotation 9: category_id: 4 is not the id of a category"),
        (
            lambda c: c["annotations"].append(row(9, box=(1, 2, 3))),
            r"annotation 9: bbox: \[1, 2, 3\], must be four numbers",
        ),
        (lambda c: c["annotations"].append(row(9, box=(1, 2, "3", 4))), r"annotation 9: bbox: .*must be four numbers"),
        (
            lambda c: c["annotations"].append(row(9, box=(1, 2, 10**400, 4))),
            r"annotation 9: bbox: .*must be four numbers",
        ),
        (
            lambda c: c["annotations"].append(row(9, box=(1, 2, float("nan"), 4))),
            r"1\.jpg: the box 1 2 nan 6 of 'cat' is not finite",
        ),
        (lambda c: c["annotations"].append(row(9, box=(1, 2, 0, 4))), r"1\.jpg: the box 1 2 1 6 of 'cat' has no area"),
        (
            lambda c: c["annotations"].append(row(9, box=(60, 2, 5, 4))),
            r"1\.jpg: the box 60 2 65 6 of 'cat' lies outside its picture",
        ),
        (lambda c: c["annotations"].append(row(9, iscrowd=2)), r"annotation 9: iscrowd: 2, must be 0 or 1"),
        (lambda c: c["annotations"].append([1]), r"annotation None: is no object of JSON"),
        (lambda c: c["images"].append({"id": 1}), r"images: id 1, must be a whole number and differ from the others"),
        (lambda c: c["images"].append("x"), r"images: id None, must be a whole number"),
        (
            lambda c: c["images"].append(image(7, "../1.jpg")),
            r"image 7: file_name '\.\./1\.jpg', must be a path inside the folder",
        ),
        (
            lambda c: c["images"].append(image(7, "/1.jpg")),
            r"image 7: file_name '/1\.jpg', must be a path inside the folder",
        ),
        (lambda c: c["images"].append(image(7, "7.jpg")), r"image 7: there is no .*train/7\.jpg"),
        (lambda c: c["images"].append(image(7, "a" * 300 + ".jpg")), r"image 7: there is no .*train/a{300}\.jpg"),
        (lambda c: c["images"].append(image(7, "\ud800.jpg")), r"image 7: file_name '\\ud800\.jpg', must be a path"),
        (
            lambda c: c["images"].append(image(7, "1.jpg", 0)),
            r"image 7 \(1\.jpg\): height 0 and width 48, must be numbers of pixels",
        ),
        (
            lambda c: c["images"].append(image(7, "1.jpg")),
            r"1\.jpg: is in train and there or in another split once more",
        ),
    ],
)
def test_bad_boxes_and_pictures_of_coco(tmp_path, capsys, spoil, message):
    root, content = write_coco(tmp_path, train=coco(), val=coco()), coco()
    spoil(content)
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"(?s)^data_root: 1 bad annotation: .*{message}"):
        detection("coco", root, 16)
    found = detection("coco", root, 16, bad="skip")
    assert [len(found.train.source.read(i)[1]["boxes"]) for i in range(2)] == [1, 1] and len(found.train) == 2
    assert "1 bad annotation" in capsys.readouterr().err


def test_boxes_come_in_any_order_and_go_to_their_pictures(tmp_path):
    rows = [
        row(1, 3, 3, (1, 1, 5, 5)),
        row(2, 1, 17, (2, 2, 6, 6)),
        row(3, 3, 17, (3, 3, 7, 7)),
        row(4, 1, 3, (4, 4, 8, 8)),
    ]
    source = detection("coco", write_coco(tmp_path, train=coco(3, rows), val=coco(1, rows[1:2])), 16).train.source
    targets = [source.read(i)[1] for i in range(3)]
    assert [t["boxes"][:, 0].tolist() for t in targets] == [[2, 4], [], [1, 3]]
    assert [t["labels"].tolist() for t in targets] == [[1, 0], [], [0, 1]]


def test_boxes_of_a_picture_that_is_left_out_are_left_out_with_it(tmp_path):
    root = write_coco(tmp_path, train=coco(), val=coco())
    (root / "images/train/1.jpg").unlink()
    found = detection("coco", root, 16, bad="skip")
    assert len(found.train) == 1 and found.train.source.read(0)[1]["labels"].tolist() == [0]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", r"instances_train\.json cannot be read as JSON"),
        (
            "[]",
            r"instances_train\.json: images: missing; an object with the lists images, annotations, categories is",
        ),
        (json.dumps(coco(categories=[{"id": 1}])), r"categories: each must have a whole number as its id, and a name"),
        (
            json.dumps(coco(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}])),
            r"categories: their ids and their names must differ",
        ),
        (json.dumps(coco(annotations=[])), r"the pictures of train in .* have no objects"),
    ],
)
@pytest.mark.parametrize("bad", ["refuse", "skip"])
def test_files_of_coco_that_cannot_be_used(tmp_path, text, message, bad):
    root = write_coco(tmp_path, train=coco(), val=coco())
    (root / "annotations/instances_train.json").write_text(text)
    with pytest.raises(UserError, match=message):
        detection("coco", root, 16, bad=bad)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"data": "kitti"}, "data: 'kitti' is not known; choose one of scenes, voc, coco"),
        ({"data": "voc"}, "data_root: missing; data 'voc' needs the folder"),
        ({"data": "voc", "data_root": "nowhere"}, "data_root: nowhere holds no VOCdevkit/VOC2007"),
        ({"data": "coco", "data_root": "nowhere"}, "data_root: there is no nowhere/annotations/instances_train"),
        ({"train_images": 1}, "train_images: 1, must be at least 2"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        detection(**arguments)


def test_missing_lists_folders_and_ambiguous_files_are_named(tmp_path):
    voc = write_voc(tmp_path / "voc", val=2)
    with pytest.raises(UserError, match=r"ImageSets/Main has no train\.txt or trainval\.txt"):
        detection("voc", voc, 16)
    root = write_coco(tmp_path / "coco", train2014=coco(), train2017=coco())
    with pytest.raises(
        UserError,
        match=r"has instances_train2014\.json and instances_train2017\.json; keep the one that train is to be",
    ):
        detection("coco", root, 16)
    (root / "annotations/instances_train2014.json").unlink()
    (root / "images").rename(root / "photos")
    with pytest.raises(UserError, match=r"the pictures of .* are in none of .*images/train2017, .*"):
        detection("coco", root, 16)


# ---- mistakes in pictures, found when they are read --------------------------------------------------------


def _cut(path):
    path.write_bytes(path.read_bytes()[:400])


def _other_size(path):
    picture(path, size=(HEIGHT, WIDTH))


def _sixteen_bits(path):
    Image.fromarray(np.full((HEIGHT, WIDTH), 999, np.uint16)).save(path, "PNG")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (_cut, "the picture cannot be read"),
        (lambda path: path.write_bytes(b""), "the picture cannot be read"),
        (lambda path: path.write_bytes(b"no picture at all"), "the picture cannot be read"),
        (_other_size, "has 32x48 pixels, its annotation says 48x32"),
        (_sixteen_bits, "has pixels of more than 8 bits"),
    ],
)
def test_a_bad_picture_among_many_is_named_and_refused_or_skipped(tmp_path, capsys, spoil, message):
    root = write_voc(tmp_path, train=40, val=10)
    clean = detection("voc", root, 16)
    for name in ("train_7", "val_3"):
        spoil(root / f"VOCdevkit/VOC2007/JPEGImages/{name}.jpg")
    with pytest.raises(BadSample, match=rf"val_3\.jpg: {message}.*; mend or remove it, or add --bad-data skip"):
        list(in_order(clean.val, 4))
    with pytest.raises(BadSample, match=rf"train_7\.jpg: {message}"):
        [Stream(clean.train, 20, 0).batch(step) for step in range(2)]
    found = detection("voc", root, 16, bad="skip")
    assert sum(len(images) for images, _ in in_order(found.val, 4)) == 9
    assert {len(Stream(found.train, 20, 0).batch(step)[1]) for step in range(2)} == {20}
    assert capsys.readouterr().err.count("train_7.jpg is left out") == 1


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_pictures_of_every_kind_become_rgb(tmp_path, mode):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((4, 6, 3), 255, np.uint8)).convert(mode).save(path)
    assert torch.equal(boxes.read_picture(str(path)), torch.full((3, 4, 6), 255, dtype=torch.uint8))


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_of_all_usual_formats_are_read(tmp_path, kind):
    Image.new("RGB", (6, 4), (255, 255, 255)).save(tmp_path / "a.jpg", kind)
    assert torch.equal(read_picture(str(tmp_path / "a.jpg")), torch.full((3, 4, 6), 255, dtype=torch.uint8))


@pytest.mark.parametrize("kind", ["EPS", "PCX", "ICO", "TGA"])
def test_other_formats_stay_unread(tmp_path, kind):
    """EPS would start a program."""
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", kind)
    with pytest.raises(BadSample, match="the picture cannot be read .cannot identify"):
        read_picture(str(tmp_path / "a.jpg"))


def test_sizes_are_not_read_from_other_formats_either(tmp_path):
    root = write_voc(tmp_path, train=[xml(thing(), size=(0, 0)), GOOD], val=[GOOD])
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "VOCdevkit/VOC2007/JPEGImages/train_0.jpg", "EPS")
    with pytest.raises(UserError, match=r"train_0\.xml: the size is not stated, and the picture cannot be read"):
        detection("voc", root, 16)


def test_many_annotations_are_read_in_seconds(tmp_path):
    annotations = [row(i, 1 + i % 500, segmentation=[[1.5] * 60]) for i in range(10_000)]
    content = coco(500, annotations)
    root = write_coco(tmp_path, folder="images", train={"images": [], "annotations": []}, val=coco())
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    for one in content["images"]:
        (root / "images" / one["file_name"]).touch()
    start = time.process_time()
    class_names("coco", root)
    assert time.process_time() - start < 1.5  # of COCO there are 86 times as many; a tenth of it is taken
