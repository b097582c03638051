"""Images of two domains without pairs: both folders, independent crops, scenes in two styles."""

import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from tasks import scenes
from tasks.folders import CHANNELS
from tasks.samples import Stream, in_order
from tasks.unpaired import TONES, cartoon, photo, unpaired
from tests.tasks.test_pairs import BAD, LATE, coordinates, spoil


def write(root, splits=("train", "val", "test"), counts=(5, 3), height=24, width=32):
    """Pictures of `coordinates` in splitA and splitB; those of B are upside down in colour.

    The third channel numbers them.
    """
    for offset, split in enumerate(splits):
        for side, count in zip("AB", counts, strict=True):
            (root / f"{split}{side}").mkdir(parents=True)
            for number in range(count):
                picture = coordinates(height, width, 50 * offset + number)
                Image.fromarray(255 - picture if side == "B" else picture).save(
                    root / f"{split}{side}" / f"{number}.png"
                )
    return root


def numbers(part) -> list[tuple[int, int]]:
    """What the third channel says of each sample."""
    read = [part.source.read(index) for index in part.indices.tolist()]
    return [(int(a[2, 0, 0]), 255 - int(b[2, 0, 0])) for a, b in read]


# ---- layout ------------------------------------------------------------------------------------------------


def test_the_shorter_side_begins_again(tmp_path):
    data = unpaired("unpaired", write(tmp_path), 16)
    assert data.classes == CHANNELS and [len(part) for part in (data.train, data.val, data.test)] == [5, 5, 5]
    assert numbers(data.val) == [(50, 50), (51, 51), (52, 52), (53, 50), (54, 51)]
    a, b = data.test.source.read(1)
    assert torch.equal(a, torch.from_numpy(coordinates(24, 32, 101)).permute(2, 0, 1)) and torch.equal(b, 255 - a)
    assert data.val.source.name(3) == f"{tmp_path / 'valA' / '3.png'} with {tmp_path / 'valB' / '0.png'}"
    assert numbers(unpaired("unpaired", write(tmp_path / "other", counts=(2, 3)), 16).val) == [
        (50, 50),
        (51, 51),
        (50, 52),
    ]


def test_training_partners_are_drawn_by_the_seed(tmp_path):
    write(tmp_path, counts=(30, 20))
    first, again, other = (numbers(unpaired("unpaired", tmp_path, 16, seed).train) for seed in (0, 0, 1))
    assert first == again != other and [a for a, _ in first] == sorted(range(30), key=str)
    b = [b for _, b in first]
    assert sorted(b[:20]) == list(range(20)) and b[20:] == b[:10]
    assert sum(a == b for a, b in first[:20]) < 6  # neighbours by name meet no more than others


def test_validation_is_split_off_each_side_and_never_off_test(tmp_path):
    data = unpaired("unpaired", write(tmp_path, ("train", "test"), (40, 20)), 16, seed=3)
    train, val = numbers(data.train), numbers(data.val)
    for side, count in ((0, 40), (1, 20)):
        kept, off = {pair[side] for pair in train}, {pair[side] for pair in val}
        assert len(off) == count // 10 and not kept & off and kept | off == set(range(count))
    assert len(data.test) == 40
    few = numbers(unpaired("unpaired", tmp_path, 16, seed=3, train_images=6).train)
    assert (
        len(few) == 6
        and all(len({pair[side] for pair in few}) == 6 for side in (0, 1))
        and {a for a, _ in few} < {a for a, _ in train}
    )
    assert len(unpaired("unpaired", tmp_path, 16, train_images=30).train) == 30  # 18 of B, some of them twice


def test_a_folder_without_test_reports_val(tmp_path):
    assert unpaired("unpaired", write(tmp_path, ("train", "val")), 16).test is None


# ---- scenes ------------------------------------------------------------------------------------------------


def test_scenes_are_pictures_and_cartoons_of_other_scenes():
    data = unpaired("scenes", None, 32)
    assert [len(part) for part in (data.train, data.val, data.test)] == [2000, 200, 400]
    for part, world, size in ((data.train, 0, 36), (data.val, 1, 32), (data.test, 2, 32)):
        a, b = part.source.read(7)
        other = int(part.source.b.indices[7])
        assert torch.equal(a, photo(scenes.scene(world, 7, size)))
        assert torch.equal(b, cartoon(scenes.scene(world + 3, other, size))) and not torch.equal(
            b, cartoon(scenes.scene(world, other, size))
        )


