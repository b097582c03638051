"""A search that is stopped goes on to the same end, and one that has ended is left as it is."""

# ruff: noqa: F811 (fixtures that are imported)

import os
import signal
import subprocess
import sys
import time

import pytest

import search
import supernet
from nas import SPACES
from supernet.selection import Evaluator
from tests import ROOT
from tests.latency_lut.tables import made_up
from tests.search_program import SMALL, arch_without_provenance, ended, log, once, pictures, refused, world  # noqa: F401


# in the base, float and quantized phase, and after steps of the alphas; test_loop stops in the other phases, too
@pytest.mark.parametrize("stop", [*(pytest.param(stop, marks=pytest.mark.slow) for stop in (2, 4, 8)), 12])
def test_a_stopped_search_goes_on_to_the_same_end(world, once, stop, monkeypatch, capsys):
    step = supernet.Search.step

    def stops(self):
        if self.step_index == stop:
            raise KeyboardInterrupt
        return step(self)

    again = [*world, "--name", "again", "--checkpoint-seconds", "0"]
    monkeypatch.setattr(supernet.Search, "step", stops)
    with pytest.raises(SystemExit) as stopped:
        search.main(again)
    assert stopped.value.code == 130
    assert "resume with" in capsys.readouterr().err
    monkeypatch.setattr(supernet.Search, "step", step)
    path = search.main(again)
    assert log(path) == log(once)
    assert arch_without_provenance(path) | {"name": ""} == arch_without_provenance(once) | {"name": ""}


PROGRAM = """
import sys, search
# no two timings are alike
search.measure = lambda archs, *_: {name: 1e-3 * len(arch.blocks) for name, arch in archs.items()}
search.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_search_killed_in_every_phase_goes_on_to_the_same_end(tmp_path, pictures):
    """kill -9 in each phase and while networks are evaluated, then the same command to the end: everything is as if it
    had not been killed.
    """
    space = SPACES["frostnet"](0.35, 32, 4)
    made_up(tmp_path / "table.json", space).save()
    words = [
        "--latency-lut",
        str(tmp_path / "table.json"),
        "--width",
        "0.35",
        "--data",
        "imagefolder",
        "--data-root",
        str(pictures),
        "--target-ms",
        "30",
        *SMALL,
        "--input-size",
        "32",
        "--checkpoint-seconds",
        "0",
        "--name",
        "found",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def command(runs):
        return [sys.executable, "-c", PROGRAM, *words, "--runs", str(tmp_path / runs)]

    def reached(path, lines):
        if lines is None:
            return (path / "rescored.json").is_file()
        return (path / "log.jsonl").is_file() and log(path).count("\n") >= lines

    subprocess.run(command("whole"), check=True, env=environment, capture_output=True)
    killed = tmp_path / "killed" / "found"
    for lines in (2, 5, 8, 11, 13, None):
        process = subprocess.Popen(
            command("killed"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not reached(killed, lines):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    subprocess.run(command("killed"), check=True, env=environment, capture_output=True)
    whole = tmp_path / "whole" / "found"
    for name in ("log.jsonl", "alphas.jsonl", "rescored.json", "front.json", "metrics.json", "space.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert arch_without_provenance(killed) == arch_without_provenance(whole)


def test_a_search_stopped_while_networks_are_evaluated_does_not_evaluate_them_again(world, once, ended, monkeypatch):
    evaluated, accuracies = [], Evaluator.accuracies

    def stops(self, choice):
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        evaluated.append(choice)
        return accuracies(self, choice)

    for name in ("metrics.json", "rescored.json", "front.json"):
        (ended / name).unlink()
    monkeypatch.setattr(Evaluator, "accuracies", stops)
    with pytest.raises(SystemExit):
        search.main(world)
    monkeypatch.setattr(
        Evaluator, "accuracies", lambda self, choice: evaluated.append(choice) or accuracies(self, choice)
    )
    path = search.main(world)
    assert len(evaluated) == len(set(evaluated)) == 4
    assert (path / "front.json").read_text() == (once / "front.json").read_text()


def test_a_search_that_has_ended_is_left_as_it_is(world, ended, capsys):
    path = ended
    before = {file.name: file.stat().st_mtime_ns for file in path.glob("*.pt")} | {
        "arch": (path / "arch.json").read_bytes()
    }
    assert search.main(world) == path
    assert "has ended" in capsys.readouterr().out
    assert before == {file.name: file.stat().st_mtime_ns for file in path.glob("*.pt")} | {
        "arch": (path / "arch.json").read_bytes()
    }


def test_other_settings_are_not_mixed_into_a_run(world, ended, capsys):
    message = refused(capsys, [*world, "--lr", "0.01"])
    assert "lr" in message and "--restart" in message
    assert search.main([*world, "--lr", "0.01", "--restart"]).name == "frostnet_a"
