"""benchmarks/detection_study.py and segmentation_study.py: recipes, order of the work, and their pages."""

import functools
import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from benchmarks import dense_pictures, dense_report, dense_study, detection_study, segmentation_study
from benchmarks.dense_columns import COLUMNS, FREE, Cell, DenseConfig, Window, planned, recipe
from benchmarks.low_bit import claim
from common.errors import UserError
from common.files import read_json
from tasks.detection import Detection
from tasks.engine import _diverged
from tasks.samples import Samples

NET = "ssdlite:frostnet_small_0_5"
STUDY = dense_study.Study("Title", detection_study.paint, ("why",))


class Pairs(DenseConfig):
    task = "detection"


def config(**rest) -> DenseConfig:
    small = {"networks": (NET,), "epochs": 30, "tune_epochs": 6, "every": 3, "lr": 0.1, "tune_lr": 0.02}
    return Pairs(**small | rest)


# ---- columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "looks", "in_float", "lr", "boost"),
    [
        ("base", 8, 8, 0.1, "off"),
        ("float", 2, 2, 0.02, "off"),
        ("finetune", 2, 0, 0.02, "off"),
        ("naive", 10, 0, 0.1, "off"),
        ("statassist", 10, 1, 0.1, "off"),
        ("both", 10, 1, 0.1, "paper"),
    ],
)
def test_every_column_has_its_recipe(column, looks, in_float, lr, boost):
    found = recipe(config(), Cell(NET, 3, column))
    assert (found.schedule.epochs, found.schedule.float_epochs, found.lr, found.boost) == (looks, in_float, lr, boost)
    assert (found.seed, found.quant.seed, found.quant.engine, found.clip_norm) == (3, 3, "onednn", 2.0)


class Numbered:
    """A stream whose batches are the numbers of their steps."""

    steps_per_epoch, batch_size = 4, 2

    def batch(self, step):
        return step


