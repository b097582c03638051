"""Detectors: what their networks cost, that they train, quantize whole and become integers."""

import pytest
import torch
from torch import fx, nn

import quant
from common.errors import UserError
from nas import count
from quant.attach.layers import QUANTIZED
from tests.zoo.detectors.perfect import (
    CLASSES,
    FORMS,
    PYRAMID_SIDES,
    SIZE,
    SSD_SIDES,
    TRUTH,
    made,
    pictures,
    pyramid_levels,
    ssd_levels,
    total,
)
from zoo import detectors
from zoo.detectors import pyramid

NOTHING = [TRUTH[2], TRUTH[2]]


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
