"""Tables, CSV and figure of a benchmark."""

import csv

import pytest

from latency_lut.bench import report
from latency_lut.bench.contenders import EAGER, FROZEN, SESSION
from latency_lut.bench.profile import Event, rows
from latency_lut.bench.results import Results
from tests.latency_lut.bench.rows import ENGINE, result, row


def test_the_table_has_the_statistics_and_the_share_of_each_baseline():
    made = result(
        batch=8,
        rows=[
            row(EAGER, 9.0, 8.0, 8.0),
            row(FROZEN, 4.0, 4.0, 4.0),
            row(SESSION, 2.5, 2.5, 2.5),
            row(ENGINE, 2.0, 2.2, 2.1, 3.0, float_ops=["pool"], file_bytes=2_500_000),
        ],
    )
    line = report.frame(made).set_index("engine").loc[ENGINE]
    assert (line["latency ms"], line["median ms"], line["images/s"]) == pytest.approx((2.0, 2.15, 4000))
    assert line["spread %"] == pytest.approx(10) and line["note"] == "unstable"
    assert (line["of eager"], line["of float torch"], line["of float ort"]) == pytest.approx((0.25, 0.5, 0.8))
    assert line["cut %"] == pytest.approx(20)  # against 2.5 ms, the fastest float form, whatever the eager one takes
    assert (line["float ops"], line["float convs"], line["file MB"]) == (1, 0, 2.5)


def test_a_missing_baseline_leaves_its_column_empty_and_a_missing_engine_says_why():
    made = result(
        rows=[
            row(FROZEN, 4.0, 4.0, 4.0),
            row("x86", 5.0, 5.0, 5.0, float_ops=[]),
            {"name": ENGINE, "reason": "QuantError: no"},
        ]
    )
    table = report.frame(made).set_index("engine")
    assert table["of eager"].isna().all() and table.loc["x86", "cut %"] == pytest.approx(-25)
    assert table.loc[ENGINE, "note"] == "QuantError: no" and table.loc[ENGINE].drop("note").isna().all()
    assert "QuantError: no" in report.text(made) and "nan" not in report.text(made)


def test_the_text_says_under_which_conditions():
    text = report.text(result(threads=2, batch=4, profile={ENGINE: rows([Event("conv", "integer", 1, 500.0)])}))
    assert "2 threads" in text and "batch 4" in text and "load 0.5, steal unknown" in text
    assert f"{ENGINE}, by operation" in text and "0.5" in text


def test_all_files_are_written(tmp_path):
    results = Results.new(tmp_path / "b")
    results.put(result())
    results.put(result("other", threads=2, rows=[row(FROZEN, 400.0), {"name": ENGINE, "reason": "no"}]))
    report.save(results)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.csv", "b.json", "b.png"]
    lines = list(csv.DictReader((tmp_path / "b.csv").open()))
    assert [(line["arch"], line["threads"], line["engine"]) for line in lines] == [
        ("net", "1", FROZEN),
        ("net", "1", ENGINE),
        ("other", "2", FROZEN),
        ("other", "2", ENGINE),
    ]
    assert float(lines[1]["latency ms"]) == 2 and float(lines[1]["cut %"]) == 50 and lines[3]["note"] == "no"
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_a_panel_for_each_condition_and_a_bar_for_each_contender():
    figure = report.figure(
        [result("a"), result("b"), result("a", batch=8, rows=[row(FROZEN, 100.0), row(ENGINE, 2.0, float_ops=[])])]
    )
    first, second = figure.axes
    assert len(first.patches) == 4 and len(second.patches) == 2
    assert [patch.get_height() for patch in second.patches] == [100, 2]
    assert (first.get_yscale(), second.get_yscale()) == ("linear", "log")
