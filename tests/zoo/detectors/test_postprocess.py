"""The machinery around detectors finds what a perfect network outputs."""

import pytest
import torch
from torchvision.ops import box_iou

from tests.zoo.detectors.perfect import (
    BOXES,
    CLASSES,
    FORMS,
    SIZE,
    SSD_SIDES,
    TRUTH,
    made,
    perfect,
    pictures,
    pyramid_levels,
    ssd_levels,
    total,
)
from zoo import detectors
from zoo.detectors import pyramid

IMAGES = torch.zeros(len(TRUTH), 3, SIZE, SIZE)


@pytest.mark.parametrize(("name", "boxes"), [("ssdlite:mobilenet_v2", 8732), ("tdsod", 8744)])
def test_boxes_at_300_px_are_as_many_as_published(name, boxes):
    with torch.device("meta"):
        judge = detectors.machinery(name, 20, 300)
        outputs = detectors.build(name, 20, 300).eval()(torch.zeros(1, 3, 300, 300))
    (anchors,) = judge.anchors(torch.zeros(1, 3, 300, 300), [torch.zeros(x.shape) for x in outputs[:6]])
    assert anchors.shape == (boxes, 4)


@pytest.mark.parametrize("size", [96, 160, 192, 224, 320, 333])
@pytest.mark.parametrize("name", FORMS)
def test_every_size_has_an_anchor_for_every_row(name, size):
    with torch.device("meta"):
        outputs = detectors.build(name, CLASSES, size).eval()(torch.zeros(1, 3, size, size))
    judge = detectors.machinery(name, CLASSES, size)
    losses = judge.losses(Fixed([torch.zeros(x.shape) for x in outputs]), torch.zeros(1, 3, size, size), TRUTH[:1])
    assert all(loss.isfinite() for loss in losses.values())


class Fixed:
    """A network that says the same of all pictures; the last two outputs are those of Faster R-CNN's box head."""

    def __init__(self, outputs):
        self.outputs = tuple(outputs)

    def __call__(self, images):
        return self.outputs

    def features(self, images):
        return self.outputs[:-2]

    def box_head(self, pooled):
        return tuple(x.expand(len(pooled), -1) for x in self.outputs[-2:])


# ---- anchors -----------------------------------------------------------------------------------------------


def test_ssds_boxes_lie_around_evenly_spread_cells():
    boxes = torch.cat(ssd_levels(100, (13, 7, 4, 2, 1, 1)))
    assert len(boxes) == 4 * 169 + 6 * (49 + 16 + 4) + 4 * (1 + 1)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    # the last map's square: 0.88 of the picture
    torch.testing.assert_close(boxes[-4], torch.tensor([6.0, 6.0, 94.0, 94.0]))
    torch.testing.assert_close(centres[-8:], torch.full((8, 2), 50.0))
    # the second cell is to the right of the first
    torch.testing.assert_close(centres[4], torch.tensor([100 * 1.5 / 13, 100 * 0.5 / 13]))


def test_a_pyramids_anchors_are_a_stride_apart_where_it_does_not_divide_the_picture():
    assert pyramid.strides(300) == [8, 16, 32, 64]
    levels = pyramid_levels(300, (38, 19, 10, 5), pyramid.RETINA_SIZES)
    assert [len(level) for level in levels] == [9 * n * n for n in (38, 19, 10, 5)]
    for level, stride, n in zip(levels, (8, 16, 32, 64), (38, 19, 10, 5), strict=True):
        centres = (level[:, :2] + level[:, 2:]) / 2
        assert centres[0].tolist() == [0, 0]
        assert centres[9].tolist() == [stride, 0]
        assert centres[-1].tolist() == [(n - 1) * stride] * 2
    widths = (levels[0][:, 2:] - levels[0][:, :2]).prod(1).sqrt()
    assert widths[:9].min() == pytest.approx(24, rel=0.05)
    assert (levels[-1][:9, 2:] - levels[-1][:9, :2]).prod(1).sqrt().max() == pytest.approx(
        64 * 3 * 2 ** (2 / 3), rel=0.01
    )


@pytest.mark.parametrize(("size", "coarsest"), [(64, 32), (192, 32), (193, 64), (384, 64), (385, 128), (1024, 256)])
def test_a_pyramid_has_the_levels_that_the_pictures_size_asks_for(size, coarsest):
    assert pyramid.strides(size)[-1] == coarsest


