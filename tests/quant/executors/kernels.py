"""How the tests compare an engine's integer kernels with the oracle: a small float network with calibrated ranges,
converted, and compared code by code on equal integer inputs.
"""

import pytest
import torch
from torch import nn

import quant
from quant import QuantConfig
from quant.calibrate import calibrate
from quant.executors.reference import Reference
from quant.integer.parity import output_steps

ENGINES = quant.available()
STEPS = {"qnnpack": 2}  # of difference in a layer; 1 on the others
SLOW = {"openvino": pytest.mark.slow}  # half a second to compile a network

each_engine = pytest.mark.parametrize("engine", [pytest.param(name, marks=SLOW.get(name, ())) for name in ENGINES])


def check(model, x, engine, *kinds, steps=None, whole=3, codes=20):
    """The integer network of a float model, its ranges calibrated on x, is within `steps` of the oracle in each layer
    and within `whole` at its end. `kinds` of operations must be among its layers, and it must give so many different
    codes, or the test would say nothing."""
    executor, report = compared(model, x, engine)
    limit = steps or STEPS.get(engine, 1)
    for row in report.rows:
        assert row.engine_steps <= limit, row
        assert row.fake_quant_steps <= 1.01, row
    assert set(kinds) <= {row.kind for row in report.rows}, report.rows
    reference = Reference(executor.graph)
    with quant.use_engine(engine), torch.no_grad():
        expected, got = reference(x), executor(x)
    assert expected.unique().numel() > codes
    assert (expected - got).abs().max() <= (whole + 0.01) * max(output_steps(executor.graph))


def compared(model, x, engine, limits_of=None):
    """(executor, parity) of a model calibrated on x, with weights in the range of `limits_of` (default: the engine)."""
    graph = calibrate(model, [x], QuantConfig(engine=limits_of or engine))
    executor = quant.convert(graph, engine)
    return executor, quant.parity(graph, executor, x)


def on_codes(*shape):
    """Random values in [-1, 1) on all 256 points of their grid: no engine has ties to break when it quantizes."""
    codes = torch.randint(0, 256, shape)
    codes.view(-1)[:2] = torch.tensor([0, 255])
    return (codes - 128) / 128


class Two(nn.Module):
    """A function of two convolutions of x, scaled apart."""

    def __init__(self, function, scales=(1.0, 1.0)):
        super().__init__()
        self.function, self.left, self.right = function, nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        with torch.no_grad():
            for conv, scale in zip((self.left, self.right), scales):
                conv.weight.mul_(scale)
                conv.bias.mul_(scale)

    def forward(self, x):
        return self.function(self.left(x), self.right(x))
