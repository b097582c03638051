"""diff: ratios of two tables, part by part."""

from dataclasses import replace

import pytest

from common.errors import UserError
from latency_lut.__main__ import main
from latency_lut.commands.diff import diff
from latency_lut.sections import CALL
from latency_lut.timing import Timing


def test_a_cpu_twice_as_slow_with_one_odd_part(tables):
    first = tables[0]
    keys = [key for key in first.entries if key != CALL]
    slower = {key: Timing(tuple(2 * r for r in t.rounds)) for key, t in first.entries.items()}
    slower[keys[0]] = Timing(tuple(10 * r for r in first.entries[keys[0]].rounds))
    difference = diff(first, replace(first, entries=slower))
    assert difference.quantile(0.5) == pytest.approx(2) and list(difference.ratios)[-1] == keys[0]
    assert difference.ratios[keys[0]] == pytest.approx(10) and 0.9 < difference.spearman <= 1
    assert (difference.only_first, difference.only_second, len(difference.ratios)) == (0, 0, len(keys))


def test_a_table_does_not_differ_from_itself(tables):
    difference = diff(tables[0], tables[0])
    assert set(difference.ratios.values()) == {1.0} and difference.spearman == pytest.approx(1)


def test_the_command_compares_tables_of_two_machines(tables, tmp_path, capsys):
    other = replace(tables[0], meta={**tables[0].meta, "cpu": "Other", "threads": 4}, path=tmp_path / "other.json")
    other.save()
    main(["diff", "--lut", str(tables[0].path), str(other.path), "--top", "2"])
    said = capsys.readouterr().out
    assert (
        "/ Other" in said
        and "threads: 1 / 4" in said
        and "50% 1.000" in said
        and said.count(" ms\n") + said.endswith(" ms") >= 3
    )


def test_tables_without_a_common_part_are_refused(tables):
    with pytest.raises(UserError, match="no part in common"):
        diff(tables[0], replace(tables[0], entries={CALL: tables[0].entries[CALL]}))
