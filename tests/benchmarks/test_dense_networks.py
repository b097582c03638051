"""benchmarks/dense_networks.py and dense_step.py: the page of made-up figures, and tiny networks measured."""

import json
import math

import pytest
import torch

from benchmarks import dense_networks, dense_step
from benchmarks.dense_page import AFTER, INT8, NAMES, failures, int8_over_float, page, summarized
from common.files import read_json, write_json
from latency_lut.bench.contenders import FROZEN, SESSION
from latency_lut.bench.results import median_ms
from latency_lut.machine import describe

# float torch, ort; fbgemm, qnnpack, x86, onednn; ort
MS = dict(zip(NAMES, (10.0, 8.0, 5.0, 20.0, 3.0, 4.0, 2.0), strict=True))
STEPS = {"layers": 70, "layer_steps": 1.0, "worst_layer": "stem_quant", "output_steps": 3.4, "agreement": 1.0}
ONNX = {
    "bytes": 1_250_000,
    "integer_layers": 50,
    "layer_steps": 1,
    "output_steps": 2.0,
    "agreement": 1.0,
    "float_ops": ["gate_quant"],
}


def made_up(ms=MS, steps=STEPS, missing=(), **fields) -> dict:
    """One network's results."""
    rows = [
        {"name": name, "reason": "QuantError: no place"}
        if name in missing
        else {"name": name, "rounds_ms": [ms[name]] * 3}
        for name in NAMES
    ]
    gate = ["gate_quant (Hardsigmoid)"]
    found = {
        "task": "segmentation",
        "parts": {"": {"params": 1_700_000, "macs": 7_000_000_000, "inputs": 1}},
        "parity": {engine: {"parts": {"": steps}, "float_ops": gate, "resizes": 2} for engine in INT8},
        "onnx": {"": ONNX},
        "latency": [*rows, {"name": AFTER, "rounds_ms": [6.0] * 3}],
        "profile": {"qnnpack": [{"op": "quantized::conv2d", "kind": "integer", "calls": 9, "ms": 1.0, "share": 0.912}]},
        "found": 262_144,
        "seen": {"date": "2020-01-01 00:00:00", "seconds": 1.0, "load": 0.5, "steal": 0.01},
    }
    return found | fields


def written(asked=1, **networks) -> str:
    about = {
        "sizes": dense_networks.SIZES,
        "classes": dense_networks.CLASSES,
        "rounds": 8,
        "pictures": 1,
        "machine": describe(),
    }
    return page(
        {"about": about, "networks": {name.replace("__", ":"): found for name, found in networks.items()}}, asked
    )


# ---- what the figures say ----------------------------------------------------------------------------------


def test_the_fastest_forms_are_compared_without_what_comes_behind_them():
    assert int8_over_float(made_up()) == 2.0 / 8.0
    assert int8_over_float(made_up(ms=MS | {"onnxruntime": 9.0})) == 3.0 / 8.0
    assert math.isnan(int8_over_float(made_up(missing=(FROZEN, SESSION))))
    row = {"name": "x86", "rounds_ms": [1.0, 6.0, 8.0]}
    found = made_up()
    found["latency"][NAMES.index("x86")] = row
    assert int8_over_float(found) == 1.0 / 8.0 and int8_over_float(found, median_ms) == 2.0 / 8.0


def test_the_summary_of_good_and_of_bad_figures():
    good = summarized({"lraspp:mobilenet_v2": made_up()}, 2)
    assert good["parity_holds"] and good["parity_worst_steps"] == 1 and good["onnx_exported"] == 1
    assert (
        good["int8_over_float"] == {"lraspp:mobilenet_v2": 0.25}
        and good["failures"] == {}
        and good["fastest_is_float"] == []
    )
    assert good["slower_than_own_float"] == {"lraspp:mobilenet_v2": {"qnnpack": 2.0}}
    assert not summarized({"espnet": made_up(steps=STEPS | {"layer_steps": 2.5})}, 1)["parity_holds"]
    assert not summarized({}, 1)["parity_holds"]


