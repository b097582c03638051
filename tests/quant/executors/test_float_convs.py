"""How many convolutions an executor says that it computes in float."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import quant
from quant.executors.reference import Reference

FUNCTIONS = {"a": nn.Conv2d(1, 1, 1), "b": nn.ReLU(), "c": torch.conv2d, "d": nn.ConvTranspose2d(1, 1, 1)}


@pytest.mark.parametrize("names, expected", [("abcd", 3), ("b", 0), ("bn", 0)])
def test_convolutions_among_the_float_operations_are_counted(names, expected):
    """ "n" is a norm, which is no call."""

    def op(name: str) -> SimpleNamespace:
        return SimpleNamespace(attrs={"call": SimpleNamespace(function=FUNCTIONS[name])} if name in FUNCTIONS else {})

    graph = SimpleNamespace(op=op, ops=[], output=(), float_ops=list(names))
    assert Reference(graph, "reference").float_convs == expected


@pytest.mark.parametrize("engine", quant.available())
def test_a_network_of_integer_convolutions_has_none_in_float(engine):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 8)
    graph = quant.attach(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), images, quant.QuantConfig(engine=engine)).train()
    graph(images)
    assert quant.convert(graph.eval(), engine).float_convs == 0
