"""Which nodes of the networks of the zoo get a quantizer, and why others do not."""

import re
from collections import Counter
from copy import deepcopy

import pytest
import torch

import quant
from quant import QuantConfig
from tests.zoo.graphs import CHOSEN, DEMO, example_images, plan, shared_model
from zoo.__main__ import counts


def test_the_ancestors_network_has_its_operations():
    ops = Counter(row.op for row in plan(DEMO))
    assert [ops[kind] for kind in ("conv", "linear", "batch_norm", "relu", "add", "pool")] == [21, 1, 19, 18, 8, 2]


def test_the_ancestors_placement():
    assert counts(plan(DEMO)) == "22 weight quantizers, 18 activation quantizers, 4 of them shared by several layers"


def test_the_shared_quantizers_are_those_of_each_stages_first_relu():
    readers = Counter(row.reads for row in plan(DEMO) if row.reads)
    assert [name for name, number in readers.items() if number == 2] == [
        f"stage{i}.0.relu1_quant" for i in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize(
    ("config", "weights", "activations", "shared"),
    [
        (QuantConfig(op_types=("conv",)), 21, 17, 4),
        (QuantConfig(op_types=("linear",)), 1, 1, 0),
        (QuantConfig(op_types=(*CHOSEN, "add", "pool", "cat")), 22, 36, 4),  # 16 sums' inputs and 2 poolings' more
        (QuantConfig(op_types=CHOSEN, skip_first={"conv": 1}, skip_last={"linear": 1}), 20, 16, 4),
        (QuantConfig(op_types=CHOSEN, skip_first={"conv": 2}), 20, 17, 3),  # the first ReLU's still serves the shortcut
        (QuantConfig(op_types=CHOSEN, skip_first={"conv": 99}), 1, 1, 0),
        (QuantConfig(op_types=CHOSEN, skip_last={"conv": 99}), 1, 1, 0),
        (QuantConfig(op_types=CHOSEN, ignore=("stage4.*",)), 17, 14, 3),
        (QuantConfig(op_types=CHOSEN, overrides=(quant.Override("*shortcut", "float", "float"),)), 18, 18, 0),
        (QuantConfig(op_types=CHOSEN, overrides=(quant.Override("*shortcut", activation="pact:4"),)), 22, 22, 0),
    ],
)
def test_rules_change_the_counts(config, weights, activations, shared):
    expected = (
        f"{weights} weight quantizers, {activations} activation quantizers, {shared} of them shared by several layers"
    )
    assert counts(plan(config)) == expected


MIXED = QuantConfig(op_types=CHOSEN, skip_first={"conv": 3}, weight="dorefa:3", activation="pact:4")

PAIRS = [
    ("preact_resnet18", DEMO),
    ("resnet20", MIXED),
    ("mobilenet_v3_small", QuantConfig()),
    ("resnet20", QuantConfig(share=(("stage1.*.relu2", "relu"),))),
]


@pytest.mark.parametrize(("name", "config"), PAIRS)
def test_a_dry_run_decides_what_attach_does(name, config):
    rows, graph = plan(config, name), quant.attach(shared_model(name), example_images(), config)
    assert rows == graph.plan_rows
    weights, activations = (int(n) for n in re.findall(r"(\d+) \w+ quantizers", counts(rows)))
    assert len(quant.quantizers_of(graph)) == weights + activations
    assert sum(hasattr(module, "weight_quant") for module in graph.modules()) == weights


@pytest.mark.parametrize(("name", "config"), PAIRS)
def test_with_all_quantizers_off_the_outputs_are_the_float_models_bit_for_bit(name, config):
    model, images = deepcopy(shared_model(name)), example_images()
    graph = quant.attach(model, images, config)
    quant.set_mode(graph, observe=False, fake_quant=False)
    assert torch.equal(graph(images), model(images))
    quant.set_mode(graph, observe=True, fake_quant=True)
    graph.train()(images)
    assert not torch.equal(graph.eval()(images), model.eval()(images))


@pytest.mark.parametrize("config", [DEMO, MIXED, QuantConfig()])
def test_every_node_without_a_quantizer_says_why(config):
    for row in plan(config, "mobilenet_v3_small"):
        assert row.weight or row.output or row.reason, row
