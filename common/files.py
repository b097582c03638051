"""JSON and binary files: written whole or not at all, read with errors that name the file."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

from common.errors import UserError

_LINE = 180  # characters; a JSON list or object that is no longer stands on one line


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically: a temporary file beside it, fsync, then rename.

    Whatever goes wrong, full disk and Ctrl-C included, the old file stays as it was. Raises UserError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # already renamed unless something failed
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)}); what was there before is unchanged") from error


def reason(error: OSError) -> str:
    """A text for an OSError: what it means and how to fix it."""
    texts = {
        errno.ENOSPC: "the disk is full: free some space, then run the same command again",
        errno.EDQUOT: "the disk quota is used up: free some space, then run the same command again",
        errno.EACCES: "no permission: choose a folder that you can write to",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.EISDIR: "that is a folder: give a file name",
        errno.ENOTDIR: "a part of the path is a file: choose another folder",
        errno.EEXIST: "a part of the path is a file: choose another folder",
    }
    return texts.get(error.errno, error.strerror or str(error))


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically, short containers on one line. Numbers that are not finite become null."""
    write_bytes(path, (_pretty(plain(value)) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises UserError naming the file when it is missing or is not JSON."""
    try:
        return json.loads(read_bytes(path), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{path}: not a whole JSON file ({error}); restore it or make it anew") from error


def read_bytes(path: str | Path) -> bytes:
    """The content of a file. Raises UserError naming the file."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def plain(value: Any) -> Any:
    """`value` in terms of what JSON has: tuples become lists, paths strings, NaN and infinities null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _pretty(value: Any, indent: int = 0) -> str:
    line = json.dumps(value, allow_nan=False)
    if len(line) + indent <= _LINE or not isinstance(value, (dict, list)):
        return line
    inner = " " * (indent + 1)
    if isinstance(value, dict):
        rows = [f"{inner}{json.dumps(key)}: {_pretty(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"
    rows = [inner + _pretty(item, indent + 1) for item in value]
    return "[\n" + ",\n".join(rows) + "\n" + " " * indent + "]"
