"""supernet.tune: single networks, recalibrated and trained for a few steps."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

import quant
from frostnet import FrostNet
from quant.statistics import recalibrate
from supernet import fair_choice, inherited, top1, tune
from tests.supernet.tiny_search import CONFIG, PLAN, SPACE, all_choices, batch, images, run, search


def tuned(steps=40, lr=0.05, seed=0, before=None):
    torch.manual_seed(0)
    graph = quant.attach(FrostNet(SPACE.architecture(all_choices(SPACE)[0])), images(), CONFIG)
    graph.train()(images())
    if before is not None:
        torch.manual_seed(before)
    fine = tune(graph, batch, steps, replace(PLAN, lr=lr), F.cross_entropy, seed)
    return graph, fine


def test_tuning_learns():
    graph, fine = tuned(steps=100, lr=0.1)
    assert fine and top1(graph, [batch(1000)]) > 0.6
    untouched, _ = tuned(steps=0)
    assert top1(untouched, [batch(1000)]) < 0.4


def test_tuning_and_recalibration_do_not_depend_on_what_was_drawn_before():
    ends = []
    for drawn in (1, 2):
        graph, _ = tuned(steps=3, before=drawn)
        torch.manual_seed(drawn + 10)
        recalibrate(graph, [images(8, 1), images(8, 2)])
        ends.append(graph.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values()) if isinstance(a, torch.Tensor))


def test_recalibration_leaves_momenta_and_modes_as_they_were():
    graph, _ = tuned(steps=1)
    before = {name: (m.training, getattr(m, "momentum", None)) for name, m in graph.named_modules()}
    recalibrate(graph, [images(8, 1)])
    assert before == {name: (m.training, getattr(m, "momentum", None)) for name, m in graph.named_modules()}


def test_a_tuning_that_diverges_says_so():
    try:
        assert not tuned(steps=30, lr=1e30)[1]
    except quant.QuantError as error:
        assert "diverged" in str(error)


def test_inherited_networks_share_nothing_with_the_supernet():
    s = search()
    run(s)
    before = {k: v.clone() for k, v in s.supernet.state_dict().items() if isinstance(v, torch.Tensor)}
    choice = fair_choice(SPACE, 0, 0)
    graph = inherited(s.supernet, choice, CONFIG, [batch(i)[0] for i in range(4)])
    assert not graph.training
    assert 0.0 <= top1(graph, [batch(2000)]) <= 1.0
    with torch.no_grad():
        for p in graph.parameters():
            p.zero_()
    assert all(torch.equal(before[k], v) for k, v in s.supernet.state_dict().items() if k in before)


def test_inherited_statistics_are_the_average_over_the_batches():
    s = search()
    run(s)
    batches = [batch(i)[0] for i in range(4)]
    graph = inherited(s.supernet, fair_choice(SPACE, 0, 0), CONFIG, batches)
    seen = []
    stem = graph.get_submodule("stem.conv")
    quantizer = graph.get_submodule("x_quant")
    with torch.no_grad():
        for x in batches:
            seen.append(
                nn.functional.conv2d(
                    quantizer(x), stem.weight_quant(stem.weight), None, stem.stride, stem.padding
                ).mean((0, 2, 3))
            )
    assert torch.allclose(graph.get_submodule("stem.bn").running_mean, torch.stack(seen).mean(0), atol=0.02)
