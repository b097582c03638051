"""Detectors: what their networks cost, that they quantize whole, and that the machinery around them finds what a
perfect network says.
"""

import pytest
import torch
from torch import fx, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

import quant
from common.errors import UserError
from nas import count
from quant.attach.layers import QUANTIZED
from zoo import detectors
from zoo.detectors import pyramid

SIZE, CLASSES = 96, 3
FORMS = ("ssdlite:frostnet_small_0_35", "tdsod", "retinanet:frostnet_small_0_35", "faster_rcnn:frostnet_small_0_35")
# The first and the last class; in the second picture two objects, in the third none. All are of sizes that anchors at
# 96 px fit.
TRUTH = [
    {"boxes": torch.tensor([[12.0, 20.0, 44.0, 60.0]]), "labels": torch.tensor([0])},
    {"boxes": torch.tensor([[10.0, 10.0, 40.0, 34.0], [40.0, 50.0, 84.0, 86.0]]), "labels": torch.tensor([2, 1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]
NOTHING = [TRUTH[2], TRUTH[2]]
SSD_SIDES, PYRAMID_SIDES = (12, 6, 3, 2, 1, 1), (12, 6, 3)  # of the maps at 96 px
BOXES = (4, 6, 6, 6, 4, 4)  # of a cell in SSD's maps
IMAGES = torch.zeros(len(TRUTH), 3, SIZE, SIZE)


def made(name, size=SIZE, classes=CLASSES):
    torch.manual_seed(0)
    return detectors.build(name, classes, size), detectors.machinery(name, classes, size)


def total(losses):
    assert all(value.dim() == 0 for value in losses.values())
    return sum(losses.values())


def pictures(number, size, seed=0):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


# ---- what they cost ----------------------------------------------------------------------------------------


def cost(model, size):
    return count(model, torch.zeros(1, 3, size, size, device="meta"))


@pytest.mark.parametrize(
    ("name", "net", "heads", "macs"),
    [
        ("tdsod", 824_000, 865_500, (1.066, 0.252)),
        ("ssdlite:mobilenet_v2", 2_277_440, 2_334_300, (0.998, 0.688)),
        ("ssdlite:mobilenet_v2_relu", 2_277_440, 2_334_300, (0.998, 0.688)),
    ],
)
def test_costs_are_those_of_frostnets_authors(name, net, heads, macs):
    with torch.device("meta"):
        model = detectors.build(name, 20, 300).eval()
        params, all_macs = cost(model, 300)
        outputs = model(torch.zeros(1, 3, 300, 300))
    assert sum(p.numel() for p in model.heads.parameters()) == heads
    assert params - heads == net
    convs = zip([*model.heads.classes, *model.heads.boxes], outputs, strict=True)
    head_macs = sum(head.conv.weight[0].numel() * x.numel() for head, x in convs)
    assert (round((all_macs - head_macs) / 1e9, 3), round(head_macs / 1e9, 3)) == macs


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


def ssd_levels(size, sides):
    """SSD's boxes, those of each map."""
    judge = detectors.machinery("tdsod", CLASSES, size)
    (boxes,) = judge.anchors(torch.zeros(1, 3, size, size), [torch.zeros(1, 1, n, n) for n in sides])
    return boxes.split([n * n * number for n, number in zip(sides, BOXES, strict=True)])


def pyramid_levels(size, sides, sizes):
    return detectors.LevelAnchors(size, sizes).levels([torch.zeros(1, 1, n, n) for n in sides])


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


# ---- perfect networks --------------------------------------------------------------------------------------


def as_map(rows, side):
    """(cells x boxes, columns) -> (1, boxes x columns, side, side), so that each row is where a network's layers have
    it.
    """
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
    """Logits that are sure: of the class, `shift` columns on, or of none of them; with a background column where there
    is a shift.
    """
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
    """Its maps hold at each place the picture's number, x and y, so that the box head can read from a region's features
    where it is.
    """

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
    """By hand: one object, for whose one anchor the network is sure of the background, as it is for all others
    but ten.
    """
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


# ---- networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_pictures_without_objects_have_a_finite_loss(name):
    model, judge = made(name, 64)
    loss = total(judge.losses(model, pictures(2, 64), NOTHING))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", FORMS)
def test_gradients_reach_every_parameter(name):
    """With an object where an anchor of each level is.

    (Below 257 px Tiny-DSOD's last map is one cell: batch norms undo each other.)
    """
    size = 260 if name == "tdsod" else SIZE
    if name.startswith(("retinanet", "faster_rcnn")):
        levels = pyramid_levels(size, PYRAMID_SIDES, pyramid.RETINA_SIZES)
    else:
        levels = ssd_levels(size, (33, 17, 9, 5, 3, 2) if name == "tdsod" else SSD_SIDES)
    boxes = torch.stack([level[len(level) // 2] for level in levels])
    target = {"boxes": boxes, "labels": torch.arange(len(boxes)) % CLASSES}
    model, judge = made(name, size)
    total(judge.losses(model, pictures(2, size), [target, target])).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", FORMS)
def test_a_few_steps_lower_the_loss(name):
    model, judge = made(name)
    images = pictures(3, SIZE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    losses = []
    for _ in range(8):
        torch.manual_seed(1)  # Faster R-CNN draws which anchors count
        loss = total(judge.losses(model, images, TRUTH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-2:]) < 0.8 * losses[0], losses


@pytest.mark.parametrize("name", FORMS)
def test_a_trace_computes_what_the_network_computes(name):
    model, _ = made(name)
    model.eval()
    traced, images = fx.symbolic_trace(model), pictures(2, SIZE)
    with torch.no_grad():
        for size in (SIZE, 77):  # nothing about the picture's size is baked in
            for a, b in zip(traced(images[..., :size]), model(images[..., :size]), strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", FORMS)
def test_every_layer_gets_quantized_and_the_machinery_takes_the_graph(name):
    model, judge = made(name, 64)
    images = pictures(2, 64)
    parts = model.part_examples(images) if name.startswith("faster_rcnn") else {"": images}
    for part, example in parts.items():
        before = model.get_submodule(part)
        graph = quant.attach(before, example)
        layers = [m for m in before.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert sum(type(m) in QUANTIZED.values() for m in graph.modules()) == len(layers)
        assert not any(type(m) in QUANTIZED for m in graph.modules())
        if part:
            setattr(model, part, graph)
        else:
            model = graph
    loss = total(judge.losses(model.train(), images, [TRUTH[0] | {"boxes": TRUTH[0]["boxes"] / 2}, TRUTH[2]]))
    loss.backward()
    assert loss.isfinite()
    assert len(judge.detections(model.eval(), images)) == 2


@pytest.mark.parametrize("name", ["ssdlite:mobilenet_v3_small", "retinanet:mobilenet_v2_relu_x0_35"])
def test_mobilenets_are_backbones_too(name):
    model, judge = made(name)
    assert len(judge.detections(model.eval(), pictures(2, SIZE))) == 2


@pytest.mark.parametrize("name", FORMS)
def test_integer_networks_are_detectors(name):
    """They compute what their graphs do, and the machinery takes them in their place."""
    model, judge = made(name, 64)
    images = pictures(2, 64)
    parts = model.part_examples(images) if name.startswith("faster_rcnn") else {"": images}
    graphs = {
        part: trained_a_little(quant.attach(model.get_submodule(part), example), example)
        for part, example in parts.items()
    }
    integer = {part: quant.convert(graph, "reference") for part, graph in graphs.items()}
    for part, example in parts.items():
        quant.parity(graphs[part], integer[part], example).check()
        assert [x.shape for x in integer[part](example)] == [x.shape for x in graphs[part](example)]
    found = judge.detections(integer[""] if "" in integer else InParts(**integer), images)
    assert all(set(one) == {"boxes", "scores", "labels"} for one in found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", FORMS)
def test_machineries_work_where_the_network_is(name):
    model, judge = made(name)
    images, targets = pictures(3, SIZE).cuda(), [{key: value.cuda() for key, value in truth.items()} for truth in TRUTH]
    loss = total(judge.losses(model.cuda(), images, targets))
    loss.backward()
    assert loss.is_cuda and loss.isfinite()
    assert all(value.is_cuda for one in judge.detections(model.eval(), images) for value in one.values())


def trained_a_little(graph, example):
    """Ranges and statistics of two batches."""
    graph.train()
    with torch.no_grad():
        for _ in range(2):
            graph(example)
    return graph.eval()


class InParts:
    def __init__(self, features, box_head):
        self.features, self.box_head = features, box_head


# ---- Faster R-CNN's parts ----------------------------------------------------------------------------------


def test_examples_for_parts_leave_the_network_as_it_is():
    model, _ = made(FORMS[3], 64)
    model.train()
    model.box_head.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    examples = model.part_examples(pictures(2, 64))
    assert {name: tuple(x.shape) for name, x in examples.items()} == {
        "features": (2, 3, 64, 64),
        "box_head": (2, pyramid.CHANNELS, 7, 7),
    }
    assert set(examples) == set(model.PARTS) == {name for name, _ in model.named_children()}
    assert not any(x.requires_grad for x in examples.values())
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert model.features.training and not model.box_head.training


def test_nothing_proposed_is_nothing_found():
    """Regressions that shrink every proposal to nothing."""
    judge, model = perfect(FORMS[3])
    levels = len(model.outputs) // 3
    model.outputs = (*model.outputs[: 2 * levels], *(torch.full_like(x, -100.0) for x in model.outputs[2 * levels :]))
    model.box_head = None  # must not be asked
    found = judge.detections(model, IMAGES)
    assert [len(one["boxes"]) for one in found] == [0, 0, 0]


# ---- names -------------------------------------------------------------------------------------------------


def test_names():
    assert set(detectors.NAMES) == {"ssdlite:<backbone>", "retinanet:<backbone>", "faster_rcnn:<backbone>", "tdsod"}
    assert all(detectors.knows(name) for name in FORMS)
    assert not any(
        detectors.knows(name)
        for name in ("ssdlite", "ssdlite:", "tdsod:frostnet_small_1_0", "lraspp:frostnet_small_1_0", "")
    )


@pytest.mark.parametrize(
    ("name", "classes", "size", "words"),
    [
        ("ssdlite", 3, 96, r"arch: 'ssdlite' .*ssdlite:<backbone>"),
        ("ssd:frostnet_small_1_0", 3, 96, r"arch: 'ssd:frostnet_small_1_0' is no detector"),
        ("ssdlite:frostnet_smal_1_0", 3, 96, r"arch: 'frostnet_smal_1_0' .*frostnet_small_1_0"),
        ("tdsod", 0, 96, r"num_classes: 0, must be"),
        ("tdsod", 3, 32, r"input_size: 32, must be .* 64"),
        ("tdsod", 3, 96.5, r"input_size: 96.5, must be"),
    ],
)
def test_what_cannot_be_built_is_named(name, classes, size, words):
    with pytest.raises(UserError, match=words):
        detectors.build(name, classes, size)
