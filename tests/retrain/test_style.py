"""Style transfer through retrain.py: trained, converted, evaluated as INT8, shipped, drawn, resumed."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import quant
import retrain
import tasks.engine
from common.errors import UserError
from common.runs import Run
from latency_lut import Timing
from nas.report.page import write_report
from retrain import main
from tasks.__main__ import main as tasks_main
from tasks.trained import find_network, load
from tests.retrain.runs import metrics, refused, results
from tests.tasks.test_engine import same
from zoo.generators import frost_generator

SMALL = (
    "--arch",
    "frost_generator",
    "--discriminator",
    "pixel",
    "--input-size",
    "32",
    "--batch-size",
    "2",
    "--workers",
    "0",
)
COLOURS = {"dark": [40, 60, 200], "light": [200, 60, 40]}


@pytest.fixture(scope="module", autouse=True)
def small_generator():
    """frost_generator with fewer blocks of fewer channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frost_generator, "WIDTHS", (16, 24, 32))
        patch.setattr(frost_generator, "FINE_BLOCKS", 1)
        patch.setattr(frost_generator, "BLOCKS", 2)
        yield


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No timing, and a report only where it is looked at."""
    monkeypatch.setattr(
        retrain, "time_networks", lambda networks, *_, **__: {name: Timing((1.0, 1.0, 1.0)) for name in networks}
    )
    monkeypatch.setattr(retrain, "write_report", lambda path: path / "report.html")


def halves(random: np.random.Generator, left: list[int], right: list[int]) -> np.ndarray:
    """A picture whose parts left and right of a border, wherever it is, have a colour each."""
    border = random.integers(10, 30)
    return np.where(np.arange(40)[None, :, None] < border, left, right).astype(np.uint8).repeat(32, 0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Label pictures and photos: the grey of a label's class, with noise."""
    root, random = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        (root / split).mkdir()
        for i in range(count):
            label = halves(random, *COLOURS.values())
            photo = np.where(label[..., :1] == 40, 60, 180) + random.integers(0, 40, (32, 40, 3))
            Image.fromarray(np.concatenate([label, photo.astype(np.uint8)], 1)).save(root / split / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def unpaired(tmp_path_factory) -> Path:
    root, random = tmp_path_factory.mktemp("unpaired"), np.random.default_rng(1)
    for folder, colours in (("A", ([250, 40, 40], [90, 90, 90])), ("B", ([40, 40, 250], [90, 90, 90]))):
        for split, count in (("train", 5), ("val", 3), ("test", 3)):
            (root / f"{split}{folder}").mkdir()
            for i in range(count + (folder == "B")):
                Image.fromarray(halves(random, *colours)).save(root / f"{split}{folder}" / f"{i}.png")
    return root


def arguments(task: str, root: Path, runs: Path, *more, epochs: int = 2) -> list[str]:
    data = {"pix2pix": "pairs", "cyclegan": "unpaired"}[task]
    return [
        "--task",
        task,
        "--data",
        data,
        "--data-root",
        str(root),
        "--runs",
        str(runs),
        "--epochs",
        str(epochs),
        *SMALL,
        *more,
    ]


@pytest.fixture(scope="module")
def translated(small_generator, pairs, tmp_path_factory) -> Path:
    """A finished run of pix2pix."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            retrain, "time_networks", lambda networks, *_, **__: {name: Timing((1.0, 1.0, 1.0)) for name in networks}
        )
        patch.setattr(retrain, "write_report", lambda path: path / "report.html")
        more = ("--lr", "0.002", "--sheet-every", "7")
        return main(arguments("pix2pix", pairs, tmp_path_factory.mktemp("runs"), *more, epochs=12))


def test_a_generator_is_trained_converted_and_shipped(translated):
    found = metrics(translated)
    assert translated.name == "frost_generator_int8" and (found["task"], found["score"], found["reported"]) == (
        "pix2pix",
        "psnr",
        "test",
    )
    assert found["judge"] == "random" and found["discriminator"] == "pixel"
    rows = {row["network"]: row for row in found["networks"]}
    assert list(rows) == ["float", "fake_quant", "int8"]
    # of one grey for all: about 12
    assert rows["int8"]["psnr_test"] > rows["float"]["psnr_test"] and rows["int8"]["psnr_test"] > 14
    assert abs(rows["int8"]["psnr_test"] - rows["fake_quant"]["psnr_test"]) < 0.05
    assert (
        found["parity"]["layer_steps"] <= 2
        and found["parity"]["refused"] is None
        and found["parity"]["agreement"] >= 40
    )
    assert found["onnx"]["agreement_with_fake_quant"] >= 40 and found["warnings"] == []
    assert {"int8.onnx", "int8.pt"} < set(found["file_bytes"])


def test_what_is_shipped_makes_the_same_pictures(translated):
    trained, x = load(translated), torch.rand(1, 3, 32, 32) * 2 - 1
    wanted = trained.graph(x)
    assert (
        trained.classes == ("red", "green", "blue")
        and trained.task == "pix2pix"
        and trained.mean == trained.std == (0.5, 0.5, 0.5)
    )
    for file, engine in (("int8.pt", "fbgemm"), ("int8.onnx", "onnxruntime")):
        made = quant.load_frozen(translated / file, engine)(x)
        assert made.shape == x.shape and (made - wanted).square().mean() <= 4e-4  # 40 dB of a range of 2
    about = {p.key: p.value for p in onnx.load(translated / "int8.onnx").metadata_props}
    assert about["task"] == "pix2pix" and json.loads(about["mean"]) == [0.5, 0.5, 0.5]


def test_sheets_are_drawn_on_the_way_and_in_the_end_and_stand_in_the_report(translated):
    drawn = sorted(path.name for path in (translated / "figures").glob("sheet_*.png"))
    # every 7 of 36 steps, and the float phase's end
    assert drawn == [f"sheet_{step:07d}.png" for step in (7, 12, 14, 21, 28, 35)]
    with Image.open(translated / "figures" / "contact.png") as sheet:
        assert sheet.width > 4 * 160  # input, target, float, INT8
    html = write_report(translated).read_text()
    assert 'id="pictures"' in html and "data:image/png;base64," in html


def test_it_is_exported_for_other_engines(translated, capsys):
    tasks_main(["export", "--run", str(translated), "--format", "onednn"])
    said = capsys.readouterr().out
    assert (translated / "int8_onednn.pt").is_file() and "dB PSNR to what fake-quant makes" in said


def test_both_generators_of_cyclegan_are_shipped(unpaired, tmp_path):
    path = main(arguments("cyclegan", unpaired, tmp_path, "--sheet-every", "100"))
    found = metrics(path)
    assert found["score"] == "distance" and {"distance_a_test", "distance_b_test", "cycle_l1_test"} < set(
        found["networks"][-1]
    )
    assert {f"int8_{part}.{ending}" for part in ("a_to_b", "b_to_a") for ending in ("onnx", "pt")} < set(
        found["file_bytes"]
    )
    assert found["parity"]["agreement"] >= 40 and found["parity"]["layer_steps"] <= 2
    assert (path / "figures" / "contact.png").is_file()
    trained = load(path)
    frozen, x = quant.load_frozen(path / "int8_b_to_a.pt"), torch.zeros(1, 3, 32, 32)
    assert (frozen(x) - trained.graph.b_to_a(x)).abs().max() < 0.05


@pytest.mark.parametrize("task", ["pix2pix", pytest.param("cyclegan", marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_goes_on_exactly(task, pairs, unpaired, tmp_path, monkeypatch):
    root = {"pix2pix": pairs, "cyclegan": unpaired}[task]
    more = ("--checkpoint-seconds", "0", "--name", "run", "--discriminator", "pixel:instance")
    whole = main(arguments(task, root, tmp_path / "whole", *more, epochs=3))
    steps, step = iter(range(100)), tasks.engine._Training._train_step

    def stopping(self, watch):
        if next(steps) == 5:
            raise KeyboardInterrupt
        return step(self, watch)

    monkeypatch.setattr(tasks.engine._Training, "_train_step", stopping)
    with pytest.raises(SystemExit):
        main(arguments(task, root, tmp_path / "cut", *more, epochs=3))
    monkeypatch.setattr(tasks.engine._Training, "_train_step", step)
    cut = main(arguments(task, root, tmp_path / "cut", *more, epochs=3))
    one, other = (Run(path).load_checkpoint() for path in (whole, cut))
    assert same(one, other) and results(whole) == results(cut)


def test_float_and_post_training_runs(pairs, tmp_path):
    path = main(arguments("pix2pix", pairs, tmp_path, "--float-only", "--name", "f"))
    assert [row["network"] for row in metrics(path)["networks"]] == ["float"] and (
        path / "figures" / "contact.png"
    ).is_file()
    again = main(
        [
            "--task",
            "pix2pix",
            "--data",
            "pairs",
            "--data-root",
            str(pairs),
            "--runs",
            str(tmp_path),
            "--arch",
            "frost_generator",
            "--input-size",
            "32",
            "--workers",
            "0",
            "--from-float",
            "f",
            "--calibrate",
            "minmax",
            "--name",
            "q",
        ]
    )
    rows = {row["network"]: row for row in metrics(again)["networks"]}
    assert (
        abs(rows["int8"]["psnr_test"] - rows["float"]["psnr_test"]) < 1 and metrics(again)["parity"]["agreement"] >= 40
    )
    assert (again / "figures" / "contact.png").is_file()


def test_a_segmenter_of_the_photos_judges_what_is_made_from_labels(pairs, tmp_path, capsys):
    for split in ("train", "val", "test"):
        for folder in ("images", "labels"):
            (tmp_path / "photos" / split / folder).mkdir(parents=True)
        for file in sorted((pairs / split).iterdir()):
            both = np.asarray(Image.open(file))
            Image.fromarray(both[:, 40:]).save(tmp_path / "photos" / split / "images" / file.name)
            Image.fromarray((both[:, :40, 0] == 200).astype(np.uint8)).save(
                tmp_path / "photos" / split / "labels" / file.name
            )
    (tmp_path / "photos" / "classes.txt").write_text("0 dark\n1 light\n")
    main(
        [
            "--task",
            "segmentation",
            "--data",
            "camvid",
            "--data-root",
            str(tmp_path / "photos"),
            "--arch",
            "lraspp:frostnet_small_0_35",
            "--runs",
            str(tmp_path),
            "--name",
            "eye",
            "--epochs",
            "3",
            "--batch-size",
            "3",
            "--workers",
            "0",
            "--input-size",
            "64",
            "--float-only",
        ]
    )
    palette = tmp_path / "palette.json"
    palette.write_text(json.dumps(COLOURS))
    path = main(arguments("pix2pix", pairs, tmp_path, "--judge", "eye", "--palette", str(palette)))
    found = metrics(path)
    assert found["judge"] == "eye" and {
        "fcn_miou_test",
        "fcn_pixel_accuracy_test",
        "fcn_counted_test",
        "distance_test",
    } < set(found["networks"][-1])
    assert 0 <= found["networks"][-1]["fcn_miou_test"] <= 1 and 0.7 < found["networks"][-1]["fcn_counted_test"] < 1
    assert set(found["judge_on_real_photos"]) == {"val", "test"}
    with pytest.raises(SystemExit):  # photos have none of the colours
        main(
            arguments(
                "pix2pix",
                pairs,
                tmp_path,
                "--judge",
                "eye",
                "--palette",
                str(palette),
                "--direction",
                "b_to_a",
                "--name",
                "turned",
            )
        )
    assert "--direction" in capsys.readouterr().err and not (tmp_path / "turned" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("flags", "field", "mend"),
    [
        (("--task", "classification", "--sheet-every", "7", "--arch", "frostnet_small"), "sheet_every", "leave it out"),
        (("--task", "pix2pix", "--data", "unpaired", "--arch", "unet_128"), "data", "pairs"),
        (("--task", "pix2pix", "--arch", "frostnet_small"), "arch", "resnet_6blocks"),
        (("--task", "pix2pix", "--arch", "unet_128", "--input-size", "96"), "input_size", "128"),
        (("--task", "pix2pix", "--arch", "frost_generator", "--palette", "p.json"), "palette", "--judge"),
        (("--task", "pix2pix", "--arch", "frost_generator", "--judge", "nothing"), "judge", ""),
        (("--task", "cyclegan", "--arch", "frost_generator", "--direction", "b_to_a"), "direction", "leave it out"),
        (
            ("--task", "cyclegan", "--arch", "frost_generator", "--judge", "nothing", "--palette", "p.json"),
            "palette",
            "leave it out",
        ),
        (("--task", "pix2pix", "--arch", "frost_generator", "--data-root", "pictures"), "data_root", "--data"),
        (("--arch", "frost_generator"), "arch", "--task pix2pix"),
        (
            ("--task", "cyclegan", "--arch", "frost_generator", "--label-smoothing", "0.1"),
            "label_smoothing",
            "leave it out",
        ),
        (("--task", "pix2pix", "--arch", "frost_generator", "--input-size", "24"), "input_size", "pixel"),
    ],
)
def test_a_mistake_is_named_with_its_mend(flags, field, mend, tmp_path, capsys):
    said = refused(capsys, [*flags, "--runs", str(tmp_path), "--workers", "0"])
    assert said.startswith(f"error: {field}") and mend in said and "Traceback" not in said


def test_names_of_generators_hold_their_norm(tmp_path):
    network = find_network("resnet_6blocks:instance", 3, 256, task="cyclegan")
    plain, instance = (
        find_network(name, 3, 256, task="pix2pix").cost()[0] for name in ("resnet_6blocks", "resnet_6blocks:instance")
    )
    assert plain == 7_841_411 and network.cost()[0] == 2 * instance
    with pytest.raises(UserError, match="resnet_6blocks"):
        find_network("resnet_5blocks", 3, 256, task="pix2pix")
