"""Pairs of pictures: halves of files and drawings of scenes, which stay together whatever they go through, and files
that are no pairs.
"""

import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from tasks import scenes
from tasks.folders import CHANNELS, enlarged
from tasks.pairs import pairs
from tasks.samples import Stream, in_order


def coordinates(height: int, width: int, number: int = 0) -> np.ndarray:
    """(H, W, 3): each pixel holds its row, its column and the number of the picture."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack((rows, columns, np.full_like(rows, number)), 2)


def write(root, splits=("train", "val", "test"), count=4, height=24, width=32):
    """Pairs of `coordinates` on the left and the same upside down in colour on the right."""
    for offset, split in enumerate(splits):
        (root / split).mkdir(parents=True)
        for number in range(count):
            left = coordinates(height, width, 10 * offset + number)
            Image.fromarray(np.concatenate((left, 255 - left), 1)).save(root / split / f"{number}.png")
    return root


def names(part) -> set[str]:
    return {part.source.name(index) for index in part.indices.tolist()}


# ---- layout ------------------------------------------------------------------------------------------------


def test_a_picture_is_an_input_on_the_left_and_a_target_on_the_right(tmp_path):
    data = pairs("pairs", write(tmp_path), 24)
    assert data.classes == CHANNELS and [len(part) for part in (data.train, data.val, data.test)] == [4, 4, 4]
    image, target = data.val.source.read(2)
    assert torch.equal(image, torch.from_numpy(coordinates(24, 32, 12)).permute(2, 0, 1))
    assert torch.equal(target, 255 - image) and image.dtype == target.dtype == torch.uint8


def test_the_other_direction_swaps_them(tmp_path):
    there, back = (
        pairs("pairs", write(tmp_path / way), 24, direction=way).test.source.read(1) for way in ("a_to_b", "b_to_a")
    )
    assert torch.equal(there[0], back[1]) and torch.equal(there[1], back[0]) and not torch.equal(*there)
    there, back = (pairs("scenes", None, 24, direction=way).test.source.read(1) for way in ("a_to_b", "b_to_a"))
    assert torch.equal(there[0], back[1]) and torch.equal(there[1], back[0])


def test_validation_is_split_off_train_and_never_off_test(tmp_path):
    data = pairs("pairs", write(tmp_path, ("train", "test"), count=20), 24, seed=3)
    train, val = names(data.train), names(data.val)
    assert len(train) == 18 and len(val) == 2 and not train & val and all("train" in name for name in train | val)
    assert len(data.test) == 20
    again, other = (pairs("pairs", tmp_path, 24, seed=seed, train_images=5) for seed in (3, 4))
    assert names(again.val) == val and names(again.train) < train and len(again.train) == 5
    assert names(other.val) != val and names(other.train) != names(again.train)


def test_a_folder_without_test_reports_val(tmp_path):
    data = pairs("pairs", write(tmp_path, ("train", "val")), 24)
    assert data.test is None and list(data.held_out) == ["val"]


def test_scenes_are_drawings_and_their_pictures():
    data = pairs("scenes", None, 32)
    assert [len(part) for part in (data.train, data.val, data.test)] == [2000, 200, 400]
    for part, world, size in ((data.train, 0, 36), (data.val, 1, 32), (data.test, 2, 32)):
        scene = scenes.scene(world, 5, size)
        drawing, picture = part.source.read(5)
        assert np.array_equal(picture.permute(1, 2, 0).numpy(), scene.image)
        assert all(np.array_equal(channel.numpy(), scene.edges) for channel in drawing)


# ---- what pictures go through ------------------------------------------------------------------------------


def test_black_is_minus_one_and_white_is_one(tmp_path):
    write(tmp_path)
    white = np.full((24, 32, 3), 255, np.uint8)
    Image.fromarray(np.concatenate((white, 0 * white), 1)).save(tmp_path / "val" / "0.png")
    data = pairs("pairs", tmp_path, 16)
    images, targets = next(in_order(data.val, 4))
    assert images.shape == (4, 3, 16, 16) and targets[0].shape == (3, 16, 16)
    assert (images[0] == 1).all() and (data.val.normalised(targets[0][None]) == -1).all()


def test_the_crop_is_a_window_of_the_enlarged_square_and_the_same_for_both():
    """An image as large as the enlarged square is not resized, so each pixel tells where it comes from."""
    assert [enlarged(size) for size in (32, 64, 256)] == [36, 72, 286]  # 256 as published
    augment = pairs("scenes", None, 32).train.augment
    picture = torch.from_numpy(coordinates(36, 36)).permute(2, 0, 1)
    torch.manual_seed(0)
    tops, lefts, mirrored = [], [], []
    for _ in range(300):
        image, target = augment(picture, 255 - picture)
        assert torch.equal(target, 255 - image)
        upright = image.flip(2) if image[1, 0, 0] > image[1, 0, -1] else image
        top, left = upright[:2, 0, 0].tolist()
        assert torch.equal(upright, picture[:, top : top + 32, left : left + 32])
        tops, lefts, mirrored = [*tops, top], [*lefts, left], [*mirrored, upright is not image]
    assert set(tops) == set(lefts) == set(range(5)) and abs(np.corrcoef(tops, lefts)[0, 1]) < 0.2
    assert 0.4 < np.mean(mirrored) < 0.6


def test_training_pictures_are_squeezed_too_not_cut():
    """Of a wide picture each crop shows 32 of 36 parts of the width, and so some of its white right quarter."""
    augment = pairs("scenes", None, 32).train.augment
    wide = torch.zeros(3, 20, 200, dtype=torch.uint8)
    wide[:, :, 150:] = 255
    shares = torch.stack([(augment(wide, wide)[0] > 127).float().mean() for _ in range(40)])
    assert (shares >= 5 / 32).all() and (shares <= 9 / 32).all() and len(shares.unique()) > 2


def test_equal_halves_stay_equal(tmp_path):
    """Resized too, and out of files."""
    write(tmp_path, ("train",), 6)
    for number in range(6):
        half = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(np.concatenate((half, half), 1)).save(tmp_path / "train" / f"{number}.png")
    stream = Stream(pairs("pairs", tmp_path, 32).train, 5, 0)
    batches = [stream.batch(step) for step in range(6)]
    for images, targets in batches:
        assert torch.equal(images, stream.samples.normalised(torch.stack(targets)))
    assert len({images.sum().item() for images, _ in batches}) == 6


def test_halves_do_not_run_into_each_other(tmp_path):
    """Black beside white: no gray comes over the border."""
    write(tmp_path, ("train",))
    for number in range(4):
        Image.fromarray(np.repeat(np.uint8([[[0], [255]]]), 3, 2).repeat(30, 0).repeat(40, 1)).save(
            tmp_path / "train" / f"{number}.png"
        )
    data = pairs("pairs", tmp_path, 16)
    images, targets = Stream(data.train, 3, 0).batch(0)
    assert (images == -1).all() and all((target == 255).all() for target in targets)
    image, target = data.val.fit(*data.val.source.read(0))
    assert (image == 0).all() and (target == 255).all()


def test_evaluation_sees_whole_pictures_squeezed(tmp_path):
    data = pairs("pairs", write(tmp_path, height=64, width=16), 16)
    image, target = data.val.fit(*data.val.source.read(0))
    assert torch.equal(image[1], torch.arange(16, dtype=torch.uint8).expand(16, 16))  # columns as they were
    centres = 4 * torch.arange(16) + 1.5  # rows of four averaged; antialiasing bends the ends
    assert (image[0, 1:-1].float() - centres[1:-1, None]).abs().max() <= 0.5 and (image[2] == 10).all()
    assert (image.int() + target.int() - 255).abs().max() <= 1


def test_batches_are_functions_of_seed_and_step_and_samples_travel(tmp_path):
    train = pairs("pairs", write(tmp_path), 16).train
    state = torch.get_rng_state()
    first, second, other = Stream(train, 2, 0), Stream(pickle.loads(pickle.dumps(train)), 2, 0), Stream(train, 2, 1)
    batches = [first.batch(step) for step in range(3)]
    torch.manual_seed(99)
    images, targets = second.batch(2)
    assert torch.equal(images, batches[2][0]) and torch.equal(torch.stack(targets), torch.stack(batches[2][1]))
    assert not torch.equal(images, batches[0][0]) and not torch.equal(images, other.batch(2)[0])
    torch.set_rng_state(state)
    assert pickle.loads(pickle.dumps(pairs("scenes", None, 16).train)).source.name(1) == "scene 1 of world 0"


# ---- bad input ---------------------------------------------------------------------------------------------


def huge_png(side: int = 30_000) -> bytes:
    """A PNG that says it is huge."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def spoil(path, how: str) -> None:
    """Make a picture file bad, in one of the ways of BAD or LATE."""
    whole = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "broken link":
        path.symlink_to(path.parent / "nowhere.png")
    elif how == "deep":
        Image.fromarray(np.zeros((24, 64), np.uint16)).save(path)
    else:
        path.write_bytes(
            {"empty": b"", "text": b"no picture", "huge": huge_png(), "cut": whole[: len(whole) // 2]}[how]
        )


BAD = {
    "empty": "the picture cannot be read .cannot identify",
    "text": "the picture cannot be read .cannot identify",
    "huge": "the picture cannot be read .*decompression bomb",
    "folder": "the picture cannot be read",
    "broken link": "there is no picture",
    "deep": "has pixels of more than 8 bits",
}
LATE = {"cut": "the picture cannot be read .*truncated"}  # seen in the pixels only


@pytest.mark.parametrize("how", BAD)
def test_files_that_are_no_pictures_are_refused_before_training_or_left_out(tmp_path, capsys, how):
    spoil(write(tmp_path) / "train" / "1.png", how)
    with pytest.raises(UserError, match=rf"1 of 4 pictures cannot be used: .*train/1.png: {BAD[how]}.*--bad-data skip"):
        pairs("pairs", tmp_path, 16)
    data = pairs("pairs", tmp_path, 16, bad="skip")
    assert data.train.indices.tolist() == [0, 2, 3] and list(data.train.skipped) == [str(tmp_path / "train" / "1.png")]
    assert "train/1.png is left out" in capsys.readouterr().err and not data.val.skipped


@pytest.mark.parametrize("how", LATE)
def test_bad_pixels_are_named_when_they_are_read(tmp_path, capsys, how):
    spoil(write(tmp_path) / "train" / "1.png", how)
    with pytest.raises(UserError, match=f"train/1.png: .*{LATE[how]}"):
        Stream(pairs("pairs", tmp_path, 16).train, 4, 0).batch(0)
    data = pairs("pairs", tmp_path, 16, bad="skip")
    assert sum(len(targets) for _, targets in in_order(data.train, 2)) == 3
    assert len(Stream(data.train, 4, 0).batch(0)[1]) == 4 and "train/1.png is left out" in capsys.readouterr().err


def test_an_odd_width_is_no_pair(tmp_path):
    Image.new("RGB", (63, 24)).save(write(tmp_path) / "val" / "2.png")
    with pytest.raises(UserError, match="val/2.png: has 63x24 pixels, an odd width; two pictures of one width"):
        pairs("pairs", tmp_path, 16)
    data = pairs("pairs", tmp_path, 16, bad="skip")
    assert data.val.indices.tolist() == [0, 1, 3]
    with pytest.raises(UserError, match="an odd width"):
        data.val.source.read(2)  # a file may change after it was looked at


def test_where_all_are_bad_the_first_is_named(tmp_path):
    write(tmp_path)
    for number in range(4):
        spoil(tmp_path / "val" / f"{number}.png", "text")
    with pytest.raises(
        UserError,
        match=r"none of the 4 pictures can be used, the first for this: .*val/0.png: the picture cannot be read",
    ):
        pairs("pairs", tmp_path, 16, bad="skip")


def test_only_some_of_many_bad_files_are_named(tmp_path):
    write(tmp_path, count=9)
    for number in range(8):
        spoil(tmp_path / "train" / f"{number}.png", "empty")
    with pytest.raises(UserError, match="8 of 9 pictures cannot be used") as error:
        pairs("pairs", tmp_path, 16)
    assert "4.png" in str(error.value) and "5.png" not in str(error.value) and "and 3 more" in str(error.value)


def test_unlike_sizes_modes_and_formats_are_legal_and_other_files_are_passed_over(tmp_path):
    write(tmp_path)
    Image.new("RGB", (100, 10), "red").save(tmp_path / "train" / "wide.jpg")
    Image.new("L", (2, 1), 80).save(tmp_path / "train" / "tiny.PNG")
    Image.new("RGBA", (20, 90), (9, 9, 9, 9)).save(tmp_path / "train" / "tall.webp")
    (tmp_path / "train" / "notes.txt").write_text("no picture")
    data = pairs("pairs", tmp_path, 16)
    assert len(data.train) == 7
    images, targets = Stream(data.train, 7, 0).batch(0)
    assert images.shape == (7, 3, 16, 16) and torch.stack(targets).shape == (7, 3, 16, 16)


def test_links_are_followed(tmp_path):
    write(tmp_path / "elsewhere")
    (tmp_path / "links" / "train").mkdir(parents=True)
    for number in range(4):
        (tmp_path / "links" / "train" / f"{number}.png").symlink_to(tmp_path / "elsewhere" / "train" / f"{number}.png")
    (tmp_path / "links" / "val").symlink_to(tmp_path / "elsewhere" / "val")
    data = pairs("pairs", tmp_path / "links", 16)
    assert len(data.train) == len(data.val) == 4 and data.train.source.read(3)[0][2, 0, 0] == 3


def test_mistakes_are_named(tmp_path):
    write(tmp_path / "single", ("train", "test"), count=1)
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "train" / "notes.txt").touch()
    write(tmp_path / "no train", ("val",))
    write(tmp_path / "empty val", ("train",))
    (tmp_path / "empty val" / "val").mkdir()
    for message, arguments in {
        "data: 'paris' is not known; choose one of scenes, pairs": ("paris",),
        "data_root: missing; data 'pairs' needs the folder": ("pairs",),
        "data_root: there is no folder .*nowhere$": ("pairs", tmp_path / "nowhere"),
        "data_root: there is no folder .*no train/train; .* should hold train": ("pairs", tmp_path / "no train"),
        r"data_root: .*empty/train holds no pictures \(.jpg, ": ("pairs", tmp_path / "empty"),
        "data_root: .*empty val/val holds no pictures": ("pairs", tmp_path / "empty val"),
        "data_root: train has fewer than two pictures": ("pairs", tmp_path / "single"),
        "train_images: 1, must be at least 2": ("scenes", None, 16, 0, 1),
        "direction: 'ab', must be one of a_to_b, b_to_a": ("scenes", None, 16, 0, None, 0, "refuse", "ab"),
    }.items():
        with pytest.raises(UserError, match=message):
            pairs(*arguments)
