"""Layouts of images with boxes: VOC, COCO and scenes."""

import json
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from tasks import annotations_coco, annotations_voc, boxes
from tasks.boxes import class_names, detection
from tasks.coco_files import OUTLINE
from tasks.samples import in_order
from tests.tasks.detection_folders import HEIGHT, WIDTH, coco, cut_short, image, row, thing, write_coco, write_voc, xml


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
    cut_short(Path(found.val.source.name(int(found.val.indices[0]))))
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
