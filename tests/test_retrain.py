"""retrain.py from the command line, on a tiny network and a small folder of pictures."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import nas
import quant
import retrain
import tasks.engine
import zoo
from common.cli import parse
from common.errors import UserError
from common.runs import Run
from latency_lut import Timing
from nas import Architecture, BlockSpec, HeadSpec, StemSpec
from retrain import RetrainConfig, main
from tasks import Classification, classification, in_order
from tasks.kinds import KINDS
from tasks.pictures import Memory, generator
from tasks.ship import SHIPPED, doubts
from tasks.trained import find_network, load
from tests import ROOT
from tests.tasks.test_engine import same


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
    return Architecture(
        "tiny",
        16,
        StemSpec(3, channels, 3, 1, "relu"),
        (frost, BlockSpec("mb", 5, 16, 16, 1, 3, 0, "relu")),
        HeadSpec(16, 32, 5, 0.2, "relu"),
    )


@pytest.fixture
def quick(monkeypatch):
    """No timing and no report: what most tests look at comes before."""
    monkeypatch.setattr(
        retrain, "time_networks", lambda networks, *_, **__: {name: Timing((1.0, 1.0, 1.0)) for name in networks}
    )
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
    given = [
        "--settings",
        str(tmp_path / "settings.json"),
        "--bits",
        "4",
        "3",
        "--engine",
        "reference",
        "--name",
        "mixed",
    ]
    path = main(arguments(folder, tmp_path, *given, epochs=4))
    assert metrics(path)["parity"]["refused"] is None
    model = Run(path).load_checkpoint()["model"]
    widths = {value["bits"] for name, value in model.items() if "_extra_state" in name and value}
    assert widths == {3, 8}
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"weight": "lsq:4"}))
    message = refused(capsys, arguments(folder, tmp_path, *given, epochs=4))  # the same file name, other contents
    assert "(quantizers.weight: 'qil:4' then, 'lsq:4' now)" in message
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


def results(path) -> dict:
    """The metrics that do not depend on the process; torch numbers the names in a frozen file through."""
    return {k: v for k, v in metrics(path).items() if k != "file_bytes"}


def refused(capsys, argv) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


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


@pytest.mark.parametrize("stop", [4, 9, 16])
def test_a_stopped_run_goes_on_and_ends_alike(folder, tmp_path, quick, monkeypatch, capsys, stop):
    whole = results(main(arguments(folder, tmp_path / "a")))
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
    assert results(main(arguments(folder, tmp_path / "b"))) == whole


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
    assert (
        built("--no-gradboost").recipe().boost == "off"
        and built("--boost-mode", "released").recipe().boost == "released"
    )
    assert (
        built("--optimizer", "adamw").recipe().lr == 0.003
        and built("--optimizer", "adamw", "--lr", "0.1").recipe().lr == 0.1
    )
    assert built("--epochs", "1").schedule() == quant.Schedule(1, 0)
    assert built("--engine", "qnnpack").recipe().quant.engine == "qnnpack"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--epochs", "0"], "epochs: 0, must be at least 1"),
        (["--lr", "-1"], "lr: -1.0, must be above 0"),
        (["--label-smoothing", "1"], "label_smoothing: 1.0, must be at least 0 and below 1"),
        (["--float-only", "--from-float", "a"], "float_only: excludes"),
        (["--no-statassist", "--float-epochs", "2"], "float_epochs: .* leave it out"),
        (["--float-only", "--calibrate", "mse"], "float_only: excludes --from-float and --calibrate"),
        (["--float-only", "--bits", "4"], "float_only: trains no quantized epochs"),
        (["--calibrate", "mse", "--bits", "4", "3"], "calibrate: trains no quantized epochs"),
        (["--calibrate", "mse", "--no-statassist"], "calibrate: trains no quantized epochs"),
        (["--calibrate", "mse", "--float-epochs", "2"], "float_epochs: .* leave it out"),
        (["--calibrate", "mse", "--boost-mode", "released"], "calibrate: trains no quantized epochs, .*--boost-mode"),
        (
            ["--calibrate", "mse", "--from-float", "a", "--epochs", "3"],
            "^epochs: --calibrate with --from-float trains nothing",
        ),
        (
            ["--calibrate", "mse", "--from-float", "a", "--lr", "1", "--optimizer", "adam"],
            "^lr, optimizer: --calibrate with --from-float",
        ),
        (["--threads", "500000"], r"threads: 500000, must be 1 to \d+ \(the CPUs here\)"),
        (["--threads", "0"], "threads: 0, must be 1 to"),
        (["--name", "../../zz"], "name: '../../zz', must be the plain name of a folder"),
        (["--name", ".."], r"name: '\.\.', must be"),
        (["--name", ""], "name: '', must be"),
        (["--name", "/elsewhere/zz"], "name: '/elsewhere/zz', must be"),
        (["--calibration-images", "64"], "calibration_images: are what --calibrate looks at"),
        (["--calibrate", "mse", "--calibration-images", "0"], "calibration_images: 0, must be at least 1"),
        (["--float-epochs", "12"], "float_epochs: 12, must be at least 1 and below epochs"),
    ],
)
def test_settings_that_make_no_sense_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        parse(RetrainConfig, ["--arch", "x", *flags], "retrain", "")


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
    """A file that always names one class agrees with the reference, as far as its own check saw, and not with
    fake-quant.
    """
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


def test_a_run_is_not_mixed_with_another(folder, tmp_path, quick, capsys):
    path = main(arguments(folder, tmp_path, epochs=1))
    before = (path / "checkpoint.pt").read_bytes()
    message = refused(capsys, arguments(folder, tmp_path, "--seed", "3", "--weight-decay", "0.1", epochs=1))
    assert (
        "seed: 0 then, 3 now" in message and "weight_decay: 4e-05 then, 0.1 now" in message and "epochs" not in message
    )
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


# ---- networks of the zoo, engines, post-training quantization ----------------------------------------------


def zoo_arguments(folder, runs, *more, epochs=2) -> list[str]:
    return [*arguments(folder, runs, *more, epochs=epochs), "--arch", "resnet20", "--input-size", "16"]


def test_a_comparison_network_is_trained_like_a_frostnet(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(retrain, "time_networks", lambda networks, *_, **__: {})
    path = main(zoo_arguments(folder, tmp_path))
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


def test_a_stopped_comparison_network_goes_on_and_ends_alike(folder, tmp_path, quick, monkeypatch):
    whole = metrics(main(zoo_arguments(folder, tmp_path / "a")))
    step = tasks.engine._Training._train_step
    stop = {9}

    def interrupted(self, watch):
        if self.step in stop:
            stop.clear()
            raise KeyboardInterrupt
        return step(self, watch)

    monkeypatch.setattr(tasks.engine._Training, "_train_step", interrupted)
    with pytest.raises(SystemExit):
        main(zoo_arguments(folder, tmp_path / "b"))
    assert metrics(main(zoo_arguments(folder, tmp_path / "b"))) == whole


def test_a_run_does_not_go_on_with_other_classes_or_another_kind_of_weights(
    folder, tmp_path, quick, monkeypatch, capsys
):
    path = main(zoo_arguments(folder, tmp_path, epochs=1))
    network = json.loads((path / "network.json").read_text())
    (path / "network.json").write_text(json.dumps(network | {"classes": ["a", "b"]}))
    assert "arch: resnet20 has changed since" in refused(capsys, zoo_arguments(folder, tmp_path, epochs=1))
    (path / "network.json").write_text(json.dumps(network | {"weight_qmax": 127}))
    assert "takes weights of another range" in refused(capsys, zoo_arguments(folder, tmp_path, epochs=1))


def test_an_unknown_name_and_a_size_too_small_are_refused(folder, tmp_path, capsys):
    message = refused(capsys, [*arguments(folder, tmp_path), "--arch", "resnet19"])
    assert "'resnet19'" in message and "near it: resnet18, " in message and "mobilenet_v2" not in message
    assert "vgg11 cannot run on 16 px" in refused(
        capsys, [*arguments(folder, tmp_path), "--arch", "vgg11", "--input-size", "16"]
    )
    (tmp_path / "resnet20").mkdir()
    (tmp_path / "resnet20" / "arch.json").write_text("{}")
    # not the zoo's silently
    assert "arch.json: format" in refused(capsys, [*arguments(folder, tmp_path), "--arch", "resnet20"])


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
    path = main(arguments(folder, tmp_path, "--engine", "reference", epochs=1))
    assert (
        (path / "int8.onnx").exists()
        and not (path / "int8.pt").exists()
        and metrics(path)["networks"][2]["latency_ms"] is None
    )


def untrained(folder, runs, *more) -> list[str]:
    """From the weights of tiny_float, without the settings that only training takes notice of."""
    argv = [*arguments(folder, runs, *more), "--from-float", "tiny_float"]
    for flag in ("--epochs", "--lr"):
        del argv[argv.index(flag) : argv.index(flag) + 2]
    return argv


def test_calibrated_after_training_or_from_a_float_run_is_the_same(folder, tmp_path, quick):
    path = main(arguments(folder, tmp_path, "--calibrate", "percentile", "--calibration-images", "30", epochs=6))
    found = metrics(path)
    rows = {row["network"]: row for row in found["networks"]}
    assert path.name == "tiny_ptq" and (found["method"], found["calibrate"], found["boost"]) == (
        "ptq",
        "percentile",
        "off",
    )
    assert (found["epochs"], found["float_epochs"]) == (6, 6) and all((path / name).exists() for name in SHIPPED)
    assert list(rows) == ["float", "fake_quant", "int8"] and rows["int8"]["top1_test"] > 0.5
    again = metrics(
        main(arguments(folder, tmp_path, "--calibrate", "percentile", "--calibration-images", "30", epochs=6))
    )
    assert again == found
    main(arguments(folder, tmp_path, "--float-only", epochs=6))
    argv = untrained(folder, tmp_path, "--calibrate", "percentile", "--calibration-images", "30")
    second = metrics(main([*argv, "--name", "later"]))
    assert second["epochs"] == 0 and second["networks"] == found["networks"]
    assert (tmp_path / "later" / "int8.onnx").read_bytes() == (path / "int8.onnx").read_bytes()


def test_calibration_is_not_mixed_with_another(folder, tmp_path, quick, capsys):
    main(arguments(folder, tmp_path, "--float-only", epochs=1))
    argv = untrained(folder, tmp_path)
    main([*argv, "--calibrate", "minmax"])
    assert "calibrate: 'minmax' then, 'mse' now" in refused(capsys, [*argv, "--calibrate", "mse"])


def test_settings_that_cannot_be_calibrated_are_named_before_training(folder, tmp_path, quick, capsys):
    (tmp_path / "settings.json").write_text('{"activation": "pact:4"}')
    message = refused(
        capsys, arguments(folder, tmp_path, "--calibrate", "mse", "--settings", str(tmp_path / "settings.json"))
    )
    assert "only int8 activations can be calibrated" in message and not (tmp_path / "tiny_ptq" / "log.jsonl").exists()


def test_names_paths_and_sizes_resolve(folder, tmp_path):
    def size(name, data="scenes", input_size=None):
        return find_network(name, 10, KINDS["classification"].size(data), input_size, tmp_path).input_size

    assert size("frostnet_small") == 32 and size("frostnet_small_0_5", input_size=64) == 64
    assert (
        size("frostnet_small", "imagefolder") == 224
        and size("resnet20", "imagefolder") == 224
        and size("resnet20", "cifar100") == 32
    )
    assert size(str(folder / "tiny.json")) == 16
    network = find_network(str(folder / "tiny.json"), 10, 32)
    assert network.arch.head.num_classes == network.num_classes == 10  # of the data, whatever the file says
    tiny(16).with_name("other").save(tmp_path / "resnet20" / "arch.json")
    assert size("resnet20") == 16  # a run comes before the zoo
    tiny(16).save(tmp_path / "frostnet_mine" / "arch.json")
    with pytest.raises(
        UserError, match="'frostnet_mime' is neither a file, a run nor a known name; near it: frostnet_mine, "
    ) as refusal:
        size("frostnet_mime")
    assert "resnet20" not in str(refusal.value)  # those alone that are near
    with pytest.raises(UserError, match="near it: mobilenet_v2"):
        size("mobilnet_v2")


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
