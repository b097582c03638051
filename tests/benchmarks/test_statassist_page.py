"""The numbers and the page of benchmarks/statassist_study.py: differences and their errors, answers, tables, curves."""

from dataclasses import asdict

import pytest

from benchmarks.statassist_answers import answers
from benchmarks.statassist_columns import (
    ARMS,
    COLUMNS,
)
from benchmarks.statassist_numbers import (
    METRICS,
    difference,
    fall,
    metric_named,
    metric_of,
    seed_noise,
    together,
    values,
    verdict,
)
from benchmarks.statassist_report import mean_curve, page, score_cell, write
from benchmarks.statassist_shares import BOOSTS, DEFAULT_BOOST, DEFAULT_SHARE, SHARES, alike, recommended, shares
from benchmarks.statassist_twins import twins
from benchmarks.statassist_words import effect_in
from common.errors import UserError
from common.files import read_json
from retrain import RetrainConfig

ARM, PLAIN, OTHER = "cifar10_frostnet", "cifar10_frostnet_plain", "segmentation"


# ---- numbers -----------------------------------------------------------------------------------------------


def made(column, score, seed=0, arm=ARM, name="top1", **rest):
    """A cell whose groups of pictures lie around its score, evenly: between two such cells all groups differ alike."""
    own = {
        "scores": {name: score},
        "score": name,
        "groups": [score - 0.005, score + 0.005] * 4,
        "pictures": 40,
        "refused": None,
    }
    integer = {"fake_quant": {name: score + 0.001}, "float_ops": []} if column != "float" else {}
    return (
        {"arm": arm, "seed": seed, "column": column, "curve": [[0.5, score / 2], [1.0, score]], "cell_seconds": 60.0}
        | own
        | integer
        | rest
    )


def made_none(column, seed):
    return {
        "arm": ARM,
        "seed": seed,
        "column": column,
        "curve": [],
        "scores": None,
        "refused": "nan",
        "cell_seconds": 1.0,
    }


def result(*cells, arms=(ARM, PLAIN, OTHER), **rest):
    rows = {name: asdict(ARMS[name]) for name in arms}
    return {
        "command": "python study",
        "settings": {"engine": "onednn"},
        "machine": "CPU",
        "torch": "2",
        "planned": len(cells),
        "left_out": {},
        "arms": rows,
        "cells": list(cells),
    } | rest


def test_a_difference_is_paired_over_seeds():
    cells = [
        made("both", 0.30),
        made("naive", 0.20),
        made("both", 0.34, seed=1),
        made("naive", 0.22, seed=1),
        made("both", 0.9, seed=2),
    ]
    found = difference(result(*cells), ARM, "both", "naive")
    assert found["mean"] == pytest.approx(11) and found["seeds"] == 2
    assert found["own_error"] == pytest.approx(1) and found["error"] == pytest.approx(1)  # stdev(10, 12) / sqrt(2)


def test_the_error_by_pictures_is_that_of_a_mean_over_groups_and_adds_to_that_of_seeds():
    groups = [0.0, None, 0.2, 0.4, 0.6]
    one, other = made("both", 0.3, groups=groups), made("naive", 0.3, groups=[0.3, 0.9, 0.3, 0.3, 0.3])
    still = [made(column, 0.3) for column in ("sa_1", "sa_2")]  # four columns that lie nowhere apart: seeds do nothing
    assert difference(result(one, other, *still), ARM, "both", "naive")["error"] == pytest.approx(100 * 0.2581989 / 2)
    two = [one, other, made("both", 0.4, seed=1, groups=groups), made("naive", 0.3, seed=1, groups=[0.3] * 5)]
    found = difference(result(*two), ARM, "both", "naive")
    assert found["own_error"] == pytest.approx(5) and found["error"] == pytest.approx((12.909944**2 + 5**2) ** 0.5)


