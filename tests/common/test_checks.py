import json
import math
from types import SimpleNamespace

import pytest

from common.checks import (
    check_choice,
    check_fields,
    check_format,
    check_int,
    check_list,
    check_number,
    check_object,
    check_str,
    check_strs,
    shown,
)
from common.errors import UserError


@pytest.mark.parametrize(
    ("check", "value", "arguments"),
    [
        (check_object, {"a": 1}, [("a",)]),
        (check_list, [1], [1]),
        (check_number, 2.5, [0, 3]),
        (check_int, -3, []),
        (check_str, "text", []),
        (check_choice, 3, [(1, 3)]),
    ],
)
def test_a_check_returns_the_value(check, value, arguments):
    assert check("field", value, *arguments) is value


def test_numbers_become_floats_and_lists_of_texts_tuples():
    assert type(check_number("x", 2)) is float
    assert check_strs("x", ["a", "b"]) == ("a", "b")


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (lambda v: check_object("a", v), [1], "a: [1], must be an object"),
        (lambda v: check_object("", v), [], "the file: [], must be an object"),
        (lambda v: check_object("a", v, ("b", "c")), {"b": 1}, "a.c: missing"),
        (lambda v: check_object("", v, ("b",)), {"b": 1, "c": 2}, "c: unknown; the fields are b"),
        (lambda v: check_list("a", v), {}, "a: {}, must be a list"),
        (lambda v: check_list("a", v, 1), [], "a: [], must be a list of at least 1"),
        (lambda v: check_list("a", v, 1, 2), [1, 2, 3], "a: [1, 2, 3], must be a list of 1 to 2 items"),
        (lambda v: check_list("a", v, 3, 3), [1], "a: [1], must be a list of 3 items"),
        (lambda v: check_number("a", v), "1", "a: '1', must be a number"),
        (lambda v: check_number("a", v), True, "a: True, must be a number"),
        (lambda v: check_number("a", v), math.nan, "a: nan, must be a number"),
        (lambda v: check_number("a", v, 0, 1.5), 2, "a: 2, must be a number from 0 to 1.5"),
        (lambda v: check_number("a", v, above=0), 0, "a: 0, must be a number above 0"),
        (lambda v: check_number("a", v, 0, below=1), 1, "a: 1, must be a number from 0 and below 1"),
        (lambda v: check_int("a", v, 1, 8192), 2.0, "a: 2.0, must be a whole number from 1 to 8192"),
        (lambda v: check_int("a", v, 1), 0, "a: 0, must be a whole number from 1"),
        (lambda v: check_int("a", v, 0, 1), True, "a: True, must be a whole number from 0 to 1"),
        (lambda v: check_str("a", v), None, "a: None, must be a text"),
        (lambda v: check_str("a", v, longest=2), "abc", "a: 'abc', must be a text of at most 2 characters"),
        (lambda v: check_str("a", v, ("x", "y", "z")), "w", "a: 'w', must be 'x', 'y' or 'z'"),
        (lambda v: check_strs("a", v), ["x", 1], "a[1]: 1, must be a text"),
        (lambda v: check_choice("a", v, (1, 3)), True, "a: True, must be 1 or 3"),
        (lambda v: check_choice("a", v, ("x",)), ["x"], "a: ['x'], must be 'x'"),
    ],
)
def test_a_wrong_value_is_named_with_its_path_and_what_it_must_be(check, value, message):
    with pytest.raises(UserError) as error:
        check(value)
    assert str(error.value) == message


def test_a_header_is_checked_before_the_fields():
    whole = {"format": "network", "version": 2, "name": "a"}
    assert check_format(whole, "network", 2, ("name",)) is whole
    assert check_format(whole | {"more": 1}, "network", 2) == whole | {"more": 1}
    for changes, message in (
        ({"format": "latency"}, "format: 'latency', must be 'network'"),
        ({"version": True}, "version: True, must be 2"),
        ({"version": 1, "more": 1}, "version: 1, must be 2"),
        ({"more": 1}, "more: unknown; the fields are format, version, name"),
    ):
        with pytest.raises(UserError, match=message):
            check_format(whole | changes, "network", 2, ("name",))
    with pytest.raises(UserError, match="the file: 3, must be an object"):
        check_format(3, "network", 2)


def test_a_number_that_no_float_holds_is_refused():
    huge = json.loads("1" + "0" * 400)
    with pytest.raises(UserError, match=r"^a: 1000.*\.\.\., must be a number$"):
        check_number("a", huge)
    assert check_int("a", huge) == huge


def test_a_long_or_deeply_nested_value_is_shown_by_its_start():
    deep = []
    for _ in range(5000):
        deep = [deep]
    for value in ("x" * 1000, list(range(1000)), {"a" * 50: "b" * 50}, deep):
        assert len(shown(value)) <= 60


def test_the_fields_of_a_config_are_checked_each_item_of_a_tuple_and_none_passes():
    config = SimpleNamespace(threads=4, sizes=(16, 8), seed=None)
    check_fields(config, {"threads": (1, 4), "seed": (0, 9)})
    with pytest.raises(UserError, match="sizes: 8, must be a number from 16 to 64"):
        check_fields(config, {"sizes": (16, 64)})
