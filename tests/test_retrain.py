"""retrain.py from the command line, on a tiny network and a small folder of pictures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import quant
import retrain
import tasks.engine
from latency_lut import Timing
from nas import Architecture, BlockSpec, HeadSpec, Run, StemSpec, UserError
from nas.cli import parse
from retrain import RetrainConfig, main
from tests.test_engine import same

REPOSITORY = Path(retrain.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of pictures that differ in brightness, and a tiny architecture."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        for c, name in enumerate(("dark", "grey", "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (16, 16, 3)) + 60 * c
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    tiny(16).save(root / "tiny.json")
    return root


def tiny(channels: int) -> Architecture:
    frost = BlockSpec("frost", 3, channels, 16, 2, 3, 2, "relu")
    return Architecture("tiny", 16, StemSpec(3, channels, 3, 1, "relu"), (frost, BlockSpec("mb", 5, 16, 16, 1, 3, 0, "relu")),
                        HeadSpec(16, 32, 5, 0.2, "relu"))  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    """No timing and no report: what most tests look at comes before."""
    monkeypatch.setattr(retrain, "time_networks", lambda networks, *_, **__: {name: Timing((1.0, 1.0, 1.0)) for name in networks})
    monkeypatch.setattr(retrain, "write_report", lambda path: path / "report.html")


def arguments(folder, runs, *more, epochs=3) -> list[str]:
    data = ["--data", "imagefolder", "--data-root", str(folder), "--arch", str(folder / "tiny.json")]
    return [*data, "--runs", str(runs), "--epochs", str(epochs), "--batch-size", "12", "--lr", "0.1", *more]


def test_a_settings_file_chooses_methods_and_bits_may_fall(folder, tmp_path, quick, capsys):
    settings = {
        "weight": "qil:4",
        "activation": "pact:4",
        "skip_first": {"conv": 1},
        "overrides": [{"match": "head.*", "weight": "int8:8"}],
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    given = ["--settings", str(tmp_path / "settings.json"), "--bits", "4", "3", "--engine", "reference", "--name", "mixed"]
    path = main(arguments(folder, tmp_path, *given, epochs=4))
    assert metrics(path)["parity"]["refused"] is None
    model = Run(path).load_checkpoint()["model"]
    widths = {value["bits"] for name, value in model.items() if "_extra_state" in name and value}
    assert widths == {3, 8}
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"weight": "lsq:4"}))
    with pytest.raises(SystemExit):  # the same file name, other contents
        main(arguments(folder, tmp_path, *given, epochs=4))
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"engine": "qnnpack"}))
    with pytest.raises(SystemExit):
        main(arguments(folder, tmp_path, *given, epochs=4))
    assert "is for qnnpack, --engine is reference" in capsys.readouterr().err


def test_a_bad_settings_file_is_named(folder, tmp_path, quick, capsys):
    (tmp_path / "settings.json").write_text('{"weight": "pact:4"}')
    with pytest.raises(SystemExit):
        main(arguments(folder, tmp_path, "--settings", str(tmp_path / "settings.json")))
    assert "settings.json: weight: 'pact:4': 'pact' does not quantize weights" in capsys.readouterr().err


def metrics(path) -> dict:
    return {k: v for k, v in json.loads((path / "metrics.json").read_text()).items() if k != "train_seconds"}


def refused(capsys, argv) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_network_is_trained_converted_and_measured(folder, tmp_path, capsys):
    path = main(arguments(folder, tmp_path, epochs=6))
    found = metrics(path)
    assert path == tmp_path / "tiny_int8" and found["reported"] == "test" and (found["epochs"], found["float_epochs"]) == (6, 2)
    rows = {row["network"]: row for row in found["networks"]}
    assert list(rows) == ["float", "fake_quant", "int8"]
    assert all(0 <= row[f"top1_{split}"] <= 1 for row in rows.values() for split in ("val", "test"))
    assert rows["fake_quant"]["top1_test"] > 0.5 and abs(rows["fake_quant"]["top1_test"] - rows["int8"]["top1_test"]) < 0.1
    assert rows["float"]["latency_ms"] > 0 and rows["int8"]["latency_ms"] > 0 and rows["fake_quant"]["latency_ms"] is None
    assert found["parity"]["layer_steps"] <= 2 and found["parity"]["agreement"] > 0.9 and found["parity"]["refused"] is None
    written = {"arch.json", "checkpoint.pt", "config.json", "int8.pt", "log.jsonl", "metrics.json", "report.html"}
    assert {p.name for p in path.iterdir()} >= written
    out = capsys.readouterr().out
    assert "top1_test" in out and "parity on fbgemm" in out
    shipped = quant.Frozen.load(path / "int8.pt")
    assert shipped(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


@pytest.mark.parametrize("stop", [4, 9, 16])
def test_a_stopped_run_goes_on_and_ends_alike(folder, tmp_path, quick, monkeypatch, capsys, stop):
    whole = metrics(main(arguments(folder, tmp_path / "a")))
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
    assert metrics(main(arguments(folder, tmp_path / "b"))) == whole


def test_the_switches_of_the_ablation_mean_what_they_say():
    def built(*flags):
        return parse(RetrainConfig, ["--arch", "x", "--epochs", "9", *flags], "retrain", "")

    def phases(config):
        return [quant.phase_at(config.schedule(), e).name for e in (0, 2, 3, 8)]

    assert phases(built()) == ["float", "float", "qat", "freeze_bn"] and built().recipe().boost == "paper"
    assert phases(built("--no-statassist")) == ["qat", "qat", "qat", "freeze_bn"]
    assert phases(built("--from-float", "y")) == ["qat", "qat", "qat", "freeze_bn"]
    assert phases(built("--float-only")) == ["float"] * 4 and built("--float-only").recipe().boost == "off"
    assert phases(built("--float-epochs", "1"))[1] == "qat"
    assert built("--no-gradboost").recipe().boost == "off" and built("--boost-mode", "released").recipe().boost == "released"
    assert built("--optimizer", "adamw").recipe().lr == 0.003 and built("--optimizer", "adamw", "--lr", "0.1").recipe().lr == 0.1
    assert built("--epochs", "1").schedule() == quant.Schedule(1, 0)
    assert built("--engine", "qnnpack").recipe().quant.engine == "qnnpack"


@pytest.mark.parametrize("flags, message", [
    (["--epochs", "0"], "epochs: 0, must be at least 1"),
    (["--lr", "-1"], "lr: -1.0, must be above 0"),
    (["--label-smoothing", "1"], "label_smoothing: 1.0, must be at least 0 and below 1"),
    (["--float-only", "--from-float", "a"], "float_only: excludes"),
    (["--no-statassist", "--float-epochs", "2"], "float_epochs: .* leave it out"),
    (["--float-epochs", "12"], "float_epochs: 12, must be at least 1 and below epochs"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        parse(RetrainConfig, ["--arch", "x", *flags], "retrain", "")


def test_float_only_then_quantized_from_its_checkpoint(folder, tmp_path, quick, capsys):
    path = main(arguments(folder, tmp_path, "--float-only"))
    (row,) = metrics(path)["networks"]
    assert path.name == "tiny_float" and row["network"] == "float" and "parity" not in metrics(path) and not (path / "int8.pt").exists()
    second = metrics(main(arguments(folder, tmp_path, "--from-float", "tiny_float", epochs=1)))
    rows = {r["network"]: r for r in second["networks"]}
    assert (second["float_epochs"], rows["float"]["top1_test"]) == (0, row["top1_test"])
    by_path = main(arguments(folder, tmp_path, "--from-float", str(path / "checkpoint.pt"), "--name", "again", epochs=1))
    assert metrics(by_path) == second
    assert "does not hold a float model" in refused(capsys, arguments(folder, tmp_path, "--from-float", "tiny_int8", "--name", "c"))
    assert "neither a checkpoint nor a run" in refused(capsys, arguments(folder, tmp_path, "--from-float", "nothing", "--name", "c"))
    tiny(24).save(tmp_path / "wider.json")
    argv = [*arguments(folder, tmp_path, "--from-float", "tiny_float", "--name", "c"), "--arch", str(tmp_path / "wider.json")]
    assert "holds another architecture" in refused(capsys, argv)


def test_quantized_from_the_first_step_has_no_float_accuracy(folder, tmp_path, quick):
    found = metrics(main(arguments(folder, tmp_path, "--no-statassist", "--no-gradboost", epochs=1)))
    assert found["boost"] == "off" and "top1_test" not in found["networks"][0] and "top1_test" in found["networks"][2]


def test_a_run_is_not_mixed_with_another(folder, tmp_path, quick, capsys):
    path = main(arguments(folder, tmp_path, epochs=1))
    before = (path / "checkpoint.pt").read_bytes()
    message = refused(capsys, arguments(folder, tmp_path, "--seed", "3", "--weight-decay", "0.1", epochs=1))
    assert "seed: 0 then, 3 now" in message and "weight_decay: 4e-05 then, 0.1 now" in message and "epochs" not in message
    tiny(24).with_name("tiny").save(tmp_path / "other.json")
    argv = arguments(folder, tmp_path, epochs=1)
    (tmp_path / "kept.json").write_bytes((folder / "tiny.json").read_bytes())
    try:
        (folder / "tiny.json").write_bytes((tmp_path / "other.json").read_bytes())
        assert "has changed since" in refused(capsys, argv)
    finally:
        (folder / "tiny.json").write_bytes((tmp_path / "kept.json").read_bytes())
    assert (path / "checkpoint.pt").read_bytes() == before
    main(arguments(folder, tmp_path, "--seed", "3", "--restart", epochs=1))
    assert json.loads((path / "config.json").read_text())["seed"] == 3


def test_the_folder_of_a_search_is_left_alone(folder, tmp_path, quick, capsys):
    search = Run(tmp_path / "frostnet_a")
    search.write_json("config.json", {"latency_lut": "fbgemm.json"})
    tiny(16).save(search.path / "arch.json")
    argv = arguments(folder, tmp_path, "--name", "frostnet_a", "--restart")
    assert "holds a run of another program" in refused(capsys, argv) and search.has("arch.json")


def test_a_broken_checkpoint_is_refused_and_restart_mends_it(folder, tmp_path, quick, capsys):
    path = main(arguments(folder, tmp_path, epochs=1))
    (path / "checkpoint.pt").write_bytes((path / "checkpoint.pt").read_bytes()[:1000])
    assert "not a whole checkpoint" in refused(capsys, arguments(folder, tmp_path, epochs=1))
    main(arguments(folder, tmp_path, "--restart", epochs=1))


def test_a_loss_that_explodes_ends_in_words(folder, tmp_path, quick, capsys):
    message = refused(capsys, [*arguments(folder, tmp_path, "--float-only"), "--lr", "1e30"])
    assert "error: the loss became" in message or "error: weights or ranges stopped being finite" in message


def test_a_parity_that_fails_is_written_down_and_refused(folder, tmp_path, quick, monkeypatch, capsys):
    def fail(self, max_layer_steps=2):
        raise quant.QuantError("parity on fbgemm: conv stem is off by 9 steps")

    monkeypatch.setattr(quant.ParityReport, "check", fail)
    assert "conv stem is off by 9 steps" in refused(capsys, arguments(folder, tmp_path, epochs=1))
    assert "off by 9" in metrics(tmp_path / "tiny_int8")["parity"]["refused"]


def test_names_paths_and_sizes_resolve(folder, tmp_path):
    def size(*flags):
        return retrain.architecture(parse(RetrainConfig, ["--runs", str(tmp_path), *flags], "retrain", "")).input_size

    assert size("--arch", "frostnet_small") == 32 and size("--arch", "frostnet_small_0_5", "--input-size", "64") == 64
    assert size("--arch", "frostnet_small", "--data", "imagefolder", "--data-root", str(folder)) == 224
    assert size("--arch", str(folder / "tiny.json")) == 16
    arch = retrain.architecture(parse(RetrainConfig, ["--arch", str(folder / "tiny.json")], "retrain", ""))
    assert arch.head.num_classes == 10  # of scenes, whatever the file says


@pytest.mark.slow
def test_a_killed_process_resumes_bit_for_bit(folder, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}

    def start(runs):
        argv = arguments(folder, runs, "--checkpoint-seconds", "0", epochs=40)
        return subprocess.Popen([sys.executable, str(REPOSITORY / "retrain.py"), *argv], env=environment, stdout=-3, stderr=-3)

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
        assert {k: v for k, v in a.items() if k.startswith("top1")} == {k: v for k, v in b.items() if k.startswith("top1")}
    assert same(whole.load_checkpoint(), parts.load_checkpoint())
