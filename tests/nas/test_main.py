"""python -m nas and python frostnet.py."""

import pytest

from frostnet import main as show_main
from nas.__main__ import main
from nas.cost import cost
from tests.nas.report.pages import NET


def test_show_prints_rows_and_totals(run, capsys):
    main(["show", str(run.path), "--picture", str(run.path / "a.png")])
    text = capsys.readouterr().out
    total = cost(NET)
    assert "frostnet_small_0_5, 32 px, 10 classes" in text
    assert f"{total.params:,}" in text and f"{total.macs:,}" in text
    assert sum(line.startswith("blocks.") for line in text.splitlines()) == 14
    assert (run.path / "a.png").is_file()


def test_show_draws(run, capsys):
    main(["show", str(run.path)])
    bars = [line.count("█") for line in capsys.readouterr().out.splitlines() if "█" in line]
    macs = [row.macs for row in cost(NET).rows]
    assert bars == [max(1, round(40 * m / max(macs))) for m in macs]


def test_show_at_another_input_size(run, capsys):
    main(["show", str(run.path / "arch.json"), "--input-size", "224"])
    assert f"{cost(NET.for_input(224)).macs:,}" in capsys.readouterr().out


def test_show_of_a_published_network(capsys):
    show_main(["frostnet_large_1_0"])
    assert "5,807,056" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["show", "nope"], ["report", "nope"], ["show", "nope.json"]])
def test_a_wrong_name_is_one_line_and_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "nope" in capsys.readouterr().err


def test_a_picture_of_another_kind_is_refused(run, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["show", str(run.path), "--picture", "a.jpg"])
    assert stop.value.code == 2 and "must end in .png or .svg" in capsys.readouterr().err


def test_report_prints_where_the_page_is(run, capsys):
    main(["report", str(run.path)])
    assert capsys.readouterr().out.strip() == str(run.path / "report.html")
