"""The front of the knapsack equals brute force on small spaces, and stays true on large ones."""

import itertools
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from nas import BlockSpec, Choice, HeadSpec, SearchSpace, StemSpec, frostnet_space
from nas.derive import Point, Scores, best_under, check_target, front, latency_range, tied_fronts
from nas.space import Slot, Stage
from tests.strategies import examples

BLOCKS = [BlockSpec("mb", k, 8, 8, 1, e, 0, "relu") for k in (3, 5) for e in (1, 2)]
WHOLE = st.integers(0, 12)  # whole numbers add up exactly, so results can be compared exactly


@dataclass(frozen=True)
class Table:
    stem_ms: float
    head_ms: float
    blocks: list


@st.composite
def problems(draw):
    """(space, scores, latencies) with at most a few thousand networks."""
    stages, op_scores, depth_scores, blocks = [], [], [], []
    for _ in range(draw(st.integers(1, 3))):
        counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        min_depth = draw(st.integers(0, len(counts)))
        stages.append(Stage(tuple(Slot(tuple(BLOCKS[:n])) for n in counts), min_depth))
        op_scores.append([draw(st.lists(WHOLE, min_size=n, max_size=n)) for n in counts])
        blocks.append([draw(st.lists(WHOLE, min_size=n, max_size=n)) for n in counts])
        size = len(counts) - min_depth + 1
        depth_scores.append(draw(st.lists(st.integers(-6, 6), min_size=size, max_size=size)))
    # no SearchSpace, which refuses a stage that may be left out
    space = SimpleNamespace(stages=tuple(stages), tied=False)
    return space, Scores(op_scores, depth_scores), Table(draw(WHOLE), draw(WHOLE), blocks)


def _value(choice, scores, table, space):
    """(latency, score) of one choice, by the definition."""
    latency, score = table.stem_ms + table.head_ms, scores.shared[space.tied_candidate(choice)] if space.tied else 0.0
    for i, (depth, ops) in enumerate(zip(choice.depths, choice.ops)):
        score += scores.depths[i][depth - space.stages[i].min_depth]
        latency += sum(table.blocks[i][j][op] for j, op in enumerate(ops[:depth]))
        score += sum(scores.ops[i][j][op] for j, op in enumerate(ops[:depth]))
    return latency, score


def _all_choices(space):
    per_stage = []
    for stage in space.stages:
        rows = []
        for depth in range(stage.min_depth, len(stage.slots) + 1):
            free = [range(len(s.candidates)) if i < depth else (0,) for i, s in enumerate(stage.slots)]
            rows += [(depth, ops) for ops in itertools.product(*free)]
        per_stage.append(rows)
    for combination in itertools.product(*per_stage):
        yield Choice(tuple(d for d, _ in combination), tuple(o for _, o in combination))


def _brute_front(space, scores, table):
    return _undominated(_value(c, scores, table, space) for c in _all_choices(space))


def _undominated(values):
    kept, best = [], -np.inf
    for latency, score in sorted(set(values), key=lambda v: (v[0], -v[1])):
        if score > best:
            kept.append((latency, score))
            best = score
    return kept


@examples(100)
@given(problems())
def test_the_front_equals_brute_force(problem):
    space, scores, table = problem
    found = front(space, scores, table)
    assert [(p.latency_ms, p.score) for p in found] == _brute_front(space, scores, table)


@examples(100)
@given(problems(), st.sampled_from((2, 5, 20_000)))
def test_every_point_states_the_true_latency_and_score_of_its_choice(problem, resolution):
    space, scores, table = problem
    for point in front(space, scores, table, resolution):
        assert (point.latency_ms, point.score) == _value(point.choice, scores, table, space)
        for stage, depth, ops in zip(space.stages, point.choice.depths, point.choice.ops):
            assert stage.min_depth <= depth <= len(stage.slots)
            assert all(op < len(s.candidates) for op, s in zip(ops, stage.slots)) and not any(ops[depth:])


