"""Layouts of images with masks: classes by their ids, instances drawn as masks, what is read and when."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from tasks import mask_layouts, mask_outlines, scenes
from tasks.mask_outlines import drawn, run_lengths
from tasks.masks import IGNORE, class_names, class_weights, segmentation
from tests.strategies import examples
from tests.tasks.segmentation_folders import blobs, coco, nearest, picture, square, write

# of pycocotools 2.0.11 with numpy 2, when it draws outlines
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def test_a_folder_gives_pictures_masks_and_names(tmp_path):
    data = segmentation("camvid", write(tmp_path), 24)
    assert data.classes == class_names("camvid", tmp_path) == ("Red", "Green", "Blue", "White")
    assert [len(part) for part in (data.train, data.val, data.test)] == [4, 4, 4]
    image, mask = data.val.source.read(2)
    ids = blobs(12)
    assert image.shape == (3, 24, 32) and mask.dtype == torch.uint8
    assert torch.equal(mask, torch.from_numpy(np.where(ids == 7, IGNORE, ids)))
    assert torch.equal(nearest(image)[mask != IGNORE], mask[mask != IGNORE])


def test_sparse_ids_become_indices_in_the_order_of_the_ids(tmp_path):
    write(tmp_path, ("train",), names="")
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "classes.json").write_text(
        json.dumps({"3": "white", "7": "seven", "0": "unlabeled", "2": "blue", "1": "green"})
    )
    source = segmentation("camvid", tmp_path, 24).train.source
    expected = np.array([IGNORE, 0, 1, 2, 0, 0, 0, 3], np.uint8)[blobs(1)]
    assert class_names("camvid", tmp_path) == ("green", "blue", "white", "seven") and source.num_classes == 4
    assert np.array_equal(source.read(1)[1].numpy(), expected)


def test_validation_is_split_off_train_and_never_off_test(tmp_path):
    data = segmentation("camvid", write(tmp_path, ("train", "test"), count=20), 24, seed=3)
    train, val = ({part.source.name(i) for i in part.indices.tolist()} for part in (data.train, data.val))
    assert len(train) == 18 and len(val) == 2 and not train & val and all("train" in name for name in train | val)
    assert len(data.test) == 20
    other = segmentation("camvid", tmp_path, 24, seed=4, train_images=5)
    assert len(other.train) == 5 and other.val.indices.tolist() != data.val.indices.tolist()


def test_voc_masks_are_palettes_with_a_seam_that_is_ignored(tmp_path):
    year = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (year / folder).mkdir(parents=True)
    ids = blobs(0)
    ids[ids == 7] = 255
    ids[20:] = 20
    for name in "abc":
        picture(ids).save(year / f"JPEGImages/{name}.jpg")
        mask = Image.fromarray(ids).convert("P")
        mask.putpalette(list(range(256)) * 3)
        mask.putdata(ids.ravel().tolist())
        mask.save(year / f"SegmentationClass/{name}.png")
    (year / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    (year / "ImageSets/Segmentation/val.txt").write_text("c\n")
    data = segmentation("voc", tmp_path, 24)
    assert len(data.classes) == 21 and data.classes[0] == "background" and data.classes[20] == "tvmonitor"
    assert (len(data.train), len(data.val), data.test) == (2, 1, None)
    assert np.array_equal(data.val.source.read(0)[1].numpy(), ids)


def test_cityscapes_has_19_classes_and_no_twentieth(tmp_path):
    ids = np.arange(34, dtype=np.uint8)[None].repeat(24, 0)
    for split, count in (("train", 2), ("val", 1)):
        for kind in ("leftImg8bit", "gtFine"):
            (tmp_path / kind / split / "ulm").mkdir(parents=True)
        for number in range(count):
            picture(ids % 4).save(tmp_path / f"leftImg8bit/{split}/ulm/ulm_{number}_leftImg8bit.png")
            Image.fromarray(ids).save(tmp_path / f"gtFine/{split}/ulm/ulm_{number}_gtFine_labelIds.png")
    data = segmentation("cityscapes", tmp_path, 24)
    mask = data.val.source.read(0)[1][0]
    assert len(data.classes) == 19 and data.classes[0] == "road" and data.classes[18] == "bicycle"
    assert mask[7] == 0 and mask[11] == 2 and mask[33] == 18 and mask[26] == 13
    assert (mask == IGNORE).sum() == 34 - 19 and sorted(mask[mask != IGNORE].tolist()) == list(range(19))


def test_coco_instances_are_drawn_the_small_ones_on_top(tmp_path):
    crowd = {
        "image_id": 700_001,
        "category_id": 1,
        "segmentation": {"size": [24, 32], "counts": [24 * 30, 48]},
        "iscrowd": 1,
    }
    data = segmentation("coco", coco(tmp_path, [square(8, 8, 4, 1), square(4, 4, 16, 44), crowd]), 24)
    expected = np.zeros((24, 32), np.uint8)
    expected[4:20, 4:20] = 2
    expected[8:12, 8:12] = 1
    assert data.classes == ("background", "cat", "dog") and np.array_equal(data.val.source.read(0)[1].numpy(), expected)
    expected = np.zeros((24, 32), np.uint8)
    expected[:, 30:] = 1  # run lengths go down the columns
    assert np.array_equal(data.train.source.read(1)[1].numpy(), expected)


@examples(60)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_compressed_run_lengths_are_those_of_pycocotools(height, width, seed, share):
    covered = np.random.default_rng(seed).random((height, width)) < share
    text = rle.encode(np.asfortranarray(covered.astype(np.uint8)))["counts"].decode()
    runs = run_lengths(json.dumps({"size": [height, width], "counts": text}).encode(), height, width)
    assert sum(runs[1::2]) == covered.sum() and np.array_equal(drawn([(1, runs)], height, width) == 1, covered)


@examples(60)
@given(st.integers(8, 70), st.integers(8, 70), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_polygons_are_drawn_as_pycocotools_draws_them(height, width, seed, count):
    generator = np.random.default_rng(seed)
    lines = [(generator.random((5, 2)) * (width, height)).round(2).ravel().tolist() for _ in range(count)]
    expected = rle.decode(rle.merge(rle.frPyObjects(lines, height, width)))
    assert np.array_equal(
        drawn([(1, run_lengths(json.dumps(lines).encode(), height, width))], height, width) == 1, expected
    )


def test_coco_semantic_masks_come_before_instances(tmp_path):
    coco(tmp_path, [])
    for split in ("train2017", "val2017"):
        (tmp_path / "semantic" / split).mkdir(parents=True)
        for name in "ab":
            Image.fromarray(blobs(1)).save(tmp_path / "semantic" / split / f"{name}.png")
    names = {"semantic_classes": {"0": "unlabeled", "1": "sky", "2": "sea", "3": "sand", "7": "tree"}}
    (tmp_path / "semantic_classes.json").write_text(json.dumps(names))
    data = segmentation("coco", tmp_path, 24)
    assert data.classes == ("sky", "sea", "sand", "tree")
    assert np.array_equal(
        data.val.source.read(1)[1].numpy(), np.array([IGNORE, 0, 1, 2, 0, 0, 0, 3], np.uint8)[blobs(1)]
    )


def test_scenes_have_a_background_and_their_shapes(monkeypatch):
    monkeypatch.setattr(mask_layouts, "SCENES", {"train": 6, "val": 3, "test": 3})
    data = segmentation("scenes", None, 32)
    assert data.classes == class_names("scenes") == ("background", *scenes.CLASSES)
    scene = scenes.scene(1, 2, 192)  # val is the world 1
    image, mask = data.val.source.read(2)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), scene.image) and np.array_equal(mask.numpy(), scene.mask)
    assert scene.label + 1 in mask and len(class_weights(data.train)) == 11


def test_objects_are_drawn_without_a_mask_of_each():
    side, runs = 1000, [0, 500_000, 500_000]
    tracemalloc.start()
    ids = drawn([(number, runs) for number in range(100)], side, side)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * ids.nbytes and (ids[:, :500] == 99).all()  # a mask of each is 50 times as much


def test_instances_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    read, really = [], mask_outlines.content
    monkeypatch.setattr(mask_outlines, "content", lambda file, texts: read.append(file.name) or really(file, texts))
    coco(tmp_path, [square(8, 8, 4, 1)])
    for _ in range(2):
        assert class_names("coco", tmp_path) == segmentation("coco", tmp_path, 24).classes
    assert sorted(read) == ["instances_train2017.json", "instances_val2017.json"]
    path = tmp_path / "annotations/instances_train2017.json"
    path.write_text(path.read_text().replace('"dog"', '"wolf"'))
    assert class_names("coco", tmp_path) == ("background", "cat", "wolf")


def test_outlines_take_no_more_than_their_text_and_travel(tmp_path):
    outline = [(np.random.default_rng(0).random(200) * 24).round(2).tolist()]
    rows = [{"image_id": 700_000 + i % 2, "category_id": 1, "segmentation": outline} for i in range(2000)]
    coco(tmp_path, rows)
    path = tmp_path / "annotations/instances_train2017.json"
    tracemalloc.start()
    source = mask_outlines.instances(path, tmp_path / "images/train2017")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 1.5 * path.stat().st_size and len(pickle.dumps(source)) < 1.1 * path.stat().st_size
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.ids(1, (24, 32)), source.ids(1, (24, 32))) and (source.ids(1, (24, 32)) == 1).any()
