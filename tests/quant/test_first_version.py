"""Checkpoints of the first version load, and their networks compute what they computed.

tests/fixtures/first_version/quantizers.pt holds, for pairs of a weight and an activation method, the state dict of a
small network after four training steps and its output for one batch.
"""

import pytest
import torch
from torch import nn

import quant
from tests import ROOT

SAVED = torch.load(ROOT / "tests" / "fixtures" / "first_version" / "quantizers.pt", weights_only=True)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.ReLU6(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


@pytest.mark.parametrize("pair", SAVED["networks"])
def test_a_saved_network_computes_the_same(pair):
    weight, activation = pair.split(" ")
    config = quant.QuantConfig(weight=weight, activation=activation, engine="fbgemm")
    graph = quant.attach(network(), SAVED["input"], config)
    graph.load_state_dict(SAVED["networks"][pair]["state"])
    output = graph.eval()(SAVED["input"])
    torch.testing.assert_close(output, SAVED["networks"][pair]["output"], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("pair", SAVED["networks"])
def test_a_state_dict_is_written_as_it_was(pair):
    weight, activation = pair.split(" ")
    graph = quant.attach(network(), SAVED["input"], quant.QuantConfig(weight=weight, activation=activation))
    saved = SAVED["networks"][pair]["state"]
    graph.load_state_dict(saved)
    written = graph.state_dict()
    assert list(written) == list(saved)
    for name, value in saved.items():
        assert torch.equal(written[name], value) if isinstance(value, torch.Tensor) else written[name] == value, name