@examples(100)
@given(problems(), st.integers(1, 12))
def test_a_thinned_front_is_late_by_at_most_one_bin_per_step(problem, resolution):
    space, scores, table = problem
    thin = front(space, scores, table, resolution)
    bin_ms = latency_range(space, table)[1] / resolution
    steps = sum(len(stage.slots) + 1 for stage in space.stages)
    for exact in front(space, scores, table):
        assert any(p.score >= exact.score and p.latency_ms <= exact.latency_ms + steps * bin_ms for p in thin)
    assert len(thin) <= resolution + 2


@examples(50)
@given(problems(), st.integers(0, 60))
def test_the_best_under_a_target_is_the_best_of_all_networks_under_it(problem, target):
    space, scores, table = problem
    values = [_value(c, scores, table, space) for c in _all_choices(space)]
    feasible = [score for latency, score in values if latency <= target]
    found = front(space, scores, table)
    if feasible:
        best = best_under(found, target)[0]
        assert best.score == max(feasible) and best.latency_ms <= target
    else:
        with pytest.raises(UserError):
            best_under(found, target)


@examples(50)
@given(problems())
def test_the_latency_range_is_that_of_all_networks(problem):
    space, scores, table = problem
    latencies = [_value(c, scores, table, space)[0] for c in _all_choices(space)]
    assert latency_range(space, table) == (min(latencies), max(latencies))


def _default_problem(seed, score_of_ms=0.0):
    """Random scores for the default space; `score_of_ms` makes slow blocks better, which makes fronts long."""
    space, draw = frostnet_space(), np.random.default_rng(seed)
    blocks = [[0.05 + 0.3 * draw.random(len(s.candidates)) for s in stage.slots] for stage in space.stages]
    op_scores = [[score_of_ms * b + draw.normal(size=len(b)) / 10 for b in stage] for stage in blocks]
    depth_scores = [draw.normal(size=len(s.slots) - s.min_depth + 1) for s in space.stages]
    return space, Scores(op_scores, depth_scores), Table(0.2, 0.5, blocks)


