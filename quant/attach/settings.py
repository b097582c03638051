"""Settings files: what `QuantConfig` says, as JSON that anybody may have written.

{
 "weight": "dorefa:3", "activation": "pact:4", "op_types": ["conv", "linear", "deconv"],
 "skip_first": {"conv": 1}, "ignore": ["stage4.*"],
 "overrides": [{"match": "fc*", "weight": "int8:8", "activation": "float"}]
}

The keys are the fields of QuantConfig; what is missing keeps its default. Nothing is guessed: an unknown key, a value
of another type, or a name of nothing is a QuantError with the field, the value and how to fix it.
"""

import json
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quant.attach.config import OP_TYPES, Override, QuantConfig
from quant.errors import QuantError


def load_settings(path: str | Path, **defaults: Any) -> QuantConfig:
    """Read a configuration from a JSON file.

    Args:
        path: the file.
        defaults: for the fields that it leaves out.

    Raises:
        QuantError: the file is not one of settings; the message names file and field.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        settings = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except OSError as error:
        raise QuantError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # also JSONDecodeError, UnicodeDecodeError and QuantError
        raise QuantError(f"{path}: not a settings file in JSON ({error})") from error
    try:
        return config_from(settings, **defaults)
    except QuantError as error:
        raise QuantError(f"{path}: {error}") from error


def config_from(settings: Any, **defaults: Any) -> QuantConfig:
    """The configuration that a value read from JSON describes. Raises QuantError."""
    given = _fields("settings", settings, _READERS)
    return QuantConfig(**(defaults | {name: _READERS[name](name, value) for name, value in given.items()}))


# ---- readers: (field, value from JSON) -> value of the configuration ---------------------------------------


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > 200 or not value.isascii():
        raise _wrong(field, value, 'write a short text in quotes, as in "int8:8" or "layer1.*"')
    return value


def _text_or_null(field: str, value: Any) -> str | None:
    return None if value is None else _text(field, value)


def _flag(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(field, value, "write true or false")
    return value


def _count(field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise _wrong(field, value, "write a whole number from 0 on")
    return value


def _counts(field: str, value: Any) -> dict[str, int]:
    """{"conv": 1}: how many of each kind."""
    given = _fields(field, value, OP_TYPES)
    return {kind: _count(f"{field}.{kind}", number) for kind, number in given.items()}


def _op_types(field: str, value: Any) -> tuple[str, ...] | None:
    return None if value is None else _texts(field, value)


def _override(field: str, value: Any) -> Override:
    given = _fields(field, value, Override.__dataclass_fields__)
    override = Override(
        **{"match": ""} | {name: _text_or_null(f"{field}.{name}", text) for name, text in given.items()}
    )
    if not override.match or override == Override(override.match):
        raise _wrong(field, value, 'say which layers and what of them, as in {"match": "fc*", "weight": "int8:8"}')
    return override


def _list_of(read: Callable[[str, Any], Any]) -> Callable[[str, Any], tuple]:
    """A reader of lists whose items `read` reads."""

    def items(field: str, value: Any) -> tuple:
        if not isinstance(value, list):
            raise _wrong(field, value, "write a list in square brackets")
        return tuple(read(f"{field}[{i}]", item) for i, item in enumerate(value))

    return items


_texts = _list_of(_text)

_READERS = {
    "engine": _text,
    "weight": _text,
    "activation": _text,
    "residual": _text,
    "gradient": _text_or_null,
    "op_types": _op_types,
    "skip_first": _counts,
    "skip_last": _counts,
    "ignore": _texts,
    "overrides": _list_of(_override),
    "share": _list_of(_texts),
    "freeze_bn": _flag,
    "quantize_input": _flag,
    "seed": _count,
}  # every field of QuantConfig


def _fields(field: str, value: Any, known) -> dict[str, Any]:
    """`value` if it is an object with keys from `known` only."""
    if not isinstance(value, dict):
        raise _wrong(field, value, 'write an object in curly brackets, {"name": value}')
    unknown = next((key for key in value if key not in known), None)
    if unknown is not None:
        raise QuantError(f"{field}: {_short(unknown)} is not known here; choose from {', '.join(known)}")
    return value


def _wrong(field: str, value: Any, fix: str) -> QuantError:
    return QuantError(f"{field}: {_short(value)}; {fix}")


def _short(value: Any) -> str:
    return reprlib.repr(value)  # a stranger's value may be long or deep


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict:
    """A JSON object; of a key that stands twice one value would be lost silently."""
    settings = dict(pairs)
    if len(settings) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise QuantError(f"{_short(twice)} stands there twice: leave one")
    return settings


def _no_constant(name: str) -> None:
    raise QuantError(f"{name} is not a JSON number")