def test_a_cartoon_of_one_colour_is_one_step_up_to_its_edges():
    paper = np.full((8, 8), 255, np.uint8)
    for colour, expected in (((100, 50, 0), (128, 64, 0)), ((255, 255, 255), (255, 255, 255)), ((0, 0, 0), (0, 0, 0))):
        scene = replace(scenes.scene(0, 0, 8), image=np.full((8, 8, 3), colour, np.uint8), edges=paper)
        assert (cartoon(scene) == torch.tensor(expected).view(3, 1, 1)).all()


@pytest.mark.parametrize("number", range(4))
def test_cartoons_have_few_tones_and_outlines_in_ink(number):
    scene = scenes.scene(0, number, 64)
    drawn, paper, ink = cartoon(scene), torch.from_numpy(scene.edges == 255), torch.from_numpy(scene.edges == 0)
    assert drawn.dtype == torch.uint8 and drawn.shape == (3, 64, 64) and (drawn[:, ink] == 0).all()
    tones = drawn.amax(0)[paper].int()
    steps = torch.arange(1, TONES + 1) * 255 // TONES
    assert (tones[:, None] - steps).abs().amin(1).max() <= 1 and len(tones.unique()) > 1
    # colours keep their hue: one factor for all three channels
    smooth = torch.nn.functional.avg_pool2d(photo(scene).double(), 3, 1)
    inside = drawn[:, 1:-1, 1:-1].double()
    mixed = inside * smooth.amax(0) - smooth * inside.amax(0)
    assert mixed.abs().max() <= 2 * smooth.amax()


# ---- what pictures go through ------------------------------------------------------------------------------


def test_crops_and_mirrors_of_both_are_independent():
    augment = unpaired("scenes", None, 32).train.augment
    picture = torch.from_numpy(coordinates(36, 36)).permute(2, 0, 1)
    torch.manual_seed(0)
    rows = []
    for _ in range(600):
        found = []
        for image in augment(picture, picture):
            mirrored = bool(image[1, 0, 0] > image[1, 0, -1])
            upright = image.flip(2) if mirrored else image
            top, left = upright[:2, 0, 0].tolist()
            assert torch.equal(upright, picture[:, top : top + 32, left : left + 32])
            found += [top, left, mirrored]
        rows.append(found)
    correlation = np.corrcoef(np.array(rows, float).T)
    assert np.abs(correlation - np.eye(6)).max() < 0.15  # of 600 independent draws: a standard deviation of 0.04
    assert all(set(column) == set(range(5)) for column in np.array(rows).T[[0, 1, 3, 4]].tolist())


def test_both_lie_between_minus_one_and_one_at_the_size_of_the_input(tmp_path):
    write(tmp_path)
    Image.new("RGB", (90, 7), "white").save(tmp_path / "valA" / "0.png")  # sizes and shapes may differ
    Image.new("L", (1, 1), 0).save(tmp_path / "valB" / "0.png")
    Image.new("RGB", (7, 90), "white").save(tmp_path / "trainA" / "0.jpg")
    data = unpaired("unpaired", tmp_path, 16)
    images, targets = next(in_order(data.val, 5))
    targets = data.val.normalised(torch.stack(targets))
    assert images.shape == targets.shape == (5, 3, 16, 16) and (images[0] == 1).all() and (targets[0] == -1).all()
    assert Stream(data.train, 6, 0).batch(0)[0].shape == (6, 3, 16, 16)


def test_batches_are_functions_of_seed_and_step_and_samples_travel(tmp_path):
    train = unpaired("unpaired", write(tmp_path), 16).train
    state = torch.get_rng_state()
    first, second, other = Stream(train, 2, 0), Stream(pickle.loads(pickle.dumps(train)), 2, 0), Stream(train, 2, 1)
    batches = [first.batch(step) for step in range(3)]
    torch.manual_seed(99)
    images, targets = second.batch(2)
    assert torch.equal(images, batches[2][0]) and torch.equal(torch.stack(targets), torch.stack(batches[2][1]))
    assert not torch.equal(images, batches[0][0]) and not torch.equal(images, other.batch(2)[0])
    torch.set_rng_state(state)
    again = pickle.loads(pickle.dumps(unpaired("scenes", None, 16).train))
    assert again.source.name(0).startswith("scene 0 of world 0 with scene ") and again.source.read(0)[1].shape == (
        3,
        18,
        18,
    )


# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", "AB")
@pytest.mark.parametrize("how", BAD)
def test_files_that_are_no_pictures_are_refused_before_training_or_left_out(tmp_path, capsys, how, side):
    spoil(write(tmp_path, counts=(4, 4)) / f"train{side}" / "1.png", how)
    with pytest.raises(
        UserError, match=rf"1 of 4 pictures cannot be used: .*train{side}/1.png: {BAD[how]}.*--bad-data skip"
    ):
        unpaired("unpaired", tmp_path, 16)
    data = unpaired("unpaired", tmp_path, 16, bad="skip")
    seen = [set(column) for column in zip(*numbers(data.train), strict=True)]
    assert seen["AB".index(side)] == {0, 2, 3} and seen["BA".index(side)] == {0, 1, 2, 3} and len(data.train) == 4
    assert list(data.train.skipped) == [str(tmp_path / f"train{side}" / "1.png")] and not data.val.skipped
    assert f"train{side}/1.png is left out" in capsys.readouterr().err


@pytest.mark.parametrize("side", "AB")
@pytest.mark.parametrize("how", LATE)
def test_bad_pixels_are_named_when_they_are_read(tmp_path, capsys, how, side):
    spoil(write(tmp_path) / f"val{side}" / "1.png", how)
    with pytest.raises(UserError, match=rf"valA/1.png with .*valB/1.png: .*val{side}/1.png: .*{LATE[how]}"):
        list(in_order(unpaired("unpaired", tmp_path, 16).val, 4))
    data = unpaired("unpaired", tmp_path, 16, bad="skip")
    # picture 1 of B comes twice
    assert sum(len(targets) for _, targets in in_order(data.val, 2)) == (4 if side == "A" else 3)
    assert f"val{side}/1.png: " in capsys.readouterr().err


def test_where_all_of_a_side_are_bad_the_first_is_named(tmp_path):
    write(tmp_path)
    for number in range(3):
        spoil(tmp_path / "trainB" / f"{number}.png", "text")
    with pytest.raises(
        UserError,
        match="none of the 3 pictures can be used, the first for this: .*trainB/0.png: the picture cannot be read",
    ):
        unpaired("unpaired", tmp_path, 16, bad="skip")


def test_links_are_followed_and_other_files_are_passed_over(tmp_path):
    write(tmp_path / "elsewhere")
    (tmp_path / "links").mkdir()
    for side in "AB":
        (tmp_path / "links" / f"train{side}").symlink_to(tmp_path / "elsewhere" / f"train{side}")
    (tmp_path / "elsewhere" / "trainA" / "notes.txt").write_text("no picture")
    (tmp_path / "links" / "notes.txt").touch()
    data = unpaired("unpaired", tmp_path / "links", 16)
    assert len(data.train.source.a) == 4 and len(data.val) == 1 and data.test is None


def test_mistakes_are_named(tmp_path):
    for name, folder in (("no trainA", "trainA"), ("no trainB", "trainB"), ("no testB", "testB"), ("no valA", "valA")):
        shutil.rmtree(write(tmp_path / name) / folder)
    write(tmp_path / "single", ("train",), (4, 1))
    write(tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty" / "testA")
    (tmp_path / "empty" / "testA").mkdir()
    for message, arguments in {
        "data: 'pairs' is not known; choose one of scenes, unpaired": ("pairs",),
        "data_root: missing; data 'unpaired' needs the folder": ("unpaired",),
        "data_root: there is no folder .*nowhere$": ("unpaired", tmp_path / "nowhere"),
        "there is no folder .*/trainA; .* should hold trainA and trainB": ("unpaired", tmp_path / "no trainA"),
        "there is no folder .*/trainB; ": ("unpaired", tmp_path / "no trainB"),
        "there is no folder .*/testB; ": ("unpaired", tmp_path / "no testB"),
        "there is no folder .*/valA; ": ("unpaired", tmp_path / "no valA"),
        "data_root: .*testA holds no pictures": ("unpaired", tmp_path / "empty"),
        "data_root: train has fewer than two pictures": ("unpaired", tmp_path / "single"),
        "train_images: 1, must be at least 2": ("scenes", None, 16, 0, 1),
    }.items():
        with pytest.raises(UserError, match=message):
            unpaired(*arguments)
