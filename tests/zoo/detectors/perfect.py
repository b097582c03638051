"""Detectors that find exactly the truth, and the anchors that they answer for."""

import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from zoo import detectors
from zoo.detectors import pyramid
from zoo.detectors.postprocess import LevelAnchors

SIZE, CLASSES = 96, 3
FORMS = ("ssdlite:frostnet_small_0_35", "tdsod", "retinanet:frostnet_small_0_35", "faster_rcnn:frostnet_small_0_35")
# The first and the last class; in the second image two objects, in the third none. All are of sizes that anchors at
# 96 px fit.
TRUTH = [
    {"boxes": torch.tensor([[12.0, 20.0, 44.0, 60.0]]), "labels": torch.tensor([0])},
    {"boxes": torch.tensor([[10.0, 10.0, 40.0, 34.0], [40.0, 50.0, 84.0, 86.0]]), "labels": torch.tensor([2, 1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]
SSD_SIDES, PYRAMID_SIDES = (12, 6, 3, 2, 1, 1), (12, 6, 3)  # of the maps at 96 px
BOXES = (4, 6, 6, 6, 4, 4)  # of a cell in SSD's maps


def made(name, size=SIZE, classes=CLASSES):
    torch.manual_seed(0)
    return detectors.build(name, classes, size), detectors.machinery(name, classes, size)


def total(losses):
    assert all(value.dim() == 0 for value in losses.values())
    return sum(losses.values())


def pictures(number, size, seed=0):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


def ssd_levels(size, sides):
    """SSD's boxes, those of each map."""
    judge = detectors.machinery("tdsod", CLASSES, size)
    (boxes,) = judge.anchors(torch.zeros(1, 3, size, size), [torch.zeros(1, 1, n, n) for n in sides])
    return boxes.split([n * n * number for n, number in zip(sides, BOXES, strict=True)])


def pyramid_levels(size, sides, sizes):
    return LevelAnchors(size, sizes).levels([torch.zeros(1, 1, n, n) for n in sides])


def as_map(rows, side):
    """(cells x boxes, columns) -> (1, boxes x columns, side, side), as the layers of a network give it."""
    return rows.view(side, side, -1, rows.shape[1]).permute(2, 3, 0, 1).flatten(0, 1)[None]


def matching(anchors, truth, threshold):
    """For each anchor whether it is to find something, and which true box is nearest."""
    if not len(truth["boxes"]):
        return torch.zeros(len(anchors), dtype=torch.bool), None
    overlaps = box_iou(anchors, truth["boxes"])
    best = (overlaps == overlaps.max(0).values).any(1)
    return (overlaps.max(1).values >= threshold) | best, overlaps.argmax(1)


def encoded(anchors, truth, nearest, weights):
    if nearest is None:
        return torch.zeros(len(anchors), 4)
    return BoxCoder(weights).encode_single(truth["boxes"][nearest], anchors)


def scores(positive, nearest, truth, columns, shift):
    """Confident logits: of the class, `shift` columns on, or of none; with a background column if there is a shift."""
    logits = torch.full((len(positive), columns), -20.0)
    logits[:, :shift] = 20.0
    if nearest is not None:
        logits[positive, :shift] = -20.0
        logits[positive, truth["labels"][nearest[positive]] + shift] = 20.0
    return logits


def stacked(levels_of_pictures):
    return [torch.cat(maps) for maps in zip(*levels_of_pictures, strict=True)]


def perfect_outputs(levels, sides, weights, columns, shift):
    """All levels' logits and all levels' regressions for TRUTH."""
    anchors, rows = torch.cat(levels), [len(level) for level in levels]
    classes, boxes = [], []
    for truth in TRUTH:
        positive, nearest = matching(anchors, truth, 0.5)
        logits, deltas = scores(positive, nearest, truth, columns, shift), encoded(anchors, truth, nearest, weights)
        classes.append([as_map(x, n) for x, n in zip(logits.split(rows), sides, strict=True)])
        boxes.append([as_map(x, n) for x, n in zip(deltas.split(rows), sides, strict=True)])
    return *stacked(classes), *stacked(boxes)


class PerfectRegions:
    """Its maps hold the image's number, x and y, so that the box head reads from features where a region is."""

    def __init__(self, sides=PYRAMID_SIDES):
        levels = pyramid_levels(SIZE, sides, pyramid.REGION_SIZES)
        anchors, rows = torch.cat(levels), [len(level) for level in levels]
        objectness, boxes = [], []
        for truth in TRUTH:
            positive, nearest = matching(anchors, truth, 0.7)
            logits = torch.where(positive, 20.0, -20.0)[:, None]
            deltas = encoded(anchors, truth, nearest, (1.0, 1.0, 1.0, 1.0)) * positive[:, None]
            objectness.append([as_map(x, n) for x, n in zip(logits.split(rows), sides, strict=True)])
            boxes.append([as_map(x, n) for x, n in zip(deltas.split(rows), sides, strict=True)])
        self.outputs = (*[self.places(n) for n in sides], *stacked(objectness), *stacked(boxes))

    def places(self, side):
        along = torch.arange(side) * (SIZE / side)
        number = torch.arange(len(TRUTH)).view(-1, 1, 1).expand(-1, side, side)
        return torch.stack([number.float(), *(x.expand(len(TRUTH), side, side) for x in (along, along[:, None]))], 1)

    def features(self, images):
        return self.outputs

    def box_head(self, pooled):
        pairs = [self.answer(*region) for region in pooled]
        return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])

    def answer(self, number, x, y):
        x, y = x.mean(0), y.mean(1)  # by column, by row
        width, height = (x[4] - x[2]) * 7 / 2, (y[4] - y[2]) * 7 / 2
        region = torch.stack([x[3] - width / 2, y[3] - height / 2, x[3] + width / 2, y[3] + height / 2])[None]
        truth = TRUTH[round(number.mean().item())]
        overlaps = box_iou(region, truth["boxes"])
        positive = (overlaps >= 0.5).any(1)
        nearest = overlaps.argmax(1) if len(truth["boxes"]) else None
        deltas = torch.zeros(CLASSES + 1, 4)
        if positive:
            deltas[truth["labels"][nearest] + 1] = encoded(region, truth, nearest, (10.0, 10.0, 5.0, 5.0))
        return scores(positive, nearest, truth, CLASSES + 1, 1)[0], deltas.flatten()


def perfect(name):
    judge = detectors.machinery(name, CLASSES, SIZE)
    if name.startswith("faster_rcnn"):
        return judge, PerfectRegions()
    if name.startswith("retinanet"):
        levels = pyramid_levels(SIZE, PYRAMID_SIDES, pyramid.RETINA_SIZES)
        outputs = perfect_outputs(levels, PYRAMID_SIDES, (1.0, 1.0, 1.0, 1.0), CLASSES, 0)
    else:
        outputs = perfect_outputs(ssd_levels(SIZE, SSD_SIDES), SSD_SIDES, (10.0, 10.0, 5.0, 5.0), CLASSES + 1, 1)
    return judge, lambda images: outputs
