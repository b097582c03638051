"""What is timed: the forms of a network, each as it is deployed."""

import pytest
import torch
from torch import nn

import quant
from latency_lut.bench.contenders import EAGER, FLOATS, FROZEN, Contender, contenders
from tests.latency_lut.bench.rows import ENGINE


def test_all_forms_of_a_network_compute_it(model, images):
    names = (*FLOATS, *quant.available())
    with quant.use_engine("reference"), torch.inference_mode():
        ready, reasons = contenders(model, images[:2], names)
        outputs = {name: contender() for name, contender in ready.items()}
        expected = model(images[:2])
    assert {name for name in names if name not in reasons} == set(ready) and ENGINE in ready and FROZEN in ready
    for name, output in outputs.items():
        assert torch.allclose(output, expected, atol=1e-5 if name in FLOATS else 0.1), name
    assert all(not reason.startswith("Assert") for reason in reasons.values())


def test_each_runtime_is_fed_the_layout_that_it_runs_without_a_copy(model, images):
    with quant.use_engine("reference"):
        ready, _ = contenders(model, images, (EAGER, FROZEN, ENGINE, "onnxruntime"))
    for name, contender in ready.items():
        assert contender.image.is_contiguous(memory_format=torch.channels_last) == (name != "onnxruntime")
        assert contender.image.is_contiguous() == (name == "onnxruntime")
    assert next(ready[EAGER].network.parameters()).is_contiguous(memory_format=torch.channels_last)


def test_the_eager_form_is_unfolded_and_the_frozen_one_is_not(model, images):
    with quant.use_engine("reference"):
        ready, _ = contenders(model, images, (EAGER, FROZEN))
    assert any(isinstance(module, nn.BatchNorm2d) for module in ready[EAGER].network.modules())
    assert "batch_norm" not in str(ready[FROZEN].network.module.inlined_graph)


def test_a_form_that_cannot_run_has_a_reason_and_the_others_run(model, images, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such kernel\nand much more")

    monkeypatch.setattr(quant, "freeze", refuse)
    with quant.use_engine("reference"):
        ready, reasons = contenders(model, images, (FROZEN, ENGINE))
    assert list(ready) == [FROZEN] and reasons == {ENGINE: "RuntimeError: no such kernel"}


@pytest.mark.skipif(len(quant.available()) < 2, reason="needs two engines")
def test_a_contender_runs_on_its_own_engine():
    def network(name):
        def asked(image):
            return torch.backends.quantized.engine

        asked_on = type("Network", (), {"__call__": staticmethod(asked), "engine": name})
        return asked_on()

    first, second = [name for name in quant.available() if not quant.ENGINES[name].session][:2]
    with quant.use_engine("reference"):
        calls = [Contender(name, network(name), torch.zeros(1)) for name in (first, second)]
        assert [call() for call in (*calls, *calls)] == [first, second, first, second]


def test_a_file_is_as_large_as_the_weights(model, images):
    with quant.use_engine("reference"):
        ready, _ = contenders(model, images, (EAGER, ENGINE))
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert weights < ready[EAGER].file_bytes < weights + 8192
    assert 0 < ready[ENGINE].file_bytes
