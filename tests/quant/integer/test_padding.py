"""quant.integer.transforms: reflected, repeated and zero pixels as moves of codes, on every engine and in ONNX."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import quant
from quant.calibrate import calibrate
from quant.export.onnx.graph import to_onnx
from quant.integer.transforms import pad_codes
from tests.strategies import examples

NUMPYS = {
    "reflect": {"mode": "reflect"},
    "replicate": {"mode": "edge"},
    "constant": {"mode": "constant", "constant_values": 7},
}
ENGINES = [
    "reference",
    *(pytest.param(e, marks=pytest.mark.slow if e == "openvino" else ()) for e in quant.available()),
]
TORCHS = [engine for engine in quant.available() if engine not in ("onnxruntime", "openvino")]


def as_quantized(codes, zero_point):
    codes = codes.contiguous(memory_format=torch.channels_last)
    return torch._make_per_tensor_quantized_tensor(codes, 0.5, zero_point)


def test_a_row_of_four_pixels_has_the_known_answers():
    row = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4)
    assert pad_codes(row, (3, 3, 0, 0), "reflect", 9).flatten().tolist() == [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
    assert pad_codes(row, (3, 3, 0, 0), "replicate", 9).flatten().tolist() == [0, 0, 0, 0, 1, 2, 3, 3, 3, 3]
    assert pad_codes(row, (3, 1, 0, 0), "constant", 9).flatten().tolist() == [9, 9, 9, 0, 1, 2, 3, 9]


@pytest.mark.parametrize("mode", NUMPYS)
@given(
    sides=st.tuples(*[st.integers(0, 3)] * 4),
    size=st.tuples(st.integers(4, 7), st.integers(4, 7)),
    channels=st.integers(1, 9),
)
@examples(25)
def test_numpy_pads_alike_quantized_tensors_and_numbers(mode, sides, size, channels):
    codes = torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8)
    left, right, top, bottom = sides
    expected = np.pad(codes.numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)), **NUMPYS[mode])
    assert np.array_equal(pad_codes(codes, sides, mode, 7).numpy(), expected)
    assert np.array_equal(pad_codes(codes.float(), sides, mode, 7).numpy(), expected)
    with quant.use_engine("fbgemm"):
        padded = pad_codes(as_quantized(codes, 7), sides, mode, 7)
    assert np.array_equal(padded.int_repr().numpy(), expected)
    assert padded.is_contiguous(memory_format=torch.channels_last) and padded.q_zero_point() == 7


@pytest.mark.parametrize("mode", NUMPYS)
def test_negative_sides_cut_off(mode):
    x = torch.randn(1, 2, 6, 5)
    assert torch.equal(pad_codes(x, (-1, 2, 1, -2), mode, 0), F.pad(x, (-1, 2, 1, -2), mode=mode))


class Around(nn.Module):
    """conv -> padding -> conv, the codes between them with a zero point of about 100."""

    def __init__(self, padding):
        super().__init__()
        self.first, self.padding, self.second = nn.Conv2d(3, 8, 3), padding, nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.second(self.padding(self.first(x)))


PADDINGS = {
    "reflection": nn.ReflectionPad2d(2),
    "reflection, uneven": nn.ReflectionPad2d((1, 2, 3, 0)),
    "replication": nn.ReplicationPad2d((0, 3, 1, 1)),
    "zeros": nn.ZeroPad2d((1, 2, 0, 3)),
    "constant zero": nn.ConstantPad2d(1, 0.0),
    "reflect": lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect"),
    "replicate": lambda x: F.pad(input=x, pad=[1, 1, 2, 2], mode="replicate"),
    "constant": lambda x: F.pad(x, (2, 0, 0, 2)),
}


def converted(name, engine, x):
    graph = calibrate(Around(PADDINGS[name]), [x], quant.QuantConfig(engine=engine))
    return graph, quant.convert(graph, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", PADDINGS)
def test_padding_moves_codes_on_every_engine(name, engine):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 9)
    graph, executor = converted(name, engine, x)
    report = quant.parity(graph, executor, x).check(1)
    (padding,) = (row for row in report.rows if row.kind == "move")
    assert padding.engine_steps == 0 and padding.fake_quant_steps == 0
    assert executor.float_ops == []
    assert 50 < executor.graph.op(padding.name).qparams.zero_point < 200
    if engine != "reference":
        with torch.inference_mode(), quant.use_engine(engine):
            assert torch.equal(quant.freeze(executor, x[:1])(x), executor(x)), "frozen for one picture, called with two"


@pytest.mark.parametrize("engine", TORCHS)
@pytest.mark.parametrize("name", PADDINGS)
def test_a_frozen_network_pads_pictures_of_another_size(name, engine):
    torch.manual_seed(0)
    x, larger = torch.randn(1, 3, 8, 9), torch.randn(2, 3, 13, 7)
    _, executor = converted(name, engine, x)
    with torch.inference_mode(), quant.use_engine(engine):
        assert torch.equal(quant.freeze(executor, x)(larger), executor(larger))


@pytest.mark.parametrize("name", PADDINGS)
def test_padding_works_on_codes_in_onnx_too(name, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 9)
    graph, executor = converted(name, "onnxruntime", x)
    model = onnx.shape_inference.infer_shapes(to_onnx(executor.graph, [tuple(x.shape)]))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    (node,) = (node for node in model.graph.node if node.op_type == "Pad")
    assert types[node.input[0]] == types[node.output[0]] == onnx.TensorProto.UINT8
    report = quant.export_onnx(graph, tmp_path / "net.onnx", x)
    assert report.layer_steps <= 1 and report.float_ops == ()
    assert quant.export_onnx(Around(PADDINGS[name]), tmp_path / "float.onnx", x).max_difference <= 1e-5


def test_padding_gets_no_quantizer_of_its_own():
    rows = {row.name: row for row in quant.plan(Around(nn.ReflectionPad2d(2)), torch.randn(1, 3, 8, 8))}
    assert rows["padding"].output == "" and rows["padding"].reason == "stays on its input's grid"
    assert rows["second"].reads == rows["first"].makes == "first_quant"


@pytest.mark.parametrize(
    "padding", [nn.ConstantPad2d(1, 0.5), nn.CircularPad2d(1), lambda x: F.pad(x, (1, 1), value=2.0)]
)
def test_other_padding_makes_new_values_and_is_computed_in_float(padding):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 9)
    graph = calibrate(Around(padding), [x], quant.QuantConfig(engine="fbgemm"))
    executor = quant.convert(graph, "fbgemm")
    assert len(executor.float_ops) == 1
    assert quant.parity(graph, executor, x).layer_steps <= 1
