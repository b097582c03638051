"""Interleaved timing, on clocks and callables of our own, so that nothing here depends on the machine's noise."""

import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from latency_lut import Timing, time_interleaved, time_networks, torch_threads
from latency_lut.timing import TICKS, burst_length, clock_tick, visit

MILLISECONDS = st.floats(1e-3, 1e3)


class World:
    """A clock that moves only by work, in steps of `tick` seconds; `slowdown(now)` multiplies the work."""

    def __init__(self, tick: float = 1e-7, slowdown=lambda now: 1.0):
        self.now, self.tick, self.slowdown, self.visited = 0.0, tick, slowdown, []

    def clock(self) -> float:
        self.now += 1e-8  # reading takes time too
        return math.floor(self.now / self.tick) * self.tick

    def worker(self, name: str, ms: float):
        def work():
            self.visited.append(name)
            self.now += ms / 1000 * self.slowdown(self.now)

        return work

    def time(self, costs: dict[str, float], **options) -> dict[str, Timing]:
        workers = {name: self.worker(name, ms) for name, ms in costs.items()}
        return time_interleaved(workers, clock=self.clock, spacing=0, rest=0, **options)


# ---- the statistic -----------------------------------------------------------------------------------------


def test_the_latency_is_the_minimum_over_the_rounds():
    assert Timing((3.0, 2.0, 2.5)).ms == 2.0


def test_the_spread_compares_the_three_best_rounds():
    assert Timing((9.0, 2.0, 2.1, 2.4)).rel_spread == pytest.approx(0.2)
    assert not Timing((9.0, 2.0, 2.1, 2.4)).stable
    assert Timing((9.0, 2.0, 2.01, 2.02)).stable


def test_fewer_than_three_rounds_are_never_stable():
    assert not Timing((2.0, 2.0)).stable


@given(st.lists(MILLISECONDS, min_size=1), MILLISECONDS)
def test_a_further_round_can_lower_the_latency_only(rounds, extra):
    assert Timing((*rounds, extra)).ms == min(Timing(tuple(rounds)).ms, extra)
    assert Timing(tuple(rounds)).rel_spread >= 0


# ---- interleaved rounds ------------------------------------------------------------------------------------


def test_on_a_quiet_machine_every_callable_takes_what_it_takes():
    timings = World().time({"a": 0.02, "b": 1.0, "c": 30.0})
    assert {name: timing.ms for name, timing in timings.items()} == pytest.approx(
        {"a": 0.02, "b": 1.0, "c": 30.0}, rel=2e-3
    )
    assert all(len(timing.rounds) == 8 and timing.stable for timing in timings.values())


@pytest.mark.parametrize("seed", range(3))
def test_stretches_of_interference_do_not_change_the_result(seed):
    busy = World(slowdown=lambda now: 4.0 if now % 0.05 > 0.025 else 1.0)  # half of the time, a good round long
    timings = busy.time({"a": 1.0, "b": 1.1, "c": 1.2}, seed=seed)
    assert [timings[name].ms for name in "abc"] == pytest.approx([1.0, 1.1, 1.2], rel=1e-3)


def test_a_plain_mean_would_have_been_spoilt_by_them():
    busy = World(slowdown=lambda now: 4.0 if now % 0.05 > 0.025 else 1.0)
    rounds = busy.time({"a": 1.0, "b": 1.1})["a"].rounds
    assert sum(rounds) / len(rounds) > 1.3


