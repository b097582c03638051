"""python -m tasks export: the file to ship, from nothing but a run's folder."""

import dataclasses
import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch

import quant
from common.errors import UserError
from common.files import write_json
from common.runs import Run
from nas import Architecture, BlockSpec, HeadSpec, StemSpec
from quant.calibrate import calibrate
from tasks.__main__ import main
from tasks.pictures import generator
from tasks.ship import check_writable
from tasks.trained import Network, load

SIZE, CLASSES = 16, ("dark", "grey", "light")


def frostnet() -> Architecture:
    blocks = (BlockSpec("frost", 3, 16, 16, 2, 3, 2, "relu"), BlockSpec("mb", 5, 16, 16, 1, 3, 0, "relu"))
    return Architecture("tiny", SIZE, StemSpec(3, 16, 3, 1, "relu"), blocks, HeadSpec(16, 32, 3, 0.2, "relu"))


def make_run(
    path: Path, network: Network, engine: str = "fbgemm", weight_qmax: int | None = None, **settings
) -> torch.fx.GraphModule:
    """The folder that retrain.py leaves after training `network` for `engine`; returns the trained graph.

    Nothing is trained.
    """
    torch.manual_seed(0)
    config = quant.QuantConfig(engine=engine)
    graph = calibrate(network.build(), [pictures(32)], config)
    run = Run(path)
    quantizers = dataclasses.asdict(config)
    run.write_json(
        "config.json", {"program": "retrain", "data": "scenes", "data_root": None, "quantizers": quantizers, **settings}
    )
    known = {
        "classes": CLASSES,
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.2, 0.3),
        "weight_qmax": weight_qmax or quant.weight_qmax(engine),
    }
    header = {
        "format": "network",
        "version": 1,
        "task": "classification",
        "name": network.name,
        "input_size": network.input_size,
    }
    run.write_json("network.json", header | known)
    if network.arch is not None:
        network.arch.save(path / "arch.json")
    run.save_checkpoint({"attached": True, "model": graph.state_dict()})
    run.write_json("metrics.json", {})
    return graph


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=generator(count))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run's folder and the graph that was trained there."""
    path = tmp_path_factory.mktemp("runs") / "tiny_int8"
    return path, make_run(path, Network("tiny", SIZE, 3, frostnet()))


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made[0], tmp_path / "run"))


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["export", *map(str, argv)])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_the_folder_alone_gives_the_trained_network_back(made):
    path, graph = made
    trained, x = load(path), pictures(9)
    assert torch.equal(trained.graph(x), graph(x)) and not trained.graph.training
    assert (trained.name, trained.input_size, trained.classes, trained.std) == ("tiny", SIZE, CLASSES, (0.2, 0.2, 0.3))
    assert trained.config == quant.QuantConfig(engine="fbgemm") and trained.weight_qmax == 63


def test_a_comparison_network_needs_no_architecture(tmp_path):
    graph, x = make_run(tmp_path / "r", Network("resnet20", SIZE, 3)), pictures(3)
    assert not (tmp_path / "r" / "arch.json").exists()
    assert torch.equal(load(tmp_path / "r").graph(x), graph(x))


def test_after_calibration_the_calibrated_weights_count(made, run):
    Run(run).save_checkpoint(Run(run).load_checkpoint(), "calibrated.pt")
    (run / "checkpoint.pt").write_bytes(b"the float network")
    config = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", config | {"calibrate": "mse"})
    assert torch.equal(load(run).graph(pictures(3)), made[1](pictures(3)))


