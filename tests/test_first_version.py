"""Run folders, checkpoints and networks that version 0.1.0 wrote are still read, resumed and shipped.

tests/fixtures/first_version/ was written by that version on an x86 CPU: a search and a retraining that ended, and one
of each that was stopped in its quantized phase. Nothing is compared bit for bit: other CPUs round otherwise.
"""

import json
import shutil

import pytest
import torch

import frostnet
import quant
import retrain
import search
import tasks.__main__ as tasks_program
from latency_lut import Timing
from nas.report.page import write_report
from tests import ROOT

FIRST_VERSION = ROOT / "tests" / "fixtures" / "first_version"
SEARCH = (
    "--latency-lut table.json --space tests.spaces:searchable --data scenes --input-size 16 --base-steps 3 "
    "--float-steps 3 --quant-steps 3 --joint-steps 6 --batch-size 8 --rescored 2 --controls 2 --score-images 8 "
    "--tune-steps 2 --train-images 400 --allow-other-cpu --target-ms 0.175"
).split()
RETRAIN = (
    "--arch tiny.json --input-size 16 --data scenes --train-images 64 --batch-size 16 --epochs 3 --engine fbgemm"
).split()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the first version's files, as the working folder; nothing is timed, and no run writes a report."""
    shutil.copytree(FIRST_VERSION, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        retrain, "time_networks", lambda networks, *_, **__: {name: Timing((1.0, 1.0, 1.0)) for name in networks}
    )
    monkeypatch.setattr(search, "measure", lambda networks, *_: dict.fromkeys(networks, 0.17))
    for program in (retrain, search):
        monkeypatch.setattr(program, "write_report", lambda path: path / "report.html")
    return tmp_path


def steps(path) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "log.jsonl").read_text().splitlines()]


def test_a_stopped_search_is_resumed_from_its_checkpoint(folder):
    before = (folder / "runs" / "search_stopped" / "log.jsonl").read_text()
    path = search.main([*SEARCH, "--name", "search_stopped", "--checkpoint-seconds", "0"])
    assert (path / "log.jsonl").read_text().startswith(before) and steps(path) == list(range(15))
    assert json.loads((path / "metrics.json").read_text())["measured_ms"] == 0.17
    assert frostnet.find("search_stopped").name == "search_stopped"


def test_a_stopped_retraining_is_resumed_from_its_checkpoint(folder):
    before = (folder / "runs" / "retrain_stopped" / "log.jsonl").read_text()
    path = retrain.main([*RETRAIN, "--name", "retrain_stopped", "--checkpoint-seconds", "0"])
    assert (path / "log.jsonl").read_text().startswith(before)
    found = json.loads((path / "metrics.json").read_text())
    assert [row["network"] for row in found["networks"]] == ["float", "fake_quant", "int8"]
    assert found["parity"]["refused"] is None and (path / "int8.pt").exists()


def test_a_run_that_ended_is_not_trained_again(folder, capsys):
    path = folder / "runs" / "retrain_finished"
    weights = (path / "checkpoint.pt").read_bytes()
    retrain.main([*RETRAIN, "--name", "retrain_finished"])
    assert (path / "checkpoint.pt").read_bytes() == weights


@pytest.mark.parametrize("name", ["search_finished", "retrain_finished"])
def test_its_report_is_written_anew(folder, name):
    page = write_report(folder / "runs" / name).read_text()
    assert name in page and "<h2>Architecture</h2>" in page


def test_a_network_that_was_found_is_retrained(folder):
    arch = frostnet.find("search_finished")
    assert arch.provenance["engine"] == "fbgemm" and frostnet.FrostNet(arch)(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_a_finished_run_is_exported_and_its_file_loads(folder):
    tasks_program.main(["export", "--run", "runs/retrain_finished", "--format", "onnx", "--output", "again.onnx"])
    images = torch.rand(4, 3, 16, 16)
    old, new = (quant.load_frozen(path)(images) for path in ("runs/retrain_finished/int8.onnx", "again.onnx"))
    assert torch.equal(old, new)


def test_its_frozen_network_computes_what_its_onnx_file_does(folder):
    images = torch.rand(4, 3, 16, 16)
    frozen = quant.load_frozen("runs/retrain_finished/int8.pt")(images)
    torch.testing.assert_close(frozen, quant.load_frozen("runs/retrain_finished/int8.onnx")(images), atol=0.1, rtol=0)
