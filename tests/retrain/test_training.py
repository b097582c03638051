"""retrain.py from the command line: a tiny network is trained, quantized and measured; a stopped run goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import nas
import quant
import retrain
import tasks.engine
import zoo
from common.runs import Run
from latency_lut import Timing
from retrain import main
from tasks.ship import SHIPPED
from tests import ROOT
from tests.retrain.runs import arguments, metrics, refused, results, tiny, zoo_arguments
from tests.tasks.test_engine import same


def test_a_network_is_trained_converted_and_measured(folder, tmp_path, capsys):
    path = main(arguments(folder, tmp_path, epochs=6))
    found = metrics(path)
    assert (
        path == tmp_path / "tiny_int8"
        and found["reported"] == "test"
        and (found["epochs"], found["float_epochs"]) == (6, 2)
    )
    rows = {row["network"]: row for row in found["networks"]}
    assert list(rows) == ["float", "fake_quant", "int8"]
    assert all(0 <= row[f"top1_{split}"] <= 1 for row in rows.values() for split in ("val", "test"))
    assert (
        rows["fake_quant"]["top1_test"] > 0.5 and abs(rows["fake_quant"]["top1_test"] - rows["int8"]["top1_test"]) < 0.1
    )
    assert (
        rows["float"]["latency_ms"] > 0 and rows["int8"]["latency_ms"] > 0 and rows["fake_quant"]["latency_ms"] is None
    )
    assert (
        found["parity"]["layer_steps"] <= 2
        and found["parity"]["agreement"] > 0.9
        and found["parity"]["refused"] is None
    )
    written = {
        "arch.json",
        "checkpoint.pt",
        "config.json",
        "log.jsonl",
        "metrics.json",
        "network.json",
        "report.html",
        *SHIPPED,
    }
    assert {p.name for p in path.iterdir()} >= written
    assert found["method"] == "qat" and found["float_runtime"] == "torch" and found["float_ops"] == ["head_pool_quant"]
    assert found["onnx"]["layer_steps"] <= 2 and found["onnx"]["integer_layers"] == 10
    assert {name: found["file_bytes"][name] for name in SHIPPED} == {
        name: (path / name).stat().st_size for name in SHIPPED
    }
    assert 4 * found["params"] < found["file_bytes"]["float state dict"] < 4 * found["params"] + 40_000
    out = capsys.readouterr().out
    assert "top1_test" in out and "parity on fbgemm" in out
    shipped = quant.load_frozen(path / "int8.pt")
    assert shipped(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


@pytest.fixture(scope="module")
def never_stopped(folder, tmp_path_factory) -> dict:
    """The results of a run in one sitting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            retrain, "time_networks", lambda networks, *_, **__: {name: Timing((1.0, 1.0, 1.0)) for name in networks}
        )
        patch.setattr(retrain, "write_report", lambda path: path / "report.html")
        return results(main(arguments(folder, tmp_path_factory.mktemp("never_stopped"))))


@pytest.mark.parametrize("stop", [4, 9, 16])
def test_a_stopped_run_goes_on_and_ends_alike(folder, never_stopped, tmp_path, quick, monkeypatch, capsys, stop):
    step = tasks.engine._Training._train_step

    def interrupted(self, watch):
        if self.step == stop:
            raise KeyboardInterrupt
        return step(self, watch)

    monkeypatch.setattr(tasks.engine._Training, "_train_step", interrupted)
    with pytest.raises(SystemExit) as end:
        main(arguments(folder, tmp_path / "b"))
    assert end.value.code == 130 and "resume with: python" in capsys.readouterr().err
    monkeypatch.setattr(tasks.engine._Training, "_train_step", step)
    assert results(main(arguments(folder, tmp_path / "b"))) == never_stopped


