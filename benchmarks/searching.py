"""Tables and searches as steps of a study: the programs themselves, as a user would start them."""

import os
import subprocess
import sys
from pathlib import Path

import latency_lut.__main__ as latency_lut_program
from benchmarks.alone import SIZE
from common.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def measure_table(path: Path, engine: str, width: float, space: str = "frostnet") -> None:
    """Measure a space at 32 px into a table; goes on with one that was begun."""
    latency_lut_program.main(
        words(engine=engine, output=path, input_size=SIZE, width=width, num_classes=10, space=space)
    )


def run_search(runs: str, name: str, **flags) -> None:
    """search.py in a process of its own on one thread; its output goes to runs/NAME.log.

    Raises UserError where it fails.
    """
    command = [sys.executable, str(ROOT / "search.py"), *words(name=name, runs=Path(runs).resolve(), **flags)]
    log = Path(runs) / f"{name}.log"
    with open(log, "a") as file:
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT
        )
    if done.returncode:
        raise UserError(f"search.py stopped with exit code {done.returncode}; see {log}")


def words(**flags) -> list[str]:
    """A command line: input_size=32 is --input-size 32."""
    return [word for key, value in flags.items() for word in ("--" + key.replace("_", "-"), str(value))]
