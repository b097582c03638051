"""Cells in worker processes: one fresh process and one thread each, side by side."""

import contextlib
import importlib.metadata
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from benchmarks.cells import Cell

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


class Running(NamedTuple):
    cell: Cell
    process: BaseProcess
    started: float


class Workers:
    """The processes of running cells. Each is fresh, so that a crash or a kill for memory ends one cell alone."""

    def __init__(self, study: Any, provenance: dict):
        self.study, self.provenance = study, provenance
        self.running: dict[int, Running] = {}  # by what `wait` waits for

    def start(self, cell: Cell) -> None:
        self.study.store.forget(cell)  # a failed record, which would hide that this process leaves none
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(self.study, cell, self.provenance))
        with worker_environment():
            process.start()
        self.running[process.sentinel] = Running(cell, process, time.monotonic())

    def ended(self) -> Iterator[Cell]:
        """Wait until at least one process ends. A process that left no record makes a failed one."""
        for sentinel in wait(list(self.running)):
            cell, process, started = self.running.pop(sentinel)
            process.join()
            if self.study.store.read(cell) is None:
                seconds = round(time.monotonic() - started, 1)
                failed = {"type": "Died", "message": _death(process.exitcode)}
                self.study.store.write(cell, {"failed": failed, "seconds": seconds, **self.provenance})
            yield cell

    def close(self) -> None:
        """End what still runs."""
        for running in self.running.values():
            running.process.kill()
        for running in self.running.values():
            running.process.join()


def provenance() -> dict:
    """CPU, torch and threads of the workers, and the commit of the program."""
    from latency_lut.machine import cpu_model, revision  # imports torch, which --list does not need

    machine = {"cpu": cpu_model(), "torch": importlib.metadata.version("torch"), "threads": 1}
    return {"machine": machine, "commit": revision()}


@contextlib.contextmanager
def worker_environment() -> Iterator[None]:
    """What processes inherit that are started meanwhile: one thread, and no Ctrl-C, which this process handles."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _death(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, perhaps for lack of memory: try fewer --jobs"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code} and no result"


# ---- in the worker process ----


def _work(study: Any, cell: Cell, provenance: dict) -> None:
    """Compute one cell and write its record."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log, started = study.store.log(cell), time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if torch := sys.modules.get("torch"):  # imported with the module of the study
        torch.set_num_threads(1)
    try:
        outcome = {"row": study.run(cell, log.parent)}
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        outcome = {"failed": _failure(error)}
    study.store.write(cell, {**outcome, "seconds": round(time.monotonic() - started, 1), **provenance})


def _end_with_parent() -> None:
    """A worker that outlived its study would compute a cell that the next start computes again."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _failure(error: BaseException) -> dict:
    """Type and first line of an exception; of a program that `guard` ended, the exception behind the exit."""
    if isinstance(error, SystemExit) and error.__context__ is not None:
        error = error.__context__
    return {"type": type(error).__name__, "message": (str(error).splitlines() or [""])[0]}
