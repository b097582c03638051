"""Kernel traps: what integer kernels of layers are known to get wrong, on every engine here, against the oracle.

Each case is within one step in a layer (two on qnnpack), and the whole network, which some engines fuse, within a few.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import quant
from quant import QuantConfig
from tests.quant.executors.kernels import STEPS, check, compared, each_engine, on_codes
from tests.strategies import examples


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ---- convolutions ------------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "1x1": (16, 24, 1, {}),
    "1x1 stride 2": (16, 24, 1, {"stride": 2}),
    "3x3": (16, 24, 3, {"padding": 1}),
    "3x3 of pictures": (3, 8, 3, {"stride": 2, "padding": 1}),
    "5x5": (8, 16, 5, {"padding": 2}),
    "7x7 stride 2": (3, 16, 7, {"padding": 3, "stride": 2}),
    "no padding": (8, 8, 3, {}),
    "more padding than kernel": (8, 8, 3, {"padding": 4}),
    "one output channel": (16, 1, 3, {"padding": 1}),
    "odd channels": (7, 13, 3, {"padding": 1}),
    "dilated": (16, 16, 3, {"padding": 2, "dilation": 2}),
    "asymmetric dilation": (8, 8, 3, {"padding": (1, 3), "dilation": (1, 3)}),
    "asymmetric stride": (8, 8, 3, {"padding": 1, "stride": (1, 2)}),
    "asymmetric padding": (8, 8, (3, 5), {"padding": (2, 1)}),
    "asymmetric kernel": (8, 8, (1, 7), {"padding": (0, 3)}),
    "grouped": (16, 32, 3, {"padding": 1, "groups": 4}),
    "grouped 1x1": (24, 24, 1, {"groups": 3}),
    "two outputs a group": (16, 32, 3, {"padding": 1, "groups": 16}),
    "depthwise 1x1": (16, 16, 1, {"groups": 16}),
    "depthwise 3x3": (32, 32, 3, {"padding": 1, "groups": 32}),
    "depthwise 5x5 stride 2": (24, 24, 5, {"padding": 2, "stride": 2, "groups": 24}),
    "depthwise 7x7": (16, 16, 7, {"padding": 3, "groups": 16}),
    "depthwise dilated": (16, 16, 3, {"padding": 2, "dilation": 2, "groups": 16}),
    "depthwise, 58 channels": (58, 58, 3, {"padding": 1, "groups": 58}),
    "depthwise, 116 channels": (116, 116, 3, {"padding": 1, "groups": 116}),
    "depthwise, 116 channels, stride 2": (116, 116, 3, {"padding": 1, "stride": 2, "groups": 116}),
    "depthwise, 104 groups": (104, 104, 3, {"padding": 1, "groups": 104}),
    "depthwise, 128 groups": (128, 128, 3, {"padding": 1, "groups": 128}),
    "depthwise, 12 channels, 5x5": (12, 12, 5, {"padding": 2, "groups": 12}),
}


@each_engine
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, engine):
    inputs, outputs, kernel, options = CONVOLUTIONS[name]
    model = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, **options))
    check(model, on_codes(2, inputs, 11, 9), engine, "conv", whole=2)


@each_engine
@given(data=st.data())
@examples(12)
def test_convolutions_of_any_geometry(data, engine):
    """Save two kinds that OpenVINO gets wrong: padding where the kernel has size 1 and a stride (the result has another
    size), and two or three groups of one channel that make several channels each (over 100 steps off)."""

    def draw(low, high):
        return data.draw(st.integers(low, high))

    groups = data.draw(st.sampled_from((1, 1, 4, 8)))
    inputs, outputs = groups * draw(1, 3), groups * draw(1, 3)
    kernel, dilation, stride = ((draw(1, high), draw(1, high)) for high in (4, 2, 3))
    padding = tuple(draw(0, 3 if k > 1 else 0) for k in kernel)
    model = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups))
    height, width = (draw(max(2, 1 + d * (k - 1)), 12) for k, d in zip(kernel, dilation))
    check(model, on_codes(draw(1, 3), inputs, height, width), engine, "conv", whole=2, codes=0)


@each_engine
@pytest.mark.parametrize("sizes", [(16, 8), (7, 13), (1024, 10)])
def test_linear_layers(sizes, engine):
    check(nn.Sequential(nn.Linear(*sizes)), on_codes(9, sizes[0]), engine, "linear", whole=2)


@each_engine
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 4, "stride": 2, "padding": 1},
        {"kernel_size": 3, "stride": 2, "output_padding": 1},
        {"kernel_size": 3, "stride": (2, 1), "padding": 1, "groups": 4},
    ],
)
def test_transposed_convolutions(options, engine):
    check(nn.Sequential(nn.ConvTranspose2d(8, 12, **options)), on_codes(2, 8, 5, 6), engine, "conv", "move", whole=2)


# ---- batch norm --------------------------------------------------------------------------------------------


def with_statistics(bn, gamma="both signs"):
    """A batch norm after training: means, variances over four decades, and gammas of the kind asked for."""
    n = bn.num_features
    gammas = {
        "both signs": torch.randn(n),
        "negative": -torch.rand(n) - 0.1,
        "zero": torch.zeros(n),
        "some zero": torch.rand(n).round(),
        "tiny": torch.full((n,), 1e-6),
    }
    with torch.no_grad():
        bn.running_mean.normal_(0, 0.5)
        bn.running_var.copy_(10 ** (4 * torch.rand(n) - 3))
        bn.weight.copy_(gammas[gamma])
        bn.bias.uniform_(-1, 1)
    return bn


@each_engine
@pytest.mark.parametrize("gamma", ["both signs", "negative", "zero", "some zero", "tiny"])
@pytest.mark.parametrize("groups", [1, 16])
def test_folded_batch_norm(gamma, groups, engine):
    bn = with_statistics(nn.BatchNorm2d(16, eps=1e-3, momentum=0.01), gamma)
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False), bn)
    check(model, on_codes(2, 16, 6, 6), engine, "conv", whole=2, codes=10)


@each_engine
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_folding_uses_the_modules_own_eps(eps, engine):
    """Small variances make eps the larger part: the network would be off by the factor 1.4 to 10."""
    conv, bn = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8, eps=eps)
    bn.running_var.fill_(eps)
    model, x = nn.Sequential(conv, bn).eval(), on_codes(2, 4, 6, 6)
    executor, _ = compared(model, x, engine)
    with quant.use_engine(engine), torch.no_grad():
        error = (executor(x) - model(x)).abs().max() / model(x).abs().max()
    assert error < 0.05


@each_engine
def test_training_with_another_momentum_and_eps(engine):
    """Ranges and statistics from training batches, as training leaves them."""
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16, eps=1e-3, momentum=0.01), nn.Hardswish(), nn.Conv2d(16, 4, 1)
    )
    x = on_codes(4, 4, 8, 8)
    graph = quant.attach(model, x, QuantConfig(engine=engine)).train()
    with torch.no_grad():
        for _ in range(5):
            graph(x + 0.1 * torch.randn_like(x))
    assert quant.parity(graph, quant.convert(graph, engine), x).layer_steps <= STEPS.get(engine, 1) + 0.01


@each_engine
@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.Identity])
def test_batch_norm_before_its_convolution(act, engine):
    """Pre-activation: nothing to fold it into, so it is an operation of its own."""
    bn = with_statistics(nn.BatchNorm2d(8))
    check(nn.Sequential(bn, act(), nn.Conv2d(8, 8, 3, padding=1)), on_codes(2, 8, 6, 6), engine, "batch_norm", "conv")
