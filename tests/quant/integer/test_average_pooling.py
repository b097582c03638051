"""quant.integer.transforms: average pooling as a convolution, where that is exact and fast, in float elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant import QuantConfig
from quant.calibrate import calibrate
from quant.integer.parity import output_steps
from tests.quant.executors.kernels import Two, each_engine, on_codes
from tests.quant.integer.test_outputs import observed


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


AS_INTEGERS = {
    "3x3": (8, nn.AvgPool2d(3)),
    "overlapping": (8, nn.AvgPool2d(3, 1)),
    "padded": (8, nn.AvgPool2d(3, 2, 1)),
    "5x5": (16, nn.AvgPool2d(5, 2, 2)),
    "of pictures": (3, nn.AvgPool2d(3, 2, 1)),
    "odd channels": (13, nn.AvgPool2d(3, 2, 1)),
}
IN_FLOAT = {
    "2x2": (8, nn.AvgPool2d(2)),
    "7x7": (8, nn.AvgPool2d(7)),
    "padding not counted": (8, nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "rounded up": (8, nn.AvgPool2d(3, 2, ceil_mode=True)),
    "another divisor": (8, nn.AvgPool2d(3, divisor_override=4)),
    "many odd channels": (39, nn.AvgPool2d(3)),
}


@each_engine
@pytest.mark.parametrize("name", AS_INTEGERS)
def test_average_pooling_is_an_integer_operation(name, engine):
    channels, pool = AS_INTEGERS[name]
    x = on_codes(2, channels, 10, 9)
    graph = calibrate(nn.Sequential(pool), [x], QuantConfig(engine=engine))
    executor = quant.convert(graph, engine)
    assert executor.float_ops == []
    quant.parity(graph, executor, x).check(1.01)
    with torch.no_grad():
        error = (executor(x).double() - pool(x.double())).abs().max()
    assert error <= 0.51 * output_steps(executor.graph)[0]


@pytest.mark.parametrize("name", IN_FLOAT)
def test_other_pooling_by_averages_stays_float_and_right(name):
    channels, pool = IN_FLOAT[name]
    x = on_codes(2, channels, 10, 9)
    graph = calibrate(nn.Sequential(pool), [x], QuantConfig(engine="fbgemm"))
    executor = quant.convert(graph, "fbgemm")
    assert len(executor.float_ops) == 1
    with torch.no_grad():
        error = (executor(x).double() - pool(x.double())).abs().max()
    assert error <= 0.51 * output_steps(executor.graph)[0]


@each_engine
def test_padding_counts_as_zeros(engine):
    """Real zero, whose code is not 0: a constant picture keeps 4 ninths of itself in its corners, 6 along its edges."""
    x = torch.full((1, 8, 4, 4), 0.9)
    x[0, 1] = -0.9
    executor = quant.convert(calibrate(nn.Sequential(nn.AvgPool2d(3, 1, 1)), [x], QuantConfig(engine=engine)), engine)
    with torch.no_grad():
        got = executor(x)[0, 0]
    for place, share in (((0, 0), 4), ((0, 2), 6), ((2, 1), 9)):
        assert got[place].item() == pytest.approx(0.9 * share / 9, abs=0.01)


def test_a_pooling_is_not_taken_for_the_layer_before_it_when_biases_are_snapped():
    """It is a convolution of eleven channels, that has eight."""
    x = torch.randn(2, 8, 8, 8)
    graph = observed(Two(lambda a, b: F.avg_pool2d(torch.cat([a, b[:, :3]], 1), 3, 1)), x)
    quant.snap_biases(graph)
    integers = quant.convert(graph, "reference").graph
    layers = [op for op in integers.ops if op.kind == "conv"]
    assert len(layers) == 3
    for op in layers:
        units = op.bias.double() / (op.weight_scale.double() * integers.op(op.inputs[0]).qparams.scale)
        assert (units - units.round()).abs().max() < 0.01
