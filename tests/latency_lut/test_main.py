"""Which command the first word runs, and what every command has."""

import pytest

from latency_lut.__main__ import main
from latency_lut.commands import COMMANDS
from tests.latency_lut.tables import SECTION, made_up


@pytest.mark.parametrize("word", COMMANDS)
def test_every_command_has_help(word, capsys):
    with pytest.raises(SystemExit) as left:
        main([word, "--help"])
    assert left.value.code == 0 and f"latency_lut {word}" in capsys.readouterr().out


@pytest.mark.parametrize("word", [[], ["build"]])
def test_build_is_the_default_command(word, tmp_path, capsys):
    made_up(tmp_path / "lut.json").save()  # complete already
    main([*word, "--engine", "fbgemm", "--output", str(tmp_path / "lut.json"), "--width", "0.5", "--input-size", "32"])
    assert SECTION in capsys.readouterr().out


@pytest.mark.parametrize("word", ["show", "predict", "validate"])
def test_a_table_that_is_missing_names_the_command_that_makes_it(word, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        main(
            [
                word,
                "--lut",
                str(tmp_path / "none.json"),
                *(["--arch", "frostnet_small_0_5"] if word == "predict" else []),
            ]
        )
    assert refused.value.code == 2 and "python -m latency_lut --engine fbgemm" in capsys.readouterr().err


def test_help_lists_the_commands_and_says_how_to_build(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0 and all(name in said for name in COMMANDS)
    assert "--engine fbgemm --output fbgemm.json" in said and "build --help" in said


def test_restart_is_refused_by_a_command_that_keeps_no_results(capsys):
    with pytest.raises(SystemExit) as refused:
        main(["show", "--lut", "lut.json", "--restart"])
    assert refused.value.code == 2 and "unrecognized arguments: --restart" in capsys.readouterr().err
