"""Instance norm on integer values, and the generators that use it: every engine against the integer oracle."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.calibrate import calibrate
from quant.executors import build
from quant.executors.reference import Reference
from quant.integer.graph import IntGraph, Op, Ref
from quant.quantizers.grid import QParams

OPENVINO = {"openvino": pytest.mark.slow}  # half a second to compile a network
ENGINES = ["reference", *(pytest.param(name, marks=OPENVINO.get(name, ())) for name in quant.available())]
TORCHS = [engine for engine in quant.available() if engine not in ("onnxruntime", "openvino")]


OUT = QParams(0.03, 128)


def norm_graph(grid, gamma, beta, eps=1e-5, out=OUT):
    """input -> quantize -> instance norm -> dequantize."""
    ops = [
        Op("x", "input", attrs={"shape": (1, len(gamma), 2, 2)}),
        Op("xq", "quantize", ("x",), grid),
        Op("y", "instance_norm", ("xq",), out, weight_scale=gamma, bias=beta, attrs={"eps": eps}),
        Op("out", "dequantize", ("y",)),
    ]
    return IntGraph(ops, Ref("out"))


def test_the_reference_has_the_known_answer():
    # codes 0, 2, 4, 6 in steps of 0.5: values -1, 0, 1, 2, mean 0.5, variance 1.25; eps 0.3125 makes the root 1.25
    graph = norm_graph(QParams(0.5, 2), torch.tensor([2.5]), torch.tensor([0.25]), 0.3125, QParams(0.25, 100))
    codes = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 1, 2, 2)
    assert Reference(graph).step(graph.op("y"), {"xq": codes}).flatten().tolist() == [
        round(100 + (2.5 * (value - 0.5) / math.sqrt(1.25 + 0.3125) + 0.25) / 0.25) for value in (-1, 0, 1, 2)
    ]


@pytest.mark.parametrize("shape", [(2, 5, 1, 2), (3, 6, 7, 5), (2, 16, 40, 33)])
def test_the_reference_is_torchs_instance_norm_in_float64_rounded(shape):
    torch.manual_seed(0)
    grid = QParams(0.07, 90)
    gamma, beta = torch.randn(shape[1]), torch.randn(shape[1])
    codes = torch.randint(0, 256, shape, dtype=torch.uint8)
    graph = norm_graph(grid, gamma, beta)
    real = F.instance_norm((codes.double() - 90) * 0.07, weight=gamma.double(), bias=beta.double(), eps=1e-5)
    expected = (torch.round(real / OUT.scale) + 128).clamp(0, 255)
    assert torch.equal(Reference(graph).step(graph.op("y"), {"xq": codes}), expected.to(torch.uint8))


PICTURES = {
    "random": lambda shape: torch.randint(0, 256, shape),
    "far from zero": lambda shape: torch.randint(240, 256, shape),
    "two values": lambda shape: 255 * torch.randint(0, 2, shape),
    "constant": lambda shape: torch.full(shape, 200),
    "one pixel": lambda shape: F.pad(torch.ones(*shape[:2], 1, 1), (3, shape[3] - 4, 2, shape[2] - 3)) + 254,
}


@pytest.mark.parametrize("engine", ENGINES[1:])
@pytest.mark.parametrize("picture", PICTURES)
def test_any_picture_is_within_a_step_of_the_oracle(picture, engine):
    torch.manual_seed(0)
    grid = QParams(0.03, 120)
    graph = norm_graph(grid, torch.randn(16), torch.randn(16))
    x = grid.dequantize(PICTURES[picture]((2, 16, 130, 140)).to(torch.uint8))
    expected, executor = Reference(graph)(x), build(graph, engine)
    with quant.use_engine(engine):
        got = executor(x)
    assert (got - expected).abs().max() <= 1.01 * 0.03
    if picture == "constant" and engine in TORCHS:
        assert torch.equal(got, expected), "beta alone"
    if picture != "constant":
        assert expected.unique().numel() > 10


@pytest.mark.skipif(not TORCHS, reason="none of torch's engines runs here")
def test_torchs_own_kernel_is_off_where_values_lie_far_from_zero():
    """Why executors do not call it; should it be mended, it is the faster one."""
    torch.manual_seed(0)
    grid, gamma, beta = QParams(0.03, 120), torch.ones(8), torch.zeros(8)
    codes = torch.randint(240, 256, (1, 8, 256, 256), dtype=torch.uint8)
    graph = norm_graph(grid, gamma, beta)
    expected = Reference(graph).step(graph.op("y"), {"xq": codes})
    with quant.use_engine(TORCHS[0]):
        x = torch._make_per_tensor_quantized_tensor(codes.contiguous(memory_format=torch.channels_last), 0.03, 120)
        got = torch.ops.quantized.instance_norm(x, gamma, beta, 1e-5, 0.03, 128).int_repr()
    assert (got.int() - expected.int()).abs().max() > 2


class Normed(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.conv, self.norm, self.act, self.last = (
            nn.Conv2d(3, 8, 3),
            nn.InstanceNorm2d(8, **options),
            nn.ReLU(),
            nn.Conv2d(8, 4, 1),
        )
        if self.norm.affine:
            with torch.no_grad():
                self.norm.weight.copy_(torch.linspace(-1, 1, 8))  # of either sign, and zero
                self.norm.bias.uniform_(-1, 1)

    def forward(self, x):
        return self.last(self.act(self.norm(self.conv(x))))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{}, {"affine": True}, {"affine": True, "eps": 1e-2}])
def test_it_is_one_integer_operation_with_its_relu(options, engine):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 12, 10)
    graph = calibrate(Normed(**options), [x], quant.QuantConfig(engine=engine))
    executor = quant.convert(graph, engine)
    assert [op.kind for op in executor.graph.ops[2:5]] == ["conv", "instance_norm", "conv"]
    report = quant.parity(graph, executor, x).check(1)
    assert report.rows[2].kind == "instance_norm"
    codes = Reference(executor.graph).graph.op("act_quant").qparams
    assert codes.zero_point == 0, "the ReLU is the clamp of its grid"
    assert executor.float_ops == (["act_quant"] if engine in ("onnxruntime", "openvino") else []), (
        "those have it in float alone"
    )


def test_the_convolution_before_it_has_a_grid_of_its_own():
    rows = {row.name: row for row in quant.plan(Normed(), torch.randn(1, 3, 8, 8))}
    assert rows["conv"].makes == rows["norm"].reads == "conv_quant"
    assert rows["norm"].reason == "in one group with act" and rows["act"].makes == rows["last"].reads == "act_quant"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_picture_gets_the_same_codes_in_any_batch(engine):
    torch.manual_seed(0)
    x = torch.cat([torch.randn(4, 3, 12, 10), 5 + 0.1 * torch.randn(1, 3, 12, 10)])
    executor = quant.convert(calibrate(Normed(affine=True), [x], quant.QuantConfig(engine=engine)), engine)
    with torch.inference_mode(), quant.use_engine(engine):
        alone = torch.cat([executor(one) for one in x.split(1)])
        assert torch.equal(executor(x), alone)
        assert torch.equal(executor(x[[4, 2]]), alone[[4, 2]])
        if engine != "reference":
            assert torch.equal(quant.freeze(executor, x[:2])(x), alone), "frozen for two pictures, called with five"


def test_parameters_stay_the_same_objects_and_learn():
    torch.manual_seed(0)
    model, x = Normed(affine=True).train(), torch.randn(4, 3, 8, 8)
    graph = quant.attach(model, x)
    assert graph.get_submodule("norm").weight is model.norm.weight
    graph(x).square().sum().backward()
    assert model.norm.weight.grad.abs().min() > 0 and model.conv.weight.grad.abs().max() > 0


def test_with_running_statistics_it_stays_float_and_right(tmp_path):
    torch.manual_seed(0)
    model, x = Normed(affine=True, track_running_stats=True), torch.randn(4, 3, 12, 10)
    model.train()(x)
    graph = calibrate(model, [x], quant.QuantConfig(engine="fbgemm"))
    executor = quant.convert(graph, "fbgemm")
    assert executor.float_ops == ["norm_quant"]
    assert quant.parity(graph, executor, x).layer_steps <= 1
    assert quant.export_onnx(model.eval(), tmp_path / "float.onnx", x).max_difference <= 1e-5


@pytest.mark.parametrize("affine", [False, True])
def test_a_float_network_is_written_as_onnx(affine, tmp_path):
    torch.manual_seed(0)
    assert (
        quant.export_onnx(Normed(affine=affine), tmp_path / "float.onnx", torch.randn(2, 3, 12, 10)).max_difference
        <= 1e-5
    )


def test_the_file_is_checked_and_names_the_norm(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 10)
    report = quant.export_onnx(
        calibrate(Normed(), [x], quant.QuantConfig(engine="onnxruntime")), tmp_path / "int8.onnx", x
    )
    assert report.layer_steps <= 1 and report.integer_layers == 2 and report.float_ops == ("act_quant",)


# ---- whole generators --------------------------------------------------------------------------------------

NORMS = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d, "none": lambda channels: nn.Identity()}


def layer(inputs, outputs, kernel, stride, norm):
    return nn.Sequential(
        nn.ReflectionPad2d(kernel // 2),
        nn.Conv2d(inputs, outputs, kernel, stride, bias=norm == "none"),
        NORMS[norm](outputs),
        nn.ReLU(),
    )


class Residual(nn.Module):
    def __init__(self, channels, norm):
        super().__init__()
        self.first, self.second = layer(channels, channels, 3, 1, norm), layer(channels, channels, 3, 1, norm)[:3]

    def forward(self, x):
        return x + self.second(self.first(x))


class Up(nn.Sequential):
    def __init__(self, inputs, outputs, norm):
        super().__init__(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), layer(inputs, outputs, 3, 1, norm)
        )


def resnet(norm):
    """A small ResNet generator: pictures in [-1, 1] to pictures in [-1, 1]."""
    net = nn.Sequential(
        layer(3, 8, 7, 1, norm),
        layer(8, 16, 3, 2, norm),
        layer(16, 32, 3, 2, norm),
        Residual(32, norm),
        Residual(32, norm),
        Up(32, 16, norm),
        Up(16, 8, norm),
        nn.ReflectionPad2d(3),
        nn.Conv2d(8, 3, 7),
        nn.Tanh(),
    )
    return started(net)


class UNet(nn.Module):
    """Three levels with skip concatenations, leaky ReLUs on the way down and transposed convolutions on the way up."""

    def __init__(self, norm):
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 4, 2, 1), self.step(8, 16, norm), self.step(16, 32, "none")])
        self.up = nn.ModuleList([self.back(32, 16, norm), self.back(32, 8, norm), self.back(16, 3, "none")])
        self.tanh = nn.Tanh()

    @staticmethod
    def step(inputs, outputs, norm):
        return nn.Sequential(
            nn.LeakyReLU(0.2), nn.Conv2d(inputs, outputs, 4, 2, 1, bias=norm == "none"), NORMS[norm](outputs)
        )

    @staticmethod
    def back(inputs, outputs, norm):
        return nn.Sequential(
            nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=norm == "none"), NORMS[norm](outputs)
        )

    def forward(self, x):
        one = self.down[0](x)
        two = self.down[1](one)
        x = self.up[0](self.down[2](two))
        x = self.up[1](torch.cat([two, x], 1))
        return self.tanh(self.up[2](torch.cat([one, x], 1)))


def started(net):
    """Weights that keep the size of activations, and pictures that use their range without lying at its ends."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight)
            with torch.no_grad():
                module.weight.mul_(0.3 if module.out_channels == 3 else 1)
    return net


