"""Checks of JSON that comes from outside: each returns the value, or raises UserError.

The message names the field by its path in the file ("blocks[3].stride"), the value and what it must be. The path ""
means the whole file. A file's own loader adds the name of the file.

    data = check_format(data, "network", 1, ("name", "input_size", "classes"))
    size = check_int("input_size", data["input_size"], 8, 4096)
"""

import math
import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import UserError

LONGEST = 60  # characters of a value in a message


def check_format(data: Any, format: str, version: int, fields: Sequence[str] | None = None) -> dict:
    """The object that a whole file holds, with its header: "format" and "version".

    Args:
        data: The parsed file.
        format: What the field "format" must be.
        version: What the field "version" must be.
        fields: The other fields. If given, the object has exactly these and the header.

    Raises:
        UserError: For another format, another version, a missing or an unknown field.
    """
    check_object("", data)
    if data.get("format") != format:
        raise failure("format", data.get("format"), f"{format!r}: this is a file of another kind")
    if type(data.get("version")) is not int or data["version"] != version:
        raise failure("version", data.get("version"), f"{version}, the only version that this program reads")
    return check_object("", data, None if fields is None else ("format", "version", *fields))


def check_object(path: str, value: Any, fields: Sequence[str] | None = None) -> dict:
    """A JSON object. If `fields` is given, it has exactly these."""
    if not isinstance(value, dict):
        raise failure(path, value, "an object")
    if fields is None:
        return value
    prefix = f"{path}." if path else ""
    for name in fields:
        if name not in value:
            raise UserError(f"{prefix}{name}: missing")
    for name in value:
        if name not in fields:
            raise UserError(f"{prefix}{name}: unknown; the fields are {', '.join(fields)}")
    return value


def check_list(path: str, value: Any, least: int = 0, most: float = math.inf) -> list:
    """A list of `least` to `most` items."""
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise failure(path, value, "a list" + _length(least, most))
    return value


def is_number(value: Any, largest: float = sys.float_info.max) -> bool:
    """Whether this is an int or a float from -largest to largest: not NaN, no whole number of 400 digits, no bool."""
    return type(value) in (int, float) and abs(value) <= largest


def check_number(
    path: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> float:
    """A finite number from `low` to `high`, greater than `above` and less than `below`."""
    if not (is_number(value) and low <= value <= high and above < value < below):
        raise failure(path, value, "a number" + _bounds(low, high, above, below))
    return float(value)


def check_int(path: str, value: Any, low: float = -math.inf, high: float = math.inf) -> int:
    """A whole number from `low` to `high`, written without a decimal point."""
    if type(value) is not int or not low <= value <= high:
        raise failure(path, value, "a whole number" + _bounds(low, high))
    return value


def check_str(path: str, value: Any, choices: Sequence[str] | None = None, longest: float = math.inf) -> str:
    """A text of at most `longest` characters. If `choices` is given, one of these."""
    if choices is not None:
        return check_choice(path, value, choices)
    if not isinstance(value, str) or len(value) > longest:
        raise failure(path, value, "a text" + (f" of at most {longest} characters" if longest < math.inf else ""))
    return value


def check_strs(path: str, value: Any, least: int = 0) -> tuple[str, ...]:
    """A list of at least `least` texts."""
    return tuple(check_str(f"{path}[{i}]", item) for i, item in enumerate(check_list(path, value, least)))


def check_fields(config: Any, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Numbers in fields of a config, from low to high: every item of a tuple; None passes.

    Args:
        config: An object.
        bounds: Field -> (low, high).
    """
    for field, (low, high) in bounds.items():
        values = getattr(config, field)
        for value in values if isinstance(values, tuple) else (values,):
            if value is not None:
                check_number(field, value, low, high)


def check_choice(path: str, value: Any, choices: Sequence) -> Any:
    """One of `choices`, of the same type: 1 is neither true nor 1.0."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        *others, last = map(repr, choices)
        raise failure(path, value, f"{', '.join(others)} or {last}" if others else last)
    return value


def failure(path: str, value: Any, must_be: str) -> UserError:
    """The error for a field that has a wrong value: "path: value, must be ..."."""
    return UserError(f"{path or 'the file'}: {shown(value)}, must be {must_be}")


def shown(value: Any) -> str:
    """The value, or the start of a long one, for a message."""
    text = _SHORT.repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


_SHORT = reprlib.Repr()  # also for values nested too deeply for repr
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 2 * LONGEST


def _length(least: int, most: float) -> str:
    """Words for the allowed length of a list."""
    if most < math.inf:
        return f" of {least} items" if least == most else f" of {least} to {most} items"
    return f" of at least {least}" if least else ""


def _bounds(low: float, high: float, above: float = -math.inf, below: float = math.inf) -> str:
    """Words for the allowed range of a number, "" if all are allowed."""
    if math.isfinite(low) and math.isfinite(high):
        return f" from {_digits(low)} to {_digits(high)}"
    limits = {"from": low, "above": above, "up to": high, "below": below}
    words = [f"{word} {_digits(limit)}" for word, limit in limits.items() if math.isfinite(limit)]
    return f" {' and '.join(words)}" if words else ""


def _digits(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"
