"""quant.convert and the executors: each engine against the integer oracle, the oracle against fake-quant."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

import quant
from frostnet import frostnet
from quant.executors import build
from quant.executors.reference import Reference
from quant.integer.graph import IntGraph, Op, Ref
from quant.integer.parity import LayerParity, ParityReport
from quant.quantizers.grid import QParams, affine_qparams

ENGINES = ("reference", *quant.available())


def trained(model, x, engine):
    """Attached, and run a few times so that statistics and ranges are there."""
    graph = quant.attach(model, x, quant.QuantConfig(engine=engine)).train()
    with torch.no_grad():
        for _ in range(4):
            graph(x + 0.1 * torch.randn_like(x))
    return graph


def conv_graph(weight, x_grid, y_grid, **attrs):
    """input -> quantize -> conv -> dequantize."""
    attrs = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | attrs
    ops = [
        Op("x", "input"),
        Op("xq", "quantize", ("x",), x_grid),
        Op("y", "conv", ("xq",), y_grid, weight, torch.full((len(weight),), 0.01), torch.zeros(len(weight)), attrs),
        Op("out", "dequantize", ("y",)),
    ]
    return IntGraph(ops, Ref("out"))


def test_reference_convolution_has_the_known_answer():
    # x codes 3, 5 with zero point 1; weights 2, -4: acc = 2*2 - 4*4 = -12; times 0.5*0.01/0.02 = -3 steps; zero point
    # 10
    graph = conv_graph(torch.tensor([[[[2]], [[-4]]]], dtype=torch.int8), QParams(0.5, 1), QParams(0.02, 10))
    x = QParams(0.5, 1).dequantize(torch.tensor([3, 5], dtype=torch.uint8)).view(1, 2, 1, 1)
    assert Reference(graph)(x).item() == pytest.approx(-3 * 0.02)


def test_reference_accumulates_exactly_beyond_float32():
    # 3x3x1024 products of 255 * 127 sum to 298 million, far above 2^24
    weight = torch.full((1, 1024, 3, 3), 127, dtype=torch.int8)
    weight[0, 0, 0, 0] = 126
    graph = conv_graph(weight, QParams(1.0, 0), QParams(1.0, 0, 0, 255))
    acc = Reference(graph)._accumulate(graph.op("y"), torch.full((1, 1024, 3, 3), 255, dtype=torch.uint8), F.conv2d)
    assert acc.item() == 255 * (127 * 1024 * 9 - 1)


def test_padding_is_real_zero_whatever_the_zero_point():
    graph = conv_graph(torch.ones(1, 1, 3, 3, dtype=torch.int8), QParams(1.0, 77), QParams(0.01, 100), padding=(1, 1))
    out = Reference(graph)(torch.zeros(1, 1, 4, 4))
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("engine", quant.available())
@pytest.mark.parametrize(
    "case",
    [
        {"channels": 16, "out": 24, "k": 1},
        {"channels": 8, "out": 8, "k": 3, "groups": 8},
        {"channels": 12, "out": 12, "k": 5, "groups": 12},
        {"channels": 116, "out": 116, "k": 3, "groups": 116},
        {"channels": 128, "out": 128, "k": 3, "groups": 128},
        {"channels": 16, "out": 32, "k": 3, "groups": 4},
        {"channels": 16, "out": 16, "k": 3, "dilation": 2},
        {"channels": 3, "out": 8, "k": 3, "stride": 2},
    ],
)
def test_convolutions_on_all_codes_are_within_a_step_of_the_oracle(engine, case):
    """Trap table of the kernels:

    C % 8 and groups > 100 in depthwise, on all codes, with weights in the engine's range.
    """
    torch.manual_seed(0)
    groups, k, dilation = case.get("groups", 1), case["k"], case.get("dilation", 1)
    qmax = quant.weight_qmax(engine)
    weight = torch.randint(-qmax, qmax + 1, (case["out"], case["channels"] // groups, k, k)).to(torch.int8)
    pad = dilation * (k // 2)
    attrs = {
        "groups": groups,
        "padding": (pad, pad),
        "dilation": (dilation,) * 2,
        "stride": (case.get("stride", 1),) * 2,
    }
    spread = weight.float().flatten(1).norm(dim=1).mean().item() * 0.01 * 40
    graph = conv_graph(weight, QParams(1.0, 0), QParams(spread / 20, 128), **attrs)
    x = torch.randint(0, 256, (2, case["channels"], 9, 9)).float()
    executor = build(graph, engine)
    with quant.use_engine(engine):
        got = executor(x)
    expected = Reference(graph)(x)
    assert (expected - got).abs().max().item() <= 1.01 * spread / 20
    assert expected.unique().numel() > 20


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["add", "mul", "cat"])
def test_tensors_on_tenfold_ranges_combine_within_a_step(engine, kind):
    a, b = torch.rand(2, 8, 4, 4) * 10, torch.rand(2, 8, 4, 4) - 0.5
    grids = [affine_qparams(0.0, 10.0, 127), affine_qparams(-0.5, 0.5, 127)]
    out = affine_qparams(-5.0, 10.5, 127)
    ops = [
        Op("a", "input"),
        Op("b", "input"),
        Op("aq", "quantize", ("a",), grids[0]),
        Op("bq", "quantize", ("b",), grids[1]),
        Op("y", kind, ("aq", "bq"), out, attrs={"dim": 1} if kind == "cat" else {}),
        Op("out", "dequantize", ("y",)),
    ]
    graph = IntGraph(ops, Ref("out"))
    with quant.use_engine(engine):
        got = build(graph, engine)(a, b)
    real = {"add": a + b, "mul": a * b, "cat": torch.cat([a, b], 1)}[kind]
    assert (got - Reference(graph)(a, b)).abs().max() <= 1.01 * out.scale
    assert (got - real).abs().max() <= out.scale + 10 * grids[1].scale


class Block(nn.Module):
    """conv-bn-act, depthwise-bn-act, linear projection, squeeze by average pooling, residual, head."""

    def __init__(self, act, eps=1e-5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16, eps=eps), act())
        self.dw = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16, eps=eps), act())
        self.project = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16, eps=eps))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(self.dw(x))
        return self.fc(torch.flatten(self.pool(x), 1))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.Hardswish])
def test_every_engine_is_within_two_steps_layer_by_layer(engine, act):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 16, 16)
    graph = trained(Block(act), x, engine)
    report = quant.parity(graph, quant.convert(graph, engine), x)
    assert report.layer_steps <= 2, report.worst
    assert len(report.rows) >= 7


NETWORKS = ("frostnet", "resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0")
# A session for each operation of a network takes seconds; their operations have tests one by one. torch's engines share
# their executor.
QUICK = {
    "openvino": NETWORKS[:1],
    "onnxruntime": ("frostnet", "shufflenet_v2_x1_0"),
    **dict.fromkeys(("qnnpack", "x86", "onednn"), ("frostnet", "mobilenet_v3_small")),
}
WHOLE = [
    pytest.param(name, engine, marks=() if name in QUICK.get(engine, NETWORKS) else pytest.mark.slow)
    for name in NETWORKS
    for engine in ENGINES
]


@pytest.mark.parametrize(("name", "engine"), WHOLE)
def test_whole_networks_convert_on_every_engine(name, engine):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    model = (
        frostnet("small", 0.35, num_classes=10, input_size=32)
        if name == "frostnet"
        else getattr(models, name)(num_classes=10)
    )
    graph = trained(model, x, engine)
    report = quant.parity(graph, quant.convert(graph, engine), x).check()
    assert report.images == 4
    assert report.output_steps <= 20  # untrained networks amplify single steps


@pytest.mark.parametrize("gamma", ["negative", "zero", "tiny", "one"])
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_folding_is_right_for_any_gamma_and_eps(gamma, eps):
    torch.manual_seed(0)
    model, x = Block(nn.ReLU, eps), torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        for bn in (model.stem[1], model.project[1]):
            bn.weight.copy_(
                {
                    "negative": -torch.rand(16),
                    "zero": torch.zeros(16),
                    "tiny": torch.full((16,), 1e-6),
                    "one": torch.ones(16),
                }[gamma]
            )
            bn.bias.uniform_(-1, 1)
    graph = trained(model, x, "reference")
    assert quant.parity(graph, quant.convert(graph, "reference"), x).layer_steps <= 1


def test_integer_weights_are_the_ones_trained_on():
    x = torch.randn(4, 3, 16, 16)
    graph = trained(Block(nn.ReLU), x, "fbgemm")
    op = quant.convert(graph, "fbgemm").graph.ops[2]
    stem = graph.get_submodule("stem.0")
    signs = torch.sign(graph.get_submodule("stem.1").weight).view(-1, 1, 1, 1)
    assert torch.equal(op.weight, (stem.weight_quant.codes(stem.weight) * signs).to(torch.int8))


@pytest.mark.parametrize("engine", quant.available())
def test_the_frozen_form_computes_the_same_and_survives_saving(engine, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    graph = trained(Block(nn.ReLU), x, engine)
    executor = quant.convert(graph, engine)
    with quant.use_engine(engine), torch.inference_mode():
        expected = executor(x)
    frozen = quant.freeze(executor, x)
    frozen.save(tmp_path / "int8")
    with torch.inference_mode():
        assert torch.equal(frozen(x), expected)
        assert torch.equal(quant.load_frozen(tmp_path / "int8", engine)(x), expected)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a network", b"neither of them"])
def test_a_file_that_is_no_network_is_refused(content, tmp_path):
    (tmp_path / "int8.pt").write_bytes(content)
    with pytest.raises(quant.QuantError, match="int8.pt: not"):
        quant.load_frozen(tmp_path / "int8.pt")


@pytest.mark.parametrize("engine", ENGINES)
def test_codes_in_and_out_leave_the_stubs_away(engine):
    """Between its stubs a network computes the very codes that it computes with them."""
    x = torch.randn(2, 3, 16, 16)
    graph = trained(Block(nn.ReLU), x, engine)
    whole, inside = (quant.convert(graph, engine, codes_io=codes) for codes in (False, True))
    assert len(inside.graph.ops) == len(whole.graph.ops) - 2
    (codes,) = quant.code_inputs(inside, x)
    with quant.use_engine(engine):
        end = whole.graph.op(whole.graph.op(whole.graph.output.name).inputs[0])
        assert torch.equal(end.qparams.dequantize(inside.codes(inside(codes))), whole(x))


def test_a_picture_that_is_read_as_real_values_too_cannot_come_as_codes():
    graph = conv_graph(torch.ones(1, 1, 1, 1, dtype=torch.int8), QParams(1.0, 0), QParams(1.0, 0))
    graph.ops.insert(1, Op("tanh", "float", ("x",), attrs={"call": None}))
    with pytest.raises(quant.QuantError, match="codes_io: x is read as a real value"):
        build(graph, "reference", codes_io=True)


@pytest.mark.parametrize("engine", [e for e in quant.available() if e not in ("onnxruntime", "openvino")])
def test_torchs_engines_work_on_quantized_channels_last_tensors(engine):
    x = torch.randn(1, 3, 16, 16)
    executor = quant.convert(trained(Block(nn.ReLU), x, engine), engine, codes_io=True)
    (codes,) = quant.code_inputs(executor, x)
    assert codes.dtype == torch.quint8
    assert codes.is_contiguous(memory_format=torch.channels_last)
    with quant.use_engine(engine):
        assert executor(codes).dtype == torch.quint8


def test_the_float_baseline_is_folded_and_equal():
    model = Block(nn.ReLU).train()
    x = torch.randn(2, 3, 16, 16)
    model(x)
    frozen = quant.freeze_float(model, x)
    assert torch.allclose(frozen(x), model.eval()(x), atol=1e-5)
    assert "batch_norm" not in str(frozen.module.graph)
    assert model.stem[0].weight.requires_grad, "the model itself is left alone"


def test_the_parity_gate_blocks_and_names_the_layer():
    rows = (LayerParity("stem", "conv", 1.0, 1), LayerParity("blocks_3", "conv", 1.0, 45))
    report = ParityReport("fbgemm", rows, 3.0, 0.98, 100)
    with pytest.raises(quant.QuantError, match="blocks_3.*45"):
        report.check()
    assert report.check(max_layer_steps=50) is report


def test_parity_sees_a_wrong_layer():
    x = torch.randn(4, 3, 16, 16)
    graph = trained(Block(nn.ReLU), x, "fbgemm")
    executor = quant.convert(graph, "reference")
    broken = quant.convert(graph, "reference")
    broken.graph.op("dw_2_quant").bias += 1.0
    good, bad = quant.parity(graph, executor, x), quant.parity(graph, broken, x)
    assert good.layer_steps <= 1 < bad.layer_steps
    assert bad.worst.name == "dw_2_quant"


@pytest.mark.parametrize("engine", quant.available())
@pytest.mark.parametrize("groups", [1, 16])
def test_the_worst_codes_saturate_no_engine_within_its_weight_range(engine, groups):
    """vpmaddubsw adds pairs of 8-bit products in 16 bits; weights up to 63 leave no pair that could overflow."""
    grid = QParams(16.0, 0)
    weight = torch.full((16, 16 // groups, 3, 3), quant.weight_qmax(engine), dtype=torch.int8)
    graph = conv_graph(weight, QParams(1.0, 0), grid, groups=groups, padding=(1, 1))
    x = torch.full((1, 16, 6, 6), 255.0)
    with quant.use_engine(engine):
        off = (build(graph, engine)(x) - Reference(graph)(x)).abs().max() / grid.scale
    assert off <= 1


def test_conversion_without_data_names_the_quantizer():
    graph = quant.attach(Block(nn.ReLU), torch.randn(1, 3, 16, 16))
    with pytest.raises(quant.QuantError, match="x_quant.*seen no data"):
        quant.convert(graph, "reference")


def test_unknown_engines_are_refused():
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(quant.QuantError, match="tpu"):
        quant.convert(trained(Block(nn.ReLU), x, "fbgemm"), "tpu")


def test_without_torchs_integer_kernels_the_rest_still_runs(tmp_path):
    """The one file that calls them can go."""
    code = (
        "import sys; sys.modules['quant.executors.torch_engines'] = None\n"
        "import torch, quant; from torch import nn\n"
        "assert not {'fbgemm', 'qnnpack', 'x86', 'onednn'} & set(quant.available())\n"
        "g = quant.attach(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)); g(torch.randn(2, 3, "
        "8, 8))\n"
        "print(tuple(quant.convert(g, 'reference')(torch.randn(2, 3, 8, 8)).shape))\n"
        "try: quant.convert(g, 'fbgemm')\n"
        "except quant.QuantError as e: print(e)\n"
        "if 'onnxruntime' in quant.available():\n"
        "    print(quant.export_onnx(g, sys.argv[1], torch.randn(2, 3, 8, 8)).integer_layers, 'integer layer')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "net.onnx")]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
    assert "(2, 4, 6, 6)" in out
    assert "not available" in out
    assert "1 integer layer" in out


def test_an_integer_network_does_not_move_with_the_model_that_trains_on():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ReLU())
    x = torch.randn(8, 3, 4, 4)
    graph = trained(model, x, "reference")
    executor = quant.convert(graph, "reference")
    before, mean = executor(x), graph.get_submodule("0").running_mean.clone()
    executor(x + 5)
    assert torch.equal(graph.get_submodule("0").running_mean, mean)
    graph(x + 5)
    assert torch.equal(executor(x), before)


def test_values_are_freed_after_their_last_reader():
    x = torch.randn(2, 3, 16, 16)
    executor = quant.convert(trained(Block(nn.Hardswish), x, "reference"), "reference")
    freed = [name for names in executor.expiring for name in names]
    assert len(freed) == len(set(freed)) == len(executor.graph.ops) - 1


def test_a_batch_norm_without_statistics_and_a_foreign_file_are_refused(tmp_path):
    x = torch.randn(4, 3, 8, 8)
    graph = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), x, "reference")
    with pytest.raises(quant.QuantError, match="no running statistics"):
        quant.convert(graph, "reference")
    (tmp_path / "int8.pt").write_bytes(b"something else")
    with pytest.raises(quant.QuantError, match="int8.pt"):
        quant.load_frozen(tmp_path / "int8.pt")


def test_a_report_reads_as_one_line():
    rows = (LayerParity("stem", "conv", 1.0, 1), LayerParity("blocks_3", "conv", 1.0, 2))
    assert str(ParityReport("fbgemm", rows, 3.0, 0.98, 100)) == (
        "parity on fbgemm, 100 images: at most 2 steps in a layer (conv blocks_3), 3 at the output, 98.0 % of equal "
        "argmax"
    )
