"""A file of a run that is not as it must be is refused, with its name and the field."""

import json

import pytest

from common.errors import UserError
from nas.cost import cost
from nas.report.page import write_report
from tests.nas.report.pages import LATER, NET, ROW


def test_latencies_of_another_network_are_refused(run):
    for parts, words in (
        ({"stem": 1.0}, r"parts\.blocks\.0: missing"),
        ({row.name: 1.0 for row in cost(NET).rows} | {"blocks.99": 1.0}, r"parts\.blocks\.99: unknown"),
        (["stem"], r"parts: \['stem'\], must be an object"),
    ):
        run.write_json("latency.json", {"parts": parts})
        with pytest.raises(UserError, match=rf"latency\.json: {words}"):
            write_report(run.path)


@pytest.mark.parametrize("value", [0, -1.0, None, True, "1", 1e40])
def test_a_latency_that_is_none_is_refused(run, value):
    run.write_json("latency.json", {"parts": {row.name: 1.0 for row in cost(NET).rows} | {"head": value}})
    with pytest.raises(UserError, match=r"latency\.json: parts\.head: .*, must be a number above 0"):
        write_report(run.path)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "front.json", "latency.json"])
def test_a_file_that_holds_no_object_is_named(run, name):
    run.write_json(name, [1])
    with pytest.raises(UserError, match=rf"{name}: \[1\], must be an object"):
        write_report(run.path)


@pytest.mark.parametrize(
    "data, words",
    [
        ({"points": 1}, "points: 1, must be a list"),
        ({"networks": [1]}, r"networks\[0\]: 1, must be an object"),
        ({"points": [{"latency_ms": 1.0}]}, r"points\[0\]\.score: None, must be a number"),
        ({"networks": [{"latency_ms": "1"}]}, r"networks\[0\]\.latency_ms: '1', must be a number"),
        ({"networks": [{"latency_ms": 1.0, "kind": ["x"]}]}, r"networks\[0\]\.kind: \['x'\], must be a text"),
    ],
)
def test_a_broken_front_is_refused(run, data, words):
    run.write_json("front.json", data)
    with pytest.raises(UserError, match=rf"front\.json: {words}"):
        write_report(run.path)


@pytest.mark.parametrize(
    "health, words",
    [
        (1, "health: 1, must be an object"),
        ({"warnings": "x"}, "health.warnings: 'x', must be a list"),
        ({"warnings": [1]}, r"health.warnings\[0\]: 1, must be a text"),
    ],
)
def test_a_broken_health_is_refused(run, health, words):
    run.write_json("metrics.json", {"health": health})
    with pytest.raises(UserError, match=rf"metrics\.json: {words}"):
        write_report(run.path)


# ---- alphas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        ({"step": "x"}, "row 2: step: 'x', must be a number"),
        ({"ops": [[[1.0]]]}, r"row 2: ops: \[.*\], must be a list of 2 items"),
        ({"depths": None}, "row 2: depths: None, must be a list of 2 items"),
        ({"ops": [[[1.0]], [[0.5, 0.5]]]}, r"row 2: ops\[1\]: .*, must be a list of 2 items"),
        ({"ops": [[[1.0]], [[0.5, 0.5], [0.5, 0.5]]]}, r"row 2: ops\[1\]\[1\]: .*, must be a list of 3 items"),
        (
            {"ops": [[[1.0]], [[0.5, 0.5], [0.5, "x", 0]]]},
            r"row 2: ops\[1\]\[1\]: 'x', must be a number from 0 to 1.001",
        ),
        ({"depths": [[1.0], [0.5, 1.5]]}, r"row 2: depths\[1\]: 1.5, must be a number from 0 to 1.001"),
        ({"depths": [[1.0], [0.5, float("nan")]]}, r"row 2: depths\[1\]: nan, must be a number from 0 to 1.001"),
    ],
)
def test_alphas_that_do_not_fit_the_space_are_refused(moved, change, words):
    (moved.path / "alphas.jsonl").write_text(f"{json.dumps(ROW)}\n{json.dumps(LATER | change)}")
    with pytest.raises(UserError, match=rf"alphas\.jsonl: {words}"):
        write_report(moved.path)


@pytest.mark.parametrize(
    "space, words",
    [
        ([], r"\[\], must be an object"),
        ({}, "stages: None, must be a list of at least 1"),
        ({"stages": []}, r"stages: \[\], must be a list of at least 1"),
        (
            {"stages": [{"min_depth": 1, "slots": [[1]]}]},
            r"stages\[0\]\.slots\[0\]\[0\]: 1, must be a text",
        ),
        (
            {"stages": [{"min_depth": 2, "slots": [["a"]]}]},
            r"stages\[0\]\.min_depth: 2, must be a whole number from 0 to 1",
        ),
    ],
)
def test_a_broken_space_is_refused(moved, space, words):
    moved.write_json("space.json", space)
    with pytest.raises(UserError, match=rf"space\.json: {words}"):
        write_report(moved.path)