def test_what_was_not_compared_holds_nothing():
    parity = made_up()["parity"] | {"x86": {"reason": "QuantError: no place"}}
    summary = summarized(
        {"espnet": made_up(parity=parity, onnx={"": {"reason": "QuantError: none"}}, missing=("x86",))}, 1
    )
    assert not summary["parity_holds"] and summary["onnx_exported"] == 0
    assert set(summary["failures"]["espnet"]) == {"parity x86", "ONNX", "latency x86"}
    assert failures(made_up()) == {}


# ---- the page ----------------------------------------------------------------------------------------------


def test_the_sentences_follow_the_figures():
    text = written(
        asked=3,
        lraspp__mobilenet_v2=made_up(),
        espnet=made_up(ms=MS | {"onnxruntime": 8.0, "x86": 8.8, "onednn": 9, "fbgemm": 9}),
    )
    assert "**2 of 3 networks so far.**" in text
    # sqrt(1/4 * 1)
    assert "from 25 % (lraspp:mobilenet_v2) to 100 % (espnet)" in text and "takes 50 % of the time" in text
    assert "| lraspp:mobilenet_v2 | segmentation | 1.700 | 7000 | 1.702 | 7180 |" in text
    assert "The worst layer of all is off by 1 step(s); 2 are allowed" in text
    assert "| lraspp:mobilenet_v2 | qnnpack | 2.00 | quantized::conv2d x9 91 % |" in text
    assert "the fastest INT8 form beats every float form" in text and "What did not work" not in text
    assert "| lraspp:mobilenet_v2 | a class for each pixel | 6.0 | 2.0 | 75 % |" in text
    assert "gate_quant (Hardsigmoid)" in text and "(lraspp:mobilenet_v2 2, espnet 2)" in text


def test_where_float_wins_is_said():
    text = written(espnet=made_up(ms=MS | dict.fromkeys(INT8, 9.0)))
    assert "The fastest float form beats every INT8 form on: espnet." in text
    assert "| espnet | onnxruntime | 1.12 | - |" in text and "| espnet | x86 |" not in text  # 9 ms against torch's 10


def test_the_page_names_what_is_missing():
    text = written(espnet=made_up(missing=NAMES, onnx={"": {"reason": "QuantError: none"}}))
    assert "No network has both a float and an INT8 latency." in text
    assert "- espnet, latency x86: QuantError: no place" in text and "- espnet, ONNX: QuantError: none" in text


def test_networks_all_in_integers_are_named():
    parity = {engine: {"parts": {"": STEPS}, "float_ops": [], "resizes": 0} for engine in INT8}
    text = written(espnet=made_up(parity=parity))
    assert "All in integers on every engine: espnet." in text and "Bilinear resizing is none" not in text


def test_parts_stand_side_by_side():
    parts = {
        "features": {"params": 1_000_000, "macs": 3_000_000, "inputs": 1},
        "box_head": {"params": 4e5, "macs": 2.7e6, "inputs": 150},
    }
    parity = {engine: {"parts": {name: STEPS for name in parts}, "float_ops": [], "resizes": 0} for engine in INT8}
    text = written(faster_rcnn=made_up(parts=parts, parity=parity, onnx={name: ONNX for name in parts}))
    assert "| 1.000 + 0.400 | 3 + 150 regions x 2.7 |" in text and "| 140 | 1 / 3 + 1 / 3 |" in text
    assert "| faster_rcnn box_head | 1.25 | 50 | 1 / 2 | gate_quant |" in text


# ---- whole measurements ------------------------------------------------------------------------------------