@pytest.mark.parametrize("trained_with, here", [(127, True), (63, False)])
def test_another_cpu_gives_the_weights_as_they_were_trained(tmp_path, monkeypatch, trained_with, here):
    """onednn's largest weight code is 127 with VNNI and 63 without: what counts is where the network was trained."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("quant.engines.has_vnni", lambda: here)
    graph, x = make_run(tmp_path / "r", Network("tiny", SIZE, 3, frostnet()), "onednn", trained_with), pictures(3)
    expected = graph(x)
    monkeypatch.setattr("quant.engines.has_vnni", lambda: not here)
    assert torch.equal(load(tmp_path / "r").graph(x), expected)


def test_onnx_carries_what_its_user_has_to_know(made, tmp_path, capsys):
    main(["export", "--run", str(made[0]), "--format", "onnx", "--output", str(tmp_path / "new" / "x.onnx")])
    out = capsys.readouterr().out
    file = tmp_path / "new" / "x.onnx"
    assert "checked on 256 pictures of scenes" in out and f"{file}: {file.stat().st_size:,} bytes" in out
    assert "layers within" in out and "in float: " in out and "fake-quant's answer for " in out
    about = {p.key: p.value for p in onnx.load(file).metadata_props}
    assert about["network"] == "tiny" and json.loads(about["classes"]) == list(CLASSES)
    assert json.loads(about["mean"]) == [0.4, 0.5, 0.6] and json.loads(about["std"]) == [0.2, 0.2, 0.3]
    x = pictures(5)
    expected = quant.convert(made[1], "reference")(x)
    assert (quant.load_frozen(file, "onnxruntime")(x) - expected).abs().max() < 0.1 * expected.abs().max()
    first = file.read_bytes()
    main(["export", "--run", str(made[0]), "--format", "onnx", "--output", str(file)])
    assert file.read_bytes() == first and [p.name for p in file.parent.iterdir()] == ["x.onnx"]


@pytest.mark.parametrize("engine", [f for f in quant.FORMATS if f in quant.available() and f != "onnxruntime"])
def test_each_engine_gets_its_own_file(made, run, engine):
    main(["export", "--run", str(run), "--format", engine])
    (file,) = run.glob(f"int8_{engine}.*")
    assert file.suffix == (".onnx" if engine == "openvino" else ".pt")
    x = pictures(1)
    executor = quant.convert(made[1], engine)
    with quant.use_engine(engine):
        expected = executor(x)
    assert torch.equal(quant.load_frozen(file, engine if engine == "openvino" else None)(x), expected)


def test_missing_pictures_are_said_and_replaced_by_noise(run, capsys):
    config = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", config | {"data": "imagefolder", "data_root": str(run / "gone")})
    main(["export", "--run", str(run), "--format", "fbgemm"])
    out = capsys.readouterr().out
    assert (
        "checked on 256 random pictures, because: data_root: there is no folder" in out
        and (run / "int8_fbgemm.pt").exists()
    )
    write_json(run / "config.json", config | {"data": ["scenes"], "data_root": 7})
    main(["export", "--run", str(run), "--format", "fbgemm"])
    assert "random pictures, because: data: ['scenes'] is not known" in capsys.readouterr().out


@pytest.mark.skipif(not {"fbgemm", "qnnpack"} <= set(quant.available()), reason="needs both engines")
def test_an_engine_that_takes_smaller_weights_is_refused(tmp_path, capsys):
    make_run(tmp_path / "r", Network("tiny", SIZE, 3, frostnet()), "qnnpack")
    message = refused(capsys, "--run", tmp_path / "r", "--format", "fbgemm")
    assert "fbgemm takes weights up to 63" in message and "retrain with --engine fbgemm" in message
    main(["export", "--run", str(tmp_path / "r"), "--format", "qnnpack"])


def test_a_network_that_fails_parity_is_not_written(run, monkeypatch, capsys):
    def fail(self, max_layer_steps=2):
        raise quant.QuantError("parity on fbgemm: conv stem is off by 9 steps")

    monkeypatch.setattr(quant.ParityReport, "check", fail)
    message = refused(capsys, "--run", run, "--format", "fbgemm")
    assert "off by 9 steps" in message and "int8_fbgemm.pt is not written" in message and not list(run.glob("int8*"))


def test_a_place_that_cannot_be_written_is_named(run, capsys):
    (run / "file").write_text("")
    for name in ("onnx", "fbgemm"):
        message = refused(capsys, "--run", run, "--format", name, "--output", run / "file" / "x")
        assert f"{run / 'file' / 'x'}: cannot be written (a part of the path is a file" in message


def test_a_place_that_cannot_be_written_is_found_before_the_work(run, monkeypatch, capsys):
    monkeypatch.setattr("tasks.__main__.find_pictures", None)  # nothing is decoded, nothing converted
    (run / "file").write_text("")
    (run / "folder").mkdir()
    before = sorted(run.rglob("*"))
    for place, words in (
        (run / "file" / "x", "a part of the path is a file"),
        (run / "folder", "that is a folder: give a file name"),
    ):
        assert f"{place}: cannot be written ({words}" in refused(
            capsys, "--run", run, "--format", "fbgemm", "--output", place
        )
    check_writable(run / "new" / "deep" / "x.onnx")
    assert sorted(run.rglob("*")) == before


def test_what_is_no_finished_quantized_run_is_refused(run, tmp_path, capsys):
    assert "nothing is not the folder of a run" in refused(capsys, "--run", tmp_path / "nothing", "--format", "onnx")
    assert not (tmp_path / "nothing").exists()
    Run(run).save_checkpoint({"attached": False, "model": {}})
    message = refused(capsys, "--run", run, "--format", "onnx")
    assert (
        "trained a float network" in message
        and f"--from-float {run}/checkpoint.pt" in message
        and "--calibrate" in message
    )
    (run / "metrics.json").unlink()
    assert "has not ended; give its command again" in refused(capsys, "--run", run, "--format", "onnx")
    write_json(run / "config.json", {"program": "search"})
    assert f"is not a run of retrain.py; train what it found first: retrain.py --arch {run}" in refused(
        capsys, "--run", run, "--format", "onnx"
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "architecture"}, "format: 'architecture', must be 'network'"),
        ({"extra": 1}, "extra: unknown; the fields are format, version, task, name"),
        ({"std": None}, "std: None, must be a list of 3 items"),
        ({"std": [0.2, 0, 0.2]}, r"std\[1\]: 0, must be a number above 0"),
        ({"mean": [0.2, "x", 0.2]}, r"mean\[1\]: 'x', must be a number"),
        ({"input_size": 1e9}, "input_size: 1000000000.0, must be a whole number from 8 to 4096"),
        ({"classes": []}, "classes: .*must be a list of 1 to 100000 items"),
        ({"classes": ["a"]}, "name, input_size or classes differ from arch.json"),
        ({"name": "../../etc"}, "name: '../../etc', must be"),
        ({"weight_qmax": 1000}, "weight_qmax: 1000, must be 63 or 127"),
        ({"task": "cooking"}, "task: 'cooking', must be 'classification', 'detection', 'segmentation'"),
        ({"task": "segmentation"}, "name, input_size or classes differ from arch.json"),
        ({"name": "a:b:c"}, "name: 'b:c', must be"),
    ],
)
def test_a_spoilt_network_file_is_named_with_its_field(run, changes, message):
    data = json.loads((run / "network.json").read_text())
    write_json(run / "network.json", data | changes)
    with pytest.raises(UserError, match=f"network.json: {message}"):
        load(run)


def test_only_names_of_the_zoo_are_built_without_an_architecture(run):
    (run / "arch.json").unlink()
    with pytest.raises(UserError, match="name: 'tiny' is no comparison network"):
        load(run)


def test_foreign_weights_and_settings_are_named(run):
    frostnet().with_classes(3).save(run / "arch.json")
    state = Run(run).load_checkpoint()
    kept = dict(state["model"])
    kept.popitem()
    Run(run).save_checkpoint(state | {"model": kept})
    with pytest.raises(UserError, match="holds weights of another network than tiny"):
        load(run)
    write_json(run / "config.json", {"program": "retrain", "quantizers": {"weight": "magic:3"}})
    with pytest.raises(UserError, match="config.json: quantizers: weight: 'magic:3'"):
        load(run)
