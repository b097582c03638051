"""Fitting and augmentation: what they do to boxes."""

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from tasks import box_transforms
from tasks.box_transforms import Augment, Fit, Window, iou_window, look, zoomed_out
from tasks.boxes import detection
from tasks.samples import Stream, in_order
from tests.tasks.detection_folders import HEIGHT, WIDTH, write_voc


def test_evaluation_squeezes_pictures_and_leaves_boxes_alone(tmp_path):
    found = detection("voc", write_voc(tmp_path, train=4, val=3), 16)
    images, targets = next(in_order(found.val, 3))
    assert images.shape == (3, 3, 16, 16) and images.is_contiguous(memory_format=torch.channels_last)
    assert targets[0]["boxes"].tolist() == [[4, 2, 20, 30], [20, 1, 48, 32]] and targets[0]["size"].tolist() == [
        HEIGHT,
        WIDTH,
    ]
    pixels = torch.cat([x for x, _ in in_order(found.train, 4)])
    assert pixels.mean((0, 2, 3)).abs().max() < 1e-4
    assert (
        found.train.augment.fill == tuple((255 * found.mean).round().int().tolist())
        and found.val.augment.fill is not None
    )


def test_a_training_batch_follows_from_seed_and_step(tmp_path):
    root = write_voc(tmp_path, train=6, val=1)
    first, again = (Stream(detection("voc", root, 16).train, 3, 0) for _ in range(2))
    for step in (3, 0):
        (x, targets), (y, others) = first.batch(step), again.batch(step)
        assert torch.equal(x, y) and all(torch.equal(a[name], b[name]) for a, b in zip(targets, others) for name in a)
    assert not torch.equal(first.batch(0)[0], first.batch(2)[0])


def painted(width, height):
    """Red, green and blue rectangles on black, and their boxes."""
    places = {0: (0.05, 0.1, 0.3, 0.5), 1: (0.4, 0.15, 0.65, 0.9), 2: (0.7, 0.55, 0.95, 0.95)}
    image, rows = torch.zeros(3, height, width, dtype=torch.uint8), []
    for channel, place in places.items():
        x0, y0, x1, y1 = (round(share * side) for share, side in zip(place, (width, height) * 2))
        image[channel, y0:y1, x0:x1] = 255
        rows.append([x0, y0, x1, y1])
    no = torch.zeros(3, dtype=torch.bool)
    target = {"boxes": torch.tensor(rows).float(), "labels": torch.tensor([0, 1, 2]), "difficult": no, "crowd": no}
    return image, target | {"size": torch.tensor([height, width]), "number": torch.tensor(0)}


def enclosing(channel):
    rows, columns = (channel > 127).any(1).nonzero()[:, 0], (channel > 127).any(0).nonzero()[:, 0]
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


@pytest.mark.parametrize("width, height", [(200, 150), (90, 240), (64, 64)])
def test_augmented_boxes_enclose_their_colours(monkeypatch, width, height):
    monkeypatch.setattr(box_transforms, "distort", lambda image: image)
    torch.manual_seed(width)
    size, augment, kept, worst = 96, Augment(96, (0, 0, 0)), [], 0.0
    for _ in range(150):
        image, target = augment(*painted(width, height))
        assert image.shape == (3, size, size) and image.dtype == torch.uint8
        assert target["boxes"].min() >= 0 and target["boxes"].max() <= size
        assert len(target["boxes"]) == len(target["labels"]) == len(target["difficult"]) == len(target["crowd"])
        for box, label in zip(target["boxes"], target["labels"].tolist()):
            if (box[2:] - box[:2]).min() > 4:  # less is too small to be seen whole
                worst = max(worst, (box - enclosing(image[label])).abs().max().item())
        kept.append(len(target["labels"]))
    assert worst < 2 and min(kept) < 3 and max(kept) == 3


def test_boxes_go_exactly_when_their_centre_leaves_the_window():
    _, target = painted(200, 150)
    window = Window(left=35, top=0, width=100, height=150)  # centres at x 35, 105, 165
    seen = box_transforms.seen(target, window, 50)
    assert seen["labels"].tolist() == [1] and seen["boxes"].tolist() == [[22.5, pytest.approx(22 / 3), 47.5, 45]]
    assert box_transforms.seen(target, window._replace(left=34), 50)["labels"].tolist() == [0, 1]
    # less than a pixel
    assert box_transforms.seen(target, Window(-2000, -1000, 6000, 6000), 50)["labels"].tolist() == []


