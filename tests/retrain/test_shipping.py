"""What retrain.py ships, what it compares before, and what it refuses to ship."""

import pytest
import torch

import quant
import retrain
from latency_lut import Timing
from retrain import main
from tasks import Classification, classification, in_order
from tasks.pictures import Memory, generator
from tasks.ship import SHIPPED, doubts
from tasks.trained import load
from tests.retrain.runs import arguments, metrics, refused


def test_a_network_that_has_learned_is_shipped_as_it_was_trained(folder, tmp_path, quick):
    """On pictures that nothing was trained or judged with; the folder's own parts are too few to count single ones."""
    path = main(arguments(folder, tmp_path, epochs=16))
    trained = load(path)
    labels = torch.arange(600) % 3
    noise = torch.randint(120, (600, 3, 16, 16), generator=generator(5))
    images = (noise + 60 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    fresh = Memory(images, labels, 16, torch.tensor(trained.mean), torch.tensor(trained.std))
    assert Classification(3).evaluate(trained.graph, fresh)["top1"] > 0.9
    for network in (quant.convert(trained.graph, "fbgemm"), *(quant.load_frozen(path / name) for name in SHIPPED)):
        assert Classification(3).agreement(trained.graph, network, fresh) >= 0.99
    found = metrics(path)
    assert found["onnx"]["agreement_with_fake_quant"] == found["parity"]["agreement"] == 1.0 and found["warnings"] == []


def test_the_shipped_file_is_compared_with_what_was_trained_whatever_the_engine(
    folder, tmp_path, quick, monkeypatch, capsys
):
    """A file that always names one class agrees with the reference, but not with fake-quant."""
    monkeypatch.setattr(quant, "load_frozen", lambda *_: OneClass())
    found = metrics(main(arguments(folder, tmp_path, epochs=6)))
    onnx = found["onnx"]
    assert "agreement" not in onnx and onnx["agreement_with_reference"] > 0.9 and onnx["pictures"] == 24
    assert onnx["agreement_with_fake_quant"] < 0.9
    (words,) = [words for words in found["warnings"] if words.startswith("int8.onnx: only fake-quant's answer for")]
    assert f"warning: {words}" in capsys.readouterr().out


class OneClass:
    """A network that finds everything dark."""

    engine = "onnxruntime"

    def __call__(self, x):
        return torch.tensor([1.0, 0.0, 0.0]).repeat(len(x), 1)


def test_doubts_name_what_is_off_and_by_how_much():
    def found(parity, onnx):
        return {
            "parity": {"agreement": parity, "pictures": 1000},
            "onnx": {"agreement_with_fake_quant": onnx, "pictures": 500},
        }

    def accuracy(fake_quant, int8):
        return {
            name: {"val": {"top1": 0.5}, "test": {"top1": top1}}
            for name, top1 in (("fake_quant", fake_quant), ("int8", int8))
        }

    assert (
        doubts(found(0.995, 1.0), accuracy(0.9, 0.902)) == doubts({}) == doubts({"onnx": {"refused": "no form"}}) == []
    )
    (first, second) = doubts(found(0.994, 0.9))
    assert first.startswith("INT8: only fake-quant's answer for 99.40% of 1000 pictures, 99.50% are expected")
    assert second.startswith("int8.onnx: only") and "90.00% of 500 pictures" in second
    (below,), (above,) = (doubts(found(1.0, 1.0), accuracy(0.9, int8)) for int8 in (0.897, 0.9021))
    assert (
        "top1 of INT8 on test is 0.30 points below fake-quant's, at most 0.2" in below and "0.21 points above" in above
    )


def test_latencies_that_cannot_be_repeated_are_marked(folder, tmp_path, quick, monkeypatch, capsys):
    timings = {"float": Timing((1.0, 1.01, 1.02)), "int8": Timing((1.0, 1.5, 2.0))}
    monkeypatch.setattr(retrain, "time_networks", lambda *_, **__: timings)
    found = metrics(main(arguments(folder, tmp_path, epochs=2)))
    assert [row["latency_stable"] for row in found["networks"]] == [True, None, False]
    out = capsys.readouterr().out
    table = out[out.index("latency_stable") :].splitlines()
    assert [line.split()[-1] for line in table[:4]] == ["latency_stable", "yes", "-", "no"]
    assert "warning: the latency of int8 is unstable: its best rounds lie further apart than 3%" in out


def test_a_parity_that_fails_is_written_down_and_refused(folder, tmp_path, quick, monkeypatch, capsys):
    def fail(self, max_layer_steps=2):
        raise quant.QuantError("parity on fbgemm: conv stem is off by 9 steps")

    monkeypatch.setattr(quant.ParityReport, "check", fail)
    assert "conv stem is off by 9 steps" in refused(capsys, arguments(folder, tmp_path, epochs=1))
    assert "off by 9" in metrics(tmp_path / "tiny_int8")["parity"]["refused"]
    assert not any((tmp_path / "tiny_int8" / name).exists() for name in SHIPPED)


def test_what_an_earlier_sitting_shipped_goes_with_a_parity_that_fails(folder, tmp_path, quick, monkeypatch, capsys):
    path = main(arguments(folder, tmp_path, epochs=1))
    assert all((path / name).exists() for name in SHIPPED)
    monkeypatch.setattr(quant.ParityReport, "check", lambda self: (_ for _ in ()).throw(quant.QuantError("off")))
    refused(capsys, arguments(folder, tmp_path, epochs=1))
    assert not any((path / name).exists() for name in SHIPPED) and list(metrics(path)["file_bytes"]) == [
        "float state dict"
    ]


def test_a_network_without_an_onnx_form_is_shipped_for_its_engine(folder, tmp_path, quick, monkeypatch, capsys):
    monkeypatch.setattr(
        quant, "export_onnx", lambda *_: (_ for _ in ()).throw(quant.QuantError("swirl: has no ONNX form"))
    )
    path = main(arguments(folder, tmp_path, epochs=1))
    assert metrics(path)["onnx"] == {"refused": "swirl: has no ONNX form"} and (path / "int8.pt").exists()
    assert "int8.onnx: not written, swirl: has no ONNX form" in capsys.readouterr().out


@pytest.mark.skipif("onnxruntime" not in quant.available(), reason="onnxruntime is not installed")
def test_for_onnxruntime_the_accuracy_is_its_sessions(folder, tmp_path, quick, monkeypatch):
    threads = []
    freeze = quant.freeze
    monkeypatch.setattr(quant, "freeze", lambda *a: (threads.append(torch.get_num_threads()), freeze(*a))[1])
    path = main(arguments(folder, tmp_path, "--engine", "onnxruntime", "--threads", "2"))
    found = metrics(path)
    assert found["float_runtime"] == "onnxruntime" and threads == [2] and not (path / "int8.pt").exists()
    session = quant.load_frozen(path / "int8.onnx", "onnxruntime")
    test = classification("imagefolder", folder, 16).test
    right = [(session(x).argmax(1) == y).float() for x, y in in_order(test, 5)]
    assert torch.cat(right).mean().item() == pytest.approx(found["networks"][2]["top1_test"], abs=1e-6)


def test_the_reference_ships_onnx_alone_and_is_not_timed(folder, tmp_path, quick):
    """The reference allows weights up to 127; without VNNI onnxruntime saturates on them, and the file is refused."""
    path = main(arguments(folder, tmp_path, "--engine", "reference", epochs=1))
    found = metrics(path)
    assert not (path / "int8.pt").exists() and found["networks"][2]["latency_ms"] is None
    if quant.weight_qmax("onnxruntime") == quant.weight_qmax("reference"):
        assert (path / "int8.onnx").exists()
    else:
        assert not (path / "int8.onnx").exists() and "saturate on this CPU" in found["onnx"]["refused"]