def test_seed_noise_is_that_of_most_columns_after_what_a_seed_does_to_all():
    def scores(*noise, seed=0, failed=0.4):
        return [made(c, 0.5 + 0.1 * seed + n, seed) for c, n in zip(("sa_1", "sa_2", "both", "gb_paper"), noise)] + [
            made("naive", 0.5 + 0.1 * seed - failed * seed, seed)
        ]

    for failed in (0, 0.4):  # by as much as one column fails with one seed alone
        still = result(*scores(0, 0, 0, 0), *scores(0, 0, 0, 0, seed=1, failed=failed))
        assert seed_noise(still, ARM) == pytest.approx(0, abs=1e-9)
    noisy = result(*scores(0.01, -0.01, 0.01, -0.01), *scores(-0.01, 0.01, -0.01, 0.01, seed=1, failed=0))
    assert seed_noise(noisy, ARM) == pytest.approx(2**0.5 / (7 / 9) ** 1.5)  # stdev(1, -1), of four columns out of five
    found = difference(noisy, ARM, "sa_1", "both")  # these two go up and down together, by chance
    assert found["own_error"] == pytest.approx(0, abs=1e-9) and found["error"] == pytest.approx(seed_noise(noisy, ARM))
    # their median distance from the middle one, that of `naive`, is 1 point
    one = result(*scores(0.01, -0.01, 0.02, -0.02))
    assert seed_noise(one, ARM) == pytest.approx(1 / 0.6745)
    assert difference(one, ARM, "both", "naive")["error"] == pytest.approx(2**0.5 / 0.6745)
    assert seed_noise(result(made("both", 0.3), made("naive", 0.2)), ARM) is None
    begun = result(*one["cells"], made("both", 0.9, seed=1), made("naive", 0.9, seed=1))  # a second seed of two columns
    assert seed_noise(begun, ARM) == pytest.approx(1 / 0.6745)


def test_where_nothing_says_what_a_seed_does_there_is_no_verdict():
    here = result(made("both", 0.9), made("naive", 0.1))
    found = difference(here, ARM, "both", "naive")
    assert (found["mean"], found["error"], verdict(found)) == (pytest.approx(80), None, 0)
    assert (
        effect_in(here, ARM, "both", "naive") == "+80.0 ± ?" and together(here, [ARM], "both", "naive")["error"] is None
    )
    assert f"In {ARM} nothing says yet" in "\n".join(answers(result(made("float", 0.9), made("naive", 0.1)), [ARM]))


def test_feature_distances_are_better_when_smaller_and_no_groups_judge_them():
    cells = [
        made(c, score, seed, name="distance", groups=[0.1, 0.9, 0.4])
        for seed in (0, 1)
        for c, score in (("both", 0.5), ("naive", 0.75 + 0.25 * seed))
    ]
    found = difference(result(*cells), ARM, "both", "naive")
    assert found["mean"] == pytest.approx(0.375) and found["error"] == pytest.approx(0.125)
    assert effect_in(result(*cells), ARM, "both", "naive") == "**+0.375** ± 0.125"
    cells[0]["groups"] = [0.9, 0.1, 0.1]
    assert difference(result(*cells), ARM, "both", "naive") == found


def test_a_score_that_nothing_is_known_of_is_an_error():
    with pytest.raises(UserError, match="score: 'beauty' is not one of"):
        metric_of(result(made("both", 0.3, name="beauty")), ARM)
    assert metric_named("distance").sign == -1


def test_less_is_better_where_the_metric_says_so_and_scores_keep_their_units():
    here = result(made("both", 0.2, name="l1"), made("naive", 0.3, name="l1"))
    assert difference(here, ARM, "both", "naive")["mean"] == pytest.approx(0.1) and values(here, ARM, "both") == {
        0: pytest.approx(0.2)
    }
    here = result(made("both", 21.5, name="psnr"), made("naive", 20.25, name="psnr"))
    assert difference(here, ARM, "both", "naive")["mean"] == pytest.approx(1.25)
    assert score_cell(here, ARM, "both", 1) == "21.50" and METRICS["psnr"].unit == "dB"


