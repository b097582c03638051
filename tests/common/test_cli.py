"""Flags from dataclass fields, and how a program ends when something is wrong."""

import errno
import sys
from dataclasses import dataclass
from typing import Literal, Optional  # both spellings of an optional field are read

import pytest

from common.cli import arguments, guard, option, parse, run_command
from common.errors import UserError


@dataclass(frozen=True)
class Config:
    lut: str = option(help="the latency table")
    epochs: int = option(3, help="100% of the passes")
    target_ms: Optional[float] = option(None, help="latency to reach")  # noqa: UP045
    seed: int | None = None
    boost: bool = option(True, help="GradBoost")
    engine: Literal["fbgemm", "x86"] = option("fbgemm", help="kernels")
    input_size: tuple[int, ...] = option((32, 224), help="pixels")

    def __post_init__(self):
        if self.epochs < 1:
            raise UserError(f"epochs: {self.epochs}, must be 1 or more")


def _parse(line):
    return parse(Config, line.split(), "demo", "A demonstration.")


def test_without_flags_the_defaults_hold():
    assert _parse("--lut a.json") == Config(lut="a.json")


def test_help_shows_the_first_paragraph_of_a_docstring_whole(capsys):
    with pytest.raises(SystemExit):
        parse(Config, ["--help"], "demo", "One sentence over\ntwo lines.\n\n    demo --lut a.json\n")
    text = capsys.readouterr().out
    assert "One sentence over two lines." in text and "demo --lut a.json" not in text


def test_every_kind_of_field_is_read():
    config = _parse("--lut a --epochs 5 --target-ms 2.5 --seed 1 --no-boost --engine x86 --input-size 64")
    assert config == Config("a", 5, 2.5, 1, False, "x86", (64,))


def test_the_arguments_of_a_config_are_read_as_the_same_config():
    words = "--lut a --target-ms 2.5 --no-boost --input-size 64 96"
    assert arguments(_parse(words)) == words.split()


@pytest.mark.parametrize("text", ["32 64 96", "32,64,96", "32,64 96", "32, 64, 96"])
def test_several_values_are_separated_by_spaces_or_commas(text):
    assert _parse(f"--lut a --input-size {text}").input_size == (32, 64, 96)


@pytest.mark.parametrize(
    "line, words",
    [
        ("", "--lut"),
        ("--lut a --epochs 1.5", "invalid int value: '1.5'"),
        ("--lut a --target-ms nan", "invalid number value: 'nan'"),
        ("--lut a --target-ms inf", "invalid number value: 'inf'"),
        ("--lut a --engine arm", "choose from"),
        ("--lut a --input-size x", "invalid int value: 'x'"),
        ("--lut a --epoch 2", "unrecognized arguments"),
    ],
)
def test_a_wrong_flag_exits_with_2_and_says_which(line, words, capsys):
    with pytest.raises(SystemExit) as stop:
        _parse(line)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_help_shows_texts_and_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        _parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "100% of the passes (default: 3)" in text and "--no-boost" in text and "(default: 32 224)" in text


# ---- positional arguments and subcommands -------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    network: str = option(help="what to draw", positional=True)
    size: int = option(224, "pixels", positional=True)
    start: str | None = option(None, "the first node", flag="--from")


def draw(config: Draw) -> Draw:
    return config


COMMANDS = {
    "draw": ("draw a network", draw),
    "names": ("list the networks", lambda: ["a", "b"]),
    "late": ("imported if it is chosen", "tests.common.test_cli:draw"),
    "broken": ("imported if it is chosen", "nosuchmodule:main"),
}


def _run(line):
    return run_command(COMMANDS, line.split(), "demo", "A demonstration.")


def test_positional_arguments_have_no_flag_and_may_have_a_default():
    assert _run("draw a") == Draw("a")
    assert _run("draw --from conv a 32") == Draw("a", 32, "conv")


def test_a_subcommand_is_imported_only_if_it_is_chosen():
    assert _run("late a") == Draw("a")
    with pytest.raises(ModuleNotFoundError, match="nosuchmodule"):
        _run("broken a")


def test_a_function_without_a_config_takes_no_flags(capsys):
    assert _run("names") == ["a", "b"]
    with pytest.raises(SystemExit) as stop:
        _run("names --from x")
    assert stop.value.code == 2 and "unrecognized arguments: --from x" in capsys.readouterr().err


def test_without_argv_the_arguments_of_the_process_are_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo", "draw", "b"])
    assert run_command(COMMANDS, None, "demo", "A demonstration.") == Draw("b")


@pytest.mark.parametrize(
    "line, words",
    [
        ("", "the following arguments are required: command"),
        ("paint", "invalid choice: 'paint'"),
        ("--from conv draw a", "the following arguments are required: command"),
        ("draw", "the following arguments are required: network"),
        ("draw a 1.5", "argument size: invalid int value: '1.5'"),
        ("draw a --start conv", "unrecognized arguments: --start conv"),
    ],
)
def test_a_wrong_command_exits_with_2_and_says_why(line, words, capsys):
    with pytest.raises(SystemExit) as stop:
        _run(line)
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_help_lists_the_subcommands_and_each_has_help(capsys):
    for line, expected in (
        ("--help", ["A demonstration.", "draw a network", "list the networks"]),
        ("draw --help", ["usage: demo draw", "what to draw", "pixels (default: 224)", "--from STR"]),
    ):
        with pytest.raises(SystemExit) as stop:
            _run(line)
        text = capsys.readouterr().out
        assert stop.value.code == 0 and all(words in text for words in expected)


# ---- how a program ends -------------------------------------------------------------------------------------


def _ending(error, capsys, argv=(), **options):
    """(exit code, stderr) of a guarded main that raises `error`."""

    @guard(**options)
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as stop:
        main(argv)
    return stop.value.code, capsys.readouterr().err


def test_a_result_passes_through_the_guard():
    assert guard(lambda argv=None: argv)(["x"]) == ["x"]


def test_a_users_mistake_is_one_line_and_code_2(capsys):
    assert _ending(UserError("epochs: 0"), capsys) == (2, "error: epochs: 0\n")


def test_further_kinds_of_mistake_can_be_named(capsys):
    assert _ending(LookupError("no engine"), capsys, errors=(LookupError,)) == (2, "error: no engine\n")


def test_ctrl_c_is_code_130_and_the_command_that_resumes(capsys):
    code, text = _ending(KeyboardInterrupt(), capsys, ["--name", "my run"], resume="--resume")
    assert code == 130
    assert text.startswith("stopped; resume with: python") and text.endswith("--name 'my run' --resume\n")


def test_a_full_disk_is_code_2_and_its_mend(capsys):
    code, text = _ending(OSError(errno.ENOSPC, "No space left on device", "a.pt"), capsys)
    assert code == 2 and "a.pt: the disk is full: free some space" in text


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        guard(lambda argv=None: 1 / 0)()
    with pytest.raises(OSError, match="odd"):
        guard(lambda argv=None: (_ for _ in ()).throw(OSError(errno.EIO, "odd")))()
