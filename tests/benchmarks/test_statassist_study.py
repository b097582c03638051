"""benchmarks/statassist_study.py: what each column trains on and how, and going on."""

import functools
import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import statassist_study
from benchmarks.low_bit import claim
from benchmarks.statassist_columns import (
    ARMS,
    COLUMNS,
    FREE,
    PARTS,
    STAGES,
    Cell,
    StudyConfig,
    left_out,
    planned,
    recipe,
    seeds_of,
    stretch,
)
from common.errors import UserError
from common.files import read_json
from quant import phase_at
from tasks.engine import DECAYS, OPTIMIZERS, _diverged

ARM, PLAIN, OTHER = "cifar10_frostnet", "cifar10_frostnet_plain", "segmentation"
ROOTS = {"cifar10_root": "a", "bccd_root": "b", "camvid_root": "c", "pairs_root": "d"}


def config(**rest) -> StudyConfig:
    return StudyConfig(**{"arms": (ARM, PLAIN), **ROOTS} | rest)


# ---- columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "percent", "boost"),
    [
        ("float", 100, "off"),
        ("naive", 0, "off"),
        ("sa_0.5", 0.5, "off"),
        ("sa_1", 1, "off"),
        ("sa_2", 2, "off"),
        ("sa_10", 10, "off"),
        ("sa_33", 33, "off"),
        ("gb_paper", 0, "paper"),
        ("gb_released", 0, "released"),
        ("both", 10, "paper"),
        ("both_released", 10, "released"),
    ],
)
@pytest.mark.parametrize("arm", ARMS)
def test_every_column_has_exactly_the_float_steps_of_its_name(arm, column, percent, boost):
    row, found = ARMS[arm], recipe(config(), Cell(arm, 3, column))
    part = row.steps // PARTS
    in_float = sum(part for epoch in range(found.schedule.epochs) if not phase_at(found.schedule, epoch).fake_quant)
    assert found.schedule.epochs * part == row.steps and in_float == row.steps * percent / 100
    assert (found.boost, found.lr, found.seed, found.quant.seed, found.quant.engine) == (boost, row.lr, 3, 3, "onednn")


def test_fine_tuning_is_quantized_from_its_first_step_for_a_tenth_of_the_steps_more():
    found = recipe(config(), Cell(ARM, 0, "finetune"))
    assert (found.schedule.epochs, found.schedule.float_epochs, found.lr, found.boost) == (
        PARTS // 10,
        0,
        ARMS[ARM].tune_lr,
        "off",
    )


def test_every_arm_can_be_cut_into_parts_and_has_a_known_recipe():
    for arm in ARMS.values():
        assert (
            arm.steps % PARTS == 0
            and arm.optimizer in OPTIMIZERS
            and arm.decay in DECAYS
            and hasattr(StudyConfig, arm.root)
        )
    assert not ARMS[PLAIN].usual and (ARMS[PLAIN].clip_norm, ARMS[PLAIN].silent) == (0.0, False)


class Numbered:
    """A stream whose batches are the numbers of their steps."""

    steps_per_epoch, batch_size = 7, 2

    def batch(self, step):
        return step


