"""The embedded data: a pure function of (seed, index, size), truth that fits the image, classes by shape."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import scenes
from tasks.scenes import CLASSES, scene
from tests.strategies import examples


def test_the_hash_is_splitmix64():
    golden = 0x9E3779B97F4A7C15
    state = np.array([golden, 2 * golden % 2**64], dtype=np.uint64)
    assert [hex(z) for z in scenes._finalise(state)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


@given(seed=st.integers(0, 2**31), index=st.integers(0, 10**7), size=st.sampled_from([8, 32, 33]))
@examples(15)
def test_a_scene_does_not_depend_on_its_company(seed, index, size):
    alone = scene(seed, index, size)
    batch = scenes.scenes(seed, np.array([index + 3, index, 5]), size)
    assert np.array_equal(alone.image, batch.images[1].transpose(1, 2, 0))
    assert np.array_equal(alone.edges, batch.edges[1])
    assert alone.label == batch.labels[1] == scenes.labels(seed, np.array([index]))[0]


def test_painting_many_equals_painting_one():
    indices = np.arange(100, 170)  # more than one piece
    many = scenes.images(3, indices, 32)
    assert many.shape == (70, 3, 32, 32) and many.dtype == np.uint8
    for i in (0, 33, 69):
        assert np.array_equal(many[i].transpose(1, 2, 0), scene(3, int(indices[i]), 32).image)


def test_seeds_and_indices_give_different_pictures():
    pictures = {scene(seed, index, 16).image.tobytes() for seed in range(3) for index in range(20)}
    assert len(pictures) == 60


def test_every_ten_scenes_hold_each_class_once():
    labels = scenes.labels(0, np.arange(1000)).reshape(100, 10)
    assert (np.sort(labels, axis=1) == np.arange(len(CLASSES))).all()
    assert len({tuple(row) for row in labels}) > 50  # in changing order


def test_a_scene_looks_alike_at_every_size():
    small = scenes.images(0, np.arange(40), 32).astype(float)
    large = scenes.images(0, np.arange(40), 64).astype(float).reshape(40, 3, 32, 2, 32, 2).mean((3, 5))
    other = np.roll(small, 1, axis=0)
    assert np.abs(small - large).mean() < 0.3 * np.abs(small - other).mean()


@pytest.mark.parametrize("index", range(12))
def test_boxes_are_tight_around_what_is_seen(index):
    s = scene(1, index, 96)
    batch = scenes.scenes(1, np.array([index]), 96)
    assert len(s.boxes) == len(s.box_labels) >= 1
    for (x0, y0, x1, y1), label in zip(s.boxes.astype(int), s.box_labels):
        inside = s.mask[y0:y1, x0:x1] == label + 1
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
    ids, classes = batch.ids[0], batch.classes[0]
    assert np.array_equal(s.mask > 0, ids > 0)
    assert all((classes[k] + 1 == s.mask[ids == k]).all() for k in range(1, len(classes)))


def test_the_label_is_the_class_of_the_largest_object():
    largest = []
    for index in range(100):
        s = scene(2, index, 48)
        sizes = np.bincount(s.mask.ravel(), minlength=11)[1:]
        largest.append(sizes.argmax() == s.label)
    assert np.mean(largest) > 0.97  # occlusion may hide most of the main object


def test_edges_are_inked_where_the_mask_changes():
    for index in range(10):
        s = scene(0, index, 128)
        change = s.mask[:, 1:] != s.mask[:, :-1]
        ink = np.minimum(s.edges[:, 1:], s.edges[:, :-1]) < 160
        assert ink[change].mean() > 0.95 and ink.mean() < 0.35


def test_outlines_are_signed_distances():
    x, y = np.meshgrid(np.linspace(-1.4, 1.4, 29), np.linspace(-1.4, 1.4, 29))
    outlines = scenes._outlines()
    assert tuple(outlines) == CLASSES
    disc = scenes._distance_to(outlines["disc"], x.ravel(), y.ravel())
    assert np.allclose(disc, np.hypot(x, y).ravel() - 0.9, atol=2e-3)  # a polygon of 60 corners
    ring = scenes._distance_to(outlines["ring"], np.array([0.0, 0.76, 1.2]), np.zeros(3))
    assert np.allclose(ring, [0.52, -0.24, 0.2], atol=2e-3)
    square = scenes._distance_to(outlines["square"], np.array([0.0, 0.82, 1.82]), np.array([0.0, 0.5, 1.82]))
    assert np.allclose(square, [-0.82, 0.0, 2**0.5], atol=1e-6)


def test_outlines_fit_into_the_atlas():
    for loops in scenes._outlines().values():
        assert 0.8 < max(np.abs(loop).max() for loop in loops) < scenes.EXTENT - 0.1


def _probe(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Accuracy of ridge regression on one-hot labels."""
    mean, std = train.mean(0), train.std(0) + 1e-6
    a, b = (np.c_[(x - mean) / std, np.ones(len(x))] for x in (train, test))
    weights = np.linalg.solve(a.T @ a + 0.03 * len(a) * np.eye(a.shape[1]), a.T @ np.eye(10)[train_labels])
    return float(((b @ weights).argmax(1) == test_labels).mean())


def test_colour_does_not_reveal_the_class_and_shape_does():
    indices = np.arange(3000)
    images, labels = scenes.images(0, indices, 32).astype(np.float32), scenes.labels(0, indices)
    total = images.sum((2, 3))
    colour = total / total.sum(1, keepdims=True)
    colour = np.c_[colour, colour**2]
    shape = images.mean(1).reshape(-1, 16, 2, 16, 2).mean((2, 4)).reshape(len(images), -1)
    first, rest = slice(0, 2000), slice(2000, None)
    assert _probe(colour[first], labels[first], colour[rest], labels[rest]) < 0.16
    assert 0.2 < _probe(shape[first], labels[first], shape[rest], labels[rest]) < 0.6
