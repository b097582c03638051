"""Timing that ranks networks even on a busy machine: many short visits, interleaved, and a low statistic of them.

A *round* visits every callable once, in random order; a visit calls it once untimed, which refills its caches, then
takes the quickest of a few timed calls. The result is the minimum over the rounds. Interference comes in stretches of
time, so it spoils some rounds of many callables rather than all rounds of one, and the minimum ignores what is spoilt.
A visit begins with a short sleep: the scheduler then grants a fresh slice of time, into which a call of a millisecond
still fits undivided. What is interrupted goes on with caches that others have filled, which its own CPU time shows too.
What the quietest moments do not agree on is visited again, for as long as there is time.

On one thread the clock is the thread's CPU time. On an idle machine that is what a wall clock shows (they differ by
less than 0.3 %); on a busy one the wall clock also counts the turns of other programs, which every call longer than a
turn, hence every whole network, has to wait for, while a block often slips through: their ratio would be off.
"""

import functools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

import quant
from common.launch import torch_threads

WARM_UP = 3  # untimed calls of each callable before the first round
BEST = 3  # that many rounds must agree before a minimum is believed
TOLERANCE = 0.03  # how closely they must agree, relative to the minimum
TICKS = 1000  # a timed stretch is at least that many ticks of the clock long
REST = 0.0015  # seconds of sleep before a visit
SLICE = 0.004  # seconds after which a visit makes no further timed call: the scheduler's slice is used up
SPACING = 0.05  # seconds from the start of one round to the next, at least: neighbouring rounds see the same noise

Clock = Callable[[], float]  # seconds


@dataclass(frozen=True)
class Timing:
    """Latency of one callable: the quickest call of each round in milliseconds, in the order of measuring."""

    rounds: tuple[float, ...]

    @property
    def ms(self) -> float:
        """The latency in milliseconds: the minimum over the rounds."""
        return min(self.rounds)

    @property
    def rel_spread(self) -> float:
        """How far the three best rounds lie apart, relative to the best: small where the minimum can be repeated."""
        best = sorted(self.rounds)[:BEST]
        return best[-1] / best[0] - 1

    @property
    def stable(self) -> bool:
        return len(self.rounds) >= BEST and self.rel_spread <= TOLERANCE