@pytest.mark.parametrize("name", FORMS)
def test_a_perfect_network_has_no_loss(name):
    judge, model = perfect(name)
    losses = judge.losses(model, IMAGES, TRUTH)
    assert set(losses) >= {"class", "box"}
    assert all(0 <= value < 1e-3 for value in losses.values()), losses


@pytest.mark.parametrize("name", FORMS)
def test_wrong_labels_cost_a_perfect_network_its_loss(name):
    judge, model = perfect(name)
    wrong = [truth | {"labels": (truth["labels"] + 1) % CLASSES} for truth in TRUTH]
    right, losses = judge.losses(model, IMAGES, TRUTH), judge.losses(model, IMAGES, wrong)
    assert losses["class"] > 1
    if not name.startswith("faster_rcnn"):  # whose boxes are predicted for each class
        assert losses["box"] == pytest.approx(right["box"].item(), abs=1e-3)


@pytest.mark.parametrize("name", FORMS)
def test_a_perfect_networks_detections_are_the_truth(name):
    judge, model = perfect(name)
    found = judge.detections(model, IMAGES)
    assert len(found) == len(TRUTH)
    for one, truth in zip(found, TRUTH, strict=True):
        assert (one["boxes"].dtype, one["scores"].dtype, one["labels"].dtype) == (
            torch.float32,
            torch.float32,
            torch.int64,
        )
        assert len(one["boxes"]) == len(truth["boxes"]) == len(one["scores"])
        if len(truth["boxes"]):
            overlaps, which = box_iou(truth["boxes"], one["boxes"]).max(1)
            assert overlaps.min() > 0.99
            assert one["labels"][which].tolist() == truth["labels"].tolist()
            assert one["scores"].min() > 0.99


@pytest.mark.parametrize("name", FORMS)
def test_the_same_network_in_bfloat16_is_judged_in_float32(name):
    judge, model = perfect(name)
    half = Halved(model)
    assert all(loss.dtype == torch.float32 and loss < 0.2 for loss in judge.losses(half, IMAGES, TRUTH).values())
    assert judge.detections(half, IMAGES)[1]["boxes"].dtype == torch.float32


class Halved:
    def __init__(self, model):
        self.model = model

    def __call__(self, images):
        return tuple(x.bfloat16() for x in self.model(images))

    def features(self, images):
        return tuple(x.bfloat16() for x in self.model.features(images))

    def box_head(self, pooled):
        return tuple(x.bfloat16() for x in self.model.box_head(pooled))


def test_three_hard_negatives_count_for_each_positive():
    """By hand: one object; the network is sure of the background at its anchor and at all but ten others."""
    judge = detectors.machinery("tdsod", CLASSES, SIZE)
    # no anchor overlaps it by half
    target = [{"boxes": torch.tensor([[44.0, 44.0, 52.0, 52.0]]), "labels": torch.tensor([1])}]
    maps = [torch.zeros(1, boxes * (CLASSES + 1), n, n) for boxes, n in zip(BOXES, SSD_SIDES, strict=True)]
    for x in maps:
        x.view(1, -1, CLASSES + 1, *x.shape[-2:])[:, :, 0] = 50.0
    for cell in range(10):
        maps[0][0, 1, 0, cell] = 50.0  # which it holds for the background or an object alike: a loss of log 2 each
    zeros = [torch.zeros(1, 4 * boxes, n, n) for boxes, n in zip(BOXES, SSD_SIDES, strict=True)]
    losses = judge.losses(lambda images: (*maps, *zeros), IMAGES[:1], target)
    assert losses["class"].item() == pytest.approx(50 + 3 * torch.tensor(2.0).log().item(), rel=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", FORMS)
def test_machineries_work_where_the_network_is(name):
    model, judge = made(name)
    images, targets = pictures(3, SIZE).cuda(), [{key: value.cuda() for key, value in truth.items()} for truth in TRUTH]
    loss = total(judge.losses(model.cuda(), images, targets))
    loss.backward()
    assert loss.is_cuda and loss.isfinite()
    assert all(value.is_cuda for one in judge.detections(model.eval(), images) for value in one.values())


def test_nothing_proposed_is_nothing_found():
    """Regressions that shrink every proposal to nothing."""
    judge, model = perfect(FORMS[3])
    levels = len(model.outputs) // 3
    model.outputs = (*model.outputs[: 2 * levels], *(torch.full_like(x, -100.0) for x in model.outputs[2 * levels :]))
    model.box_head = None  # must not be asked
    found = judge.detections(model, IMAGES)
    assert [len(one["boxes"]) for one in found] == [0, 0, 0]
