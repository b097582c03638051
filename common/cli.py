"""Command lines from config dataclasses: the fields are the flags.

@dataclass(frozen=True)
class Show:
    arch: str = option(help="name or file", positional=True)
    input_size: int | None = option(None, "pixels")

def show(config: Show) -> None: ...

COMMANDS = {"show": ("print a network", show), "measure": ("time it", "package.measure:command")}

@guard
def main(argv=None):
    return run_command(COMMANDS, argv, "program", "What it does.")
"""

import argparse
import dataclasses
import errno
import functools
import math
import pkgutil
import shlex
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from common.errors import UserError
from common.files import reason

Config = TypeVar("Config")


def option(default: Any = dataclasses.MISSING, help: str = "", *, positional: bool = False, flag: str = "") -> Any:
    """A field of a config dataclass.

    Args:
        default: The value without a flag. Without a default the flag is required.
        help: Its line in `--help`.
        positional: The value is given by its position on the command line, without a flag.
        flag: The name of the flag, if it differs from the field's: "--from" for a field `start`.
    """
    return dataclasses.field(default=default, metadata={"help": help, "positional": positional, "flag": flag})


def parse(config: type[Config], argv: Sequence[str] | None, prog: str, description: str) -> Config:
    """`config` filled from command-line flags, one per field: `input_size` is `--input-size`.

    Types: str, int, float, bool (`--x` and `--no-x`), Optional of these, Literal (choices), tuple[T, ...] (values
    separated by spaces or commas). Without flags: the defaults. A wrong flag prints the usage and exits with 2.

    Args:
        config: The dataclass.
        argv: The arguments; None for those of the process.
        prog: The name of the program.
        description: What the program does. Its first paragraph stands in `--help`, so a module's docstring will do.
    """
    parser = argparse.ArgumentParser(prog, description=first_paragraph(description), allow_abbrev=False)
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        _add(parser, field, hints[field.name])
    values = vars(parser.parse_args(argv))
    return config(**{k: tuple(sum(v, ())) if isinstance(v, list) else v for k, v in values.items()})


def arguments(config: Any) -> list[str]:
    """The flags from which `parse` reads this config; those at their default are left out."""
    words = []
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), _name(field)
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def run_command(
    commands: Mapping[str, tuple[str, Callable | str]], argv: Sequence[str] | None, prog: str, description: str
) -> Any:
    """Run the subcommand that the first argument names, with its config read from the other arguments.

    Args:
        commands: Name -> (help text, function). The function's parameter is annotated with its config dataclass; a
            function without parameters takes no flags. "module:function" is imported only if it is chosen.
        argv: The arguments; None for those of the process.
        prog: The name of the program.
        description: What it does; the first paragraph stands in `--help`.

    Returns:
        What the function returns.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = _chosen(commands, argv[:1], prog, description)
    text, function = commands[name]
    function = pkgutil.resolve_name(function) if isinstance(function, str) else function
    hints = typing.get_type_hints(function)
    config = next((hint for parameter, hint in hints.items() if parameter != "return"), None)
    values = parse(config or _NoFlags, argv[1:], f"{prog} {name}", text)
    return function(values) if config else function()


def first_paragraph(text: str) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(text.strip().split("\n\n")[0].split())


def _chosen(commands: Mapping, argv: Sequence[str], prog: str, description: str) -> str:
    """The name of a subcommand; exits for `--help`, for no name and for a wrong one."""
    parser = argparse.ArgumentParser(prog, description=first_paragraph(description))
    names = parser.add_subparsers(dest="command", required=True)
    for name, (text, _) in commands.items():
        names.add_parser(name, help=text)
    return parser.parse_args(argv).command


@dataclasses.dataclass(frozen=True)
class _NoFlags:
    """The config of a function without parameters."""


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field, hint: Any) -> None:
    """Give a parser the argument of one field."""
    arguments = _flag(field, hint)
    if field.metadata.get("positional"):
        required = arguments.pop("required", False)
        arguments.pop("metavar", None)  # the name of the field
        parser.add_argument(field.name, **({} if required else {"nargs": "?"}) | arguments)
    else:
        parser.add_argument(_name(field), dest=field.name, **arguments)


def _name(field: dataclasses.Field) -> str:
    return field.metadata.get("flag") or "--" + field.name.replace("_", "-")


def _flag(field: dataclasses.Field, hint: Any) -> dict:
    """argparse's keyword arguments for one field."""
    text = field.metadata.get("help", "").replace("%", "%%")
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING:
        flag = {"required": True, "help": text}
    else:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        flag = {"default": default, "help": text if default in (None, "", ()) else f"{text} (default: {shown})"}
    return flag | _type(hint)


def _type(hint: Any) -> dict:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _type(next(a for a in args if a is not type(None)))
    if origin is Literal:
        return {"choices": args, "type": type(args[0])}
    if origin is tuple:
        return {"nargs": "+", "type": _several(_READERS[args[0]]), "metavar": args[0].__name__.upper()}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": _READERS[hint], "metavar": hint.__name__.upper()}


def number(text: str) -> float:
    """A finite float: `nan` as a target would pass every comparison."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _several(reader: Callable[[str], Any]) -> Callable[[str], tuple]:
    def values(text: str) -> tuple:
        return tuple(reader(part) for part in text.split(",") if part)

    values.__name__ = reader.__name__  # argparse names it in its error message
    return values


_READERS = {str: str, int: int, float: number}


def check_folder_name(field: str, value: str) -> None:
    """Raise UserError unless `value` is the plain name of a folder, which cannot lead out of the parent folder."""
    if value in ("", ".", "..") or any(sign in value for sign in "/\\\0"):
        raise UserError(
            f"{field}: {value!r}, must be the plain name of a folder: not empty, not '..', without '/' and '\\'"
        )


def guard(main: Callable | None = None, *, resume: str = "", errors: tuple[type[Exception], ...] = ()) -> Callable:
    """Decorate a `main(argv=None)`, so that mistakes end in one line on stderr and an exit code, not in a traceback.

    UserError and a full disk exit with 2. Ctrl-C exits with 130 and prints the command that resumes.

    Args:
        main: The function; None to decorate with options.
        resume: The flag that the resuming command needs in addition.
        errors: Further exceptions that are mistakes of the user.
    """
    if main is None:
        return functools.partial(guard, resume=resume, errors=errors)

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> Any:
        try:
            return main(argv)
        except (UserError, *errors) as error:
            raise SystemExit(_say(f"error: {error}", 2)) from None
        except KeyboardInterrupt:
            raise SystemExit(_say(f"stopped; resume with: {_command(argv, resume)}", 130)) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise SystemExit(_say(f"error: {error.filename or 'a file'}: {reason(error)}", 2)) from None

    return guarded


def _command(argv: Sequence[str] | None, resume: str) -> str:
    arguments = list(sys.argv[1:] if argv is None else argv)
    extra = [resume] if resume and resume not in arguments else []
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # set under `python -m`
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else [sys.argv[0]]
    return shlex.join(["python", *program, *arguments, *extra])


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
