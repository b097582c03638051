"""Networks as people write them: spellings, settings and shapes whose conversion once differed or crashed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

import quant
from quant.export.onnx.export import export_onnx

ENGINES = ("reference", *(e for e in quant.available() if e != "openvino"))


class Net(nn.Module):
    """Any forward over named layers."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.compute = forward

    def forward(self, x):
        return self.compute(self, x)


def conv(**options):
    return nn.Conv2d(8, 8, 3, padding=1, **options)


PICTURE, SEQUENCE = (4, 8, 9, 9), (4, 8, 8)
NETWORKS = {
    "batch norm over positions": (Net(lambda m, x: m.bn(m.fc(x)), fc=nn.Linear(8, 8), bn=nn.BatchNorm1d(8)), SEQUENCE),
    "linear on a sequence": (Net(lambda m, x: m.fc(x), fc=nn.Linear(8, 5)), SEQUENCE),
    "linear on channels last": (
        Net(lambda m, x: m.fc(m.c(x).permute(0, 2, 3, 1)), c=conv(), fc=nn.Linear(8, 8)),
        PICTURE,
    ),
    "an output size": (
        Net(lambda m, x: m.up(m.c(x), output_size=(18, 18)), c=conv(), up=nn.ConvTranspose2d(8, 4, 3, 2, 1)),
        PICTURE,
    ),
    "resized by a factor": (
        Net(lambda m, x: F.interpolate(m.c(x), scale_factor=1.5, mode="bilinear"), c=conv()),
        PICTURE,
    ),
    "nearest by a factor": (Net(lambda m, x: F.interpolate(m.c(x), scale_factor=1.5), c=conv()), PICTURE),
    "dilated max-pool": (Net(lambda m, x: F.max_pool2d(m.c(x), 3, 2, 1, 2), c=conv()), PICTURE),
    "max-pool cut short": (Net(lambda m, x: F.max_pool2d(m.c(x), 2, 2, 1, ceil_mode=True), c=conv()), PICTURE),
    "concatenated chunks": (Net(lambda m, x: torch.cat(torch.chunk(m.c(x), 2, 1), 1), c=conv()), PICTURE),
    "cat by keyword": (Net(lambda m, x: torch.cat(tensors=[m.c(x), x], dim=1), c=conv()), PICTURE),
    "concat": (Net(lambda m, x: torch.concat([m.c(x), x], 1), c=conv()), PICTURE),
    "layer by keyword": (Net(lambda m, x: m.c(input=x), c=conv()), PICTURE),
    "cropped to another's size": (Net(lambda m, x: m.c(x)[:, :, : x.size(2) - 2, : x.shape[3]], c=conv()), PICTURE),
    "zero padding": (Net(lambda m, x: m.pad(m.c(x)), c=conv(), pad=nn.ZeroPad2d((1, 0, 2, 0))), PICTURE),
    "reflection padding": (Net(lambda m, x: F.pad(m.c(x), (1, 2, 3, 0), "reflect"), c=conv()), PICTURE),
    "permuted by keyword": (Net(lambda m, x: m.c(x).permute(dims=(0, 2, 3, 1)), c=conv()), PICTURE),
    "flattened whole": (Net(lambda m, x: m.c(x).view(x.shape[0], -1), c=conv()), PICTURE),
    "a layer called output": (Net(lambda m, x: m.output(m.c(x)), c=conv(), output=nn.Flatten()), PICTURE),
    "padded to the same size": (Net(lambda m, x: m.c(x), c=nn.Conv2d(8, 8, 3, padding="same", dilation=2)), PICTURE),
    "valid padding": (Net(lambda m, x: m.c(x), c=nn.Conv2d(8, 8, (2, 3), padding="valid")), PICTURE),
    "stochastic depth": (Net(lambda m, x: x + m.drop(m.c(x)), c=conv(), drop=StochasticDepth(0.5, "row")), PICTURE),
    "functional dropout": (Net(lambda m, x: F.dropout2d(m.c(x), 0.5, m.training), c=conv()), PICTURE),
}


def observed(model, x, **config):
    graph = quant.attach(model.train(), x, quant.QuantConfig(engine="fbgemm", **config)).train()
    with torch.no_grad():
        for _ in range(3):
            graph(x)
    return graph.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_engine_and_the_onnx_file_give_what_fake_quant_gives(name, tmp_path):
    torch.manual_seed(0)
    model, shape = NETWORKS[name]
    x = torch.randn(shape)
    graph = observed(model, x)
    with torch.no_grad():
        expected = graph(x)
        assert torch.equal(expected, graph(x)), "evaluation is a function"
        steps = 3 * expected.abs().max() / 100  # the output's own grid has at most 255 steps
        for engine in ENGINES:
            got = quant.convert(graph, engine)(x)
            assert got.shape == expected.shape
            assert (got - expected).abs().max() <= steps, engine
    export_onnx(graph, tmp_path / "net.onnx", x)
    assert (quant.load_frozen(tmp_path / "net.onnx")(x) - expected).abs().max() <= steps


