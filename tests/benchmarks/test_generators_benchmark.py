"""benchmarks/generators.py: the page of made-up figures, and tiny generators measured."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

import quant
from benchmarks import generators as benchmark
from common.files import read_json, write_json
from common.runs import Run
from latency_lut.bench.contenders import FROZEN, SESSION
from latency_lut.machine import describe
from tasks import parts
from tasks.folders import CHANNELS
from tasks.trained import Network, save_network

MS = dict(zip(benchmark.TIMED, (900.0, 800.0, 500.0, 460.0, 450.0, 400.0), strict=True))


def made_up(ms=MS, psnr=(47.25,), **fields) -> dict:
    """One network's results; a number of PSNR for each part."""
    names = [""] if len(psnr) == 1 else ["a_to_b", "b_to_a"]
    rows = {name: {"layers": 40, "layer_steps": 1.0, "psnr": db} for name, db in zip(names, psnr, strict=True)}
    file = {
        "bytes": 7_960_000,
        "integer_layers": 18,
        "layer_steps": 1,
        "output_steps": 2.0,
        "agreement": 1.0,
        "float_ops": ["tanh_quant"],
    }
    found = {
        "task": "untrained, 256 px",
        "parts": {name: {"params": 7_841_411, "macs": 42_303_750_144, "inputs": 1} for name in names},
        "parity": {engine: {"parts": rows, "float_ops": ["1 Tanh"], "resizes": 2} for engine in benchmark.ENGINES},
        "onnx": dict.fromkeys(names, file),
        "latency": [{"name": name, "rounds_ms": [value] * 3} for name, value in ms.items()],
        "profile": {},
        "found": 196_608,
        "seen": {"date": "2020-01-01 00:00:00", "seconds": 1.0, "load": 0.5, "steal": 0.01},
    }
    return found | fields


def written(asked=(), **networks) -> str:
    return benchmark.page({"about": benchmark.GeneratorsConfig().about(), "networks": networks}, asked)


# ---- the page ----------------------------------------------------------------------------------------------


def test_one_table_holds_cost_and_latency():
    text = written(["unet_256"], resnet_6blocks=made_up())
    assert (
        "| resnet_6blocks | untrained, 256 px | 7.84 | 42.30 | 900.0 | 800.0 | 500.0 | 460.0 | 450.0 | 400.0 | 0.50 |"
        in text
    )
    assert "| resnet_6blocks | 1 / 47.2 |" in text and "| 7.96; 18; 1 / 2 |" in text
    assert "**Not measured yet: unet_256.**" in text and "amplify single codes" in text and describe()["torch"] in text
    assert "What did not work" not in text and "| 1 Tanh |" in text


def test_both_generators_of_a_run_stand_side_by_side_and_are_not_timed():
    text = written(mine=made_up({}, (45.0, 41.04)))
    assert "| mine | untrained, 256 px | 7.84 + 7.84 | 42.30 + 42.30 | - | - | - | - | - | - | - |" in text
    assert "| 1 / 45.0 + 1 / 41.0 |" in text and "Not measured yet" not in text


def test_what_an_engine_cannot_do_is_said():
    parity = made_up()["parity"] | {"fbgemm": {"reason": "UserError: larger ones"}}
    text = written(mine=made_up(parity=parity, onnx={"": {"reason": "QuantError: no form"}}))
    assert "- mine, parity fbgemm: UserError: larger ones" in text and "- mine, ONNX: QuantError: no form" in text


def test_float_can_win():
    assert "fastest float form beats every INT8 form on: mine" in written(mine=made_up(MS | {SESSION: 300.0}))


def test_the_least_psnr_is_that_of_any_part_on_any_engine():
    worse = {"parts": {"": {"layers": 40, "layer_steps": 1.0, "psnr": 12.5}}, "float_ops": [], "resizes": 0}
    found = made_up(parity=made_up()["parity"] | {"openvino": worse, "x86": {"reason": "none"}})
    assert benchmark.least_of({"a": found, "b": made_up(psnr=(50.0, 44.0)), "c": made_up(parity={})}) == {
        "a": 12.5,
        "b": 44.0,
    }


# ---- whole measurements ------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Some engines."""
    monkeypatch.setattr(benchmark, "ENGINES", ("reference", "fbgemm"))
    monkeypatch.setattr(benchmark, "TIMED", (FROZEN, "fbgemm"))