def time_interleaved(
    callables: Mapping[str, Callable[[], object]],
    rounds: int = 8,
    repeats: int = 4,
    seed: int = 0,
    *,
    max_rounds: int | None = None,
    seconds: float | None = None,
    visits: Mapping[str, int] | None = None,
    typical: bool = False,
    done: Mapping[str, Sequence[float]] | None = None,
    on_visit: Callable[[str, float], None] | None = None,
    spacing: float = SPACING,
    rest: float = REST,
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Time zero-argument callables in interleaved rounds, in inference mode.

    Args:
        rounds: rounds that every callable takes part in.
        repeats: timed calls per visit, fewer where they take longer than SLICE; quick callables are called in bursts,
            so that the clock's ticks do not show.
        max_rounds: callables whose best rounds disagree are visited up to that often (default: 3 * rounds).
        seconds: after so much CPU time of this process, nothing is visited more often than `rounds` (default: no
            limit). On a busy machine, which needs more visits, that takes longer by the clock.
        visits: how often a round visits a callable, by name (default: once). What takes longer meets a quiet moment
            less often.
        typical: a visit's median call in the place of its quickest, of all `repeats` however long they take.
        done: rounds measured earlier, by name, in milliseconds; they count.
        on_visit: called with (name, milliseconds) after each visit; what it raises ends the measurement.
        spacing: seconds between the starts of two rounds, at least.
        rest: seconds of sleep before each visit.
        clock: returns seconds (default: `clock_for` torch's thread count).
    """
    clock = clock or clock_for(torch.get_num_threads())
    measured = {name: list((done or {}).get(name, ())) for name in callables}
    most, begun = max_rounds or 3 * rounds, time.process_time()
    often = {name: (visits or {}).get(name, 1) for name in callables}
    wanted = _wanted(measured, rounds, most, often)
    with torch.inference_mode():
        tick = clock_tick(clock) if wanted else 0.0
        bursts = {name: burst_length(callables[name], tick, clock) for name in dict.fromkeys(wanted)}
        number = sum(map(len, measured.values()))
        while wanted:
            started = time.monotonic()
            random.Random(f"{seed}/{number}").shuffle(wanted)  # a str seed shuffles alike in every process
            for name in wanted:
                time.sleep(rest)
                ms = visit(callables[name], repeats, bursts[name], clock, typical)
                measured[name].append(round(ms, 6))  # to the nanosecond
                if on_visit:
                    on_visit(name, measured[name][-1])
            number += len(wanted)
            in_time = seconds is None or time.process_time() - begun < seconds
            wanted = _wanted(measured, rounds, most if in_time else rounds, often)
            if wanted:
                time.sleep(max(0.0, spacing - (time.monotonic() - started)))
    return {name: Timing(tuple(values)) for name, values in measured.items()}


def time_networks(
    networks: Mapping[str, Callable[[torch.Tensor], object]],
    images: torch.Tensor,
    *,
    engine: str = "reference",
    threads: int = 1,
    **options,
) -> dict[str, Timing]:
    """Time networks on the same images, INT8 and float ones side by side, in interleaved rounds.

    networks: frozen forms (quant.freeze, quant.freeze_float) or any callables of one tensor in evaluation mode.
    images: (N, C, H, W), fed channels_last. engine: the one that the INT8 networks were converted for.
    options: of `time_interleaved`. Raises ValueError for a network in training mode.
    """
    for name, network in networks.items():
        if getattr(network, "training", False):
            raise ValueError(f"{name} is in training mode: call .eval() before timing it")
    images = images.contiguous(memory_format=torch.channels_last)
    with torch_threads(threads), quant.use_engine(engine):
        return time_interleaved({n: functools.partial(f, images) for n, f in networks.items()}, **options)


def clock_for(threads: int) -> Clock:
    """CPU time of the calling thread where it does all the work, else wall time."""
    return time.thread_time if threads == 1 else time.perf_counter


def visit(function: Callable[[], object], repeats: int, burst: int, clock: Clock, typical: bool = False) -> float:
    """Milliseconds of one call, after an untimed one.

    It is that of the quickest of `repeats` bursts of `burst` calls, or of those within SLICE; if `typical`, the median
    of all bursts.
    """
    begun = time.perf_counter()
    function()
    times = []
    while len(times) < repeats and not (times and not typical and time.perf_counter() - begun > SLICE):
        start = clock()
        for _ in range(burst):
            function()
        times.append((clock() - start) / burst * 1000)
    return statistics.median(times) if typical else min(times)


def burst_length(function: Callable[[], object], tick: float, clock: Clock) -> int:
    """Warm a callable up; how many calls of it last TICKS ticks of the clock."""
    for _ in range(WARM_UP):
        function()
    calls = 1
    while True:  # the clock may stand still for a whole call: double until it moves enough
        start = clock()
        for _ in range(calls):
            function()
        spent = clock() - start
        if spent >= TICKS * tick:
            return calls
        calls = max(2 * calls, math.ceil(calls * TICKS * tick / spent) if spent > 0 else 0)


def clock_tick(clock: Clock) -> float:
    """The smallest step that a clock shows between two readings, in seconds."""
    steps = []
    for _ in range(5):
        start = now = clock()
        while now == start:
            now = clock()
        steps.append(now - start)
    return min(steps)


def _wanted(measured: Mapping[str, list[float]], rounds: int, max_rounds: int, often: Mapping[str, int]) -> list[str]:
    """The names that need another round, each as often as it is visited in one."""

    def finished(values: list[float], often: int) -> bool:
        return len(values) >= often * rounds and (len(values) >= often * max_rounds or Timing(tuple(values)).stable)

    return [name for name, values in measured.items() if not finished(values, often[name]) for _ in range(often[name])]
