"""Markdown tables, and pages whose hand-written text survives."""

import pytest

from benchmarks.tables import Column, escape, mean_sd, splice, table, write_page
from common.errors import UserError

TEMPLATE = "# Title\n\n<!-- numbers -->\n<!-- end of numbers -->\n\n## Conclusions\n\nTo be written.\n"


def test_a_table_of_rows():
    rows = [{"network": "a|b", "params": 1_500_000, "top1": [0.5, 0.54]}, {"network": "c", "params": None, "top1": []}]
    columns = (
        Column("network", "network", align="left"),
        Column("parameters", "params", ".2f", scale=1e-6, unit=" M"),
        Column("top-1", "top1", ".1f", scale=100),
        Column("x|y", lambda row: len(row["network"]), align="center"),
    )
    assert table(rows, columns).splitlines() == [
        r"| network | parameters | top-1 | x\|y |",
        "| :--- | ---: | ---: | :---: |",
        r"| a\|b | 1.50 M | 52.0 ± 2.8 (2) | 3 |",
        "| c | - | - | 1 |",
    ]


def test_a_table_without_rows_is_a_header():
    assert table([], [Column("a", "a")]) == "| a |\n| ---: |"


@pytest.mark.parametrize("best, bold", [("max", ["1", "**3**", "**3**"]), ("min", ["**1**", "3", "3"]), (None, "133")])
def test_the_best_number_is_bold_and_so_are_all_that_equal_it(best, bold):
    lines = table([{"v": 1}, {"v": 3}, {"v": 3}, {"v": None}, {"v": "failed"}], [Column("v", "v", best=best)])
    assert [line.strip("| ") for line in lines.splitlines()[2:]] == [*bold, "-", "failed"]


def test_the_best_of_several_seeds_is_that_of_the_mean():
    lines = table([{"v": [1.0, 2.0]}, {"v": [0.0, 4.0, None]}], [Column("v", "v", ".1f", best="max")])
    assert lines.splitlines()[2:] == ["| 1.5 ± 0.7 (2) |", "| **2.0 ± 2.8 (2)** |"]


def test_mean_and_standard_deviation():
    assert mean_sd([0.1, 0.3], ".0f", 100, " %") == "20 ± 14 % (2)"
    assert mean_sd([2.0]) == "2.0 (1)" and mean_sd([None]) == mean_sd([]) == "-"


def test_escaping_happens_once():
    assert escape(escape("a|b\nc")) == r"a\|b c"


def test_splice_replaces_one_section_alone():
    page = "before\n<!-- a -->\nold\n<!-- end of a -->\nbetween\n<!-- ab -->\nkept\n<!-- end of ab -->\nafter"
    spliced = splice(page, "a", "new $1 \\1\n")
    assert spliced == page.replace("old", "new $1 \\1") == splice(spliced, "a", "new $1 \\1")


@pytest.mark.parametrize(
    "page, message",
    [
        ("<!-- end of a -->", "^<!-- a -->: found 0 times"),
        ("<!-- a -->", "^<!-- end of a -->: found 0 times"),
        ("<!-- a --> <!-- a --> <!-- end of a -->", "^<!-- a -->: found 2 times"),
        ("<!-- end of a --> <!-- a -->", "^<!-- end of a -->: stands before <!-- a -->"),
    ],
)
def test_splice_names_the_marker_that_is_wrong(page, message):
    with pytest.raises(UserError, match=message):
        splice(page, "a", "new")


def test_a_page_starts_as_its_template_and_keeps_what_is_written_by_hand(tmp_path):
    path = tmp_path / "new" / "page.md"
    write_page(path, TEMPLATE, {"numbers": "one"})
    assert path.read_text() == TEMPLATE.replace("numbers -->\n<", "numbers -->\none\n<")
    path.write_text(path.read_text().replace("To be written.", "It works, é."))
    write_page(path, TEMPLATE, {"numbers": "two"})
    assert "two" in path.read_text() and "one" not in path.read_text() and path.read_text().endswith("It works, é.\n")


def test_a_page_without_a_marker_stays_as_it_is(tmp_path):
    (path := tmp_path / "page.md").write_text("no markers")
    with pytest.raises(UserError, match=r"page\.md: <!-- numbers -->: found 0 times"):
        write_page(path, TEMPLATE, {"numbers": "one"})
    assert path.read_text() == "no markers"
