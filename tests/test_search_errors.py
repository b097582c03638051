"""What a search refuses, and what it says: the field, its value and how to fix it."""

# ruff: noqa: F811 (fixtures that are imported)

import json
from pathlib import Path

import pytest
import torch

import search
from common.runs import Run
from tests.search_program import ended, once, pictures, refused, world  # noqa: F401


def test_only_one_space_is_asked_for(world, capsys):
    assert "bottleneck: is placed by" in refused(capsys, [*world, "--space", "bottleneck", "--bottleneck", "b.json"])
    assert "space: 'nonsense'" in refused(capsys, [*world, "--space", "nonsense"])


def test_an_impossible_target_fails_at_once_with_the_feasible_range(world, tmp_path, capsys):
    message = refused(capsys, [*world, "--target-ms", "0.0001"])
    assert not (tmp_path / "runs").exists()
    assert "target_ms: 0.0001" in message and " to " in message and "ms" in message


@pytest.mark.parametrize(
    "words",
    [
        ["--batch-size", "0"],
        ["--rescored", "0"],
        ["--seed", "-1"],
        ["--joint-steps", "0"],
        ["--lr", "0"],
        ["--train-images", "3"],
    ],
)
def test_impossible_settings_are_named(world, words, capsys):
    assert words[0][2:].replace("-", "_") + ": " + words[1] in refused(capsys, [*world, *words]).replace("0.0", "0")


def test_a_checkpoint_of_something_else_is_refused(world, ended, capsys):
    (ended / "metrics.json").unlink()
    Run(ended).save_checkpoint({"model": {}})
    assert "not of this search" in refused(capsys, world)


def test_a_folder_of_another_program_is_left_alone(world, tmp_path, capsys):
    run = Run(tmp_path / "runs" / "frostnet_a")
    run.claim({"program": "retrain"})
    run.save_checkpoint({"model": {}})
    assert "another program" in refused(capsys, [*world, "--restart"])
    assert run.has("checkpoint.pt")


def test_a_missing_table_names_the_command_that_makes_it(world, tmp_path, capsys):
    message = refused(capsys, ["--latency-lut", str(tmp_path / "none.json"), *world[2:]])
    assert "none.json" in message and "latency_lut" in message


def test_an_input_size_that_was_not_measured_names_the_command_that_adds_it(world, capsys):
    message = refused(capsys, [*world, "--input-size", "48"])
    assert "48" in message and "python -m latency_lut" in message


def test_a_missing_data_folder_is_named(world, tmp_path, capsys):
    assert "no_such_folder" in refused(capsys, [*world, "--data-root", str(tmp_path / "no_such_folder")])


def test_a_broken_checkpoint_is_named_and_left_alone(world, ended, capsys):
    (ended / "metrics.json").unlink()
    broken = (ended / "checkpoint.pt").read_bytes()[:1000]
    (ended / "checkpoint.pt").write_bytes(broken)
    assert "checkpoint.pt" in refused(capsys, world)
    assert (ended / "checkpoint.pt").read_bytes() == broken


def test_a_loss_that_is_not_a_number_names_the_step(world, monkeypatch, capsys):
    monkeypatch.setattr(search.F, "cross_entropy", lambda out, y: out.sum() * float("nan"))
    assert "loss: nan at step 0" in refused(capsys, world)


def test_another_engine_or_torch_is_refused(world, capsys):
    path = Path(world[1])
    data = json.loads(path.read_text())
    data["meta"]["torch"] = "1.0"
    path.write_text(json.dumps(data))
    message = refused(capsys, world)
    assert "torch" in message and torch.__version__ in message and "python -m latency_lut" in message
