"""The CIFAR-10 study: its cells, the flags of its trainings, and the page in docs/results."""

import shutil

import pytest

import retrain
from benchmarks.harness import main
from benchmarks.studies.cifar10 import Cifar10, summary
from common.cli import parse
from common.errors import UserError
from common.files import read_json, write_json
from tasks import Diverged
from tests import ROOT

RESULTS = ROOT / "docs" / "results"
METRICS = {
    "networks": [
        {"network": form, "top1_test": top1} for form, top1 in (("float", 0.4), ("fake_quant", 0.5), ("int8", 0.6))
    ],
    "parity": {"layer_steps": 1.0, "agreement": 0.99, "refused": None},
    **{"params": 10, "macs": 20, "test_images": 1000, "train_seconds": 3.0},
}


def study(**settings):
    return Cifar10(**{"data_root": "images"} | settings)


def test_the_committed_page_is_what_the_study_writes_from_the_committed_json(tmp_path):
    for name in ("cifar10.json", "cifar10.md"):
        shutil.copy(RESULTS / name, tmp_path)
    main(Cifar10, ["--page-only", "--runs", str(tmp_path / "none"), "--output", str(tmp_path)])
    assert (tmp_path / "cifar10.md").read_text() == (RESULTS / "cifar10.md").read_text()
    assert "To be written" not in (tmp_path / "cifar10.md").read_text()


def test_cells_are_networks_by_seeds_and_hold_what_determines_them():
    cells = study(seeds=(3, 5)).cells()
    networks = ["searched", "frostnet_small_0_5"]
    assert [(c["network"], c["seed"]) for c in cells] == [(name, seed) for seed in (3, 5) for name in networks]
    assert cells == study(seeds=(3, 5), data_root="elsewhere", jobs=7).cells()
    assert not set(cells) & set(study(seeds=(3, 5), lr=0.1).cells())
    other_search = study(seeds=(3, 5), preset="cifar").cells()
    assert [cell in cells for cell in other_search] == [False, True, False, True]


def test_the_flags_are_those_that_the_programs_read(tmp_path):
    cifar10 = study(runs=str(tmp_path), epochs=2)
    folder = cifar10.store.work(cifar10.cells()[0])
    config = parse(retrain.RetrainConfig, cifar10.retrain_flags(cifar10.cells()[0], folder), "retrain.py", "")
    assert (config.arch, config.runs, config.name) == (
        str(cifar10.store.folder / "searched" / "arch.json"),
        str(cifar10.store.folder / "work"),
        folder.name,
    )
    assert (config.data, config.data_root, config.input_size, config.epochs) == ("imagefolder", "images", 32, 2)
    assert "--data-root" not in study(data="scenes", data_root="").search_flags()


def test_a_row_is_read_from_the_metrics_of_the_run(tmp_path, monkeypatch):
    cifar10 = study(runs=str(tmp_path))
    monkeypatch.setattr(retrain, "main", lambda argv: write_json(tmp_path / "metrics.json", METRICS))
    row = cifar10.run(cifar10.cells()[0], tmp_path)
    assert row == {
        "float_top1": 0.4,
        "fake_quant_top1": 0.5,
        "int8_top1": 0.6,
        "layer_steps": 1.0,
        "agreement": 0.99,
    } | {name: METRICS[name] for name in ("params", "macs", "test_images", "train_seconds")}


@pytest.mark.parametrize("error, diverged", [(Diverged("the loss became nan"), True), (UserError("no images"), False)])
def test_a_diverged_training_is_a_row_and_a_mistake_is_not(error, diverged, monkeypatch, tmp_path):
    def fail(config):
        raise error

    monkeypatch.setattr(retrain, "find", fail)
    cifar10 = study(runs=str(tmp_path))
    cell = cifar10.cells()[0]
    if diverged:
        assert cifar10.run(cell, cifar10.store.work(cell)) == {"diverged": "the loss became nan"}
    else:
        with pytest.raises(SystemExit):
            cifar10.run(cell, cifar10.store.work(cell))


def test_a_summary_keeps_the_place_of_a_seed_that_diverged():
    cells = study(seeds=(0, 1, 2)).cells()
    row = {"float_top1": 0.4, "fake_quant_top1": 0.5, "int8_top1": 0.6, "layer_steps": 1.0, "agreement": 0.99}
    row |= {"params": 10, "macs": 20, "train_seconds": 3.0}
    rows = {0: {"row": row}, 1: {"row": {"diverged": "nan"}}, 2: {"failed": {}}}
    records = [{"cell": c.description, **rows[c["seed"]]} for c in cells if c["network"] == "searched"]
    records[2] = records[2] | {"row": row | {"int8_top1": 0.7, "layer_steps": 2.0, "agreement": 0.9}}
    found = summary(records, "searched", (0, 1, 2))
    assert found["int8_top1"] == [0.6, None, 0.7] and found["layer_steps"] == 2.0 and found["agreement"] == 0.9
    assert summary(records, "frostnet_small_0_5", (0, 1))["int8_top1"] == [None, None]


def test_a_page_of_a_study_that_has_only_begun():
    result = read_json(RESULTS / "cifar10.json")
    result["networks"] = {
        "searched": result["networks"]["searched"] | {"int8_top1": [0.5, None]},
        "frostnet_small_0_5": summary([], "frostnet_small_0_5", (0, 1)),
    }
    text = study().sections(result)["networks"]
    assert "| 50.0 (1) |" in text and "| frostnet_small_0_5 | - | - |" in text
    assert "| INT8: searched - frostnet_small_0_5 | - | - | - | - | - |" in text


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="data_root: missing"):
        study(runs=str(tmp_path), data_root="").prepare()


def test_smoke_needs_no_images_from_outside():
    smoke = study(**Cifar10.smoke_settings, smoke=True)
    assert smoke.data == "scenes" and len(smoke.cells()) == 2
