"""Networks of several outputs: converted, frozen, exported to ONNX and compared, in the module's structure."""

import onnx
import pytest
import torch
from torch import nn

import quant
from quant import QuantConfig
from quant.export.onnx.outputs import structure
from quant.integer.graph import leaves
from quant.integer.parity import differences, equal_argmax, output_steps


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def observed(model, x, engine="fbgemm", **config):
    graph = quant.attach(model.train(), x, QuantConfig(engine=engine, **config)).train()
    with torch.no_grad():
        for _ in range(3):
            graph(x)
    return graph.eval()


def shapes(value):
    return tuple(map(shapes, value)) if isinstance(value, (tuple, list)) else tuple(value.shape)


def in_tuples(value):
    """Whether a value is a tensor or (nested) tuples of such, and nothing else."""
    return isinstance(value, torch.Tensor) or (isinstance(value, tuple) and all(map(in_tuples, value)))


class Several(nn.Module):
    """What `give` makes of a convolution's result."""

    def __init__(self, give):
        super().__init__()
        self.conv, self.other, self.give = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), give

    def forward(self, x):
        return self.give(self.conv(x), self.other(x))


GIVEN = {
    "a tensor": (lambda a, b: a, ["output"]),
    "one in a tuple": (lambda a, b: (a,), ["output_0"]),
    "a list": (lambda a, b: [a, b], ["output_0", "output_1"]),
    "twice the same": (lambda a, b: (a, a), ["output_0", "output_1"]),
    "nested": (lambda a, b: ((a, [b]), b), ["output_0_0", "output_0_1_0", "output_1"]),
}


@pytest.mark.parametrize("name", GIVEN)
def test_structures_and_the_names_of_outputs(name, tmp_path):
    give, names = GIVEN[name]
    x = torch.randn(2, 3, 4, 4)
    graph, model = observed(Several(give), x), Several(give).eval()
    quant.export_onnx(graph, tmp_path / "int8.onnx", x)
    assert [value.name for value in onnx.load(tmp_path / "int8.onnx").graph.output] == names
    executor = quant.convert(graph, "fbgemm")
    with torch.inference_mode():
        networks = (
            executor,
            quant.freeze(executor, x),
            quant.load_frozen(tmp_path / "int8.onnx"),
            quant.freeze_float(model, x),
            quant.freeze_float(model, x, engine="onnxruntime"),
        )
        for network in networks:
            assert in_tuples(network(x))
            assert len(leaves(network(x))) == len(names)
            assert shapes(network(x)) == shapes(graph(x))


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["output"], 0),
        (["output_0"], (0,)),
        (["output_0", "output_1"], (0, 1)),
        (["output_1", "output_0"], (1, 0)),
        (["output_0_0", "output_0_1", "output_1"], ((0, 1), 2)),
        (["output_"], 0),
        (["scores"], 0),
        (["scores", "boxes"], (0, 1)),
        (["output_0", "output_2"], (0, 1)),
        (["output", "output_1"], (0, 1)),
        (["output_0", "output_0_1"], (0, 1)),
        (["output_0", "output_0_"], (0, 1)),
        (["output_99999999999", "output_0"], (0, 1)),
    ],
)
def test_a_files_outputs_are_put_together_by_their_names_and_foreign_ones_lie_flat(names, places):
    assert structure(names) == places


def test_each_output_is_measured_in_steps_of_its_own():
    x = torch.randn(4, 3, 8, 8)
    model = Several(lambda a, b: (a, 100 * b))
    graph = observed(model, x)
    executor = quant.convert(graph, "reference")
    fine, coarse = output_steps(executor.graph)
    assert coarse > 20 * fine
    real = executor.forward
    executor.forward = lambda x: (real(x)[0] + 7 * fine, real(x)[1] + 3 * coarse)
    report = quant.parity(graph, executor, x)
    assert 6 <= report.output_steps <= 8, "seven of the fine one, not a hundred of them"


def test_agreement_counts_positions_of_all_outputs():
    logits, maps = torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.zeros(1, 3, 2, 3)
    maps[:, 1] = 1.0
    other = maps.clone()
    other[0, 2, 0, 0] = 5.0
    assert equal_argmax([logits], [logits.flip(1)]) == 0
    assert equal_argmax([logits, maps], [logits, other]) == pytest.approx(7 / 8)
    assert differences([logits, maps], [logits, other]) == [0.0, 5.0]


def test_an_output_off_every_grid_is_named():
    x = torch.randn(2, 3, 4, 4)
    graph = observed(
        Several(lambda a, b: (a, torch.sigmoid(b))), x, overrides=(quant.Override("sigmoid", output="float"),)
    )
    with pytest.raises(quant.QuantError, match=r"output 1 .*not one tensor on a grid"):
        quant.parity(graph, quant.convert(graph, "reference"), x)


def test_a_network_that_gives_a_dict_is_refused_in_words():
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(quant.QuantError, match="dict"):
        quant.convert(observed(Several(lambda a, b: {"out": a}), x), "reference")
    with pytest.raises(quant.QuantError, match="dict"):
        quant.freeze_float(Several(lambda a, b: {"out": a}), x)


def test_a_float_file_is_compared_at_each_output(tmp_path, monkeypatch):
    from quant.export.onnx import export

    x = torch.randn(2, 3, 4, 4)
    assert quant.export_onnx(Several(lambda a, b: (a, b)), tmp_path / "net.onnx", x).max_difference < 1e-5
    real = export.OnnxNetwork.__call__
    monkeypatch.setattr(export.OnnxNetwork, "__call__", lambda self, x: (real(self, x)[0], 0 * real(self, x)[1]))
    with pytest.raises(quant.QuantError, match="at output 1"):
        quant.export_onnx(Several(lambda a, b: (a, b)), tmp_path / "net.onnx", x)
