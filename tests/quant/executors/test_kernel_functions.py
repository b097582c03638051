"""Kernel traps: what integer kernels of functions, sums and products are known to get wrong, on every engine here,
against the oracle.

Each case is within one step in a layer (two on qnnpack), and the whole network, which some engines fuse, within a few.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant import QuantConfig
from quant.calibrate import calibrate
from tests.quant.executors.kernels import ENGINES, Two, check, each_engine, on_codes


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ---- one function behind a convolution: on the engine's own codes, channels_last ---------------------------


class Of(nn.Module):
    """function(conv(x)), values of about -5 to 5."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(4, 8, 3, padding=1), function
        with torch.no_grad():
            self.conv.weight.mul_(4)

    def forward(self, x):
        return self.function(self.conv(x))


def shuffled(x):
    """Channel shuffle of two groups."""
    n, channels, height, width = x.shape
    return x.view(n, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(n, channels, height, width)


CLAMPS = {
    "relu6 in the convolution": F.relu6,
    "relu6 of a tensor that others read": lambda x: F.relu6(x) + x,
    "relu6 alone": lambda x: F.relu6(F.max_pool2d(x, 2)),
    "relu in the convolution": F.relu,
    "relu of a tensor that others read": lambda x: F.relu(x) + x,
    "relu alone": lambda x: F.relu(F.max_pool2d(x, 2)),
    "hardtanh": F.hardtanh,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
}
CURVES = {
    "hard-swish": F.hardswish,
    "hard-sigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
    "softmax": lambda x: F.softmax(x, 1),
}
POOLS = {
    "average": lambda x: F.avg_pool2d(x, 2),
    "average, overlapping": lambda x: F.avg_pool2d(x, 3, 1),
    "average, padded": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average, padded, even": lambda x: F.avg_pool2d(x, 2, 2, 1),
    "average, padding not counted": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive average, uneven": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "mean": lambda x: x.mean((2, 3)),
    "mean, dimensions kept": lambda x: x.mean((2, 3), keepdim=True),
    "mean of channels": lambda x: x.mean(1),
    "maximum": lambda x: F.max_pool2d(x, 2),
    "maximum, padded": lambda x: F.max_pool2d(x, 3, 2, 1),
    "maximum, padded, of negative values": lambda x: F.max_pool2d(x - 20, 3, 2, 1),
    "maximum, rounded up": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
}
SCALINGS = {
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear, to a size": lambda x: F.interpolate(x, size=(17, 5), mode="bilinear", align_corners=False),
    "bilinear, corners aligned": lambda x: F.interpolate(x, size=(17, 13), mode="bilinear", align_corners=True),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest, to a size": lambda x: F.interpolate(x, size=(17, 13), mode="nearest"),
}
MOVES = {
    "channel shuffle": shuffled,
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "every second channel": lambda x: x[:, ::2],
    "a corner": lambda x: x[..., 1:-1, :3],
    "swapped halves": lambda x: torch.cat((x.chunk(2, 1)[1], x.chunk(2, 1)[0]), 1),
    "sum of halves": lambda x: x.chunk(2, 1)[0] + x.chunk(2, 1)[1],
    "a part of a split": lambda x: torch.split(x, [2, 6], 1)[1],
    "permuted": lambda x: x.permute(0, 2, 3, 1),
    "flattened": lambda x: torch.flatten(x, 1),
}
FUNCTIONS = CLAMPS | CURVES | POOLS | SCALINGS | MOVES
KNOWN = {
    ("openvino", "average, padded, even"): "OpenVINO pads with code 0 where real zero belongs",
}


@each_engine
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_a_convolution(name, engine, request):
    if (engine, name) in KNOWN:
        request.applymarker(pytest.mark.xfail(reason=KNOWN[engine, name], strict=True))
    rough = engine == "openvino" and name == "hardtanh"  # OpenVINO rounds the bounds to steps of the convolution
    check(Of(FUNCTIONS[name]), on_codes(3, 4, 8, 8), engine, "conv", steps=2 if rough else None, codes=9)


@each_engine
@pytest.mark.parametrize("function", [nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.ReLU])
def test_functions_as_modules_on_the_input(function, engine):
    """The input's codes, with no convolution before them."""
    check(nn.Sequential(function(), nn.MaxPool2d(2)), 5 * on_codes(2, 8, 6, 6), engine)


def test_the_clamp_of_qnnpack_is_wrong_on_channels_last():
    """Why executors never call it on such tensors; should it be mended, the copies in torch_engines can go."""
    if "qnnpack" not in ENGINES:
        pytest.skip("qnnpack does not run here")
    x = 12 * torch.rand(2, 16, 6, 6) - 3
    with quant.use_engine("qnnpack"):
        codes = torch.quantize_per_tensor(x, 0.05, 60, torch.quint8)
        right, wrong = (
            torch.ops.quantized.clamp(c, 0.0, 6.0) for c in (codes, codes.contiguous(memory_format=torch.channels_last))
        )
    assert torch.equal(right.dequantize(), codes.dequantize().clamp(0, 6))
    assert not torch.equal(right.dequantize(), wrong.dequantize())


# ---- two tensors on unlike grids ---------------------------------------------------------------------------


COMBINATIONS = {
    "add": ("add", torch.add),
    "add, relu": ("add", lambda a, b: F.relu(a + b)),
    "add of a vector": ("add", lambda a, b: a + F.adaptive_avg_pool2d(b, 1)),
    "mul": ("mul", torch.mul),
    "squeeze and excitation": ("mul", lambda a, b: a * torch.sigmoid(F.adaptive_avg_pool2d(b, 1))),
    "excitation from the left": ("mul", lambda a, b: F.hardsigmoid(F.adaptive_avg_pool2d(b, 1)) * a),
    "cat": ("cat", lambda a, b: torch.cat([a, b], 1)),
    "cat, relu": ("cat", lambda a, b: F.relu(torch.cat([a, b], 1))),
    "cat of three": ("cat", lambda a, b: torch.cat((a, b, a), dim=1)),
    "cat of rows": ("cat", lambda a, b: torch.cat([a, b], 2)),
}


@each_engine
@pytest.mark.parametrize("scales", [(10.0, 1.0), (1.0, 10.0)])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_tensors_on_unlike_grids(name, scales, engine):
    kind, function = COMBINATIONS[name]
    check(Two(function, scales), on_codes(2, 8, 6, 6), engine, kind, "conv")


@each_engine
def test_one_picture_of_odd_size_in_either_memory_format(engine):
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1),
        nn.ReLU6(),
        nn.Conv2d(12, 12, 3, 1, 1, groups=12),
        nn.Hardswish(),
        nn.Conv2d(12, 5, 1),
    )
    x = on_codes(1, 3, 7, 5)
    check(model, x, engine, "conv", codes=10)
    executor = quant.convert(calibrate(model, [x], QuantConfig(engine=engine)), engine)
    with quant.use_engine(engine), torch.no_grad():
        assert torch.equal(executor(x), executor(x.contiguous(memory_format=torch.channels_last)))
