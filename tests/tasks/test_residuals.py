"""Residual branches that begin silent."""

import pytest
import torch
from torch import nn

import zoo
from frostnet import FrostNet, architecture
from tasks.residuals import silence_residuals


def test_a_frostnets_residual_blocks_begin_as_the_identity():
    model = FrostNet(architecture("small", 0.35, 10, 32)).train()
    names = silence_residuals(model)
    assert names == [f"blocks.{i}.project.bn" for i, block in enumerate(model.arch.blocks) if block.residual]
    for block in model.blocks:
        if block.residual:
            x = torch.randn(2, block.project.conv.out_channels, 4, 4)
            assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 8), ("mobilenet_v2", 10), ("mobilenet_v3_small_relu", 6), ("alexnet", 0)]
)
def test_each_residual_addition_has_one_silent_branch(name, count):
    model = zoo.build(name, num_classes=10, input_size=32)
    names = silence_residuals(model)
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and (m.weight == 0).all()}
    assert len(names) == count and norms == set(names)


def test_where_both_sides_end_in_a_batch_norm_the_longer_one_is_silenced():
    names = silence_residuals(zoo.build("resnet18", num_classes=10, input_size=32))
    assert all(name.endswith(".bn2") for name in names), "not the one of the projection shortcut"
