"""The programs as two ranks, which torchrun starts or they themselves."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from common.runs import Run
from nas import Architecture
from tests import ROOT
from tests.latency_lut.tables import made_up
from tests.retrain.conftest import folder  # noqa: F401 (a fixture)
from tests.retrain.runs import arguments
from tests.spaces import tiny_space

pytestmark = pytest.mark.slow


def torchrun(program: str, *words, flags=(), cwd=ROOT) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *flags,
        str(ROOT / program),
        *words,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def two_processes(program: str, *words, cwd=ROOT) -> subprocess.Popen:
    """The program that starts its second rank itself."""
    command = [sys.executable, str(ROOT / program), *words, "--processes", "2"]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_retrain_under_torchrun(folder, tmp_path):  # noqa: F811
    process = torchrun("retrain.py", *arguments(folder, tmp_path, "--float-epochs", "1", epochs=2))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    run = Run(tmp_path / "tiny_int8")
    assert [row["step"] for row in run.read_log()] == [6, 12]  # 72 images, 12 in a step of two ranks
    assert run.load_checkpoint()["ranks"] == 2 and run.has("int8.onnx") and run.has("report.html")
    assert run.read_json("config.json")["command"].startswith("torchrun --nproc-per-node 2 retrain.py ")
    assert out.count("parity on fbgemm") == 1 and "Traceback" not in err


def test_a_mistake_is_said_once(folder, tmp_path):  # noqa: F811
    process = torchrun("retrain.py", *arguments(folder, tmp_path, epochs=0))
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and err.count("error: epochs: 0, must be at least 1") == 1
    assert not (tmp_path / "tiny_int8").exists()


def test_a_run_that_lost_a_process_goes_on_to_the_same_end(folder, tmp_path):  # noqa: F811
    """kill -9 of one rank: the other stops, torchrun starts both again, they go on from the last checkpoint."""
    words = [*arguments(folder, tmp_path, "--float-only", "--checkpoint-seconds", "0", epochs=30), "--name"]
    whole = torchrun("retrain.py", *words, "whole")
    assert whole.wait(300) == 0
    process = torchrun("retrain.py", *words, "killed", flags=("--max-restarts", "1"))
    log = tmp_path / "killed" / "log.jsonl"
    while not log.exists() or log.read_text().count("\n") < 3:
        time.sleep(0.05)
        assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "going on at step" in out, err
    first, second = (Run(tmp_path / name).read_log() for name in ("whole", "killed"))
    for row in (*first, *second):
        del row["seconds"]
    assert first == second and len(first) == 30


@pytest.mark.parametrize("launcher", ["torchrun", "--processes"])
def test_search_with_two_ranks(folder, tmp_path, launcher):  # noqa: F811
    """A space of one's own, so that the program finds a tiny one; two ranks end in one architecture."""
    code = (
        "from tests.spaces import tiny_space\n\n"
        "def tiny(width, input_size, num_classes): return tiny_space(input_size, num_classes)\n"
    )
    (tmp_path / "own.py").write_text(code)
    made_up(tmp_path / "table.json", replace(tiny_space(16, 3), name="own:tiny")).save()
    numbers = {
        "target-ms": 30,
        "base-steps": 3,
        "float-steps": 3,
        "quant-steps": 3,
        "joint-steps": 6,
        "batch-size": 8,
        "rescored": 2,
        "controls": 2,
        "score-images": 6,
        "tune-steps": 2,
        "input-size": 16,
    }
    words = [
        "--latency-lut",
        str(tmp_path / "table.json"),
        "--space",
        "own:tiny",
        "--data",
        "imagefolder",
        "--data-root",
        str(folder),
        "--runs",
        str(tmp_path),
        *(word for name, value in numbers.items() for word in (f"--{name}", str(value))),
    ]
    start = torchrun if launcher == "torchrun" else two_processes
    process = start("search.py", *words, cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    run = Run(tmp_path / "frostnet_a")
    assert [row["step"] for row in run.read_log()] == list(range(15)) and run.load_checkpoint()["ranks"] == 2
    tiny_space(16, 3).choice_of(Architecture.load(run.path / "arch.json"))  # raises where the space does not hold it
    assert out.count("chosen ") == 1 and "Traceback" not in err
