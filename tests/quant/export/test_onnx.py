"""quant.to_onnx and quant.export_onnx: what other runtimes get, against torch and the integer reference."""

import hashlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.executors.onnxruntime import open_session, optimised
from quant.export.onnx.graph import to_onnx
from quant.integer.frozen import OnnxNetwork


def observed(model, x, engine="onnxruntime", **config):
    """Attached, statistics and ranges from a few batches."""
    graph = quant.attach(model, x, quant.QuantConfig(engine=engine, **config)).train()
    with torch.no_grad():
        for _ in range(4):
            graph(x + 0.1 * torch.randn_like(x))
    return graph.eval()


class Net(nn.Module):
    """Residual and concat blocks, an SE gate, pooling, a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.squeeze = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU())
        self.dw = nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.BatchNorm2d(24), nn.ReLU6())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 24, 1), nn.Hardsigmoid())
        self.project, self.pool = nn.Conv2d(24, 16, 1), nn.MaxPool2d(2)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.dw(torch.cat([self.squeeze(x), x], 1))
        x = self.pool(x + self.project(y * self.gate(y)))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return observed(Net(), torch.randn(8, 3, 16, 16))


def test_every_layer_is_integer_and_the_report_says_what_is_not(graph, tmp_path):
    report = quant.export_onnx(graph, tmp_path / "net.onnx")
    assert report.integer_layers == 6
    assert report.layer_steps <= 1
    assert [name for name in report.float_ops if "gate_2" not in name] == [], "all but the hard-sigmoid"
    assert report.bytes == (tmp_path / "net.onnx").stat().st_size
    kinds = {node.op_type for node in optimised(onnx.load(tmp_path / "net.onnx")).graph.node}
    assert {"QLinearConv", "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat"} <= kinds
    assert not {"Conv", "FusedConv", "Gemm"} & kinds


def test_the_file_carries_what_was_found_and_the_users_texts(graph, tmp_path):
    report = quant.export_onnx(graph, tmp_path / "net.onnx", metadata={"classes": "a,b"})
    stored = {p.key: p.value for p in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert stored["classes"] == "a,b"
    assert float(stored["output_steps"]) == report.output_steps
    assert float(stored["max_difference"]) == report.max_difference


def test_any_batch_size_runs_and_gives_the_references_codes(graph, tmp_path):
    quant.export_onnx(graph, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    reference = quant.convert(graph, "reference")
    step = quant.parity(graph, reference, torch.randn(2, 3, 16, 16)).output_steps
    assert step <= 1
    scale = reference.graph.op(reference.graph.op(reference.graph.output.name).inputs[0]).qparams.scale
    for batch in (1, 3, 8):
        x = torch.randn(batch, 3, 16, 16)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert np.abs(got - reference(x).numpy()).max() <= 2.01 * scale


def test_exporting_twice_gives_the_same_bytes_in_this_process_and_another(graph, tmp_path):
    code = (
        "import sys, torch, quant, tests.quant.export.test_onnx as t\n"
        "torch.manual_seed(0)\n"
        "quant.export_onnx(t.observed(t.Net(), torch.randn(8, 3, 16, 16)), sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other.onnx")], check=True)
    for name in ("one", "two"):
        quant.export_onnx(graph, tmp_path / f"{name}.onnx")
    assert len({hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.glob("*.onnx")}) == 1


def test_weights_and_biases_in_the_file_are_the_integer_graphs(graph, tmp_path):
    quant.export_onnx(graph, tmp_path / "net.onnx")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "net.onnx").graph.initializer}
    integers = quant.convert(graph, "reference").graph
    layers = [op for op in integers.ops if op.weight is not None]
    assert len(layers) == 6
    for op in layers:
        assert np.array_equal(stored[f"{op.name}_weight"], op.weight.numpy())
        assert stored[f"{op.name}_weight"].dtype == np.int8
        step = integers.op(op.inputs[0]).qparams.scale * op.weight_scale.double().numpy()
        assert np.abs(stored[f"{op.name}_bias"] * step - op.bias.numpy()).max() <= 0.5001 * step.max()


class Call(nn.Module):
    """One convolution, then any call, so that the call works on codes or between grids."""

    def __init__(self, call):
        super().__init__()
        self.conv, self.call = nn.Conv2d(4, 8, 3, padding=1), call

    def forward(self, x):
        return self.call(self.conv(x))


CALLS = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "silu": nn.SiLU(),
    "leaky": nn.LeakyReLU(0.2),
    "prelu": nn.PReLU(8),
    "softmax": nn.Softmax(1),
    "hardtanh": nn.Hardtanh(-0.5, 0.7),
    "max_pool": nn.MaxPool2d(3, 2, 1),
    "max_pool_ceil": nn.MaxPool2d(2, 2, ceil_mode=True),
    "average": nn.AvgPool2d(2),
    "average_padded": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average_counted": nn.AvgPool2d(3, 2, 1),
    "average_ceil": nn.AvgPool2d(3, 2, (1, 0), ceil_mode=True),
    "adaptive": nn.AdaptiveAvgPool2d(3),
    "adaptive_uneven": nn.AdaptiveAvgPool2d((4, 5)),
    "adaptive_up": nn.AdaptiveAvgPool2d(14),
    "global": nn.AdaptiveAvgPool2d(1),
    "mean": lambda x: x.mean((2, 3)),
    "mean_keep": lambda x: x.mean([-1, -2], keepdim=True),
    "mean_rows": lambda x: x.mean(2),
    "nearest": nn.Upsample(scale_factor=2),
    "nearest_size": lambda x: F.interpolate(x, size=(15, 20)),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear_corners": lambda x: F.interpolate(x, size=(17, 13), mode="bilinear", align_corners=True),
    "shuffle": lambda x: (
        x.view(x.shape[0], 2, 4, x.shape[2], x.shape[3]).transpose(1, 2).reshape(x.shape[0], 8, x.shape[2], x.shape[3])
    ),
    "pixel_shuffle": nn.PixelShuffle(2),
    "slice": lambda x: x[:, 2:6, ::2, 1:],
    "slice_all": lambda x: x[..., :-1],
    "index": lambda x: x[:, 1],
    "chunk": lambda x: torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0]], 1),
    "split": lambda x: x.split([3, 5], 1)[1],
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "flatten": lambda x: x.flatten(1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "batch_norm": nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU()),
    "dropout": nn.Dropout(0.3),
    "transposed": nn.ConvTranspose2d(8, 4, 4, 2, 1),
    "scaled": lambda x: x * 0.5 + 1,
    "difference": lambda x: x - x.mean((2, 3), keepdim=True),
    "divided": lambda x: x / 3,
    "product": lambda x: x * torch.sigmoid(x),
    "padded_input": nn.Conv2d(8, 4, 3, 2, padding=(2, 0)),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_compute_the_same_in_onnx_in_float_and_as_integers(name, tmp_path):
    """Float ONNX against torch to rounding, INT8 ONNX against the reference to a step."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, 10, 10)
    model = Call(CALLS[name]).train()
    model(x)
    exported = quant.export_onnx(model, tmp_path / "float.onnx", x)
    assert exported.max_difference <= 1e-5
    graph = observed(model, x)
    assert quant.export_onnx(graph, tmp_path / "int8.onnx", x).output_steps <= 1


