"""Pictures with masks: classes by their ids, picture and mask stay together, what does not fit is named."""

import json
import pickle
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle
from torchvision.tv_tensors import Mask

from common.errors import UserError
from tasks import mask_layouts, mask_outlines, scenes
from tasks.mask_outlines import drawn, run_lengths
from tasks.mask_sources import Painted
from tasks.masks import IGNORE, RandomSquare, _span, class_names, class_weights, segmentation, training, weights_of
from tasks.samples import Stream, in_order

# of pycocotools 2.0.11 with numpy 2, when it draws outlines
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

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


# ---- layouts -----------------------------------------------------------------------------------------------


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


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_compressed_run_lengths_are_those_of_pycocotools(height, width, seed, share):
    covered = np.random.default_rng(seed).random((height, width)) < share
    text = rle.encode(np.asfortranarray(covered.astype(np.uint8)))["counts"].decode()
    runs = run_lengths(json.dumps({"size": [height, width], "counts": text}).encode(), height, width)
    assert sum(runs[1::2]) == covered.sum() and np.array_equal(drawn([(1, runs)], height, width) == 1, covered)


@settings(max_examples=60, deadline=None)
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
    """Outlines are set aside under a number when the file is read; the number of one is no outline in the file
    itself.
    """
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


# ---- weights, statistics -----------------------------------------------------------------------------------


def test_weights_are_enets_on_cityscapes_shares():
    """Weights are published for Cityscapes with 1.10 for ENet's 1.02, and with 1.02: the first give the shares, and
    these the second.
    """
    with_110 = [
        2.8149,
        6.9850,
        3.7890,
        9.9428,
        9.7702,
        9.5111,
        10.3114,
        10.0265,
        4.6323,
        9.5608,
        7.8698,
        9.5169,
        10.3737,
        6.6616,
        10.2605,
        10.2879,
        10.2898,
        10.4054,
        10.1389,
    ]
    with_102 = [
        3.0454,
        12.8621,
        4.5099,
        38.1569,
        35.2528,
        31.4826,
        45.7923,
        39.6941,
        6.0640,
        32.1648,
        17.1092,
        31.5633,
        47.3340,
        11.6107,
        44.6004,
        45.2372,
        45.2830,
        48.1478,
        41.9247,
    ]
    # of all pixels, those without a class too
    shares = torch.exp(1 / torch.tensor(with_110, dtype=torch.float64)) - 1.1
    torch.testing.assert_close(weights_of(shares / shares.sum()).tolist(), with_102, rtol=2e-3, atol=0)


def test_weights_come_from_the_training_masks_without_ignored_pixels(tmp_path):
    write(tmp_path, ("train", "val"), 2)
    for number, ids in enumerate(([0, 0, 0, 7], [0, 1, 1, 7])):  # 4 of class 0, 2 of class 1, none of 2 and 3
        Image.fromarray(np.uint8([ids] * 8)).save(tmp_path / f"train/labels/{number}.png")
        picture(np.uint8([ids] * 8)).save(tmp_path / f"train/images/{number}.png")
    expected = 1 / torch.log(1.02 + torch.tensor([4 / 6, 2 / 6, 0, 0]))
    torch.testing.assert_close(class_weights(segmentation("camvid", tmp_path, 8).train), expected)


def test_large_masks_are_weighed_on_a_grid(tmp_path):
    write(tmp_path, ("train", "val"), 2)
    ids = np.zeros((1100, 1200), np.uint8)
    ids[:, 300:] = 1
    for number in range(2):
        Image.fromarray(ids).save(tmp_path / f"train/labels/{number}.png")
        picture(ids).save(tmp_path / f"train/images/{number}.png")
    torch.testing.assert_close(
        class_weights(segmentation("camvid", tmp_path, 8).train)[:2], weights_of(torch.tensor([0.25, 0.75]))
    )


def test_mean_and_std_are_those_of_the_training_pictures(tmp_path):
    write(tmp_path, ("train", "val"), 2)
    for number, level in enumerate((51, 153)):
        Image.new("RGB", (32, 24), (level, 102, 0)).save(tmp_path / f"train/images/{number}.png")
    data = segmentation("camvid", tmp_path, 24)
    torch.testing.assert_close(data.mean, torch.tensor([0.4, 0.4, 0.0]))
    torch.testing.assert_close(data.val.std, torch.tensor([0.2, 1e-3, 1e-3]))


