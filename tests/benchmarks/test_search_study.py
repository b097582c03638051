"""benchmarks/search_study.py and bottleneck_study.py: what they choose and what their pages say."""

import json
import math
from dataclasses import replace

import pytest

from benchmarks import bottleneck_study, search_report, search_study
from benchmarks.alone import Cell
from common.errors import UserError
from common.files import write_json
from frostnet import architecture
from latency_lut.fitting import spearman

CONFIG = search_study.StudyConfig(data_root="pictures", targets=(0.5, 0.7))


def cell(int8, seed=0):
    return {"int8": int8, "fake_quant": int8, "seed": seed, "pictures": 6000, "refused": None}


def network(name, kind, target, values, **known):
    row = {
        "name": name,
        "kind": kind,
        "family": kind,
        "target_ms": target,
        "source": "",
        "int8_ms": target,
        "float_ms": 2 * target,
    }
    row |= {"params": 10**6, "macs": 10**7, "cells": [cell(v, i) for i, v in enumerate(values)]}
    return row | {"score": None, "inherited_top1": None, "supernet_top1": None, "predicted_ms": None} | known


def result(networks):
    settings = {"train_images": 100, "epochs": 3, "lr": 0.05, "engine": "fbgemm", "preset": "small", "width": 0.75}
    measured = {"cpu": "a CPU", "torch": "2", "table": {"mape": 0.02, "spearman": 0.99}, "table_hash": "abc" * 9}
    return {"settings": settings, "seeds": [0, 1], "networks": networks, "searches": {}, **measured}


NETWORKS = [
    network("found_0_5", "found", 0.5, [0.52, 0.56], supernet_top1=0.4, score=3.0),
    network("mobilenet_v2_x0_5", "hand-made", 0.5, [0.50, 0.50]),
    network("frostnet_small_x0_5", "hand-made", 0.5, [0.53]),
    *(
        network(f"random_{i}", "random", 0.5, [0.40 + 0.01 * i], supernet_top1=0.30 + 0.01 * i, score=-float(i))
        for i in range(5)
    ),
]


def test_of_each_family_the_widest_network_that_is_fast_enough_is_taken(tmp_path):
    rows = {"0.5": 0.45, "0.75": 0.55, "1.0": 0.509, "1.15": 0.8}
    write_json(tmp_path / "widths.json", dict.fromkeys(search_study.FAMILIES, rows))
    entries = search_study.rivals(replace(CONFIG, runs=str(tmp_path)))
    assert [(e.target_ms, e.family) for e in entries] == [(t, f) for t in (0.5, 0.7) for f in search_study.FAMILIES]
    assert {e.name for e in entries if e.family == "mobilenet_v2"} == {"mobilenet_v2_x1_0"}, (
        "0.509 is within 2 % of 0.5; 0.75 is slower"
    )
    assert all(e.source.endswith(".json") == e.family.startswith("frostnet") for e in entries)
    with pytest.raises(UserError, match="targets: no frostnet_small .* as fast as 0.3 ms"):
        search_study.rivals(replace(CONFIG, targets=(0.3,), runs=str(tmp_path)))


def test_the_ranking_is_the_mean_of_spearmans_within_each_search():
    found = search_report.ranking(NETWORKS, 0)
    assert found["networks"] == 6
    truth, guessed = [0.52, 0.40, 0.41, 0.42, 0.43, 0.44], [0.4, 0.30, 0.31, 0.32, 0.33, 0.34]
    assert found["predictors"]["supernet_top1"]["spearman"] == pytest.approx(spearman(guessed, truth)) == 1.0
    assert found["predictors"]["score"]["spearman"] < 0
    assert found["predictors"]["inherited_top1"]["spearman"] is None
    assert found["predictors"]["macs"]["spearman"] == 0.0, "all alike"
    backwards = [{**n, "target_ms": 0.7, "supernet_top1": -(n["supernet_top1"] or 0)} for n in NETWORKS]
    both = search_report.ranking(NETWORKS + backwards, 0)
    assert both["predictors"]["supernet_top1"]["spearman"] == pytest.approx(0.0)
    assert search_report.ranking(NETWORKS, 1)["networks"] == 0, "only the found one has that seed"


def test_random_scores_rank_nothing():
    assert search_report.chance([40]) == pytest.approx(1.96 / math.sqrt(39), rel=0.1)
    assert search_report.chance([9, 9]) == pytest.approx(search_report.chance([9]) / math.sqrt(2), rel=0.1)


def test_the_page_says_how_far_the_found_network_is_from_its_best_rival():
    text = search_report.page({**result(NETWORKS), "ranking": search_report.ranking(NETWORKS, 0)})
    assert "+1.0 points from the best hand-made one, frostnet_small_x0_5" in text
    assert "5 random networks of the space (one seed): median 42.0 %, best 44.0 %" in text
    assert "52.0 %; 0 are above it" in text
    assert "| found_0_5 | found | 1.00 M | 10.0 M | 0.500 | 1.000 | 54.0 ± 2.8 |" in text
    assert "| supernet, each network tuned alone for a few steps | 6 | +1.00 |" in text


