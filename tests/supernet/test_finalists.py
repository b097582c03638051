"""supernet.finalists: derived networks and random baselines for a target."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nas.derive import Scores, front
from nas.space import Choice, Slot, Stage
from supernet import blended_scores, most_probable, perturbation_losses
from supernet.finalists import (
    MIN_USED,
    distance,
    diverse,
    finalists,
    path_latency,
    path_score,
    random_baselines,
    target_fronts,
    with_latency_bonus,
)
from tests.spaces import latency_of, tiny_space
from tests.supernet.tiny_search import SPACE, TIED, batch, run, search


def long_space():
    """Three stages of four slots."""
    space = tiny_space()

    def follow(slot):
        return Slot(tuple(replace(c, in_channels=c.out_channels, stride=1) for c in slot.candidates))

    firsts = [stage.slots[0] for stage in space.stages[1:]]
    stages = (space.stages[0], *(Stage((slot, *[follow(slot)] * 3), 1) for slot in firsts))
    return replace(space, stages=stages)


def random_scores(space, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def row(count):
        return torch.randn(count, generator=generator).tolist()

    ops = [[row(len(slot.candidates)) for slot in stage.slots] for stage in space.stages]
    return Scores(ops, [row(len(stage.slots) - stage.min_depth + 1) for stage in space.stages])


def test_finalists_differ_in_several_slots():
    space = long_space()
    points = front(space, random_scores(space), latency_of(space))
    kept = diverse(points[::-1], 3)
    assert kept[0] is points[-1] and len(kept) >= 2
    assert all(distance(a.choice, b.choice) >= 3 for a, b in itertools.combinations(kept, 2))


def test_distance_counts_slots_that_only_one_choice_runs():
    a = Choice((1, 2, 1), ((0,), (0, 1), (2, 0)))
    assert distance(a, a) == 0
    assert distance(a, Choice((1, 2, 2), ((0,), (0, 2), (2, 0)))) == 2


@pytest.mark.parametrize("seed", range(4))
def test_what_a_target_leaves_is_used_even_if_scores_prefer_small_networks(seed):
    space = long_space()
    latency = latency_of(space)
    scores = with_latency_bonus(random_scores(space, seed), latency, -20.0)  # as alphas trained under a penalty
    fronts = target_fronts(space, scores, latency, 1.4)
    best = [max((p for p in points if p.latency_ms <= 1.4), key=lambda p: p.score) for points in fronts]
    assert best[0].latency_ms < MIN_USED * 1.4 <= best[-1].latency_ms <= 1.4
    assert [p.latency_ms for p in best] == sorted(p.latency_ms for p in best)
    assert len(target_fronts(space, scores, latency, best[0].latency_ms)) == 1, (
        "where the scores use the target they are left alone"
    )


def test_a_latency_bonus_changes_the_score_of_a_network_by_its_latency():
    space = long_space()
    latency, scores = latency_of(space), random_scores(space)
    choice = space.random(torch.Generator().manual_seed(1))
    blocks = path_latency(choice, latency) - latency.stem_ms - latency.head_ms
    assert path_score(choice, with_latency_bonus(scores, latency, 3.0), space) == pytest.approx(
        path_score(choice, scores, space) + 3.0 * blocks
    )


def test_finalists_meet_the_target_by_the_table():
    latency = latency_of(SPACE)
    scores = Scores(
        [[[0.1 * i for i in range(len(s.candidates))] for s in st.slots] for st in SPACE.stages],
        [[0.0, 0.1][: len(st.slots)] for st in SPACE.stages],
    )
    found = finalists(SPACE, target_fronts(SPACE, scores, latency, 1.0), scores, latency, 1.0, 3, 4, seed=0)
    assert [f.kind for f in found if f.kind == "random"] == ["random"] * 4
    assert 1 <= sum(f.kind == "derived" for f in found) <= 3
    assert all(f.latency_ms <= 1.0 for f in found)
    for f in found:
        assert f.latency_ms == pytest.approx(path_latency(f.choice, latency))
        assert f.score == pytest.approx(path_score(f.choice, scores, SPACE))
    assert max(found, key=lambda f: f.score).kind == "derived"


def test_random_baselines_are_the_slowest_that_meet_the_target():
    latency = latency_of(SPACE)
    baselines = random_baselines(SPACE, latency, 0.95, 5, seed=0)
    assert all(0.85 <= path_latency(c, latency) <= 0.95 for c in baselines)
    assert len(set(baselines)) == 5


def test_every_candidate_of_a_tied_space_is_a_finalist():
    s = search(space=TIED)
    run(s)
    losses = perturbation_losses(s.supernet, most_probable(s.alphas), *batch(0), F.cross_entropy)
    scores = blended_scores(s.alphas, losses)
    networks = finalists(TIED, target_fronts(TIED, scores, s.latency, 1.0), scores, s.latency, 1.0, 2, 2, 0)
    assert [n.kind for n in networks] == ["derived"] * 3 + ["random"] * 2
    assert {TIED.tied_candidate(n.choice) for n in networks[:3]} == {0, 1, 2}
    assert all(n.latency_ms <= 1.0 for n in networks)
    assert all(n.score == pytest.approx(path_score(n.choice, scores, TIED)) for n in networks)
