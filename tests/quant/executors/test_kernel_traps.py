"""Kernel traps: what integer kernels are known to get wrong, on every engine here, against the oracle.

Each case is a small float network with calibrated ranges, converted, and compared code by code on equal integer inputs:
within one step a layer (two on qnnpack), and the whole network, which some engines fuse, within a few.
"""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import quant
from quant import QuantConfig
from quant.calibrate import calibrate
from quant.executors.reference import Reference
from quant.integer.parity import output_steps
from tests import ROOT

ENGINES = quant.available()
STEPS = {"qnnpack": 2}  # of difference in a layer; 1 on the others
X86 = platform.machine().lower() in ("x86_64", "amd64")

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
    """(executor, parity) of a model calibrated on x, its weights in the range of the engine `limits_of` (default: its
    own).
    """
    graph = calibrate(model, [x], QuantConfig(engine=limits_of or engine))
    executor = quant.convert(graph, engine)
    return executor, quant.parity(graph, executor, x)


def on_codes(*shape):
    """Random values in [-1, 1), on all 256 points of their own grid, so that no engine has ties to break when it
    quantizes them.
    """
    codes = torch.randint(0, 256, shape)
    codes.view(-1)[:2] = torch.tensor([0, 255])
    return (codes - 128) / 128


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
@settings(max_examples=12, deadline=None)
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


# ---- saturation --------------------------------------------------------------------------------------------


def steps_at_worst_codes(engine, channels, groups, limits_of=None):
    """How far an engine is off where all activations are 255 and all weights at one end of the range of `limits_of`."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.weight[1::2] = -1.0
    x = torch.ones(2, channels, 6, 6)
    x[1] = 0
    executor, report = compared(nn.Sequential(conv), x, engine, limits_of)
    layer = next(op for op in executor.graph.ops if op.kind == "conv")
    assert layer.weight.abs().min() == quant.weight_qmax(limits_of or engine)
    assert executor.graph.op(layer.inputs[0]).qparams.quantize(x[:1]).min() == 255
    return report.worst.engine_steps


WORST = [(16, 1), (64, 4), (16, 16), (58, 58), (100, 100), (104, 104), (128, 128)]  # channels and groups


@each_engine
@pytest.mark.parametrize(("channels", "groups"), WORST)
def test_nothing_saturates_at_the_worst_codes(channels, groups, engine):
    assert steps_at_worst_codes(engine, channels, groups) <= 1


@pytest.mark.skipif(not X86, reason="vpmaddubsw, which adds pairs of products in 16 bits, is an instruction of x86")
@pytest.mark.parametrize(("engine", "channels"), [("fbgemm", 16), ("fbgemm", 104), ("x86", 104), ("x86", 128)])
def test_without_the_limit_on_weights_depthwise_convolutions_saturate(engine, channels):
    """The trap is real, on CPUs with VNNI too; should it go away, the limit can."""
    if engine not in ENGINES:
        pytest.skip(f"{engine} does not run here")
    assert steps_at_worst_codes(engine, channels, channels, limits_of="reference") > 10


AVX2_CODE = """
import json, torch
torch.set_num_threads(1)
from tests.quant.executors.test_kernel_traps import WORST, steps_at_worst_codes
engines = [e for e in ("fbgemm", "x86", "onednn") if e in torch.backends.quantized.supported_engines]
print(json.dumps({f"{e} {limits_of}": {str(c): steps_at_worst_codes(e, *c, limits_of) for c in WORST}
                  for e in engines for limits_of in ("fbgemm", "reference")}))
"""


@pytest.fixture(scope="module")
def on_avx2():
    """{"engine limits": {"(channels, groups)": steps}} on this CPU held down to AVX2, which has no VNNI."""
    if not X86:
        pytest.skip("AVX2 is of x86")
    environment = os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AVX2_CODE], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("engine", ["fbgemm", "x86", "onednn"])
def test_weights_up_to_63_saturate_nothing_on_avx2(on_avx2, engine):
    if engine not in ENGINES:
        pytest.skip(f"{engine} does not run here")
    assert len(on_avx2[f"{engine} fbgemm"]) == len(WORST)
    assert max(on_avx2[f"{engine} fbgemm"].values()) <= 1, on_avx2[f"{engine} fbgemm"]


@pytest.mark.parametrize(
    ("engine", "case"), [("fbgemm", "(16, 16)"), ("fbgemm", "(104, 104)"), ("onednn", "(16, 1)"), ("onednn", "(64, 4)")]
)
def test_full_weights_do_on_avx2(on_avx2, engine, case):
    """fbgemm in depthwise convolutions, onednn in dense and grouped ones: why weight_qmax asks whether the CPU has
    VNNI.
    """
    if engine not in ENGINES:
        pytest.skip(f"{engine} does not run here")
    assert on_avx2[f"{engine} reference"][case] > 10, on_avx2


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


# ---- two tensors on unlike grids ---------------------------------------------------------------------------


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
