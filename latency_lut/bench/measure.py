"""Time one network under one condition: every contender in interleaved rounds, and where its time goes."""

import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from tqdm import tqdm

import quant
import zoo
from common.errors import UserError
from latency_lut import prepare
from latency_lut.bench.contenders import Contender, contenders
from latency_lut.bench.profile import profile_rows
from latency_lut.machine import Watch
from latency_lut.timing import Timing, time_interleaved, torch_threads

REPEATS = 3  # timed calls per visit
MAX_ROUNDS = 1.5  # times as many for what stays unstable
SEED = 0  # of weights, images and the order of visits

Choice = Callable[[list[dict]], Collection[str]]  # rows of a result -> the contenders whose operations are to be timed


class Job(NamedTuple):
    """One network under one condition; params and MACs of one image, and a fingerprint of its layers."""

    arch: str
    input_size: int
    classes: int
    threads: int
    batch: int
    params: int
    macs: int
    fingerprint: str


def measure(job: Job, names: Sequence[str], rounds: int, profiled: Choice, progress: str = "") -> dict:
    """Time one network under one condition.

    Args:
        names: contenders, of contenders.FLOATS and quant.available().
        rounds: rounds that every contender takes part in.
        profiled: chooses the contenders whose operations are timed, too.
        progress: text beside the progress bar (default: the network's name).

    Returns:
        The job's fields, "rounds", "rows" (one a contender), "profile" and "seen" (date, seconds, load, steal).
    """
    watch = Watch()
    with torch_threads(job.threads), quant.use_engine("reference"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = zoo.build(job.arch, job.classes, job.input_size)
        images = torch.rand(max(job.batch, prepare.IMAGES), 3, job.input_size, job.input_size)
        quant.recalibrate(model.eval(), [images[: prepare.IMAGES]])
        ready, reasons = contenders(model, images[: job.batch], names)
        timings = _timed(ready, rounds, progress or job.arch)
        rows = [_row(name, ready.get(name), timings.get(name), reasons.get(name)) for name in names]
        profile = _profiles(ready, profiled(rows))
    seen = {"date": time.strftime("%Y-%m-%d %H:%M:%S"), **watch.seen()}
    return {**job._asdict(), "rounds": rounds, "rows": rows, "profile": profile, "seen": seen}


def _timed(ready: dict[str, Contender], rounds: int, progress: str) -> dict[str, Timing]:
    with tqdm(total=rounds * len(ready), desc=progress, unit="visit", leave=False) as bar:

        def on_visit(name: str, ms: float) -> None:
            bar.total = max(bar.total, bar.n + 1)  # unstable ones are visited again
            bar.update()

        most = int(MAX_ROUNDS * rounds)  # a bench reports what is typical beside the minimum
        return time_interleaved(ready, rounds, REPEATS, SEED, max_rounds=most, typical=True, on_visit=on_visit)


def _row(name: str, contender: Contender | None, timing: Timing | None, reason: str | None) -> dict:
    """What is kept of a contender; of one that does not run, the reason."""
    if timing is None:
        return {"name": name, "reason": reason}
    ops = None if contender.float_ops is None else list(contender.float_ops)
    return {
        "name": name,
        "rounds_ms": list(timing.rounds),
        "file_bytes": contender.file_bytes,
        "float_ops": ops,
        "float_convs": contender.float_convs,
        "reason": None,
    }


def _profiles(ready: dict[str, Contender], names: Collection[str]) -> dict[str, list[dict]]:
    """Operations of the contenders that can be profiled."""
    found = {}
    for name in (n for n in names if n in ready):
        try:
            found[name] = profile_rows(ready[name])
        except UserError as error:
            print(f"note: {error}")
    return found