def test_all_columns_see_the_same_pictures_in_the_same_order():
    def seen(column):
        first, end = config().span(column)
        window = Window(Numbered(), first, 3)
        before = seen(COLUMNS[column].after) if COLUMNS[column].after else []
        return before + [window.batch(step) for step in range((end - first) // 3 * window.steps_per_epoch)]

    assert seen("base") == list(range(24 * 4))
    for column in ("float", "finetune", "naive", "statassist", "both", "ptq"):
        assert seen(column) == list(range(30 * 4))


def test_what_a_wanted_column_goes_on_from_is_computed_too_and_before_it():
    cells = planned(config(columns=("ptq",), seeds=(0, 1)))
    assert [(c.seed, c.column) for c in cells] == [(s, c) for s in (0, 1) for c in ("base", "float", "ptq")]


def test_every_stage_needs_only_what_came_before_and_pictures_come_as_soon_as_they_can():
    jobs = [
        [job.args[1].column if job.func is dense_study.run_cell else job.func.__name__ for job in stage]
        for stage in dense_study.stages(config(), STUDY)
    ]
    trained = [["base", "both"], ["float", "finetune"], ["draw_sheet"], ["ptq", "straight", "naive", "statassist"]]
    assert jobs == [["measure_latencies"], *trained]
    done = set()
    for stage in jobs:
        assert all(COLUMNS[column].after in {None, *done} for column in stage if column in COLUMNS)
        done |= set(stage)
    assert done >= set(COLUMNS)


@pytest.mark.parametrize("wrong", [{"columns": ("qat",)}, {"tune_epochs": 30}, {"epochs": 31}, {"tune_epochs": 5}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        config(**wrong)


def test_both_studies_take_their_flags():
    for study in (detection_study.DetectionConfig(), segmentation_study.SegmentationConfig()):
        assert study.epochs % study.every == 0 and len(study.networks) == 2 and study.task in study.runs


def test_the_command_repeats_what_was_chosen_and_not_where():
    found = dense_study.command(config(lr=0.1, seeds=(0, 1), runs="elsewhere", minutes=5.0))
    assert (
        "benchmarks/detection_study.py --data-root FOLDER" in found and "--seeds 0 1" in found and "--lr 0.1" in found
    )
    assert "elsewhere" not in found and "minutes" not in found and "--batch-size" not in found


# ---- going on ----------------------------------------------------------------------------------------------


def test_a_cell_is_made_once_and_what_diverged_is_a_result(tmp_path, monkeypatch):
    def failing(error, *_):
        raise error

    here, cell = config(runs=str(tmp_path)), Cell(NET, 0, "naive")
    monkeypatch.setattr(dense_study, "curve", lambda *_: [])
    monkeypatch.setattr(dense_study, "make", functools.partial(failing, UserError("the disk is full")))
    with pytest.raises(UserError, match="disk"):
        dense_study.run_cell(here, cell)
    assert dense_study.result_of(here, cell) is None
    monkeypatch.setattr(dense_study, "make", functools.partial(failing, _diverged("the loss became nan", 3, "qat")))
    assert "the loss became nan" in dense_study.run_cell(here, cell)
    monkeypatch.setattr(dense_study, "make", lambda *_: pytest.fail("made again"))
    assert "the loss became nan" in dense_study.run_cell(here, cell)
    assert read_json(tmp_path / cell.name / "result.json")["scores"] is None
    with pytest.raises(UserError, match="naive diverged"):
        dense_study.weights_of(here, cell)


def test_a_folder_of_other_settings_is_refused(tmp_path):
    claim(config(runs=str(tmp_path)), FREE)
    claim(config(runs=str(tmp_path), seeds=(5,), minutes=3.0), FREE)
    with pytest.raises(UserError, match="tune_lr: 0.02 then, 0.5 now"):
        claim(config(runs=str(tmp_path), tune_lr=0.5), FREE)


# ---- the page ----------------------------------------------------------------------------------------------


def made(column, ap, seed=0, network=NET, **rest):
    """A cell whose groups of pictures lie half a point around its score, evenly."""
    own = {
        "scores": {"ap": ap, "ap50": 2 * ap},
        "groups": [ap - 0.005, ap + 0.005] * 4,
        "pictures": 40,
        "refused": None,
        "seconds": 60.0,
    }
    integer = (
        {"fake_quant": {"ap": ap + 0.001, "ap50": 2 * ap}, "agreement": 0.98, "float_ops": []}
        if column != "float"
        else {}
    )
    return {"network": network, "seed": seed, "column": column, "curve": [[3, ap / 2], [6, ap]]} | own | integer | rest


def result(*cells, **rest):
    return {
        "command": "python study",
        "task": "detection",
        "title": "Detection",
        "score": "ap",
        "reported": ["ap", "ap50"],
        "settings": asdict(config()),
        "float_epochs": 3,
        "machine": "CPU",
        "torch": "2",
        "chosen": ["why"],
        "networks": [NET],
        "planned": len(cells),
        "cells": list(cells),
        "latency": None,
    } | rest


def test_a_difference_is_paired_by_seeds_and_by_pictures():
    cells = [
        made("both", 0.30),
        made("naive", 0.20),
        made("both", 0.34, seed=1),
        made("naive", 0.22, seed=1),
        made("both", 0.9, seed=2),
    ]
    found = dense_report.difference(result(*cells), (NET, "both"), (NET, "naive"))
    assert found["mean"] == pytest.approx(0.11) and found["seeds"] == 2
    # seeds alone: all groups of pictures agree on the difference; stdev(.1, .12) / sqrt(2)
    assert found["error"] == pytest.approx(0.01)


def test_the_error_by_pictures_is_that_of_a_mean_over_groups():
    one, other = made("both", 0.3, groups=[0.0, 0.2, 0.4, 0.6]), made("naive", 0.3, groups=[0.3] * 4)
    found = dense_report.difference(result(one, other), (NET, "both"), (NET, "naive"))
    assert found["error"] == pytest.approx(0.2581989 / 2)


def test_groups_without_objects_are_left_out_of_every_pair():
    one = (
        made("both", 0.3, groups=[0.0, None, 0.2, 0.4, 0.6]),
        made("both", 0.3, seed=1, groups=[0.0, None, 0.2, 0.4, 0.6]),
    )
    other = (
        made("naive", 0.3, groups=[0.3, 0.9, 0.3, 0.3, 0.3]),
        made("naive", 0.3, seed=1, groups=[0.3, None, 0.3, 0.3, 0.3]),
    )
    assert dense_report.difference(result(*one, *other), (NET, "both"), (NET, "naive"))["error"] == pytest.approx(
        0.2581989 / 2
    )


def pictures(sizes):
    """Samples of black 32-pixel pictures, each with one object of its own size in its corner, or none for None."""

    def read(index):
        boxes = torch.tensor([[0.0, 0.0, sizes[index], sizes[index]]] if sizes[index] else []).view(-1, 4)
        none = torch.zeros(len(boxes), dtype=torch.bool)
        target = {
            "boxes": boxes,
            "labels": none.long(),
            "difficult": none,
            "crowd": none,
            "size": torch.tensor([32, 32]),
        }
        return torch.zeros(3, 32, 32, dtype=torch.uint8), target | {"number": torch.tensor(index)}

    source = SimpleNamespace(read=read, name=str, __len__=lambda: len(sizes))
    return Samples(source, torch.arange(len(sizes)), 32, lambda *sample: sample, lambda *sample: sample)


def test_a_group_of_pictures_without_objects_has_no_score_and_keeps_its_place():
    class Machinery:
        def detections(self, model, images):
            box = {
                "boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0]]),
                "scores": torch.ones(1),
                "labels": torch.zeros(1, dtype=torch.long),
            }
            return [box] * len(images)

    task, some = (
        Detection(Machinery(), ("a",)),
        [None if index // 2 == 3 else 8.0 if index < 8 else 20.0 for index in range(16)],
    )
    found = dense_study.scores(task, torch.nn.Identity(), pictures(some))
    assert found["groups"] == [1.0, 1.0, 1.0, None, 0.0, 0.0, 0.0, 0.0] and found["pictures"] == 16
    with pytest.raises(UserError, match="no objects"):  # a study without any is stopped
        dense_study.scores(task, torch.nn.Identity(), pictures([None] * 4))


@pytest.mark.parametrize(
    ("both", "naive", "base", "says"),
    [
        (0.30, 0.20, 0.30, ["reaches the float baseline within the noise: +0.0", "beats naive QAT: +10.0"]),
        (0.20, 0.30, 0.30, ["falls short of the float baseline: -10.0", "is below naive QAT: -10.0"]),
        (0.30, 0.30, 0.20, ["is above the float baseline: +10.0", "cannot be told from naive QAT: +0.0"]),
    ],
)
def test_the_verdicts_follow_the_numbers(both, naive, base, says):
    words = "\n".join(dense_report.reading(result(made("both", both), made("naive", naive), made("float", base)), NET))
    assert all(f"StatAssist with GradBoost from scratch {text}" in words for text in says)


def test_noise_is_called_noise():
    noisy = made("both", 0.33, groups=[0.1, 0.5, 0.2, 0.6])
    words = "\n".join(dense_report.reading(result(noisy, made("naive", 0.3, groups=[0.3] * 4)), NET))
    assert "cannot be told from naive QAT: +3.0 points" in words


def test_one_seed_is_said_to_be_one(tmp_path):
    def words(*seeds):
        cells = [made(column, ap, seed) for seed in seeds for column, ap in (("both", 0.4), ("naive", 0.3))]
        return "\n".join(dense_report.section(tmp_path, result(*cells), NET))

    assert "One seed: the errors are those of the test pictures alone" in words(0) and "One seed:" not in words(0, 1)


def test_trainings_that_learned_nothing_are_not_compared():
    (line,) = dense_report.reading(result(made("both", 0.001), made("naive", 0.0), made("float", 0.002)), NET)
    assert "too short to compare" in line


def test_a_training_that_diverged_is_counted_and_named():
    lost = {
        "network": NET,
        "seed": 1,
        "column": "naive",
        "curve": [],
        "scores": None,
        "refused": "the loss became nan; the rest",
    }
    here = result(made("both", 0.3), made("naive", 0.2), lost)
    assert "| naive (1 of 2 diverged) | 20.0 | 40.0 | 20.1 | 98.0 % | 1.0 |" in dense_report.table(here, NET)
    assert "- *naive* diverged in 1 of 2 seed(s): the loss became nan." in dense_report.reading(here, NET)
    assert "| naive (1 of 1 diverged) | diverged | diverged | - | - | - |" in dense_report.table(result(lost), NET)


def test_the_table_gives_mean_and_spread_and_the_time_of_the_float_training_before():
    cells = [
        made("base", 0.1, scores=None, groups=[]),
        made("float", 0.30),
        made("float", 0.32, seed=1),
        made("ptq", 0.1),
    ]
    lines = dense_report.table(result(*cells), NET)
    assert lines[0] == "| column | AP | AP50 | AP of fake-quant | same answer | minutes |"
    assert lines[2] == "| float | 31.0 ± 1.4 | 62.0 ± 2.8 | - | - | 2.0 |"
    assert lines[3] == "| ptq | 10.0 | 20.0 | 10.1 | 98.0 % | 3.0 |"


@pytest.mark.parametrize(
    ("ms", "says"), [(2.1, "about the same INT8 latency as"), (4.0, "more INT8 latency than"), (1.0, "less INT8")]
)
def test_networks_are_compared_at_their_latencies(ms, says):
    rows = {
        name: {"params": 1e6, "macs": 2e7, "int8_ms": value, "float_ms": 6.0, "int8_spread": 0.01, "float_spread": 0.0}
        for name, value in ((NET, ms), ("other", 2.0))
    }
    here = result(
        made("both", 0.3),
        made("both", 0.2, network="other"),
        networks=[NET, "other"],
        latency={"networks": rows, "timed_on": [1]},
    )
    words = "\n".join(dense_report.latencies(here))
    assert says in words and f"*both* {NET} is better than other: +10.0 points" in words


def test_the_page_the_json_and_the_curves_are_written_and_say_what_is_missing(tmp_path):
    here = result(made("base", 0.1, scores=None), made("float", 0.3), made("both", 0.2), planned=7)
    path = dense_report.write(str(tmp_path), here)
    dense_pictures.sheet_path(tmp_path, "detection", NET, 0).write_bytes(b"")
    page = dense_report.page(tmp_path, read_json(path))
    assert (
        "**3 of 7 cells so far.**" in page and "detection_ssdlite_frostnet_small_0_5_0.png" in page and "- why" in page
    )
    assert (tmp_path / "detection_curves.png").is_file()
    assert read_json(path)["effects"][NET]["both, against float"]["mean"] == pytest.approx(-0.1)
    dense_report.write(str(tmp_path), result())  # no cell yet


def test_a_sheet_holds_every_picture(tmp_path):
    rows = [[torch.full((3, 30, 40), 40 * i + 10 * j, dtype=torch.uint8) for j in range(3)] for i in range(4)]
    dense_pictures.write_sheet(tmp_path / "sheet.png", rows, ("a", "b"))
    found = dense_pictures.Image.open(tmp_path / "sheet.png").convert("RGB")
    width, height = dense_pictures.TILE, round(dense_pictures.TILE * 0.75)
    assert found.getpixel((width // 2 + 2 * (width + 4), 20 + height // 2 + 3 * (height + 4))) == (140,) * 3


class Named:
    classes = ("a", "b")


def test_boxes_that_are_found_are_drawn_at_the_pictures_own_size():
    class Machinery:
        def detections(self, model, images):
            boxes = torch.tensor([[8.0, 8.0, 24.0, 24.0], [0.0, 0.0, 4.0, 4.0]])
            return [{"boxes": boxes, "scores": torch.tensor([0.9, 0.3]), "labels": torch.tensor([1, 0])}]

    task = Named()
    task.machinery = Machinery()
    found = detection_study.paint(
        task, "model", torch.zeros(3, 64, 128, dtype=torch.uint8), torch.zeros(1, 3, 32, 32), {}
    )
    ys, xs = found.sum(0).nonzero(as_tuple=True)
    assert (
        abs(int(xs.min()) - 32) <= 2
        and abs(int(xs.max()) - 96) <= 2
        and abs(int(ys.min()) - 16) <= 2
        and abs(int(ys.max()) - 48) <= 2
    )
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert not detection_study.paint(
        task, None, torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8), nothing
    ).any()


def test_masks_are_drawn_where_classes_are_and_not_where_there_is_none():
    truth = torch.full((8, 8), 255, dtype=torch.uint8)
    truth[:4, :4], truth[:4, 4:] = 0, 1
    found = segmentation_study.paint(
        Named(), None, torch.zeros(3, 16, 16, dtype=torch.uint8), torch.zeros(1, 3, 8, 8), truth
    )
    first, second = (torch.tensor(c) * 0.6 for c in dense_pictures.palette(2))
    assert (
        (found[:, 3, 3] - first).abs().max() <= 1
        and (found[:, 3, 12] - second).abs().max() <= 1
        and not found[:, 12].any()
    )
    logits = torch.zeros(1, 2, 4, 4).index_fill(3, torch.tensor([2, 3]), 1.0)
    logits[:, 0] = 0.5
    found = segmentation_study.paint(
        Named(), lambda x: logits, torch.zeros(3, 16, 16, dtype=torch.uint8), torch.zeros(1, 3, 8, 8), truth
    )
    assert (found[:, 12, 1] - first).abs().max() <= 1 and (found[:, 1, 14] - second).abs().max() <= 1


# ---- end to end --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("study", [detection_study, segmentation_study])
def test_a_smoke_study_runs_and_does_nothing_the_second_time(tmp_path, study, capsys):
    net = "ssdlite:frostnet_small_0_5" if study is detection_study else "lraspp:frostnet_small_0_5"
    flags = ["--smoke", "--runs", str(tmp_path / "runs"), "--networks", net]
    first = read_json(study.main(flags))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs_smoke").rglob("result.json")}
    assert len(first["cells"]) == first["planned"] == len(times) == 7
    assert read_json(study.main(flags))["cells"] == first["cells"]
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cells"] == 7
    assert len(list((tmp_path / "runs_smoke").glob("*_0.png"))) == 1