def test_arms_in_percent_count_alike_in_a_mean_and_others_do_not():
    cells = [
        made("both", 0.30),
        made("naive", 0.20),
        made("both", 0.40, arm=OTHER, name="miou", groups=[0.0, 0.2, 0.4, 0.6]),
        made("naive", 0.36, arm=OTHER, name="miou", groups=[0.3] * 4),
        made("both", 30.0, arm=PLAIN, name="psnr"),
        made("naive", 20.0, arm=PLAIN, name="psnr"),
    ]
    cells += [
        made(c, score, arm=arm, name=name)
        for arm, name, score in ((ARM, "top1", 0.3), (OTHER, "miou", 0.4))
        for c in ("sa_1", "sa_2")
    ]
    cells += [
        made("gb_paper", score, arm=arm, name=name) for arm, name, score in ((ARM, "top1", 0.3), (OTHER, "miou", 0.4))
    ]
    found = together(result(*cells), (ARM, PLAIN, OTHER), "both", "naive")
    assert found["mean"] == pytest.approx(7) and found["arms"] == [ARM, OTHER]
    # of the pictures; the arms lie stdev(10, 4) / sqrt(2) = 3 apart
    assert found["error"] == pytest.approx(12.909944 / 2)
    for cell in cells:
        cell["groups"] = [0.1] * 4
    assert together(result(*cells), (ARM, PLAIN, OTHER), "both", "naive")["error"] == pytest.approx(3)
    assert together(result(*cells), (PLAIN,), "both", "naive") is None


@pytest.mark.parametrize(
    ("mean", "error", "says"),
    [(2.1, 1.0, 1), (-2.1, 1.0, -1), (2.0, 1.0, 0), (-1.0, 1.0, 0), (0.0, 0.0, 0), (9.0, None, 0)],
)
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


# ---- the page ----------------------------------------------------------------------------------------------


def study(seeds, failing=0.0, **more):
    """Three arms in percent: the float share of 2 % is 3 points better than none where the recipe is the usual one;
    everything else is alike. In the plain arm naive QAT loses `failing`."""
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
    assert (
        "| StatAssist (10 %), against naive | **+2.0** ± 0.0 | **+2.0** ± 0.0 | **+32.0** ± 0.0 | **+2.0** ± 0.0 |"
        in words
    )
    assert f"The mean is over {ARM}, {OTHER}, in points (over fewer where a cell says so)." in words
    assert (
        "- A gain in that mean: StatAssist (10 %), against naive (+2.0 ± 0.0); Both (`paper`), against naive (+2.0 ± "
        "0.0)" in words
    )
    assert "- A loss in that mean: PTQ, against float (-4.0 ± 0.0)" in words
    assert (
        "GradBoost (`paper`) on top of StatAssist (+0.0 ± 0.0)"
        in words.partition("- Not told from noise in that mean: ")[2]
    )
    assert f"In {PLAIN} it ends below float: -34.0 ± 0.0 points, a loss (StatAssist gives +32.0" in words
    assert (
        f"- {ARM}, best of 6, seed{'s 0, 1, 2' if len(seeds) > 1 else ' 0'}: 2 % (against none +3.0 ± 0.0 points, a "
        "gain); all" in words
    )
    assert (
        "points against the default (a third of the epochs), mean over cifar10_frostnet, judged on val: none +0.0 ± 0.0"
        in words
    )
    assert "**Recommended: 2 %**, the best of 5, a gain." in words
    assert (
        "Float share, 2 % against the default in the arms judged on test, which had no part in this (segmentation): "
        "+3.0" in words
    )
    assert "**None is told from the default as better, so it stays what it is: `paper`.**" in words


def test_defaults_are_those_of_retraining():
    config = RetrainConfig(arch="frostnet_small", epochs=300)
    assert (config.schedule().float_epochs, DEFAULT_SHARE) == (100, "33 %") and config.statassist and config.gradboost
    assert DEFAULT_BOOST == f"`{config.boost_mode}`" and COLUMNS[SHARES[DEFAULT_SHARE]].float_share == 33
    assert COLUMNS[BOOSTS[DEFAULT_BOOST]].boost == "paper" and COLUMNS[BOOSTS["off"]].boost == "off"