def test_float_only_then_quantized_from_its_checkpoint(folder, tmp_path, quick, monkeypatch, capsys):
    path = main(arguments(folder, tmp_path, "--float-only"))
    (row,) = metrics(path)["networks"]
    assert (
        path.name == "tiny_float"
        and row["network"] == "float"
        and "parity" not in metrics(path)
        and not (path / "int8.pt").exists()
    )
    second = results(main(arguments(folder, tmp_path, "--from-float", "tiny_float", epochs=1)))
    rows = {r["network"]: r for r in second["networks"]}
    assert (second["float_epochs"], rows["float"]["top1_test"]) == (0, row["top1_test"])
    by_path = main(
        arguments(folder, tmp_path, "--from-float", str(path / "checkpoint.pt"), "--name", "again", epochs=1)
    )
    assert results(by_path) == second
    assert "does not hold a float model" in refused(
        capsys, arguments(folder, tmp_path, "--from-float", "tiny_int8", "--name", "c")
    )
    with monkeypatch.context() as patch:
        patch.setattr(retrain, "load_data", None)  # no picture is decoded
        argv = arguments(folder, tmp_path, "--from-float", "nothing", "--name", "d")
        assert "neither a checkpoint nor a run" in refused(capsys, argv) and not (tmp_path / "d").exists()
    tiny(24).save(tmp_path / "wider.json")
    argv = [
        *arguments(folder, tmp_path, "--from-float", "tiny_float", "--name", "c"),
        "--arch",
        str(tmp_path / "wider.json"),
    ]
    assert "holds another architecture" in refused(capsys, argv)


def test_quantized_from_the_first_step_has_no_float_accuracy(folder, tmp_path, quick):
    found = metrics(main(arguments(folder, tmp_path, "--no-statassist", "--no-gradboost", epochs=1)))
    assert found["boost"] == "off" and "top1_test" not in found["networks"][0] and "top1_test" in found["networks"][2]


def test_a_loss_that_explodes_ends_in_words(folder, tmp_path, quick, capsys):
    message = refused(capsys, [*arguments(folder, tmp_path, "--float-only"), "--lr", "1e30"])
    assert "error: the loss became" in message or "error: weights or ranges stopped being finite" in message


@pytest.fixture(scope="module")
def comparison(folder, tmp_path_factory):
    """A finished run of a comparison network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            retrain, "time_networks", lambda networks, *_, **__: {name: Timing((1.0, 1.0, 1.0)) for name in networks}
        )
        return main(zoo_arguments(folder, tmp_path_factory.mktemp("comparison")))


def test_a_comparison_network_is_trained_like_a_frostnet(comparison):
    path = comparison
    found, network = metrics(path), json.loads((path / "network.json").read_text())
    assert path.name == "resnet20_int8" and not (path / "arch.json").exists()
    assert (network["name"], network["input_size"], network["classes"]) == ("resnet20", 16, ["dark", "grey", "light"])
    model = zoo.build("resnet20", 3, 16)
    assert (found["params"], found["macs"]) == nas.count(model, torch.zeros(1, 3, 16, 16))
    assert found["parity"]["refused"] is None and found["onnx"]["integer_layers"] == 22
    page = (path / "report.html").read_text()
    assert (
        "<h2>Network</h2>" in page
        and "resnet20" in page
        and f"{found['params']:,}" in page
        and "<h2>Architecture</h2>" not in page
    )


def test_a_stopped_comparison_network_goes_on_and_ends_alike(folder, comparison, tmp_path, quick, monkeypatch):
    step = tasks.engine._Training._train_step
    stop = {9}

    def interrupted(self, watch):
        if self.step in stop:
            stop.clear()
            raise KeyboardInterrupt
        return step(self, watch)

    monkeypatch.setattr(tasks.engine._Training, "_train_step", interrupted)
    with pytest.raises(SystemExit):
        main(zoo_arguments(folder, tmp_path))
    assert not stop and results(main(zoo_arguments(folder, tmp_path))) == results(comparison)


@pytest.mark.slow
def test_a_killed_process_resumes_bit_for_bit(folder, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def start(runs):
        argv = arguments(folder, runs, "--checkpoint-seconds", "0", epochs=40)
        return subprocess.Popen(
            [sys.executable, str(ROOT / "retrain.py"), *argv], env=environment, stdout=-3, stderr=-3
        )

    assert start(tmp_path / "whole").wait() == 0
    log = tmp_path / "parts" / "tiny_int8" / "log.jsonl"
    for rows in (5, 18, 33):  # in the float phase, under fake-quant, with ranges frozen
        process = start(tmp_path / "parts")
        while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < rows):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start(tmp_path / "parts").wait() == 0
    whole, parts = (Run(tmp_path / name / "tiny_int8") for name in ("whole", "parts"))
    assert metrics(whole.path) == metrics(parts.path) | {"networks": metrics(whole.path)["networks"]}
    for a, b in zip(metrics(whole.path)["networks"], metrics(parts.path)["networks"]):
        assert {k: v for k, v in a.items() if k.startswith("top1")} == {
            k: v for k, v in b.items() if k.startswith("top1")
        }
    assert same(whole.load_checkpoint(), parts.load_checkpoint())