@pytest.mark.parametrize("kept", [True, False])
def test_what_drops_values_drops_them_in_training_alone(kept):
    model, shape = NETWORKS["stochastic depth"]
    x = torch.randn(shape)
    graph = observed(model, x).train(not kept)
    torch.manual_seed(1)
    assert torch.equal(graph(x), graph(x)) == kept


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    "options", [{"padding": "same", "kernel_size": 2}, {"padding": 1, "kernel_size": 3, "padding_mode": "reflect"}]
)
def test_a_layer_whose_padding_has_no_integer_form_stays_float_and_converts(options):
    torch.manual_seed(0)
    x = torch.randn(PICTURE)
    with pytest.warns(UserWarning, match="c: padding .* stays float"):
        graph = observed(Net(lambda m, x: m.last(m.c(x)), c=nn.Conv2d(8, 8, **options), last=conv()), x)
    with torch.no_grad():
        expected = graph(x)
        assert (quant.convert(graph, "fbgemm")(x) - expected).abs().max() <= 0.03 * expected.abs().max()


WRONG = {
    "add, alpha": lambda m, x: torch.add(m.c(x), x, alpha=3),
    "sub, alpha": lambda m, x: torch.sub(m.c(x), x, alpha=3),
    "div, rounded": lambda m, x: torch.div(m.c(x), 2.0, rounding_mode="floor"),
    "antialias": lambda m, x: F.interpolate(m.c(x), size=(5, 5), mode="bilinear", antialias=True),
    "mean of all": lambda m, x: m.c(x).mean(),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_call_with_arguments_that_onnx_has_not_is_refused_in_words(name, tmp_path):
    with pytest.raises(quant.QuantError, match="no ONNX form"):
        quant.export_onnx(Net(WRONG[name], c=conv()), tmp_path / "net.onnx", torch.randn(PICTURE))
    assert not list(tmp_path.iterdir())


def test_a_float_file_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    from quant.export.onnx import export

    monkeypatch.setattr(export.OnnxNetwork, "__call__", lambda self, x: torch.zeros(4, 8, 9, 9))
    with pytest.raises(quant.QuantError, match="off by"):
        quant.export_onnx(Net(lambda m, x: m.c(x), c=conv()), tmp_path / "net.onnx", torch.randn(PICTURE))


def test_exporting_leaves_a_float_model_in_its_mode(tmp_path):
    model = Net(lambda m, x: m.c(x), c=conv()).train()
    quant.export_onnx(model, tmp_path / "net.onnx", torch.randn(PICTURE))
    assert model.training and model.c.training


def test_an_engine_does_not_depend_on_the_one_that_torch_has_at_the_moment():
    """qnnpack's clamp is wrong on channels_last tensors; torch picks the kernel by its global engine."""
    torch.manual_seed(0)
    x = torch.randn(PICTURE)
    graph = observed(Net(lambda m, x: m.c(x), c=conv()), x, activation="int8:4", residual="int8:4")
    executor = quant.convert(graph, "fbgemm")
    expected = executor(x)
    with quant.use_engine("qnnpack"):
        assert torch.equal(executor(x), expected)


def test_the_gate_does_not_pass_what_is_not_a_number():
    x = torch.randn(PICTURE)
    graph = observed(Net(lambda m, x: m.c(x), c=conv()), x)
    executor = quant.convert(graph, "reference")
    for images in (torch.full(PICTURE, float("nan")), torch.empty(0, *PICTURE[1:])):
        with pytest.raises(quant.QuantError, match="images"):
            quant.parity(graph, executor, images)
    report = quant.ParityReport(
        "x", (quant.parity(graph, executor, x).rows[0].__class__("a", "conv", float("nan"), 0),), 0.0, 1.0, 1
    )
    with pytest.raises(quant.QuantError, match="a is off"):
        report.check()


def test_sessions_of_single_operations_are_made_once():
    x = torch.randn(PICTURE)
    graph = observed(Net(lambda m, x: m.c(x), c=conv()), x)
    executor = quant.convert(graph, "onnxruntime")
    made, real = [], executor.session
    executor.session = lambda model: made.append(1) or real(model)
    quant.parity(graph, executor, x)
    first = len(made)
    quant.parity(graph, executor, x)
    assert len(made) == first > 0


@pytest.mark.parametrize("engine", ["fbgemm", "tensorrt"])
def test_engines_that_run_no_onnx_are_refused_by_name(engine, tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(quant.QuantError, match=engine):
        quant.load_frozen(tmp_path / "net.onnx", engine)
    with pytest.raises(quant.QuantError, match="no such file"):
        quant.load_frozen(tmp_path / "none.onnx")


def test_float_networks_are_frozen_for_the_runtime_of_the_named_engine():
    model, x = nn.Sequential(nn.Conv2d(3, 3, 1)), torch.randn(1, 3, 4, 4)
    for engine in (None, "reference", "fbgemm"):
        assert isinstance(quant.freeze_float(model, x, engine=engine), quant.Frozen)
    assert quant.freeze_float(model, x, engine="onnxruntime").engine == "onnxruntime"
    for unknown in ("torch", "tensorrt"):
        with pytest.raises(quant.QuantError, match=f"'{unknown}' is not one of reference"):
            quant.freeze_float(model, x, engine=unknown)