def test_a_tiny_generator_through_the_whole_measurement(few, tmp_path, capsys, monkeypatch):
    words = ["--smoke", "--networks", "frost_generator", "--output", str(tmp_path / "g")]
    summary = benchmark.main(words)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary
    assert summary["failures"] == {} and summary["onnx_exported"] == 1 and summary["parity_worst_steps"] <= 2
    assert summary["psnr_least"]["frost_generator"] > 35 and 0 < summary["int8_over_float"]["frost_generator"] < 10
    found = read_json(tmp_path / "g.json")["networks"]["frost_generator"]
    assert found["parts"][""] == {"params": 1_435_611, "macs": 2_115_715_072 // 64, "inputs": 1}
    assert found["parity"]["fbgemm"]["float_ops"] == ["1 Tanh"] and found["parity"]["fbgemm"]["resizes"] == 3
    assert "| frost_generator | untrained, 32 px | 1.44 |" in (tmp_path / "g.md").read_text()

    monkeypatch.setattr(benchmark, "measure", None)  # the same command finds everything there
    assert benchmark.main(words) == summary
    with pytest.raises(SystemExit):
        benchmark.main([*words[1:], "--input-size", "64"])
    assert "about.sizes: measured with {'style': 32}, this is {'style': 64}" in capsys.readouterr().err


@pytest.fixture
def run(tmp_path):
    """The folder of a run of cyclegan on pictures of two plain colours, whose generators know nothing."""
    for folder, colour in (("A", (250, 40, 40)), ("B", (40, 40, 250))):
        for split in ("train", "test"):
            (tmp_path / "data" / f"{split}{folder}").mkdir(parents=True)
            for number in range(2):
                Image.fromarray(np.full((40, 40, 3), colour, np.uint8)).save(
                    tmp_path / "data" / f"{split}{folder}" / f"{number}.png"
                )
    network, config = Network("frost_generator", 32, 3, task="cyclegan"), quant.QuantConfig(engine="fbgemm")
    torch.manual_seed(0)
    graph = parts.calibrate(
        network.build(), [torch.rand(2, 3, 32, 32) * 2 - 1], config, "minmax", lambda m, x: m.b_to_a(m.a_to_b(x))
    )
    made = Run(tmp_path / "runs" / "mine")
    given = {"data": "unpaired", "data_root": str(tmp_path / "data"), "bad_data": "refuse", "direction": "a_to_b"}
    made.write_json("config.json", {"program": "retrain", "quantizers": asdict(config), **given})
    made.write_json("metrics.json", {})
    save_network(made, network, {"classes": CHANNELS, "mean": (0.5,) * 3, "std": (0.5,) * 3, "weight_qmax": 63})
    made.save_checkpoint({"attached": True, "model": graph.state_dict()})
    return made


def test_generators_of_a_run_are_compared_on_its_own_pictures(few, run, tmp_path):
    subject = benchmark.of_run(str(run.path), None)
    assert subject.what == "frost_generator, cyclegan of unpaired, 32 px" and set(subject.inputs) == {
        "a_to_b",
        "b_to_a",
    }
    for name, red, blue in (("a_to_b", 250, 40), ("b_to_a", 40, 250)):
        x = (subject.inputs[name] + 1) * 127.5
        assert x.shape == (2, 3, 32, 32) and (x[:, 0].mean().item(), x[:, 2].mean().item()) == pytest.approx(
            (red, blue), abs=1
        )
    found = benchmark.measure(lambda: subject)
    assert found["latency"] == [] and set(found["onnx"]) == {"a_to_b", "b_to_a"}
    assert all(set(row["parts"]) == {"a_to_b", "b_to_a"} for row in found["parity"].values())
    assert all(part["layer_steps"] <= 2 for row in found["parity"].values() for part in row["parts"].values())


def test_a_run_trained_with_larger_weights_is_not_compared_on_engines_that_take_smaller_ones(run):
    write_json(run.path / "network.json", run.read_json("network.json") | {"weight_qmax": 127})
    subject = benchmark.of_run(str(run.path), None)
    assert subject.graph_for("reference") is subject.graphs[127]
    row = benchmark.attempt(benchmark.compare, subject, "fbgemm")
    assert row == {"reason": "UserError: it was trained with weights up to 127, fbgemm takes 63 here"}


# ---- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, part",
    (
        (["--networks", "resnet_8blocks"], "networks: 'resnet_8blocks' is no generator"),
        (["--input-size", "130", "--networks", "resnet_6blocks"], "input_size: 130, must be a multiple of 4"),
        (["--smoke", "--networks", "unet_256"], "input_size: 32, must be a multiple of 256"),
        (["--run", "runs/a", "other/a"], "run: two folders have one name"),
        (["--run", "nowhere"], "run: nowhere is not the folder of a run"),
    ),
)
def test_mistakes_are_named(words, part, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([*words, "--output", str(tmp_path / "g")])
    assert part in capsys.readouterr().err and [*tmp_path.iterdir()] == []


def test_a_run_of_another_task_is_refused(run, monkeypatch):
    monkeypatch.setattr(benchmark.trained, "load", lambda path: type("Found", (), {"task": "segmentation"}))
    with pytest.raises(
        benchmark.UserError, match="run: .*mine is one of segmentation; name runs of pix2pix or cyclegan"
    ):
        benchmark.of_run(str(run.path), None)