def pictures(count, size=32):
    coarse = 2 * torch.rand(count, 3, size // 8, size // 8) - 1
    return (F.interpolate(coarse, size=(size, size), mode="bicubic") + 0.1 * torch.randn(count, 3, size, size)).clamp(
        -1, 1
    )


def trained(model, engine):
    """Attached, statistics and ranges from a few batches."""
    graph = quant.attach(model, pictures(2), quant.QuantConfig(engine=engine)).train()
    with torch.no_grad():
        for _ in range(5):
            graph(pictures(4))
    quant.snap_biases(graph)
    return graph.eval()


def marks(norm, engine):
    """A session for each operation of a whole network takes seconds."""
    return pytest.mark.slow if engine == "openvino" or (engine == "onnxruntime" and norm != "instance") else ()


GENERATORS = {f"resnet, {norm}": (resnet, norm) for norm in NORMS} | {
    f"u-net, {norm}": (lambda norm: started(UNet(norm)), norm) for norm in ("batch", "instance")
}


CASES = [
    pytest.param(name, e, marks=marks(norm, e))
    for name, (_, norm) in GENERATORS.items()
    for e in ("reference", *quant.available())
]


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_integer_generators_paint_what_fake_quant_paints(name, engine):
    """At least 40 dB of pictures in [-1, 1]; nothing but the last tanh in float (and instance norm in ONNX)."""
    torch.manual_seed(0)
    make, norm = GENERATORS[name]
    graph, x = trained(make(norm), engine), pictures(3)
    executor = quant.convert(graph, engine)
    assert quant.parity(graph, executor, x).layer_steps <= 2
    with torch.no_grad(), quant.use_engine(engine):
        painted, expected = executor(x), graph(x)
    assert expected.std() > 0.1 and expected.abs().max() < 1.01
    assert 10 * math.log10(4 / max((painted - expected).square().mean().item(), 1e-9)) >= 40
    functions = [op for op in executor.graph.ops if op.name in executor.float_ops]
    left = [op.attrs["call"].function for op in functions if op.kind == "function"]
    assert any(isinstance(function, nn.Tanh) for function in left)
    if engine in TORCHS:
        assert len(functions) == 1
    if engine == "onnxruntime":
        assert len(left) == 1 and len(functions) == 1 + sum(op.kind == "instance_norm" for op in executor.graph.ops)
