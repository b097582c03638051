"""Costs from the numbers alone equal costs counted while the network runs."""

import pytest
import torch
from hypothesis import given, settings

from frostnet import FrostNet, architecture
from nas import BlockSpec, cost, count
from nas.blocks import build_block
from tests.strategies import architectures


def test_a_block_small_enough_to_count_by_hand():
    # squeeze 16x8, expand 24x72, depthwise 72 x 3x3, project 72x24; batch norm 2 a channel; 8x8 pixels in, 4x4 out
    spec = BlockSpec("frost", 3, 16, 24, 2, 3, 2, "relu")
    convs = 16 * 8 + 24 * 72 + 72 * 9 + 72 * 24
    macs = (16 * 8 + 24 * 72) * 64 + (72 * 9 + 72 * 24) * 16
    assert count(build_block(spec), torch.zeros(1, 16, 8, 8)) == (convs + 2 * (8 + 72 + 72 + 24), macs)


@settings(max_examples=25, deadline=None)
@given(architectures())
def test_analytic_cost_equals_counted_cost_for_any_network(net):
    example = torch.zeros(1, net.stem.in_channels, net.input_size, net.input_size)
    total = cost(net)
    assert (total.params, total.macs) == count(FrostNet(net), example)


@settings(max_examples=10, deadline=None)
@given(architectures())
def test_rows_add_up_and_name_the_modules_they_count(net):
    model, total = FrostNet(net), cost(net)
    assert sum(row.params for row in total.rows) == total.params
    assert sum(row.macs for row in total.rows) == total.macs
    for row in total.rows:
        assert row.params == sum(p.numel() for p in model.get_submodule(row.name).parameters())


def test_counting_is_per_picture_and_leaves_the_mode_alone():
    model = FrostNet(architecture("small", 0.35, input_size=32))
    assert count(model, torch.zeros(3, 3, 32, 32)) == count(model, torch.zeros(1, 3, 32, 32))
    assert model.training


@pytest.mark.parametrize("size", [32, 224])
def test_cost_follows_the_input_size(size):
    net = architecture("base", 0.5).for_input(size)
    assert cost(net).macs == count(FrostNet(net), torch.zeros(1, 3, size, size))[1]