# ---- augmentation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "most"), [(24, 0.1), (48, 0.05), (96, 0.025)])
def test_picture_and_mask_stay_together(size, most):
    """The colour of each pixel tells its class, but for mixed colours where tiles of 8 pixels meet.

    A pixel's shift makes 12 % and more.
    """
    torch.manual_seed(0)
    augment = training(size, torch.full((3,), 0.5))
    wrong = []
    for number in range(60):
        ids = blobs(number, 96, 128)
        ids[ids == 7] = 0
        image = torch.from_numpy(np.array(picture(ids))).permute(2, 0, 1)
        out, mask = augment(image, Mask(torch.from_numpy(ids)))
        assert out.shape == (3, size, size) and mask.shape == (size, size) and out.dtype == mask.dtype == torch.uint8
        seen = mask != IGNORE
        wrong.append((nearest(out)[seen] != mask[seen]).float().mean().item())
    assert np.mean(wrong) < most


def test_beyond_the_picture_lie_the_mean_colour_and_ignore():
    torch.manual_seed(1)
    square = RandomSquare(32, torch.tensor([0.2, 0.4, 0.6]))
    shares = []
    for _ in range(100):
        image, mask = square(
            torch.full((3, 24, 32), 255, dtype=torch.uint8), Mask(torch.zeros(24, 32, dtype=torch.uint8))
        )
        outside = mask == IGNORE
        assert torch.equal(
            image[:, outside], torch.tensor([[51], [102], [153]], dtype=torch.uint8).expand(-1, int(outside.sum()))
        )
        assert (image[:, ~outside] == 255).all()
        shares.append(outside.float().mean().item())
    # at scale 1/2 the picture covers 1/2 x 2/3 of the square; at 1 and above all of it
    assert 0.6 < max(shares) <= 0.7 and 0.3 < np.mean(np.array(shares) == 0) < 0.6


def test_scales_are_log_uniform_between_a_half_and_two():
    torch.manual_seed(2)
    square = RandomSquare(64, torch.zeros(3))
    scales = []
    for _ in range(800):
        params = square.make_params([torch.zeros(3, 600, 600)])
        (y0, y1, top, bottom), _ = params["rows"], params["columns"]
        scales.append(np.log2((bottom - top) / (y1 - y0) * 600 / 64))
    assert -1.05 < min(scales) < -0.95 and 0.95 < max(scales) < 1.05
    assert abs(np.mean(scales)) < 0.08 and abs(np.std(scales) - 2 / np.sqrt(12)) < 0.04


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.floats(0.5, 600), st.floats(0, 1), st.integers(1, 200))
def test_spans_lie_inside_and_keep_the_scale(length, side, share, size):
    first, last, at, end = _span(length, side, share * (length - side), size)
    assert 0 <= first < last <= length and 0 <= at < end <= size
    start = share * (length - side)
    assert abs(first - max(start, 0)) <= 1 and abs(last - min(start + side, length)) <= 1
    assert at == round(max(-start, 0) / side * size) or at == end - 1
    assert side > length or (at, end) == (0, size)  # a window inside the picture fills its square


def test_evaluation_fits_the_shorter_side_and_leaves_the_mask(tmp_path):
    data = segmentation("camvid", write(tmp_path), 48)
    images, masks = next(in_order(data.val, 4))
    assert images.shape == (4, 3, 48, 64) and [mask.shape for mask in masks] == [(24, 32)] * 4
    assert segmentation("camvid", tmp_path, 24).val.fit(*data.val.source.read(0))[0].shape == (3, 24, 32)


def test_batches_are_functions_of_seed_and_step_and_samples_travel(tmp_path):
    data = segmentation("camvid", write(tmp_path), 32)
    again = pickle.loads(pickle.dumps(data.train))
    first, second = Stream(data.train, 2, 0), Stream(again, 2, 0)
    batches = [first.batch(step) for step in range(3)]
    images, masks = second.batch(2)
    assert images.shape == (2, 3, 32, 32) and torch.equal(images, batches[2][0])
    assert all(torch.equal(a, b) for a, b in zip(masks, batches[2][1], strict=True))
    assert not torch.equal(images, batches[1][0])
    assert pickle.loads(pickle.dumps(Painted(0, 3))).name(1) == "scene 1 of world 0"


# ---- bad input ---------------------------------------------------------------------------------------------


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