def test_all_columns_see_the_same_batches_in_the_same_order():
    steps = ARMS[ARM].steps

    def seen(column):
        cell = Cell(ARM, 0, column)
        found = stretch(config(), cell, Numbered())
        return [found.batch(step) for step in range(recipe(config(), cell).schedule.epochs * found.steps_per_epoch)]

    for column in set(COLUMNS) - {"ptq", "finetune"}:
        assert seen(column) == list(range(steps)), column
    assert seen("finetune") == list(range(steps, steps + steps // 10))


def test_every_column_is_computed_once_behind_the_one_that_it_goes_on_from():
    order = [column for stage in STAGES for column in stage]
    assert sorted(order) == sorted(COLUMNS)
    stage_of = {column: i for i, stage in enumerate(STAGES) for column in stage}
    assert all(stage_of[column.after] < stage_of[name] for name, column in COLUMNS.items() if column.after)
    assert [c.column for c in planned(config(arms=(ARM,), columns=("ptq",), seeds=(4,), other_seeds=(9,)))] == [
        "float",
        "ptq",
    ]


def test_the_first_seed_of_all_arms_comes_first_and_of_it_the_most_telling_columns():
    here = config(arms=(ARM, OTHER), seeds=(0, 1), other_seeds=(0,))
    cells = planned(here)
    assert cells[:4] == [Cell(arm, 0, column) for column in ("float", "naive") for arm in (ARM, OTHER)]
    assert {c for c in cells[2 * len(COLUMNS) :]} == {Cell(ARM, 1, column) for column in COLUMNS}
    assert (seeds_of(here, ARM), seeds_of(here, OTHER)) == ((0, 1), (0,))
    jobs = [job.args[1] for stage in statassist_study.stages(here) for job in stage]
    assert jobs == cells


def test_an_arm_without_its_data_or_its_task_is_left_out(monkeypatch):
    here = config(arms=(ARM, OTHER), camvid_root=None)
    assert left_out(here) == {OTHER: "--camvid-root was not given"} and {c.arm for c in planned(here)} == {ARM}
    monkeypatch.setattr("benchmarks.statassist_columns.KINDS", {"segmentation": None})
    assert left_out(config(arms=(ARM, OTHER))) == {ARM: "there is no task classification"}


@pytest.mark.parametrize("wrong", [{"arms": ("imagenet",)}, {"columns": ("qat",)}])
def test_names_that_are_not_known_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        config(**wrong)


def test_the_command_repeats_what_was_chosen_and_not_where():
    found = statassist_study.command(
        config(seeds=(0, 1, 2), camvid_root=None, pairs_root=None, runs="elsewhere", minutes=5.0)
    )
    assert "statassist_study.py --cifar10-root FOLDER --bccd-root FOLDER --arms" in found and "--seeds 0 1 2" in found
    judged = statassist_study.command(config(judge="/a/eyes", palette="/a/colours.json"))
    assert "--pairs-root FOLDER --judge RUN --palette FILE" in judged and "judge" not in found and "/a/" not in judged
    assert "elsewhere" not in found and "minutes" not in found and "camvid-root" not in found and "other" not in found


# ---- going on ----------------------------------------------------------------------------------------------


def test_a_cell_is_made_once_and_what_diverged_is_a_result(tmp_path, monkeypatch):
    def failing(error, *_):
        raise error

    here, cell = config(runs=str(tmp_path)), Cell(ARM, 0, "float")
    monkeypatch.setattr(statassist_study, "curve", lambda *_: [])
    monkeypatch.setattr(statassist_study, "make", functools.partial(failing, UserError("the disk is full")))
    with pytest.raises(UserError, match="disk"):
        statassist_study.run_cell(here, cell)
    assert statassist_study.result_of(here, cell) is None
    monkeypatch.setattr(
        statassist_study, "make", functools.partial(failing, _diverged("the loss became nan", 3, "qat"))
    )
    assert "the loss became nan" in statassist_study.run_cell(here, cell)
    monkeypatch.setattr(statassist_study, "make", lambda *_: pytest.fail("made again"))
    assert "the loss became nan" in statassist_study.run_cell(here, cell)
    with pytest.raises(UserError, match="float diverged"):
        statassist_study.state_of(here, cell)


def test_a_cell_of_another_recipe_and_a_study_on_another_engine_are_refused(tmp_path, monkeypatch):
    here = config(runs=str(tmp_path))
    claim(here, FREE)
    claim(config(runs=str(tmp_path), seeds=(5,), arms=(OTHER,), minutes=3.0), FREE)
    with pytest.raises(UserError, match="engine: onednn then, fbgemm now"):
        claim(config(runs=str(tmp_path), engine="fbgemm"), FREE)
    statassist_study.run_of(here, Cell(ARM, 0, "naive"))
    monkeypatch.setitem(ARMS, ARM, ARMS[PLAIN])
    with pytest.raises(UserError, match="clip_norm: 2.0 then, 0.0 now"):
        statassist_study.run_of(here, Cell(ARM, 0, "naive"))


def test_the_judge_and_the_palette_are_of_the_recipe_of_arms_that_make_pictures_alone(tmp_path):
    here, judged = (config(arms=(ARM, "pix2pix"), runs=str(tmp_path), judge=judge) for judge in (None, "folder/eyes"))
    assert judged.eyes(ARM) == {} and here.eyes("pix2pix") == {"judge": None, "palette": False}
    statassist_study.run_of(here, Cell(ARM, 0, "float"))
    statassist_study.run_of(judged, Cell(ARM, 0, "float"))
    row = read_json(statassist_study.run_of(judged, Cell("pix2pix", 0, "float")).path / "arm.json")
    assert (row["judge"], row["palette"]) == ("eyes", False)
    with pytest.raises(UserError, match="judge: eyes then, None now"):
        statassist_study.run_of(here, Cell("pix2pix", 0, "float"))
    with pytest.raises(UserError, match="palette: False then, True now"):
        statassist_study.run_of(
            config(runs=str(tmp_path), judge="eyes", palette="file.json"), Cell("pix2pix", 0, "float")
        )


def test_loading_a_judge_does_not_change_what_a_seed_draws(monkeypatch):
    drawn = []

    def task_of(here, cell):
        statassist_study.judge_of(here)
        drawn.append(torch.rand(1).item())
        raise UserError("enough")

    monkeypatch.setattr(statassist_study, "load", lambda *_: None)
    monkeypatch.setattr(statassist_study, "network_of", lambda *_: SimpleNamespace(build=lambda: torch.nn.Linear(2, 2)))
    # loaded by the first cell alone
    monkeypatch.setattr(statassist_study, "judge_of", functools.cache(lambda _: torch.rand(7) is None))
    monkeypatch.setattr(statassist_study, "task_of", task_of)
    for _ in range(2):
        with pytest.raises(UserError, match="enough"):
            statassist_study.make(config(judge="eyes"), Cell("pix2pix", 0, "naive"), None)
    assert drawn[0] == drawn[1]


class Judged:
    """A task that finds what is given in as many pictures as it is shown, and counts how often it is asked."""

    reported = ("distance", "psnr")

    def __init__(self, score):
        self.score, self.asked = score, 0

    def evaluate(self, model, samples):
        self.asked += 1
        return {"distance": 0.5, "psnr": 20.0}


class Shown(list):
    def select(self, group):
        return Shown(self[i] for i in group)


def test_groups_of_pictures_are_judged_where_a_few_can_be():
    by_distance, by_psnr = Judged("distance"), Judged("psnr")
    found = statassist_study.scored(by_distance, None, Shown(range(40)))
    assert found == {"scores": {"distance": 0.5, "psnr": 20.0}, "pictures": 40, "groups": []} and by_distance.asked == 1
    assert statassist_study.scored(by_psnr, None, Shown(range(40)))["groups"] == [20.0] * 8 and by_psnr.asked == 9
    with pytest.raises(UserError, match="score: 'beauty' is not one of top1"):
        statassist_study.scored(Judged("beauty"), None, Shown(range(40)))


def test_checkpoints_are_kept_at_looks_alone(tmp_path):
    run = statassist_study.run_of(config(runs=str(tmp_path)), Cell(ARM, 0, "naive"))
    for step in range(ARMS[ARM].steps + 1)[1:]:
        run.save_checkpoint({"step": step})
        if run.has("checkpoint.pt"):
            break
    assert step == ARMS[ARM].steps // 10


# ---- end to end --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_smoke_study_runs_and_does_nothing_the_second_time(tmp_path, capsys):
    flags = ["--smoke", "--runs", str(tmp_path / "runs"), "--arms", "cifar10_mobilenet_v3", "--processes", "1"]
    first = read_json(statassist_study.main(flags))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs_smoke").rglob("result.json")}
    assert len(first["cells"]) == first["planned"] == len(times) == 3
    both = next(cell for cell in first["cells"] if cell["column"] == "both")
    assert [x for x, _ in both["curve"]] == [i / 10 for i in range(1, 11)] and both["scores"].keys() == {"top1"}
    assert read_json(statassist_study.main(flags))["cells"] == first["cells"]
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cells"] == 3
