"""Which command the first word runs, and what every command has."""

import importlib

import pytest

from latency_lut.__main__ import main
from latency_lut.commands import COMMANDS
from tests.latency_lut.tables import SECTION, made_up


@pytest.mark.parametrize("word", [name for name in COMMANDS if name != "build"])
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


@pytest.mark.parametrize("name", COMMANDS)
def test_the_description_of_every_command_is_whole(name):
    """Its help shows the first line of the module's docstring."""
    assert importlib.import_module(f"latency_lut.commands.{name}").__doc__.split("\n\n")[0].endswith(".")