def test_what_is_better_on_top_of_statassist_is_recommended():
    words = "\n".join(recommended(study((0,), both_released=0.05, both=0.03), [ARM, PLAIN, OTHER]))
    assert "off -1.0 ± 0.0, `released` +2.0 ± 0.0. **Recommended: `released`**" in words
    # 1 point less than without it
    words = "\n".join(recommended(study((0,), both_released=0.01, both=0.01), [ARM, PLAIN, OTHER]))
    assert "off +1.0 ± 0.0, `released` +0.0 ± 0.0. **Recommended: off**" in words


def test_no_default_is_given_up_within_the_noise_and_none_by_arms_judged_on_test():
    here = study((0,))
    for cell in here["cells"]:
        if cell["column"] == "sa_2":
            cell["groups"] = [0.1, 0.9, 0.2, 0.9, 0.1, 0.9, 0.1, 0.9]
    assert (
        f"- {ARM}, best of 6, seed 0: 2 % " in "\n".join(shares(here, [ARM]))
        and "within the noise of it: none, 0.5 %" in shares(here, [ARM])[0]
    )
    words = recommended(here, [ARM, OTHER])[0]
    assert (
        "2 % +3.0 ± " in words
        and "**None is told from the default as better, so it stays what it is: a third of the epochs.**" in words
    )
    assert "no arm judged on val has all columns yet; the default stays" in recommended(study((0,)), [OTHER])[0]


def test_what_diverged_with_a_seed_is_never_the_best_and_is_said():
    here = study((0, 1))
    here["cells"] = [c for c in here["cells"] if (c["arm"], c["column"], c["seed"]) != (ARM, "sa_2", 1)]
    here["cells"] += [made_none("sa_2", 1)]
    (line, *_) = shares(here, [ARM])
    assert "best of 5, seeds 0, 1: 10 % (against none +2.0" in line and line.endswith(
        "; 2 % diverged with seed 1, so it cannot be the best."
    )
    words = recommended(here, [ARM])[0]
    assert "2 % is out, it diverged in cifar10_frostnet. **Recommended: 10 %**, the best of 4" in words
    assert effect_in(here, ARM, "sa_2", "naive") == "**+3.0** ± 0.0 (1 diverged)"
    assert f"counts against its column all the same: {ARM} *sa_2* (seed 1)." in "\n".join(answers(here, [ARM]))


def test_a_default_that_diverged_cannot_be_compared_with():
    here = study((0,))
    here["cells"] = [c for c in here["cells"] if (c["arm"], c["column"]) != (ARM, "sa_33")] + [made_none("sa_33", 0)]
    assert recommended(here, [ARM])[0].startswith(
        "- Float share: 33 % is out, it diverged in cifar10_frostnet; these numbers cannot say"
    )


def test_shares_are_compared_on_the_seeds_that_all_have():
    here = study((0,))
    here["cells"] += [made("naive", 0.9, 1), made("sa_2", 0.1, 1)]  # a second seed that turns these two round
    assert "best of 6, seed 0: 2 % (against none +3.0" in shares(here, [ARM])[0]


def test_pairs_without_a_value_are_named():
    none, same, worse = {"mean": 1.0, "error": None}, {"mean": 1.0, "error": 1.0}, {"mean": 9.0, "error": 1.0}
    assert (
        alike({"none": None, "1 %": same, "2 %": none, "10 %": worse})
        == "within the noise of it: 1 %; not known how far from it: none, 2 %"
    )
    assert alike({"none": None}) == "not known how far from it: none" and alike({"none": worse}).startswith(
        "all others"
    )


def test_naive_that_keeps_up_is_said_to():
    words = "\n".join(answers(study((0,), naive=0.05), [ARM, PLAIN, OTHER]))
    assert f"- In {ARM}, {PLAIN}, {OTHER} it is above float." in words and "seed 0: none; all others" in words
    assert "**Recommended: none**, the best of 5" in words
    assert f"- In {ARM} it cannot be told from float." in "\n".join(answers(study((0,), naive=0.04), [ARM]))


