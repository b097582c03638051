"""quant.snap_biases: fake-quant adds the biases that integer arithmetic can hold."""

import copy

import pytest
import torch
from torch import nn

import quant
from tests.quant.integer.test_deconv import Decoder


class Net(nn.Module):
    """A convolution with a bias, one with a batch norm of both signs, a linear layer; one layer is used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.twice, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        with torch.no_grad():
            self.second[1].weight.copy_(torch.linspace(-2, 2, 8))
            self.second[1].bias.uniform_(-1, 1)

    def forward(self, x):
        x = self.second(self.first(x))
        return self.fc(self.twice(self.twice(x)).mean((2, 3)))


def observed(model, x):
    graph = quant.attach(model, x).train()
    with torch.no_grad():
        for _ in range(3):
            graph(x)
    return graph.eval()


def off_grid(graph):
    """By layer: the distance of its biases from multiples of input scale times weight scale, in such units."""
    integers = quant.convert(graph, "reference").graph
    found = {}
    for op in integers.ops:
        if op.weight is not None:
            units = op.bias.double() / (op.weight_scale.double() * integers.op(op.inputs[0]).qparams.scale)
            found[op.name] = (units - units.round()).abs().max().item()
    return found


@pytest.fixture
def graph():
    torch.manual_seed(0)
    return observed(Net(), torch.randn(4, 3, 8, 8))


def test_every_bias_lands_on_its_integer_grid_but_those_of_a_layer_used_twice(graph):
    before = off_grid(graph)
    quant.snap_biases(graph)
    after = off_grid(graph)
    assert len(after) == 5
    for name in before:
        assert before[name] > 0.1
        assert after[name] == before[name] if "twice" in name else after[name] < 0.01


def test_a_bias_moves_by_half_a_unit_at_most_and_nothing_else_moves(graph):
    integers = {op.name: op for op in quant.convert(graph, "reference").graph.ops}
    state = copy.deepcopy(graph.state_dict())
    quant.snap_biases(graph)
    moved = {
        name
        for name, value in graph.state_dict().items()
        if isinstance(value, torch.Tensor) and not torch.equal(value, state[name])
    }
    assert moved == {"first.bias", "second.1.bias", "fc.bias"}
    op = next(op for op in integers.values() if op.kind == "linear")
    unit = op.weight_scale * integers[op.inputs[0]].qparams.scale
    assert ((graph.get_submodule("fc").bias - state["fc.bias"]).abs() <= 0.5001 * unit).all()


def test_snapping_twice_changes_nothing_more(graph):
    quant.snap_biases(graph)
    state = copy.deepcopy(graph.state_dict())
    quant.snap_biases(graph)
    worst = max(
        (value - state[name]).abs().max()
        for name, value in graph.state_dict().items()
        if isinstance(value, torch.Tensor)
    )
    assert worst <= 1e-6


def test_phases_of_a_transposed_convolution_share_their_channels_bias():
    torch.manual_seed(0)
    graph = observed(Decoder(4, 2, 1), torch.randn(4, 3, 16, 16))
    assert max(off_grid(graph).values()) > 0.1
    quant.snap_biases(graph)
    assert max(off_grid(graph).values()) < 0.01


def test_engines_that_round_biases_then_agree_with_those_that_do_not():
    """The coarser the units the more codes differ: weights of few bits, and ranges far above what comes."""
    torch.manual_seed(0)
    x = torch.randn(16, 3, 12, 12)
    graph = quant.attach(Net(), x, quant.QuantConfig(weight="int8:3")).train()
    with torch.no_grad():
        for scale in (8, 1, 1):
            graph(scale * x)
    graph.eval()

    def codes_apart():
        reference = quant.convert(graph, "reference")
        return (graph(x) - reference(x)).abs().gt(1e-6).float().mean().item()

    with torch.no_grad():
        before = codes_apart()
        quant.snap_biases(graph)
        assert codes_apart() < 0.5 * before
