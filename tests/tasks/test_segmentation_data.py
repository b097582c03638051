"""Class weights, statistics and augmentation: image and mask stay together."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.tv_tensors import Mask

from tasks.mask_sources import Painted
from tasks.masks import IGNORE, RandomSquare, _span, class_weights, segmentation, training, weights_of
from tasks.samples import Stream, in_order
from tests.strategies import examples
from tests.tasks.segmentation_folders import blobs, nearest, picture, write

# ---- weights, statistics -----------------------------------------------------------------------------------


def test_weights_are_enets_on_cityscapes_shares():
    """Published weights of Cityscapes for 1.10 give the shares; the shares give those published for 1.02."""
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


@examples(200)
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
