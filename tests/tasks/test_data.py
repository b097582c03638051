"""Data sources and streams: batches are pure functions of (seed, step), splits never mix, mistakes are named."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.errors import UserError
from tasks import data as data_module
from tasks import pictures
from tasks.data import classification, num_classes
from tasks.pictures import (
    Lazy,
    Memory,
    Stream,
    balanced,
    crop_windows,
    fit_square,
    generator,
    in_order,
    labelled,
    resized_crops,
    subset,
)
from tests.strategies import examples


def memory(count: int = 20, size: int = 8, classes: int = 4) -> Memory:
    images = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return Memory(images, torch.arange(count) % classes, size, torch.full((3,), 0.5), torch.full((3,), 0.25))


def write_folder(root, splits=("train", "val", "test"), classes=("cat", "dog"), count=6, size=(8, 8)):
    random = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(
                    root / split / name / f"{i}.png"
                )
    return root


# ---- streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [False, True])
def test_a_batch_depends_on_seed_and_step_alone(augment):
    stream, other = (Stream(memory(), 6, seed=1, augment=augment) for _ in range(2))
    expected = [stream.batch(step) for step in range(8)]
    for step in (7, 2, 5, 2):
        x, y = other.batch(step)
        assert torch.equal(x, expected[step][0]) and torch.equal(y, expected[step][1])
    assert not torch.equal(Stream(memory(), 6, seed=2, augment=augment).batch(0)[0], expected[0][0])


def test_each_step_augments_anew():
    stream = Stream(memory(1), 1, seed=0)
    assert len({stream.batch(step)[0].numpy().tobytes() for step in range(20)}) > 10


def test_an_epoch_shows_each_picture_once_and_the_next_in_another_order():
    shown = Stream(memory(20, classes=20), 5, seed=0, augment=False)
    epochs = [
        torch.cat([shown.batch(e * shown.steps_per_epoch + i)[1] for i in range(shown.steps_per_epoch)])
        for e in range(2)
    ]
    assert all(torch.equal(e.sort().values, torch.arange(20)) for e in epochs)
    assert not torch.equal(*epochs)


def test_an_incomplete_last_batch_is_dropped_but_a_small_set_makes_one_batch():
    assert Stream(memory(20), 6, 0).steps_per_epoch == 3
    small = Stream(memory(4), 6, 0)
    assert (small.steps_per_epoch, small.batch_size, len(small.batch(3)[1])) == (1, 4, 4)


def test_batches_are_normalised_and_channels_last():
    source = memory()
    x, y = labelled(source, torch.tensor([3, 1]))
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(x, (source.images[[3, 1]] / 255 - 0.5) / 0.25, atol=1e-6) and y.tolist() == [3, 1]


def test_evaluation_goes_through_every_picture_in_order():
    batches = list(in_order(memory(20), 8))
    assert [len(y) for _, y in batches] == [8, 8, 4]
    assert torch.equal(torch.cat([y for _, y in batches]), memory(20).labels)


# ---- augmentation ------------------------------------------------------------------------------------------


def test_small_pictures_are_shifted_up_to_four_pixels_and_mirrored():
    size = 6
    image = torch.arange(1, size * size + 1, dtype=torch.uint8).view(1, 1, size, size).expand(-1, 3, -1, -1)
    padded = torch.nn.functional.pad(image, (4,) * 4)
    legal = {}
    for dy in range(9):
        for dx in range(9):
            window = padded[0, 0, dy : dy + size, dx : dx + size]
            legal[window.numpy().tobytes()] = legal[window.flip(1).contiguous().numpy().tobytes()] = (dy, dx)
    out = pictures.shift_and_flip(image.repeat(400, 1, 1, 1), generator(0))
    seen = {bytes(x[0].contiguous().numpy().tobytes()) for x in out}
    assert seen <= set(legal) and {legal[s] for s in seen} >= {(0, 0), (8, 8), (4, 4)} and len(seen) > 100
    assert torch.equal(out[:, 0], out[:, 2])  # the same for all channels


@given(u=st.lists(st.floats(0, 0.999), min_size=4, max_size=4), width=st.integers(20, 500), height=st.integers(20, 500))
def test_crop_windows_lie_inside_and_have_legal_areas(u, width, height):
    x0, y0, x1, y1 = crop_windows(torch.tensor([u]), width, height)[0].tolist()
    assert -1e-6 <= x0 < x1 <= 1 + 1e-6 and -1e-6 <= y0 < y1 <= 1 + 1e-6
    w, h = x1 - x0, y1 - y0
    area = 0.08 + 0.92 * u[0]
    assert w * h <= area + 1e-4
    if w < 0.999 and h < 0.999:  # nothing was cut off
        assert w * h == pytest.approx(area, rel=1e-3) and 0.749 < w * width / (h * height) < 1.334


def test_a_whole_window_is_the_picture_and_its_mirror():
    images = memory(2, 70).images
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(2, 1)
    out = resized_crops(images, whole, torch.tensor([False, True]), 70)
    assert torch.equal(out[0], images[0]) and torch.equal(out[1], images[1].flip(-1))


def test_a_quarter_window_shows_that_quarter():
    images = torch.zeros(1, 3, 80, 80, dtype=torch.uint8)
    images[:, :, :40, 40:] = 200
    out = resized_crops(images, torch.tensor([[0.5, 0.0, 1.0, 0.5]]), torch.tensor([False]), 20)
    assert out.float().mean() > 195


def test_large_pictures_are_evaluated_on_their_centre():
    image = np.zeros((512, 256 * 3, 3), np.uint8)
    image[32:480, 160:608] = 255  # 448 of the shorter side, 512
    assert (fit_square(Image.fromarray(image), 224, pictures.CENTRE) > 250).mean() > 0.98
    assert pictures.stored_size(224) == 256 and pictures.stored_size(32) == 32
    stored = Memory(
        torch.arange(256).to(torch.uint8).expand(1, 3, 256, 256), torch.zeros(1), 224, torch.zeros(3), torch.ones(3)
    )
    assert torch.equal(stored.pixels(torch.tensor([0]))[0, 0, 0], torch.arange(16, 240).to(torch.uint8))


@pytest.mark.parametrize("size", [8, 112])
def test_pictures_read_when_needed_train_like_decoded_ones(size):
    held = memory(12, pictures.stored_size(size))
    decoded = Memory(held.images, held.labels, size, held.mean, held.std)
    arrays = held.images.permute(0, 2, 3, 1).numpy()
    lazy = Lazy(lambda key: Image.fromarray(arrays[key]), torch.arange(12), held.labels, size, held.mean, held.std)
    assert (lazy.pixels(torch.arange(12)).int() - decoded.pixels(torch.arange(12)).int()).abs().max() <= (
        0 if size == 8 else 1
    )
    a, b = Stream(lazy, 4, 0), Stream(decoded, 4, 0)
    for step in (0, 1, 5, 6, 2):
        (x, y), (expected, labels) = a.batch(step), b.batch(step)
        assert torch.equal(y, labels) and x.shape == (4, 3, size, size)
        assert size == 112 or torch.equal(x, expected)
        assert torch.equal(x, Stream(lazy, 4, 0).batch(step)[0])  # read ahead or not


# ---- subsets and splits ------------------------------------------------------------------------------------


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), count=st.integers(1, 70), seed=st.integers(0, 99))
@examples(100)
def test_a_balanced_part_takes_equally_from_each_class(labels, count, seed):
    labels = torch.tensor(labels)
    chosen = balanced(labels, count, seed)
    assert len(chosen) == min(count, len(labels)) == len(chosen.unique()) and torch.equal(chosen, chosen.sort().values)
    taken, there = labels[chosen].bincount(minlength=5), labels.bincount(minlength=5)
    for c in range(5):  # a class has fewer than another only if it has no more
        assert taken[c] == there[c] or taken[c] >= taken.max() - 1


def test_subsets_follow_the_seed():
    labels = torch.arange(200) % 4
    assert torch.equal(balanced(labels, 40, 1), balanced(labels, 40, 1))
    assert not torch.equal(balanced(labels, 40, 1), balanced(labels, 40, 2))
    assert (
        len(subset(memory(20), 100, 0)) == len(subset(memory(20), None, 0)) == 20 and len(subset(memory(20), 8, 0)) == 8
    )


def test_a_missing_validation_part_is_split_out_of_train(tmp_path):
    root = write_folder(tmp_path, splits=("train",), count=20)
    a, b = classification("imagefolder", root, 8, seed=0), classification("imagefolder", root, 8, seed=0)
    assert a.test is None and list(a.held_out) == ["val"] and (len(a.train), len(a.val)) == (36, 4)
    assert a.val.labels.bincount().tolist() == [2, 2] and torch.equal(a.val.images, b.val.images)
    everything = torch.cat([a.train.images, a.val.images]).flatten(1)
    assert len(everything.unique(dim=0)) == 40
    assert not torch.equal(a.val.images, classification("imagefolder", root, 8, seed=1).val.images)


def test_folders_with_all_splits_are_taken_as_they_are(tmp_path):
    found = classification("imagefolder", write_folder(tmp_path, size=(12, 9)), 8, train_images=4)
    assert (
        found.classes == ("cat", "dog")
        and list(found.held_out) == ["val", "test"]
        and num_classes("imagefolder", tmp_path) == 2
    )
    assert (len(found.train), len(found.val), len(found.test)) == (4, 12, 12) and found.train.labels.tolist() == [
        0,
        0,
        1,
        1,
    ]
    x = torch.cat([x for x, _ in in_order(found.train, 4)])
    assert x.mean((0, 2, 3)).abs().max() < 1e-3 and (x.std((0, 2, 3)) - 1).abs().max() < 1e-2


def test_large_splits_are_read_as_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(data_module, "MEMORY_BYTES", 12 * 3 * 8 * 8 - 1)
    found = classification("imagefolder", write_folder(tmp_path), 8)
    assert isinstance(found.train, Lazy)
    monkeypatch.undo()
    assert torch.equal(found.train.pixels(torch.arange(12)), classification("imagefolder", tmp_path, 8).train.images)


def test_scenes_need_nothing_and_their_splits_are_worlds_apart(monkeypatch):
    monkeypatch.setattr(data_module, "SCENES", {"train": 60, "val": 20, "test": 30})
    found = classification(input_size=16)
    assert (len(found.train), len(found.val), len(found.test)) == (60, 20, 30) and len(
        found.classes
    ) == num_classes() == 10
    assert found.val.labels.bincount().tolist() == [2] * 10
    assert torch.equal(found.val.images, classification(input_size=16, seed=5).val.images)  # one test for every run
    assert not torch.equal(found.train.images[:20], found.val.images)
    assert len(classification(input_size=16, train_images=20).train) == 20


def fake_cifar(calls):
    class Fake:
        base_folder = "cifar-10-batches-py"
        classes = ["a", "b"]

        def __init__(self, root, train, download=False):
            calls.append((train, download))
            if root.name == "absent":
                raise RuntimeError("Dataset not found or corrupted.")
            self.data = np.full((40 if train else 10, 32, 32, 3), 7 if train else 9, np.uint8)
            self.targets = [i % 2 for i in range(len(self.data))]

    return Fake


def test_cifar_comes_from_torchvision_and_is_fetched_only_when_asked(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("torchvision.datasets.CIFAR10", fake_cifar(calls))
    found = classification("cifar10", tmp_path, 32)
    assert (len(found.train), len(found.val), len(found.test)) == (
        36,
        4,
        10,
    ) and found.test.images.unique().tolist() == [9]
    classification("cifar10", tmp_path, 32, download=True)
    assert calls == [(True, False), (False, False), (True, True), (False, False)]
    with pytest.raises(UserError, match="absent does not hold torchvision's cifar10 .* --download"):
        classification("cifar10", tmp_path / "absent", 32)


# ---- mistakes ----------------------------------------------------------------------------------------------


def _cut(root):
    path = root / "test" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:60])


def _foreign(root):
    (root / "val" / "cat" / "0.png").write_bytes(b"no picture at all")


def _empty_class(root):
    (root / "train" / "eel").mkdir()


def _unlike(root):
    (root / "val" / "dog").rename(root / "val" / "fox")


def _flat(root):
    (root / "train").rename(root / "pictures")
    (root / "train").mkdir()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (_cut, r"test/dog/3\.png cannot be read as a picture"),
        (_foreign, r"val/cat/0\.png cannot be read as a picture"),
        (_empty_class, r"train: .*eel"),
        (_unlike, r"val and .*train must have the same class folders; only one has dog, fox"),
        (_flat, r"train holds no class folders; put pictures into"),
        (
            lambda root: (root / "train").rename(root / "other"),
            r"there is no folder .*train; an image folder holds train/<class>/<picture>",
        ),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_broken_folders_are_named(tmp_path, monkeypatch, spoil, message, lazy):
    spoil(write_folder(tmp_path))
    monkeypatch.setattr(data_module, "MEMORY_BYTES", 0 if lazy else 10**9)
    with pytest.raises(UserError, match=message):
        found = classification("imagefolder", tmp_path, 8)
        for part in found.held_out.values():
            list(in_order(part, 4))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"data": "imagenet"}, "data: 'imagenet' is not known; choose one of scenes, imagefolder, cifar10, cifar100"),
        ({"data": "imagefolder"}, "data_root: missing; data 'imagefolder' needs the folder"),
        ({"train_images": 1}, "train_images: 1, must be at least 2"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        classification(**arguments)


def test_a_validation_part_needs_two_pictures_of_a_class(tmp_path):
    root = write_folder(tmp_path, splits=("train",), count=1)
    with pytest.raises(UserError, match="add a folder val"):
        classification("imagefolder", root, 8)


def test_the_training_part_alone_is_the_same_and_opens_no_held_out_picture(tmp_path, monkeypatch):
    from tasks import data as module

    whole = classification("scenes", input_size=32, train_images=50)
    decoded = []
    decode = module._decode
    monkeypatch.setattr(module, "_decode", lambda source, size: decoded.append(source.name) or decode(source, size))
    alone = module.training_pictures("scenes", input_size=32, train_images=50)
    assert decoded == ["train"]
    assert torch.equal(alone.images, whole.train.images) and torch.equal(alone.mean, whole.mean)
