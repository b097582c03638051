"""retrain.py with several processes that it starts itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.runs import Run
from retrain import main
from tests import ROOT
from tests.retrain.runs import arguments, refused


def lines(path) -> list[dict]:
    return [row | {"seconds": 0} for row in Run(path).read_log()]


def test_two_processes_train_one_network_and_one_does_not_continue_it(folder, tmp_path, quick, capsys):
    words = arguments(folder, tmp_path, "--float-epochs", "1", epochs=2)
    run = Run(main([*words, "--processes", "2"]))
    assert [row["step"] for row in run.read_log()] == [6, 12]  # 72 images, 12 in a step of both
    assert run.load_checkpoint()["ranks"] == run.read_json("config.json")["processes"] == 2
    assert run.read_json("metrics.json")["parity"]["refused"] is None and run.has("int8.onnx")
    assert "was begun by 2, and these are 1; add --processes 2" in refused(capsys, [*words, "--processes", "1"])
    assert main(words) == run.path  # without the flag with as many as before; nothing is left to train


@pytest.mark.parametrize(
    "words, message",
    [
        (["--processes", "5"], "batch_size: 12, must be a multiple of the 5 processes"),
        (["--processes", "0"], "processes: 0, must be at least 1"),
    ],
)
def test_a_number_that_cannot_be_is_refused(folder, tmp_path, quick, capsys, words, message):
    assert message in refused(capsys, [*arguments(folder, tmp_path), *words])


@pytest.mark.slow
def test_a_run_of_two_processes_that_was_killed_goes_on_to_the_same_bits(folder, tmp_path):
    words = [*arguments(folder, tmp_path, "--checkpoint-seconds", "0", epochs=12), "--processes", "2", "--name"]
    command = [sys.executable, str(ROOT / "retrain.py"), *words]
    assert subprocess.run([*command, "whole"], capture_output=True).returncode == 0
    log = tmp_path / "killed" / "log.jsonl"
    for victim, rows in (("rank 1", 2), ("rank 0", 5)):
        process = subprocess.Popen([*command, "killed"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not log.exists() or log.read_text().count("\n") < rows:
            time.sleep(0.02)
            assert process.poll() is None, process.communicate()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(process.pid if victim == "rank 0" else int(children[-1]), signal.SIGKILL)
        out, err = process.communicate(timeout=120)
        assert process.returncode != 0 and "Traceback" not in err
        assert victim == "rank 0" or "the same command goes on" in err
    done = subprocess.run([*command, "killed"], capture_output=True, text=True)
    assert done.returncode == 0 and "going on at step" in done.stdout, done.stderr
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")