def test_layers_that_settings_keep_float_are_written_in_float(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    graph = observed(Net(), x, skip_first={"conv": 1}, skip_last={"linear": 1})
    assert quant.export_onnx(graph, tmp_path / "net.onnx", x).integer_layers == 4
    kinds = [node.op_type for node in optimised(onnx.load(tmp_path / "net.onnx")).graph.node]
    assert sum(kind in ("Conv", "FusedConv", "Gemm") for kind in kinds) == 2, (
        "the runtime has not quantized their weights"
    )


def test_few_bits_and_learned_ranges_keep_to_their_codes(tmp_path):
    """Codes narrower than 8 bits are clipped as integers."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    graph = observed(Net(), x, weight="lsq:4", activation="lsq:4", residual="lsq:4")
    assert quant.export_onnx(graph, tmp_path / "net.onnx", x).layer_steps <= 1


class Odd(nn.Module):
    def forward(self, x):
        return torch.cumsum(x, 1)


def test_an_operation_without_onnx_form_is_named(tmp_path):
    with pytest.raises(quant.QuantError, match="cumsum.*no ONNX form"):
        quant.export_onnx(Call(Odd()), tmp_path / "net.onnx", torch.randn(2, 4, 8, 8))
    assert not list(tmp_path.iterdir())


def test_a_method_whose_values_are_a_function_of_the_input_is_refused_in_words(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    with pytest.raises(quant.QuantError, match="no ONNX form"):
        quant.export_onnx(observed(Net(), x, activation="qil:4"), tmp_path / "net.onnx", x)
    assert not list(tmp_path.iterdir())


def test_a_float_model_needs_pictures_to_be_traced_with(tmp_path):
    with pytest.raises(quant.QuantError, match="images"):
        quant.export_onnx(Net(), tmp_path / "net.onnx")


def test_a_layer_left_in_float_by_the_runtime_is_an_error(graph, tmp_path, monkeypatch):
    """What is counted is what the runtime made of the file: here it has fused nothing."""
    from quant.export.onnx import export

    monkeypatch.setattr(export, "optimised", lambda model: model)
    with pytest.raises(quant.QuantError, match="6 of 6 integer layers in float"):
        quant.export_onnx(graph, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir()), "nothing is left of a refused file"


def test_the_frozen_network_runs_on_torchs_threads_of_that_moment(graph, monkeypatch):
    seen = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda m, options, **k: seen.append(options.intra_op_num_threads) or real(m, options, **k),
    )
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            quant.freeze(quant.convert(graph, "onnxruntime"), torch.randn(1, 3, 16, 16))
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]


def test_channels_last_pictures_give_the_same_result(graph):
    frozen, x = quant.freeze(quant.convert(graph, "onnxruntime"), torch.randn(1, 3, 16, 16)), torch.randn(2, 3, 16, 16)
    assert torch.equal(frozen(x), frozen(x.contiguous(memory_format=torch.channels_last)))


def test_another_input_size_than_the_attached_one(graph):
    x = torch.randn(2, 3, 24, 40)
    model = OnnxNetwork(
        to_onnx(quant.convert(graph, "reference").graph, [tuple(x.shape)]).SerializeToString(), "onnxruntime"
    )
    expected = quant.convert(graph, "reference")(x)
    assert (model(x) - expected).abs().max() <= 0.1 * expected.abs().max()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_pictures_of_another_size_than_a_frozen_network_was_made_for_are_refused_in_words(graph, engine):
    if engine not in quant.available():
        pytest.skip(f"no {engine} here")
    frozen = quant.freeze(quant.convert(graph, engine), torch.randn(1, 3, 16, 16))
    assert frozen(torch.randn(3, 3, 16, 16)).shape == (3, 5)
    for shape, words in (((2, 3, 24, 40), "2x3x24x40"), ((1, 1, 16, 16), "1x1x16x16"), ((3, 16, 16), "3x16x16")):
        with pytest.raises(
            quant.QuantError, match=f"{words}: .* made for Nx3x16x16 .*; resize the pictures, or freeze or export"
        ):
            frozen(torch.randn(shape))


def test_an_engine_keeps_the_sessions_of_a_few_sizes(graph, monkeypatch):
    monkeypatch.setattr("quant.executors.sessions.KEPT_SHAPES", 2)
    executor, made = quant.convert(graph, "onnxruntime"), []
    monkeypatch.setattr(executor, "session", lambda model: made.append(model) or open_session(model))
    # the oldest one goes
    for size, sessions in ((16, 1), (20, 2), (16, 2), (24, 3), (16, 3), (24, 3), (20, 4), (24, 4), (16, 5)):
        x = torch.randn(2, 3, size, size)
        assert torch.equal(executor(x)[:1], executor(x[:1])) and len(made) == sessions
    assert len({hash(model) for model in made}) == 3 and sum(map(len, executor._sessions.values())) == 2
