"""Runs that several tests report on."""

import pytest

from common.runs import Run
from nas.cost import cost
from tests.nas.report.pages import LATER, NET, ROW, SPACE


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "frostnet_a")
    run.write_json(
        "config.json", {"command": "python search.py --data <x>&", "seed": 0, "name": "<script>alert(1)</script>"}
    )
    NET.save(run.path / "arch.json")
    parts = {row.name: 0.1 for row in cost(NET).rows}
    run.write_json("latency.json", {"parts": parts, "predicted_ms": 1.6, "measured_ms": 1.58})
    run.append_log({"step": 1, "loss": 2.0})
    run.append_log({"step": 2, "loss": 1.0})
    run.write_json(
        "front.json", {"points": [{"latency_ms": 1.0, "score": 1.0}], "networks": [{"name": "n<1>", "latency_ms": 1.0}]}
    )
    run.write_json(
        "metrics.json",
        {
            "agreement": 0.99321,
            "steps": 12345,
            "resumed": False,
            "models": {"float": {"top1": 0.7}, "int8": {"top1": None, "ms": 1.5}},
        },
    )
    return run


@pytest.fixture
def moved(tmp_path):
    run = Run(tmp_path / "r")
    run.write_json("space.json", SPACE)
    run.write_json("metrics.json", {})
    for row in (ROW, LATER):
        run.append_log(row, "alphas.jsonl")
    return run
