"""benchmarks/statassist_study.py: what each column trains on and how, going on, and the numbers and words on the page."""

import functools
import json
from dataclasses import asdict

import pytest

from benchmarks import statassist_study
from benchmarks.low_bit import claim
from benchmarks.statassist_answers import answers, best_share, recommended
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
)  # fmt: skip
from benchmarks.statassist_numbers import METRICS, difference, fall, seed_noise, together, values, verdict
from benchmarks.statassist_report import mean_curve, page, score_cell, write
from nas import UserError, read_json
from quant import phase_at
from tasks.engine import DECAYS, OPTIMIZERS, _diverged

ARM, PLAIN, OTHER = "cifar10_frostnet", "cifar10_frostnet_plain", "segmentation"
ROOTS = {"cifar10_root": "a", "bccd_root": "b", "camvid_root": "c", "pairs_root": "d"}


def config(**rest) -> StudyConfig:
    return StudyConfig(**{"arms": (ARM, PLAIN), **ROOTS} | rest)


# ---- columns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "percent", "boost"),
    [("float", 100, "off"), ("naive", 0, "off"), ("sa_0.5", 0.5, "off"), ("sa_1", 1, "off"), ("sa_2", 2, "off"), ("sa_10", 10, "off"),
     ("sa_33", 33, "off"), ("gb_paper", 0, "paper"), ("gb_released", 0, "released"), ("both", 10, "paper"),
     ("both_released", 10, "released")],
)  # fmt: skip
@pytest.mark.parametrize("arm", ARMS)
def test_every_column_has_exactly_the_float_steps_of_its_name(arm, column, percent, boost):
    row, found = ARMS[arm], recipe(config(), Cell(arm, 3, column))
    part = row.steps // PARTS
    in_float = sum(part for epoch in range(found.schedule.epochs) if not phase_at(found.schedule, epoch).fake_quant)
    assert found.schedule.epochs * part == row.steps and in_float == row.steps * percent / 100
    assert (found.boost, found.lr, found.seed, found.quant.seed, found.quant.engine) == (boost, row.lr, 3, 3, "onednn")