def test_a_tiny_network_through_the_whole_measurement(tmp_path, capsys, monkeypatch):
    words = [
        "--smoke",
        "--rounds",
        "0",
        "--networks",
        "lraspp:mobilenet_v3_small_relu_x0_5",
        "--output",
        str(tmp_path / "dense"),
    ]
    summary = dense_networks.main(words)
    assert (
        summary["parity_holds"]
        and summary["onnx_exported"] == 1
        and summary["failures"] == {}
        and summary["int8_over_float"] == {}
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary
    (found,) = read_json(tmp_path / "dense.json")["networks"].values()
    assert set(found["parity"]) == set(INT8) and all(row["resizes"] == 1 for row in found["parity"].values())
    assert found["found"] == 64 * 64 and found["latency"] == []
    assert "| lraspp:mobilenet_v3_small_relu_x0_5 |" in (tmp_path / "dense.md").read_text()

    monkeypatch.setattr(dense_networks, "measure", None)  # the same command finds everything there
    assert dense_networks.main(words) == summary
    with pytest.raises(SystemExit):
        dense_networks.main([*words, "--pictures", "2"])
    assert "about.pictures: measured with 1, this is 2" in capsys.readouterr().err


def test_results_of_another_machine_are_only_shown(tmp_path, capsys):
    path = tmp_path / "dense"
    words = ["--networks", "espnet", "--output", str(path)]
    about = dense_networks.DenseConfig().about() | {"machine": describe() | {"cpu": "another"}}
    write_json(f"{path}.json", {"about": about, "networks": {"espnet": made_up()}})
    with pytest.raises(SystemExit):
        dense_networks.main(words)
    assert "about.cpu: measured with another" in capsys.readouterr().err
    assert dense_networks.main([*words, "--minutes", "0"])["int8_over_float"] == {"espnet": 0.25}
    assert "Machine: another" in (tmp_path / "dense.md").read_text()


def test_a_broken_file_is_named(tmp_path, capsys):
    write_json(tmp_path / "dense.json", {"about": {}, "networks": {}})
    with pytest.raises(SystemExit):
        dense_networks.main(["--networks", "espnet", "--output", str(tmp_path / "dense")])
    assert "dense.json: about.sizes: missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, part",
    (
        (["--networks", "resnet18"], "networks: 'resnet18' is neither"),
        (["--networks", "ssdlite:nothing"], "'nothing'"),
        (["--rounds", "1"], "rounds: 1, must be 0 or 3 to 1000"),
        (["--pictures", "0"], "pictures: 0"),
    ),
)
def test_mistakes_are_named(words, part, tmp_path, capsys):
    with pytest.raises(SystemExit):
        dense_networks.main([*words, "--output", str(tmp_path / "dense")])
    assert part in capsys.readouterr().err


def test_what_comes_behind_a_network_sees_the_outputs_that_are_there():
    calls = []

    class Head(torch.nn.Module):
        def forward(self, x):
            calls.append(tuple(x.shape))
            return x[:, :2, ::8, ::8]

    images = torch.rand(2, 3, 64, 64)
    subject = dense_networks.Subject("segmentation", Head(), dense_networks.classes_of, images)
    behind, found = dense_networks.after(subject, {"": images[:1]})
    assert found == 64 * 64 and calls == [(1, 3, 64, 64)]
    # the second is the comparison's own
    assert torch.equal(behind(), dense_networks.classes_of(Head(), images[:1])) and len(calls) == 2


def test_every_network_of_the_list_exists():
    for name in dense_networks.NETWORKS:
        with torch.device("meta"):
            assert sum(p.numel() for p in dense_networks.build(name, dense_networks.SIZES).parameters()) > 1e5


# ---- the training step -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tiny_training_step(capsys):
    words = ["--input-size", "64", "--batch-size", "2", "--rounds", "1", "--batches", "1", "--profile"]
    result = dense_step.main(words)
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == json.loads(json.dumps(result)) and "## backward" in printed
    for found in result.values():
        assert found["ms"]["float"] > 0 and found["ratio"] == pytest.approx(
            found["ms"]["qat"] / found["ms"]["float"], rel=0.02
        )
        assert (
            set(found["reading"]) == {"0 workers", "1 workers"}
            and 0 <= found["reading"]["0 workers"]["training_waits"] <= 1
        )


def test_reading_in_words():
    row = {"pictures_per_s": 40.0, "trained_per_s": 20.0, "training_waits": 0.034}
    assert dense_step.reading_words(row) == "40 pictures/s, training takes 20: keeps up; training waits 3% of its time"
    assert "DOES NOT KEEP UP" in dense_step.reading_words(row | {"pictures_per_s": 19.0})


@pytest.mark.parametrize(
    "words, part",
    (
        (["--tasks", "style"], "tasks: 'style'"),
        (["--data-root", "/data/bccd"], "data_root: '/data/bccd', must be detection=FOLDER"),
        (["--network", "tdsod"], "network: name the one task"),
    ),
)
def test_mistakes_of_the_training_step_are_named(words, part, capsys):
    with pytest.raises(SystemExit):
        dense_step.main(words)
    assert part in capsys.readouterr().err