def test_every_round_visits_everything_once_in_changing_order():
    world = World()
    order = []
    world.time(dict.fromkeys("abcdef", 1.0), rounds=6, on_visit=lambda name, ms: order.append(name))
    rounds = [order[i : i + 6] for i in range(0, 36, 6)]
    assert all(sorted(r) == list("abcdef") for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1


def test_the_same_seed_gives_the_same_order():
    def order(seed):
        names = []
        World().time(dict.fromkeys("abcdef", 1.0), seed=seed, on_visit=lambda name, ms: names.append(name))
        return names

    assert order(1) == order(1) != order(2)


def test_what_does_not_settle_is_visited_again_and_only_that():
    world = World()
    growing = iter(range(1, 10_000))
    callables = {
        "steady": world.worker("steady", 1.0),
        "restless": lambda: setattr(world, "now", world.now + 1e-3 * next(growing)),
    }
    timings = time_interleaved(callables, rounds=4, max_rounds=7, clock=world.clock, spacing=0, rest=0)
    assert (len(timings["steady"].rounds), len(timings["restless"].rounds)) == (4, 7)


def test_after_its_time_nothing_is_visited_more_often_than_everything():
    world, growing = World(), iter(range(1, 10_000))
    restless = {"restless": lambda: setattr(world, "now", world.now + 1e-3 * next(growing))}
    assert (
        len(
            time_interleaved(restless, rounds=4, max_rounds=7, seconds=0, clock=world.clock, spacing=0)[
                "restless"
            ].rounds
        )
        == 4
    )


def test_what_is_to_be_visited_more_often_is_so_in_every_round():
    world, order = World(), []
    timings = world.time(
        {"part": 1.0, "network": 9.0}, rounds=4, visits={"network": 3}, on_visit=lambda name, ms: order.append(name)
    )
    assert (len(timings["part"].rounds), len(timings["network"].rounds)) == (4, 12)
    assert all(order[i : i + 4].count("network") == 3 for i in range(0, 16, 4))


def test_a_visit_is_its_quickest_call():
    world = World()
    costs = iter([9.0, 5.0, 2.0, 4.0])  # the first is not timed

    def work():
        world.now += next(costs) / 1000

    assert visit(work, 3, 1, world.clock) == pytest.approx(2.0, rel=1e-3)


def test_a_typical_visit_is_the_median_of_all_its_calls():
    world = World()
    costs = iter([9.0, 5.0, 2.0, 4.0])

    def work():
        world.now += next(costs) / 1000
        time.sleep(0.003)  # past the slice of time

    assert visit(work, 3, 1, world.clock, typical=True) == pytest.approx(4.0, rel=1e-3)


def test_a_visit_begins_with_a_rest():
    world = World()
    started = time.monotonic()
    time_interleaved({"a": world.worker("a", 1.0)}, rounds=5, clock=world.clock, spacing=0, rest=0.01)
    assert time.monotonic() - started >= 0.05


def test_what_outlasts_a_slice_of_time_is_timed_once_a_visit():
    calls = []

    def work():
        calls.append(time.sleep(0.003))

    visit(work, 3, 1, time.perf_counter)
    assert len(calls) == 2  # one that is not timed, one that is


def test_rounds_measured_earlier_count():
    world = World()
    timings = world.time({"a": 1.0, "b": 2.0}, rounds=5, done={"a": [1.0, 1.0, 1.0, 1.0, 1.0], "b": [2.0, 2.0, 1.9]})
    assert "a" not in world.visited
    assert timings["a"].rounds == (1.0,) * 5
    assert timings["b"].rounds[:3] == (2.0, 2.0, 1.9) and len(timings["b"].rounds) >= 5


def test_an_interruption_loses_nothing_that_was_reported():
    reported = []

    def stop_at_seven(name, ms):
        reported.append((name, ms))
        if len(reported) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        World().time({"a": 1.0, "b": 2.0}, on_visit=stop_at_seven)
    assert len(reported) == 7 and {name for name, _ in reported} == {"a", "b"}


def test_nothing_to_time_is_no_error():
    assert time_interleaved({}) == {}


# ---- the clock ---------------------------------------------------------------------------------------------


def test_a_coarse_clock_is_met_with_bursts():
    timings = World(tick=1e-3).time({"a": 0.05}, rounds=3, repeats=3)  # a call is a twentieth of a tick
    assert timings["a"].ms == pytest.approx(0.05, rel=3 / TICKS)


@pytest.mark.parametrize("tick", [1e-8, 1e-6, 1e-3])
def test_a_burst_lasts_many_ticks_and_is_no_longer_than_needed(tick):
    world = World(tick=tick)
    calls = burst_length(world.worker("a", 0.05), tick, world.clock)
    assert TICKS * tick <= calls * 5e-5 * 1.001
    assert calls == 1 or calls * 5e-5 <= 4 * TICKS * tick


def test_the_tick_of_a_clock_is_found():
    assert clock_tick(World(tick=1e-3).clock) == pytest.approx(1e-3)


def test_on_one_thread_the_turns_of_other_programs_do_not_count():
    with torch_threads(1):
        assert time_interleaved({"waits": lambda: time.sleep(0.002)}, rounds=3, repeats=1, spacing=0)["waits"].ms < 1


def test_on_several_threads_it_is_the_wall_clock_that_counts():
    with torch_threads(2):
        assert time_interleaved({"waits": lambda: time.sleep(0.002)}, rounds=3, repeats=1, spacing=0)["waits"].ms >= 2


# ---- networks ----------------------------------------------------------------------------------------------


def test_callables_run_in_inference_mode_and_only_they():
    seen = []
    time_interleaved({"a": lambda: seen.append(torch.is_inference_mode_enabled())}, rounds=3, spacing=0)
    assert all(seen) and not torch.is_inference_mode_enabled()


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="net is in training mode"):
        time_networks({"net": nn.BatchNorm2d(3)}, torch.zeros(1, 3, 4, 4))


def test_networks_are_fed_channels_last_on_the_threads_and_engine_asked_for():
    before, seen = (torch.get_num_threads(), torch.backends.quantized.engine), []

    def network(x):
        seen.append(
            (
                x.is_contiguous(memory_format=torch.channels_last),
                torch.get_num_threads(),
                torch.backends.quantized.engine,
            )
        )

    time_networks({"net": network}, torch.zeros(1, 3, 4, 4), engine="fbgemm", threads=2, rounds=3, spacing=0)
    assert set(seen) == {(True, 2, "fbgemm")}
    assert (torch.get_num_threads(), torch.backends.quantized.engine) == before


def test_the_thread_count_is_restored_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_a_network_twice_as_deep_is_measured_as_slower():
    def net(depth):
        return nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(depth)]).eval()

    timings = time_networks({"deep": net(8), "shallow": net(2)}, torch.zeros(1, 16, 32, 32), rounds=3)
    assert timings["deep"].ms > 1.5 * timings["shallow"].ms