def test_fine_tuning_is_quantized_from_its_first_step_for_a_tenth_of_the_steps_more():
    found = recipe(config(), Cell(ARM, 0, "finetune"))
    assert (found.schedule.epochs, found.schedule.float_epochs, found.lr, found.boost) == (PARTS // 10, 0, ARMS[ARM].tune_lr, "off")


def test_every_arm_can_be_cut_into_parts_and_has_a_known_recipe():
    for arm in ARMS.values():
        assert arm.steps % PARTS == 0 and arm.optimizer in OPTIMIZERS and arm.decay in DECAYS and hasattr(StudyConfig, arm.root)
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
    assert [c.column for c in planned(config(arms=(ARM,), columns=("ptq",), seeds=(4,), other_seeds=(9,)))] == ["float", "ptq"]


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
    found = statassist_study.command(config(seeds=(0, 1, 2), camvid_root=None, pairs_root=None, runs="elsewhere", minutes=5.0))
    assert "statassist_study.py --cifar10-root FOLDER --bccd-root FOLDER --arms" in found and "--seeds 0 1 2" in found
    assert "elsewhere" not in found and "minutes" not in found and "camvid-root" not in found and "other" not in found


# ---- going on ------------------------------------------------------------------------------------------------


def test_a_cell_is_made_once_and_what_diverged_is_a_result(tmp_path, monkeypatch):
    def failing(error, *_):
        raise error

    here, cell = config(runs=str(tmp_path)), Cell(ARM, 0, "float")
    monkeypatch.setattr(statassist_study, "curve", lambda *_: [])
    monkeypatch.setattr(statassist_study, "make", functools.partial(failing, UserError("the disk is full")))
    with pytest.raises(UserError, match="disk"):
        statassist_study.run_cell(here, cell)
    assert statassist_study.result_of(here, cell) is None
    monkeypatch.setattr(statassist_study, "make", functools.partial(failing, _diverged("the loss became nan", 3, "qat")))
    assert "the loss became nan" in statassist_study.run_cell(here, cell)
    monkeypatch.setattr(statassist_study, "make", lambda *_: pytest.fail("made again"))
    assert "the loss became nan" in statassist_study.run_cell(here, cell)
    with pytest.raises(UserError, match="float diverged"):
        statassist_study.weights_of(here, cell)


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


def test_checkpoints_are_kept_at_looks_alone(tmp_path):
    run = statassist_study.run_of(config(runs=str(tmp_path)), Cell(ARM, 0, "naive"))
    for step in range(ARMS[ARM].steps + 1)[1:]:
        run.save_checkpoint({"step": step})
        if run.has("checkpoint.pt"):
            break
    assert step == ARMS[ARM].steps // 10


# ---- numbers -------------------------------------------------------------------------------------------------


def made(column, score, seed=0, arm=ARM, name="top1", **rest):
    """A cell whose groups of pictures lie around its score, evenly: between two such cells all groups differ alike."""
    own = {"scores": {name: score}, "score": name, "groups": [score - 0.005, score + 0.005] * 4, "pictures": 40, "refused": None}
    integer = {"fake_quant": {name: score + 0.001}, "float_ops": []} if column != "float" else {}
    return (
        {"arm": arm, "seed": seed, "column": column, "curve": [[0.5, score / 2], [1.0, score]], "cell_seconds": 60.0} | own | integer | rest
    )


def made_none(column, seed):
    return {"arm": ARM, "seed": seed, "column": column, "curve": [], "scores": None, "refused": "nan", "cell_seconds": 1.0}


def result(*cells, arms=(ARM, PLAIN, OTHER), **rest):
    rows = {name: asdict(ARMS[name]) for name in arms}
    return {"command": "python study", "settings": {"engine": "onednn"}, "machine": "CPU", "torch": "2", "planned": len(cells),
            "left_out": {}, "arms": rows, "cells": list(cells)} | rest  # fmt: skip


def test_a_difference_is_paired_over_seeds():
    cells = [made("both", 0.30), made("naive", 0.20), made("both", 0.34, seed=1), made("naive", 0.22, seed=1), made("both", 0.9, seed=2)]
    found = difference(result(*cells), ARM, "both", "naive")
    assert found["mean"] == pytest.approx(11) and found["seeds"] == 2
    assert found["own_error"] == pytest.approx(1) and found["error"] == pytest.approx(1)  # stdev(10, 12) / sqrt(2)


def test_the_error_by_pictures_is_that_of_a_mean_over_groups_and_adds_to_that_of_seeds():
    groups = [0.0, None, 0.2, 0.4, 0.6]
    one, other = made("both", 0.3, groups=groups), made("naive", 0.3, groups=[0.3, 0.9, 0.3, 0.3, 0.3])
    assert difference(result(one, other), ARM, "both", "naive")["error"] == pytest.approx(100 * 0.2581989 / 2)
    two = [one, other, made("both", 0.4, seed=1, groups=groups), made("naive", 0.3, seed=1, groups=[0.3] * 5)]
    found = difference(result(*two), ARM, "both", "naive")
    assert found["own_error"] == pytest.approx(5) and found["error"] == pytest.approx((12.909944**2 + 5**2) ** 0.5)


def test_seed_noise_is_that_of_most_columns_after_what_a_seed_does_to_all():
    def scores(*noise, seed=0, failed=0.4):
        return [made(c, 0.5 + 0.1 * seed + n, seed) for c, n in zip(("sa_1", "sa_2", "both", "gb_paper"), noise)] + [
            made("naive", 0.5 + 0.1 * seed - failed * seed, seed)
        ]

    still = result(*scores(0, 0, 0, 0), *scores(0, 0, 0, 0, seed=1, failed=0))
    assert seed_noise(still, ARM) == pytest.approx(0, abs=1e-9)
    noisy = result(*scores(0.01, -0.01, 0.01, -0.01), *scores(-0.01, 0.01, -0.01, 0.01, seed=1, failed=0))
    assert seed_noise(noisy, ARM) == pytest.approx(2**0.5 / (7 / 9) ** 1.5)  # stdev(1, -1), of four columns out of five
    found = difference(noisy, ARM, "sa_1", "both")  # these two go up and down together, by chance
    assert found["own_error"] == pytest.approx(0, abs=1e-9) and found["error"] == pytest.approx(seed_noise(noisy, ARM))
    one = result(*scores(0.01, -0.01, 0.02, -0.02))  # their median distance from the middle one, that of `naive`, is 1 point
    assert seed_noise(one, ARM) == pytest.approx(1 / 0.6745)
    assert difference(one, ARM, "both", "naive")["error"] == pytest.approx(2**0.5 / 0.6745)
    assert seed_noise(result(made("both", 0.3), made("naive", 0.2)), ARM) is None


def test_less_is_better_where_the_metric_says_so_and_scores_keep_their_units():
    here = result(made("both", 0.2, name="l1"), made("naive", 0.3, name="l1"))
    assert difference(here, ARM, "both", "naive")["mean"] == pytest.approx(0.1) and values(here, ARM, "both") == {0: pytest.approx(0.2)}
    here = result(made("both", 21.5, name="psnr"), made("naive", 20.25, name="psnr"))
    assert difference(here, ARM, "both", "naive")["mean"] == pytest.approx(1.25)
    assert score_cell(here, ARM, "both", 1) == "21.50" and METRICS["psnr"].unit == "dB"


def test_arms_in_percent_count_alike_in_a_mean_and_others_do_not():
    cells = [made("both", 0.30), made("naive", 0.20), made("both", 0.40, arm=OTHER, name="miou", groups=[0.0, 0.2, 0.4, 0.6]),
             made("naive", 0.36, arm=OTHER, name="miou", groups=[0.3] * 4), made("both", 30.0, arm=PLAIN, name="psnr"),
             made("naive", 20.0, arm=PLAIN, name="psnr")]  # fmt: skip
    found = together(result(*cells), (ARM, PLAIN, OTHER), "both", "naive")
    assert found["mean"] == pytest.approx(7) and found["arms"] == [ARM, OTHER]
    assert found["error"] == pytest.approx(12.909944 / 2)  # of the pictures; the arms lie stdev(10, 4) / sqrt(2) = 3 apart
    for cell in cells:
        cell["groups"] = [0.1] * 4
    assert together(result(*cells), (ARM, PLAIN, OTHER), "both", "naive")["error"] == pytest.approx(3)
    assert together(result(*cells), (PLAIN,), "both", "naive") is None


@pytest.mark.parametrize(("mean", "error", "says"), [(2.1, 1.0, 1), (-2.1, 1.0, -1), (2.0, 1.0, 0), (-1.0, 1.0, 0), (0.0, 0.0, 0)])
def test_only_what_is_more_than_two_errors_is_told_from_noise(mean, error, says):
    assert verdict({"mean": mean, "error": error}) == says


@pytest.mark.parametrize(
    ("scores", "lost"),
    [
        ([0.1, 0.4, 0.3, 0.5], None),
        ([0.1, 0.4, 0.1, 0.5], (0.4, 0.1)),
        ([0.4, 0.1, 0.6, 0.2], (0.4, 0.1)),
        ([0.01, 0.001, 0.3, 0.4], None),
        ([0.2, 0.1], None),
        ([], None),
    ],
)
def test_a_fall_is_to_less_than_half_of_the_best_score_so_far(scores, lost):
    assert fall({"curve": [[i, v] for i, v in enumerate(scores)]}) == lost


# ---- the page ------------------------------------------------------------------------------------------------


def study(seeds, failing=0.0, **more):
    """Three arms in percent: the float share of 2 % is 3 points better than none where the recipe is the usual one; everything else is
    alike. In the plain arm naive QAT loses `failing`."""
    gains = {"float": 0.04, "sa_2": 0.03, "both": 0.02, "both_released": 0.02, "sa_10": 0.02} | more
    cells = []
    for arm, name in ((ARM, "top1"), (PLAIN, "top1"), (OTHER, "miou")):
        for seed in seeds:
            for column in COLUMNS:
                score = 0.5 + gains.get(column, 0.0) - (failing if arm == PLAIN and column == "naive" else 0.0)
                cells.append(made(column, score + 0.01 * seed, seed, arm, name))
    return result(*cells)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_the_answers_follow_the_numbers(seeds):
    words = "\n".join(answers(study(seeds, failing=0.3), [ARM, PLAIN, OTHER]))
    assert "| StatAssist (10 %), against naive | **+2.0** ± 0.0 | **+2.0** ± 0.0 | **+32.0** ± 0.0 | **+2.0** ± 0.0 |" in words
    assert f"The mean is over {ARM}, {OTHER}, in points." in words
    assert "- A gain in that mean: StatAssist (10 %), against naive (+2.0 ± 0.0); Both (`paper`), against naive (+2.0 ± 0.0)" in words
    assert "- A loss in that mean: PTQ, against float (-4.0 ± 0.0)" in words
    assert "GradBoost (`paper`) on top of StatAssist (+0.0 ± 0.0)" in words.partition("- Not told from noise in that mean: ")[2]
    assert f"In {PLAIN} it ends below float: -34.0 ± 0.0 points, a loss (StatAssist gives +32.0" in words
    assert f"- {ARM}: best 2 % (+3.0 ± 0.0 points, a gain against none); all others are worse" in words
    assert "**Recommended float share: 2 %** (all others are worse by more than the noise)" in words
    assert "**GradBoost: these numbers are no reason to switch it on.**" in words


def test_what_is_better_on_top_of_statassist_is_recommended():
    words = "\n".join(recommended(study((0,), both_released=0.05, both=0.03), [ARM, PLAIN, OTHER]))
    assert "`paper` +1.0 ± 0.0 points" in words and "**GradBoost: recommended: `released`.**" in words


def test_a_share_that_is_within_the_noise_of_the_best_is_named():
    here = study((0,))
    for cell in here["cells"]:
        if cell["column"] == "sa_2":
            cell["groups"] = [0.1, 0.9, 0.2, 0.9]
    best, gains = best_share(here, [ARM, OTHER])
    assert best == "2 %" and gains["2 %"]["mean"] == pytest.approx(3) and gains["10 %"]["mean"] == pytest.approx(2)
    assert "(within the noise of it: none, 0.5 %, 1 %, 10 %, 33 %)" in "\n".join(recommended(here, [ARM, OTHER]))


def test_naive_that_keeps_up_is_said_to():
    words = "\n".join(answers(study((0,), naive=0.05), [ARM, PLAIN, OTHER]))
    assert f"- In {ARM}, {PLAIN}, {OTHER} it cannot be told from float, or is above it." in words and "best none;" in words
    assert "**Recommended float share: none at all**" in words


def test_falls_and_divergences_are_named_with_their_numbers():
    cells = [made("float", 0.6), made("naive", 0.3, curve=[[0.1, 0.5], [0.2, 0.1], [1.0, 0.3]]),
             made_none("both", 3)]  # fmt: skip
    words = "\n".join(answers(result(*cells), [ARM]))
    assert f"- {ARM}, *naive*: the learning curve fell from 50.0 to 10.0 on the way (top-1, %; 1 of 1 seed(s))." in words
    assert f"- {ARM}, *both* diverged with seed 3." in words
    assert score_cell(result(*cells), ARM, "both", 2) == "diverged" and score_cell(result(*cells), ARM, "sa_1", 2) == "-"


def test_a_table_cell_has_mean_spread_and_how_many_seeds_it_lacks():
    here = result(made("both", 0.50), made("both", 0.52, seed=1), made_none("both", 2), made("naive", 0.4))
    assert score_cell(here, ARM, "both", 3) == "51.0 ± 1.4 (2, 1 diverged)" and score_cell(here, ARM, "naive", 3) == "40.0 (1)"


def test_curves_are_means_over_seeds_and_fine_tuning_begins_where_float_ends():
    cells = [made("float", 0.4), made("float", 0.6, seed=1), made("finetune", 0.7, curve=[[1.1, 0.7]])]
    assert mean_curve(result(*cells), ARM, "float") == [(0.5, 0.25), (1.0, 0.5)]
    assert mean_curve(result(*cells), ARM, "finetune") == [(1.0, 0.5), (1.1, 0.7)]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_the_page_the_json_and_the_curves_are_written_and_say_what_is_missing(tmp_path, seeds):
    here = study(seeds, failing=0.3) | {"planned": 1000, "left_out": {"pix2pix": "no folder"}}
    path = write(str(tmp_path), here)
    found, text = read_json(path), (tmp_path / "statassist.md").read_text()
    assert f"**{len(here['cells'])} of 1000 cells so far.**" in text and "pix2pix is left out: no folder." in text
    assert (tmp_path / "statassist.png").is_file() and "![learning curves](statassist.png)" in text
    assert found["effects"][PLAIN]["naive"]["both"]["mean"] == pytest.approx(32)
    assert ("guessed from one seed" in text) == (len(seeds) == 1) and ("55.0 ± 1.0 |" in text) == (len(seeds) == 3)
    assert "| **+32.0** ± 0.0 |" in text and all(f"- *{name}*: " in text for name in COLUMNS)


def test_a_study_without_a_cell_has_a_page(tmp_path):
    write(str(tmp_path), result(planned=3))
    assert "**0 of 3 cells so far.**" in (tmp_path / "statassist.md").read_text()
    assert page(result(made_none("naive", 0)))  # nor with one that diverged alone


# ---- end to end ----------------------------------------------------------------------------------------------


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
