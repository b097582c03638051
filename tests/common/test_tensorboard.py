"""The log as TensorBoard events: the same numbers at the same steps, also after a run was killed and went on."""

import logging
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.runs import Run
from tests import ROOT


def _scalars(path) -> dict[str, dict[int, float]]:
    """tag -> {step: value} of a run's events. A step that stands twice fails."""
    events = EventAccumulator(str(path / "tensorboard")).Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        assert len(dict(points)) == len(points), f"{tag}: a step stands twice"
        found[tag] = dict(points)
    return found


def _flushed(run: Run) -> dict[str, dict[int, float]]:
    run.save_checkpoint({})
    return _scalars(run.path)


def test_numbers_become_events_and_words_do_not(tmp_path):
    run = Run(tmp_path)
    run.append_log({"phase": "begin", "loss": 9.0})  # no step: nowhere to draw it
    run.append_log({"step": 3, "phase": "joint", "loss": 2.5, "val_loss": None, "frozen": True, "epoch": 1})
    run.append_log({"step": 4, "phase": "joint", "loss": float("nan"), "epoch": 1})
    assert _flushed(run) == {"loss": {3: 2.5}, "epoch": {3: 1.0, 4: 1.0}}


def test_a_loss_that_is_not_finite_is_no_event_and_no_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        Run(tmp_path).append_log({"step": 1, "loss": float("inf")})
    assert caplog.text == ""


def test_a_rewound_log_shows_no_step_twice(tmp_path):
    run = Run(tmp_path)
    for step in range(6):
        run.append_log({"step": step, "loss": float(step)})
    run.save_checkpoint({})
    again = Run(tmp_path)
    again.rewind_log(2)
    for step in range(3, 5):
        again.append_log({"step": step, "loss": 10.0 + step})
    assert _flushed(again) == {"loss": {0: 0.0, 1: 1.0, 2: 2.0, 3: 13.0, 4: 14.0}}
    assert [row["loss"] for row in again.read_log()] == [0.0, 1.0, 2.0, 13.0, 14.0]


KILLED = """
import os, sys
import nas.report.page
from common.runs import Run
assert "tensorboard" not in sys.modules, "a slow import, not needed to read runs"
run = Run(sys.argv[1])
for step in range(10):
    run.append_log({"step": step, "loss": float(step)})
    if step == 6:
        run.save_checkpoint({"step": step})
os.kill(os.getpid(), 9)
"""


def test_what_was_logged_before_the_last_checkpoint_survives_kill_9(tmp_path):
    killed = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (killed.returncode, killed.stderr) == (-9, "")
    time.sleep(1.1)  # files of events are read in the order of their seconds; no killed program is back within one
    run = Run(tmp_path)
    run.rewind_log(run.load_checkpoint()["step"])
    run.append_log({"step": 7, "loss": 70.0})
    assert _flushed(run) == {"loss": {**{step: float(step) for step in range(7)}, 7: 70.0}}


@pytest.mark.parametrize("restart", [True, False])
def test_a_run_that_begins_anew_has_no_events_of_an_earlier_one(tmp_path, restart):
    before = Run(tmp_path)
    before.claim({})
    before.append_log({"step": 1, "loss": 1.0})
    if restart:
        before.save_checkpoint({})
    del before
    run = Run(tmp_path)
    assert run.claim({}, restart=restart) is False
    run.append_log({"step": 0, "loss": 2.0})
    assert run.read_log() == [{"step": 0, "loss": 2.0}]
    assert _flushed(run) == {"loss": {0: 2.0}}


def test_a_program_that_ends_without_a_checkpoint_leaves_its_events(tmp_path):
    run = Run(tmp_path)
    run.append_log({"step": 1, "loss": 1.0})
    del run
    assert _scalars(tmp_path) == {"loss": {1: 1.0}}