def test_difficult_objects_and_crowds_are_not_trained_on():
    image, target = painted(64, 64)
    target |= {"difficult": torch.tensor([True, False, False]), "crowd": torch.tensor([False, True, False])}
    torch.manual_seed(0)
    labels = [Augment(32, (0, 0, 0))(image, target)[1]["labels"].tolist() for _ in range(20)]
    assert [2] in labels and all(row in ([2], []) for row in labels)
    assert Fit(32)(image, target)[1]["labels"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (2, 500), (7, 9)])
def test_pictures_without_objects_and_tiny_ones_are_augmented(size):
    none = torch.zeros(0, dtype=torch.bool)
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "difficult": none, "crowd": none}
    full = {
        "boxes": torch.tensor([[0.0, 0, size[1], size[0]]]),
        "labels": torch.tensor([1]),
        "difficult": torch.tensor([False]),
        "crowd": torch.tensor([False]),
    }
    torch.manual_seed(0)
    image = torch.full((3, *size), 200, dtype=torch.uint8)
    for _ in range(40):
        for there in (target, full):
            out, found = Augment(32, (9, 9, 9))(image, there)
            assert out.shape == (3, 32, 32) and found["boxes"].shape == (len(found["labels"]), 4)


@pytest.mark.parametrize("least", [0.1, 0.5, 0.9])
def test_the_least_iou_of_a_crop_holds(monkeypatch, least):
    monkeypatch.setattr(box_transforms, "LEAST_IOU", (least,))
    torch.manual_seed(0)
    there = torch.tensor([[10.0, 20, 180, 140], [100.0, 5, 190, 60]])
    for _ in range(60):
        x0, y0, w, h = iou_window(Window(0, 0, 200, 150), there)
        assert 0 <= x0 and 0 <= y0 and x0 + w <= 200 and y0 + h <= 150 and 0.5 <= w / h <= 2 and w >= 60 and h >= 45
        best = 0.0
        for a0, b0, a1, b1 in there.tolist():
            inside = x0 < (a0 + a1) / 2 < x0 + w and y0 < (b0 + b1) / 2 < y0 + h
            shared = max(0, min(a1, x0 + w) - max(a0, x0)) * max(0, min(b1, y0 + h) - max(b0, y0))
            best = max(best, inside * shared / ((a1 - a0) * (b1 - b0) + w * h - shared))
        assert best >= least - 1e-6


def test_crops_and_canvases_are_drawn_as_torchvision_draws_them():
    """Mean share of the picture that is seen, and of the canvas that is picture, over many draws."""
    torch.manual_seed(0)
    there = tv_tensors.BoundingBoxes([[10.0, 20, 180, 140], [100.0, 5, 190, 60]], format="XYXY", canvas_size=(150, 200))
    library, count = v2.RandomIoUCrop(), 600

    def share(crop):
        return crop["height"] * crop["width"] / 30_000 if crop else 1.0

    expected = torch.tensor([share(library.make_params([there])) for _ in range(count)])
    windows = [iou_window(Window(0, 0, 200, 150), there.as_subclass(torch.Tensor)) for _ in range(count)]
    found = torch.tensor([window.width * window.height / 30_000 for window in windows])
    assert abs(found.mean() - expected.mean()) < 4 * (2 / count) ** 0.5 * expected.std()
    assert abs((found == 1).float().mean() - (expected == 1).float().mean()) < 4 * (2 / count) ** 0.5 * 0.5
    canvases = [zoomed_out(200, 150) for _ in range(count)]
    times = torch.tensor([canvas.width / 200 for canvas in canvases])
    assert (
        0.42 < (times == 1).float().mean() < 0.58
        and times[times > 1].mean() == pytest.approx(2.5, abs=0.25)
        and times.max() <= 4
    )
    assert all(c.left <= 0 and c.left + c.width >= 200 and c.top <= 0 and c.top + c.height >= 150 for c in canvases)


def test_beyond_the_picture_there_is_the_mean_colour():
    image = torch.full((3, 20, 10), 200, dtype=torch.uint8)
    out = look(image, Window(left=-10, top=0, width=40, height=20), 8, (1, 2, 3))
    assert (out[:, :, 2:4] == 200).all() and torch.equal(out[:, 0, 0], torch.tensor([1, 2, 3], dtype=torch.uint8))
    assert (out[:, :, :2] < 4).all() and (out[:, :, 4:] < 4).all()
    assert torch.equal(look(image, Window(0, 0, 10, 20), 8, (1, 2, 3)), torch.full((3, 8, 8), 200, dtype=torch.uint8))
