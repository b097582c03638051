"""The study of the tables' quality: its figures, its bars, and that it goes on where it was stopped.

Nothing is measured.
"""

from dataclasses import replace

import pytest

from benchmarks import latency_lut_quality as study
from common.errors import UserError
from common.files import read_json, write_json
from latency_lut.timing import Timing
from tests.latency_lut.tables import made_up

ROW = {
    "seconds": 40.0,
    "cpu_seconds": 30.0,
    "repeat_p50": 0.01,
    "repeat_p95": 0.05,
    "repeat_max": 0.2,
    "bias": 0.0,
    "mape": 0.02,
    "within_10": 1.0,
    "spearman": 0.99,
    "load": 1.0,
    "steal": None,
    "date": "2026-01-01 00:00",
}


@pytest.fixture
def fake(monkeypatch):
    calls = []
    monkeypatch.setattr(
        study, "measured", lambda engine, size, folder: calls.append((engine, size, folder.name)) or dict(ROW)
    )
    return calls


def run(tmp_path, *words):
    return study.main(["--engines", "fbgemm", "--output", str(tmp_path / "lut"), *words])


def test_repeatability_is_relative_to_the_quicker_of_the_two(tmp_path):
    table = made_up(tmp_path / "a.json")
    keys = list(table.entries)
    other = {
        key: Timing(tuple(r * factor for r in table.entries[key].rounds))
        for key, factor in zip(keys, [1.1, 1 / 1.2] + [1.0] * 999)
    }
    found = study.repeatability(table, replace(table, entries=other))
    assert found["repeat_max"] == pytest.approx(0.2) and found["repeat_p50"] == 0
    assert study.repeatability(table, table)["repeat_p95"] == 0


@pytest.mark.parametrize(
    "name, change, missed",
    [
        ("fbgemm 32 as it is", {}, []),
        ("fbgemm 32 as it is", {"seconds": 70.0}, ["seconds_32"]),
        ("fbgemm 224 as it is", {"seconds": 70.0}, []),
        (
            "fbgemm 224 as it is",
            {"mape": 0.05, "spearman": 0.9, "within_10": 0.9, "repeat_p95": 0.1},
            ["repeat_p95", "mape", "within_10", "spearman"],
        ),
    ],
)
def test_a_missed_bar_is_named(name, change, missed):
    assert study.misses(name, {**ROW, **change}) == missed


def test_what_was_measured_is_not_measured_again(tmp_path, fake):
    run(tmp_path, "--sizes", "32")
    run(tmp_path, "--sizes", "32", "224")
    assert [(engine, size) for engine, size, _ in fake] == [("fbgemm", 32), ("fbgemm", 224)]
    run(tmp_path, "--sizes", "32", "--restart")
    assert len(fake) == 3
    assert (
        len(read_json(tmp_path / "lut.json")["rows"]) == 2
        and "fbgemm 224 as it is" in (tmp_path / "lut.md").read_text()
    )


def test_busy_rows_stand_beside_the_others(tmp_path, fake):
    run(tmp_path, "--sizes", "32")
    found = run(tmp_path, "--sizes", "32", "--busy")
    assert set(found["rows"]) == {"fbgemm 32 as it is", "fbgemm 32 busy"} and fake[1][2] == "busy"


def test_rows_of_another_machine_are_not_added_to(tmp_path, fake, capsys):
    run(tmp_path, "--sizes", "32")
    data = read_json(tmp_path / "lut.json")
    write_json(tmp_path / "lut.json", {**data, "about": {**data["about"], "cpu": "Other"}})
    with pytest.raises(SystemExit):
        run(tmp_path, "--sizes", "224")
    assert "is of another machine (Other)" in capsys.readouterr().err


def test_a_broken_row_is_named():
    with pytest.raises(UserError, match="rows.x.mape: 'low'"):
        study.checked({"about": {"cpu": "", "flags": [], "cores": 2}, "rows": {"x": {**ROW, "mape": "low"}}})
