"""Images with masks that do not fit: refused by name, or left out."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from tasks import mask_outlines
from tasks.masks import IGNORE, class_names, class_weights, segmentation
from tasks.samples import in_order
from tests.tasks.segmentation_folders import blobs, coco, picture, square, write


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("0 Red\nGreen\n", "Green"),
        ("0 Red\n0 Green\n", "0 Green comes twice"),
        ("0 Red\n1 Red\n", "1 Red comes twice"),
        ("0 Red\n256 Green\n", "'256'"),
        ("0 Red\n-1 Green\n", "'-1'"),
        ("255 Red\n", "always means ignored"),
        ("0 Void\n", "names no class"),
        ("\n".join(f"{i} class{i}" for i in range(255)), "names 255 classes"),
    ],
)
def test_wrong_class_files_are_refused(tmp_path, names, words):
    with pytest.raises(UserError, match=words):
        class_names("camvid", write(tmp_path, ("train",), 1, names))


@pytest.mark.parametrize("text", ["[", "[1]", '{"semantic_classes": 3}', '{"0": 1}', '{"x": "sky"}', "[" * 100_000])
def test_wrong_json_is_refused(tmp_path, text):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(UserError, match=r"classes.json"):
        class_names("camvid", tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="'kitti' is not known; choose one of scenes, camvid, voc, cityscapes, coco"):
        class_names("kitti", tmp_path)
    with pytest.raises(UserError, match="--data-root FOLDER"):
        segmentation("voc")
    with pytest.raises(UserError, match="there is no folder"):
        segmentation("camvid", tmp_path / "none")
    with pytest.raises(UserError, match="neither classes.txt nor classes.json"):
        segmentation("camvid", tmp_path)
    for data, words in (
        ("voc", "VOCSegmentation"),
        ("cityscapes", "Cityscapes"),
        ("coco", "semantic/train2017 nor annotations"),
    ):
        with pytest.raises(UserError, match=words):
            segmentation(data, tmp_path)
    write(tmp_path / "a", ("train", "val"))
    shutil.rmtree(tmp_path / "a/val/labels")
    with pytest.raises(UserError, match="val/labels"):
        segmentation("camvid", tmp_path / "a")
    with pytest.raises(UserError, match="train_images: 1"):
        segmentation("camvid", tmp_path / "a", train_images=1)


@pytest.mark.parametrize(
    ("field", "row", "words"),
    [
        (
            "annotations",
            {"image_id": 700_000, "category_id": "1", "segmentation": []},
            r"annotations\[0\].category_id: '1'",
        ),
        ("annotations", {"image_id": 700_000, "category_id": 1}, r"annotations\[0\].segmentation: None"),
        ("images", {"id": 1, "file_name": "a.jpg", "width": 0, "height": 24}, r"images\[0\].width: 0"),
        ("images", 5, r"images\[0\].id: None"),
        ("categories", {"id": 70_000, "name": "cat"}, r"categories\[0\].id: 70000"),
        ("categories", {"id": 1, "name": None}, r"categories\[0\].name: None"),
    ],
)
def test_wrong_rows_of_instances_are_named(tmp_path, field, row, words):
    coco(tmp_path, [])
    path = tmp_path / "annotations/instances_train2017.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: [row]}))
    with pytest.raises(UserError, match=words):
        segmentation("coco", tmp_path)


@pytest.mark.parametrize(
    "shape",
    [
        [],
        [[1, 2, 3]],
        [[0, 0, 8, 0, 8]],
        [[0, 0, 1e9, 0, 8, 8]],
        [["a"] * 6],
        [[0, 0, float("nan"), 0, 8, 8]],
        {"size": [24, 32]},
        {"size": [24, 32], "counts": [5]},
        {"size": [2, 2], "counts": [4]},
        {"size": [24, 32], "counts": [-1, 769]},
        {"size": [24, 32], "counts": "zzz9"},
        {"size": [24, 32], "counts": "\x01"},
        {"size": [24, 32], "counts": "a"},
    ],
)
def test_outlines_that_cannot_be_drawn_are_named(tmp_path, shape):
    coco(tmp_path, [{"image_id": 700_001, "category_id": 1, "segmentation": shape}])
    with pytest.raises(UserError, match=r"b.jpg: object 0 .* cannot be drawn"):
        segmentation("coco", tmp_path)
    assert segmentation("coco", tmp_path, 24, bad="skip").train.indices.tolist() == [0]


@pytest.mark.parametrize("number", ["[0]", "[true]", "0", "[1]", '{"outline": 0}'])
def test_nothing_in_the_file_passes_for_an_outline_of_another_object(tmp_path, number):
    """Outlines are set aside under a number as the file is read; such a number in the file is no outline."""
    coco(tmp_path, [square(8, 8, 4, 1), {"image_id": 700_001, "category_id": 1, "segmentation": "HERE"}])
    for path in (tmp_path / "annotations").iterdir():
        path.write_text(path.read_text().replace('"HERE"', number))
    with pytest.raises(UserError, match=r"b.jpg: object 0 .* cannot be drawn|segmentation: 0 is not"):
        segmentation("coco", tmp_path)


@pytest.mark.parametrize("bad", ["refuse", "skip"])
def test_pictures_outside_their_folder_are_not_opened(tmp_path, bad):
    coco(tmp_path / "data", [])
    picture(blobs(0)).save(tmp_path / "outside.png")
    path = tmp_path / "data/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for name in ("../../../outside.png", str(tmp_path / "outside.png"), ""):
        path.write_text(
            json.dumps(content | {"images": [content["images"][0], content["images"][1] | {"file_name": name}]})
        )
        with pytest.raises(
            UserError, match=r"images\[1\].file_name: '.*', must be a path inside|file_name: .* must be a path inside"
        ):
            segmentation("coco", tmp_path / "data", 24, bad=bad)


def test_a_name_that_no_file_can_have_is_a_bad_picture(tmp_path):
    coco(tmp_path, [])
    path = tmp_path / "annotations/instances_train2017.json"
    path.write_text(path.read_text().replace("a.jpg", "a" * 300))
    with pytest.raises(UserError, match=r"1 of 2 pictures cannot be used: .*too long"):
        segmentation("coco", tmp_path, 24)
    assert segmentation("coco", tmp_path, 24, bad="skip").train.indices.tolist() == [1]


def test_pictures_of_one_id_are_refused(tmp_path):
    coco(tmp_path, [])
    path = tmp_path / "annotations/instances_train2017.json"
    path.write_text(path.read_text().replace("700001", "700000"))
    with pytest.raises(UserError, match="images: 2 with 1 ids"):
        segmentation("coco", tmp_path, 24)


@pytest.mark.parametrize("side", [20_000, 65_535])
def test_sizes_are_compared_before_anything_is_drawn(tmp_path, monkeypatch, side):
    shape = {"size": [side, side], "counts": [0, side * side]}
    coco(tmp_path, [{"image_id": 700_001, "category_id": 1, "segmentation": shape}])
    path = tmp_path / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][1] |= {"width": side, "height": side}
    path.write_text(json.dumps(content))
    monkeypatch.setattr(mask_outlines, "run_lengths", lambda *_: pytest.fail("an outline was looked at"))
    with pytest.raises(UserError, match=rf"b.jpg: the picture has 32x24 pixels, its mask {side}x{side}"):
        segmentation("coco", tmp_path, 24)


# ---- masks -------------------------------------------------------------------------------------------------


def spoil(root, how: str):
    """Make the second training picture of four bad."""
    image, mask = root / "train/images/1.png", root / "train/labels/1.png"
    ids = blobs(1)
    if how == "no mask":
        mask.unlink()
    elif how == "no picture":
        image.unlink()
    elif how == "colours":
        picture(ids).save(mask)
    elif how == "sizes":
        Image.fromarray(ids[:16]).save(mask)
    elif how == "sizes, cut":  # the header is enough
        Image.fromarray(ids[:16]).save(mask)
        mask.write_bytes(mask.read_bytes()[:60])
    elif how == "bitmap":
        Image.fromarray(ids).save(mask, "BMP")
    elif how in ("empty picture", "empty mask"):
        (image if "picture" in how else mask).write_bytes(b"")
    elif how in ("cut picture", "cut mask"):
        path = image if "picture" in how else mask
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "ids":
        ids[5, 5:9], ids[6, 6] = 99, 200
        Image.fromarray(ids).save(mask)


BAD = {
    "no mask": "there is no mask .*labels/1.png",
    "no picture": "images/1.jpg: there is no picture",
    "colours": "holds colours .mode RGB.",
    "sizes": "the picture has 32x24 pixels, its mask 32x16",
    "sizes, cut": "the picture has 32x24 pixels, its mask 32x16",
    "bitmap": "the mask .*1.png cannot be read .cannot identify",
    "empty picture": "the picture cannot be read",
    "empty mask": "the mask .*1.png cannot be read",
    "cut mask": "the mask .*1.png cannot be read",
}


@pytest.mark.parametrize("how", BAD)
def test_bad_masks_are_refused_before_training_or_left_out(tmp_path, capsys, how):
    spoil(write(tmp_path), how)
    with pytest.raises(UserError, match=rf"1 of 4 pictures cannot be used: .*{BAD[how]}.*--bad-data skip"):
        segmentation("camvid", tmp_path, 24)
    data = segmentation("camvid", tmp_path, 24, bad="skip")
    assert data.train.indices.tolist() == [0, 2, 3] and len(data.train.skipped) == 1
    assert "is left out" in capsys.readouterr().err


def test_a_picture_cut_short_is_named_when_it_is_read(tmp_path, capsys):
    spoil(write(tmp_path), "cut picture")
    with pytest.raises(UserError, match="images/1.png: the picture cannot be read"):
        segmentation("camvid", tmp_path, 24)  # for its mean
    data = segmentation("camvid", tmp_path, 24, bad="skip")
    assert sum(len(masks) for _, masks in in_order(data.train, 2)) == 3
    assert "images/1.png is left out" in capsys.readouterr().err


def test_unknown_ids_are_refused_by_name_or_ignored_and_counted(tmp_path, capsys):
    spoil(write(tmp_path), "ids")
    with pytest.raises(
        UserError, match=r"images/1.png: its mask has 4 pixels of id 99, 1 pixels of id 200, which no class has"
    ):
        segmentation("camvid", tmp_path, 24)
    data = segmentation("camvid", tmp_path, 24, bad="skip")
    assert (
        "1 masks, the first that of" in (said := capsys.readouterr().err)
        and "4 pixels of id 99, 1 pixels of id 200" in said
    )
    ids = blobs(1)
    ids[5, 5:9], ids[6, 6] = 7, 7
    assert len(data.train) == 4 and np.array_equal(
        data.train.source.read(1)[1].numpy(), np.where(ids == 7, IGNORE, ids)
    )


def test_an_instance_of_no_category_is_refused_or_ignored(tmp_path):
    coco(tmp_path, [square(8, 8, 4, 5)])
    with pytest.raises(UserError, match="a.jpg: its mask has 16 pixels of id 5"):
        segmentation("coco", tmp_path, 24)
    mask = segmentation("coco", tmp_path, 24, bad="skip").train.source.read(0)[1]
    assert (mask[8:12, 8:12] == IGNORE).all() and (mask == 0).sum() == 24 * 32 - 16


def test_where_all_masks_are_bad_the_first_is_named(tmp_path):
    write(tmp_path)
    shutil.rmtree(tmp_path / "val/labels")
    (tmp_path / "val/labels").mkdir()
    Image.fromarray(blobs(0)).save(tmp_path / "val/labels/x.png")
    with pytest.raises(UserError, match="none of the 5 pictures can be used, the first for this: .*there is no mask"):
        segmentation("camvid", tmp_path, 24, bad="skip")


@pytest.mark.parametrize("mode", ["1", "I;16", "P"])
def test_masks_of_other_modes_hold_ids_too(tmp_path, mode):
    write(tmp_path)
    ids = blobs(1) % 2
    mask = (
        Image.fromarray(ids.astype(np.uint16))
        if mode == "I;16"
        else Image.fromarray(ids.astype(bool) if mode == "1" else ids)
    )
    if mode == "P":
        mask.putpalette([0, 0, 0, 255, 0, 0])
    mask.save(tmp_path / "train/labels/1.png")
    with Image.open(tmp_path / "train/labels/1.png") as stored:
        assert stored.mode == mode
    assert np.array_equal(segmentation("camvid", tmp_path, 24).train.source.read(1)[1].numpy(), ids)


def test_a_mask_of_ignored_pixels_alone_is_legal(tmp_path):
    write(tmp_path)
    Image.fromarray(np.full((24, 32), 255, np.uint8)).save(tmp_path / "train/labels/1.png")
    data = segmentation("camvid", tmp_path, 24)
    assert (data.train.source.read(1)[1] == IGNORE).all() and torch.isfinite(class_weights(data.train)).all()