@pytest.mark.parametrize("score_of_ms", [0.0, 10.0, 1000.0])
def test_the_default_space_takes_seconds_and_its_points_are_true(score_of_ms):
    problem = _default_problem(0, score_of_ms)
    start = time.process_time()
    found = front(*problem)
    assert time.process_time() - start < 5
    assert all(a.latency_ms < b.latency_ms and a.score < b.score for a, b in itertools.pairwise(found))
    for point in found[:: max(1, len(found) // 50)]:
        value = _value(point.choice, *problem[1:], problem[0])
        assert value == pytest.approx((point.latency_ms, point.score))


def test_no_random_network_beats_the_front_of_the_default_space():
    import torch

    problem = _default_problem(1, 10.0)
    space, found = problem[0], front(*problem)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        latency, score = _value(space.random(generator), *problem[1:], space)
        assert best_under(found, latency + 0.01)[0].score >= score


def test_the_fastest_network_survives_thinning():
    problem = _default_problem(2, 1000.0)
    found = front(*problem, resolution=10)
    assert found[0].latency_ms == pytest.approx(latency_range(problem[0], problem[2])[0])


POINTS = [Point(float(ms), 10.0 * ms, None) for ms in range(2, 7)]


def test_the_best_few_come_best_first_and_include_the_target_itself():
    assert [p.latency_ms for p in best_under(POINTS, 5.0, 3)] == [5, 4, 3]


def test_there_may_be_fewer_than_asked_for():
    assert [p.latency_ms for p in best_under(POINTS, 3.5, 10)] == [3, 2]


@pytest.mark.parametrize("target", [1.9, 0, -3, float("nan")])
def test_an_impossible_target_names_the_feasible_range(target):
    with pytest.raises(UserError, match="networks of this space take 2 to 6 ms"):
        best_under(POINTS, target)


def test_a_target_above_every_network_is_no_error():
    check_target(100.0, 2.0, 6.0)
    assert best_under(POINTS, 100.0)[0].latency_ms == 6


def test_scores_that_are_not_numbers_are_refused():
    space, scores, table = _default_problem(0)
    scores.ops[1][0][0] = float("nan")
    with pytest.raises(UserError, match="scores of stage 1: .* the search has diverged"):
        front(space, scores, table)


# ---- tied spaces -------------------------------------------------------------------------------------------


FIXED = Slot(tuple(BLOCKS[:1]))
TIED = SearchSpace(
    "tied",
    1.0,
    16,
    StemSpec(3, 8, 3, 1, "relu"),
    # the first slot with a choice may be skipped; slot 0 of the last stage always runs
    (Stage((FIXED, Slot(tuple(BLOCKS[:3]))), 1), Stage((Slot(tuple(BLOCKS[:3])), FIXED, Slot(tuple(BLOCKS[:3]))), 1)),
    HeadSpec(8, 32, 4, 0.2, "relu"),
    tied=True,
)


@st.composite
def tied_problems(draw):
    """(space, scores, latencies) of TIED: a shared row of scores, and zeros in the slots."""

    def row(count, value=WHOLE):
        return draw(st.lists(value, min_size=count, max_size=count))

    zeros = [[[0.0] * len(slot.candidates) for slot in stage.slots] for stage in TIED.stages]
    blocks = [[row(len(slot.candidates)) for slot in stage.slots] for stage in TIED.stages]
    depths = [row(len(stage.slots) - stage.min_depth + 1, st.integers(-6, 6)) for stage in TIED.stages]
    return TIED, Scores(zeros, depths, row(3)), Table(draw(WHOLE), draw(WHOLE), blocks)


def _tied_choices(candidate):
    for depths in itertools.product(*(range(stage.min_depth, len(stage.slots) + 1) for stage in TIED.stages)):
        yield TIED.with_candidate(Choice(depths, ((0, 0), (0, 0, 0))), candidate)


@examples(100)
@given(tied_problems())
def test_the_front_of_a_tied_space_equals_brute_force(problem):
    space, scores, table = problem
    per_candidate = [[_value(c, scores, table, space) for c in _tied_choices(i)] for i in range(3)]
    for points, values in zip(tied_fronts(space, scores, table), per_candidate, strict=True):
        assert [(p.latency_ms, p.score) for p in points] == _undominated(values)
    found = front(space, scores, table)
    assert [(p.latency_ms, p.score) for p in found] == _undominated(itertools.chain(*per_candidate))
    assert all((p.latency_ms, p.score) == _value(p.choice, scores, table, space) for p in found)


def test_the_shared_score_counts_once_however_many_slots_run():
    zeros = [[[0.0] * len(slot.candidates) for slot in stage.slots] for stage in TIED.stages]
    ones = [[[1.0] * len(slot.candidates) for slot in stage.slots] for stage in TIED.stages]
    scores = Scores(zeros, [[0.0, 1.0], [0.0, 0.0, 1.0]], [5.0, 7.0, 6.0])
    points = tied_fronts(TIED, scores, Table(0.0, 0.0, ones))[1]
    assert [(p.latency_ms, p.score, p.choice.depths) for p in points] == [
        (2.0, 7.0, (1, 1)),
        (3.0, 8.0, (2, 1)),
        (5.0, 9.0, (2, 3)),
    ]


def test_shared_scores_that_are_not_numbers_are_refused():
    zeros = [[[0.0] * len(slot.candidates) for slot in stage.slots] for stage in TIED.stages]
    scores = Scores(zeros, [[0.0, 0.0], [0.0, 0.0, 0.0]], [0.0, float("inf"), 0.0])
    with pytest.raises(UserError, match="scores of the tied candidates: .* the search has diverged"):
        front(TIED, scores, Table(0.0, 0.0, zeros))
