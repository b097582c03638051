"""Images with boxes that do not fit, in annotations and in files: refused by name, or left out."""

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from tasks import boxes
from tasks.boxes import class_names, detection
from tasks.reading import PICTURES, read_picture
from tasks.samples import BadSample, Stream, in_order
from tests.tasks.detection_folders import (
    HEIGHT,
    WIDTH,
    coco,
    cut_short,
    image,
    picture,
    row,
    thing,
    write_coco,
    write_voc,
    xml,
)

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


def _other_size(path):
    picture(path, size=(HEIGHT, WIDTH))


def _sixteen_bits(path):
    Image.fromarray(np.full((HEIGHT, WIDTH), 999, np.uint16)).save(path, "PNG")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (cut_short, "the picture cannot be read"),
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
