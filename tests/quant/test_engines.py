"""quant.engines: the table, how large weights may be, and which engines run here."""

import importlib.util
import subprocess
import sys

import pytest
import torch

import quant
from quant import engines
from quant.executors.base import Executor
from quant.executors.sessions import SessionExecutor
from tests import ROOT


@pytest.mark.parametrize("name", quant.ENGINES)
def test_a_row_names_an_executor_of_its_kind(name):
    row = quant.ENGINES[name]
    assert row.name == name and issubclass(row.executor_class(), Executor)
    assert row.session == issubclass(row.executor_class(), SessionExecutor) == (row.runtime != "torch")


def test_one_oracle_which_is_always_there_and_never_listed():
    (oracle,) = (row for row in quant.ENGINES.values() if row.oracle)
    assert oracle.name == quant.ORACLE and oracle.available() and oracle.name not in quant.available()


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64"])
@pytest.mark.parametrize("vnni", [True, False])
def test_weights_are_limited_to_63_where_products_are_added_in_16_bits(vnni, machine, monkeypatch):
    monkeypatch.setattr(engines, "has_vnni", lambda: vnni)
    monkeypatch.setattr("platform.machine", lambda: machine)
    fast_or_arm = 127 if vnni or machine == "aarch64" else 63
    expected = {
        "reference": 127,
        "fbgemm": 63,
        "qnnpack": 127,
        "x86": 63,
        "onednn": fast_or_arm,
        "onnxruntime": fast_or_arm,
        "openvino": fast_or_arm,
    }
    assert {name: quant.weight_qmax(name) for name in expected} == expected
    assert engines.engine_of_qmax() == {63: "fbgemm", 127: "reference"}


@pytest.mark.parametrize(("flags", "vnni"), [({}, False), ({"avx512_vnni": True}, True), ({"avx_vnni": True}, True)])
def test_vnni_is_read_from_the_cpus_capabilities(flags, vnni, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: flags, raising=False)
    assert engines.has_vnni() is vnni


def test_unknown_engines_are_refused_with_the_names_of_the_known_ones():
    for ask in (engines.find_engine, quant.weight_qmax):
        with pytest.raises(quant.QuantError, match="'tpu' is not one of reference, fbgemm"):
            ask("tpu")
    with pytest.raises(quant.QuantError, match="'tpu' is not one of reference"), quant.use_engine("tpu"):
        pass


def test_an_engine_without_its_package_is_not_available(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    assert not quant.ENGINES["onnxruntime"].available() and "onnxruntime" not in quant.available()


def test_an_engine_that_this_torch_lacks_is_not_available(monkeypatch):
    monkeypatch.setattr("quant.executors.torch_engines._is_supported", lambda name: name == "onednn")
    assert {"fbgemm", "qnnpack", "x86", "onednn"} & set(quant.available()) == {"onednn"}


def test_without_the_file_of_torchs_kernels_its_engines_are_not_available():
    code = (
        "import sys; sys.modules['quant.executors.torch_engines'] = None\n"
        "import quant\n"
        "with quant.use_engine('fbgemm'): print(*quant.available())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"fbgemm", "qnnpack", "x86", "onednn"} & set(run.stdout.split())


def test_torchs_engine_is_set_and_set_back():
    before = torch.backends.quantized.engine
    for name in quant.ENGINES:
        with quant.use_engine(name):
            own = name in torch.backends.quantized.supported_engines
            assert torch.backends.quantized.engine == (name if own else before)
        assert torch.backends.quantized.engine == before


def test_a_format_for_onnx_and_one_for_each_engine_that_ships():
    shipping = [name for name, row in quant.ENGINES.items() if not row.oracle]
    assert list(quant.FORMATS) == ["onnx", *shipping]
    assert quant.FORMATS["onnx"] == quant.export.Format("onnxruntime", "int8.onnx")
    assert quant.FORMATS["openvino"].file_name == "int8_openvino.onnx"
    assert quant.FORMATS["fbgemm"].file_name == "int8_fbgemm.pt"
