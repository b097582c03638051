"""Profiles: operations by time, and whether they are integer ones."""

import pytest

import quant
from common.errors import UserError
from latency_lut.bench.contenders import FROZEN, Contender, contenders
from latency_lut.bench.profile import Event, onnx_kind, profile_rows, rows
from tests.latency_lut.bench.rows import ENGINE


def test_operations_are_added_up_and_the_longest_come_first():
    events = [
        Event("a", "float", 2, 100.0),
        Event("b", "integer", 1, 250.0),
        Event("a", "float", 1, 50.0),
        Event("a", "integer", 1, 100.0),
    ]
    assert rows(events, top=2) == [
        {"op": "b", "kind": "integer", "calls": 1, "ms": 0.25, "share": 0.5},
        {"op": "a", "kind": "float", "calls": 3, "ms": 0.15, "share": 0.3},
    ]
    assert rows([]) == []


@pytest.mark.parametrize(
    "name, types, kind",
    [
        ("QLinearConv", ["uint8"], "integer"),
        ("QGemm", ["float"], "integer"),
        ("MaxPool", ["uint8"], "integer"),
        ("Conv", ["float"], "float"),
        ("QuantizeLinear", ["uint8"], "convert"),
        ("DequantizeLinear", ["float"], "convert"),
    ],
)
def test_onnxruntime_operators_are_told_apart(name, types, kind):
    assert onnx_kind({"op_name": name, "output_type_shape": [{t: [1, 2]} for t in types]}) == kind


def test_a_profile_names_what_ran(model, images):
    with quant.use_engine("reference"):
        ready, _ = contenders(model, images, (FROZEN, ENGINE, "onnxruntime"))
        found = {name: profile_rows(contender) for name, contender in ready.items()}
    assert all(0.5 < sum(line["share"] for line in lines) <= 1.001 for lines in found.values())
    kinds = {line["op"]: line["kind"] for line in found[ENGINE]}
    if not quant.ENGINES[ENGINE].session:
        assert (
            kinds["quantized::conv2d"] == "integer"
            and {line["op"]: line["calls"] for line in found[ENGINE]}["quantized::conv2d"] == 2
        )
    if "onnxruntime" in found:
        assert {"op": "QLinearConv", "calls": 2}.items() <= next(
            r for r in found["onnxruntime"] if r["op"] == "QLinearConv"
        ).items()


def test_nothing_profiles_openvino():
    with pytest.raises(UserError, match="'openvino' has no profile"):
        profile_rows(Contender("openvino", None, None))