def test_falls_and_divergences_are_named_with_their_numbers():
    cells = [
        made("float", 0.6, curve=[[1.0, 0.6]]),
        made("naive", 0.3, curve=[[0.1, 0.5], [0.2, 0.1], [1.0, 0.3]]),
        made_none("both", 3),
    ]
    words = "\n".join(answers(result(*cells), [ARM]))
    assert (
        f"- {ARM}, *naive*: the learning curve fell from 50.0 to 10.0 on the way (top-1, %; 1 of 1 seed(s))." in words
    )
    assert f"- {ARM}, *both* diverged with seed 3." in words
    assert (
        score_cell(result(*cells), ARM, "both", 2) == "diverged" and score_cell(result(*cells), ARM, "sa_1", 2) == "-"
    )


def test_what_the_recipe_has_to_do_with_it_is_said_by_the_pair_of_arms():
    here = study((0,), failing=0.3)
    text = "\n".join(twins(here, [ARM, PLAIN, OTHER]))
    assert "Its float network ends at 54.0, the other one's at 54.0 (top-1, %)." in text
    assert "| naive | **-34.0** ± 0.0 | **-4.0** ± 0.0 | **+30.0** ± 0.0 |" in text
    assert (
        "- Naive QAT against float: without them -34.0 ± 0.0 points, a loss; with them -4.0 ± 0.0 points, a loss."
        in text
    )
    assert (
        "*sa_2*, the best of 9 that did not diverge: +33.0 ± 0.0 points, a gain; against float -1.0 ± 0.0 points, a "
        "loss." in text
    )
    here["cells"] = [c for c in here["cells"] if (c["arm"], c["column"]) != (PLAIN, "sa_2")] + [
        made_none("sa_2", 0) | {"arm": PLAIN}
    ]
    text = "\n".join(twins(here, [ARM, PLAIN, OTHER]))
    assert "; diverged: sa_2 with seed 0." in text and "the best of 8 that did not diverge: +32.0" in text
    assert "| sa_2 | diverged | **-1.0** ± 0.0 | - |" in text and twins(here, [ARM]) == ["- Nothing yet."]


def test_the_page_says_how_generators_are_fine_tuned_and_where_nothing_is_clipped():
    text = page(result(made("float", 0.3), made("finetune", 0.3), arms=(ARM, PLAIN, "pix2pix")))
    assert (
        "- In pix2pix *finetune* trains the generator at a smaller peak learning rate, 5e-05, against" in text
        and "go on at 0.0002" in text
    )
    assert "discriminators" not in page(result(made("float", 0.3), made("finetune", 0.3), arms=(ARM, PLAIN)))
    assert (
        "branches train cifar10_frostnet_plain, to show" in text
        and "; pix2pix, as their published recipe has neither" in text
    )
    assert (
        f"Judged are {ARM}, {PLAIN} on val; pix2pix on test." in text
        and "5 % in cifar10_frostnet, cifar10_frostnet_plain; 0 % in" in text
    )
    assert "one in twenty passes" not in text and "chose nothing" not in text


def test_a_table_cell_has_mean_spread_and_how_many_seeds_it_lacks():
    here = result(made("both", 0.50), made("both", 0.52, seed=1), made_none("both", 2), made("naive", 0.4))
    assert (
        score_cell(here, ARM, "both", 3) == "51.0 ± 1.4 (2, 1 diverged)"
        and score_cell(here, ARM, "naive", 3) == "40.0 (1)"
    )


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
    assert ("which is taken for what another seed would do" in text) == (len(seeds) == 1) and (
        "55.0 ± 1.0 |" in text
    ) == (len(seeds) == 3)
    assert "| **+32.0** ± 0.0 |" in text and all(f"- *{name}*: " in text for name in COLUMNS)


def test_a_study_without_a_cell_has_a_page(tmp_path):
    write(str(tmp_path), result(planned=3))
    assert "**0 of 3 cells so far.**" in (tmp_path / "statassist.md").read_text()
    assert page(result(made_none("naive", 0)))  # nor with one that diverged alone
