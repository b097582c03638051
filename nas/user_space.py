"""Search spaces of users: a function (width, input_size, num_classes) -> SearchSpace in a Python file."""

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from common.errors import UserError
from nas.space import SearchSpace, Stage


def imported_space(name: str, module: str, function: str) -> Callable[[float, int, int], SearchSpace]:
    """The user's function (width, input_size, num_classes) -> SearchSpace, with checks of what it returns.

    Args:
        name: The space's name: "module:function".
        module: A module that Python finds, also in the working folder.
        function: The function in it.

    Raises:
        UserError: If the module does not import, or has no such function with these arguments. The returned function
            raises it if the user's function fails or returns no space to search.
    """
    return partial(_checked, name, _imported(name, module, function))


def _imported(name: str, module: str, function: str) -> Callable:
    hint = "give module:function of a Python file here, without .py"
    if "" in (*module.split("."), function):
        raise UserError(f"space: {name!r}, must be module:function; {hint}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except (Exception, SystemExit) as error:  # whatever a user's file may do
        raise UserError(
            f"space: {name!r}: module {module!r} does not import: {_text(error)}; {hint}, that imports"
        ) from error
    if not callable(found):
        raise UserError(f"space: {name!r}: module {module!r} has no function {function!r}; {hint}")
    try:
        inspect.signature(found).bind(1.0, 32, 10)
    except (TypeError, ValueError) as error:
        raise UserError(f"space: {name!r}: {function}: {error}; must take (width, input_size, num_classes)") from error
    return found


def _checked(name: str, function: Callable, width: float, input_size: int, num_classes: int) -> SearchSpace:
    """The space that the user's function returns, with `name` as its name."""
    try:
        space = function(width, input_size, num_classes)
    except (Exception, SystemExit) as error:
        raise UserError(f"space: {name!r}: {_text(error)}") from error
    if not isinstance(space, SearchSpace):
        raise UserError(f"space: {name!r} returned a {type(space).__name__}, must return a nas.SearchSpace")
    if (space.input_size, space.head.num_classes) != (input_size, num_classes):
        raise UserError(
            f"space: {name!r} returned input_size {space.input_size} and num_classes {space.head.num_classes}, was "
            f"asked for {input_size} and {num_classes}; pass its arguments on"
        )
    if not any(map(_has_choice, space.stages)):
        raise UserError(
            f"space: {name!r} holds one network; give a slot a second candidate or a stage a min_depth below its slots"
        )
    return replace(space, name=name)


def _has_choice(stage: Stage) -> bool:
    return stage.min_depth < len(stage.slots) or any(len(slot.candidates) > 1 for slot in stage.slots)


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