def test_the_error_of_a_difference_knows_seeds_and_pictures():
    one, other = network("a", "found", 1.0, [0.5, 0.6]), network("b", "found", 1.0, [0.5])
    variance = 0.005 / 2 + 0.55 * 0.45 / 6000 + 0.25 / 6000
    assert search_report.standard_error(one, other, 6000) == pytest.approx(100 * math.sqrt(variance))


def test_a_network_that_diverged_counts_as_chance():
    row = network("a", "random", 0.5, [])
    row["cells"] = [{"int8": None, "fake_quant": None, "refused": "diverged"}]
    assert search_report.top1s(row) == [0.1]


def test_another_architecture_under_the_same_name_is_another_training(tmp_path):
    path = tmp_path / "found.json"
    names = []
    for width in (0.35, 0.35, 0.5):
        arch = architecture("small", width, 10, 32)
        replace(arch, name="found", provenance={"seed": len(names)}).save(path)
        names.append(Cell("found", str(path), 0).name)
    assert names[0] == names[1] != names[2]


def test_files_are_written_with_a_picture(tmp_path):
    path = search_report.write(str(tmp_path), result(NETWORKS))
    assert json.loads(path.read_text())["ranking"]["networks"] == 6
    assert (tmp_path / "search.png").read_bytes()[:4] == b"\x89PNG"


def test_cells_come_seed_by_seed_and_random_networks_once(monkeypatch):
    entries = [
        search_study.Entry(n, k, k, 0.5, n)
        for n, k in (("found", "found"), ("rival", "hand-made"), ("random", "random"))
    ]
    seen = []
    monkeypatch.setattr(
        search_study, "in_parallel", lambda pool, jobs, *_: seen.extend(job.args[1] for job in jobs) or ()
    )
    search_study.train_all(replace(CONFIG, seeds=(0, 1)), [*entries, entries[1]], math.inf)
    assert seen == [
        Cell("found", "found", 0),
        Cell("rival", "rival", 0),
        Cell("random", "random", 0),
        Cell("found", "found", 1),
        Cell("rival", "rival", 1),
    ]


# ---- the bottleneck ----------------------------------------------------------------------------------------


def test_the_bottleneck_page_ranks_blocks_and_averages_ingredients(tmp_path):
    config = bottleneck_study.StudyConfig(data_root="pictures", runs=str(tmp_path), seeds=(0, 1))
    blocks = {
        "mb k3 e3": (0.4, 0.5),
        "frost k3 e3 r2": (0.6, 0.6),
        "frost k5 e3 r2 hard_swish": (0.5, 0.8),
        "se k3 e3 r4": (0.3, 0.3),
    }
    for seed in (0, 1):
        rows = [
            {"name": f"derived_{i}", "block": b, "inherited": 0.1, "accuracy": v[seed], "measured_ms": 0.5}
            for i, (b, v) in enumerate(blocks.items())
        ]
        write_json(tmp_path / f"search_{seed}" / "front.json", {"networks": rows})
    chosen = bottleneck_study.candidates(config)
    assert set(chosen) == {"mb_k3_e3", "frost_k5_e3_r2_hard_swish", "se_k3_e3_r4"}, (
        "of each inside the best by the mean"
    )
    assert chosen["se_k3_e3_r4"].endswith("search_0/tried/derived_3.json")
    kinds = {b: bottleneck_study.INSIDES[bottleneck_study.inside(b)] for b in blocks}
    found = {
        "settings": {
            "engine": "fbgemm",
            "width": 0.5,
            "preset": "demo",
            "target_ms": 0.5,
            "train_images": 10,
            "epochs": 3,
        },
        "seeds": [0, 1],
        "cpu": "a CPU",
        "torch": "2",
        "chosen": [{"op": "frost", "kernel_size": 3, "squeeze_factor": 2, "activation": "relu"}],
        "blocks": {b: {"inside": kinds[b], "networks": rows} for b, rows in bottleneck_study.tried(config).items()},
        "alone": {"frost k3 e3 r2": [cell(0.5), cell(0.6, 1)], "mb k3 e3": []},
    }
    text = bottleneck_study.page(found)
    assert text.index("| frost k5 e3 r2 hard_swish |") < text.index("| frost k3 e3 r2 |") < text.index("| mb k3 e3 |")
    assert "| squeeze-and-concat, r 2 | 62.5 |" in text and "| hard_swish | 65.0 |" in text
    assert "| frost k3 e3 r2 | 55.0 ± 7.1 | 2 |" in text
