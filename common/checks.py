"""Hand-written checks of JSON from outside: each returns the value or raises UserError naming the field's path."""

import math
from collections.abc import Sequence
from typing import Any

from common.errors import UserError


def check_object(path: str, value: Any, keys: Sequence[str] | None = None) -> dict:
    """A JSON object; with `keys`, one that has exactly these."""
    if not isinstance(value, dict):
        raise UserError(f"{path}: {_shown(value)}, must be an object")
    if keys is not None:
        missing, unknown = [k for k in keys if k not in value], [k for k in value if k not in keys]
        if missing:
            raise UserError(f"{path}.{missing[0]}: missing".removeprefix("."))
        if unknown:
            raise UserError(f"{path}.{unknown[0]}: unknown; the fields are {', '.join(keys)}".removeprefix("."))
    return value


def check_list(path: str, value: Any, least: int = 0) -> list:
    if not isinstance(value, list) or len(value) < least:
        raise UserError(f"{path}: {_shown(value)}, must be a list" + (f" of at least {least}" if least else ""))
    return value


def check_number(path: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
        raise UserError(f"{path}: {_shown(value)}, must be a number from {low:g} to {high:g}")
    return float(value)


def check_int(path: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"{path}: {_shown(value)}, must be a whole number from {low} to {high}")
    return value


def check_str(path: str, value: Any, choices: Sequence[str] | None = None) -> str:
    if not isinstance(value, str) or (choices is not None and value not in choices):
        raise UserError(f"{path}: {_shown(value)}, must be {' or '.join(map(repr, choices)) if choices else 'a text'}")
    return value


def check_strs(path: str, value: Any, least: int = 0) -> tuple[str, ...]:
    return tuple(check_str(f"{path}[{i}]", item) for i, item in enumerate(check_list(path, value, least)))


def _shown(value: Any) -> str:
    """The value, or its beginning, as the file has it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
