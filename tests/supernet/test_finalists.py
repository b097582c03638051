"""supernet: scores, the networks worth a closer look, and these by themselves: recalibrated and tuned."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from frostnet import FrostNet
from nas.derive import front
from nas.space import Choice, Slot, Stage
from supernet import (
    Alphas,
    Plan,
    Supernet,
    blended_scores,
    fair_choice,
    favourite,
    inherited,
    perturbation_scores,
    top1,
    tune,
)
from supernet.finalists import (
    FILLED,
    distance,
    finalists,
    fronts_for,
    path_latency,
    path_score,
    priced,
    random_feasible,
    unlike,
)
from tests.spaces import latency_of, tiny_space
from tests.supernet.test_supernet import CONFIG, PLAN, SPACE, all_choices, batch, images, run, search

# ---- scores and finalists ----------------------------------------------------------------------------------


def test_perturbation_scores_equal_whole_evaluations_one_change_at_a_time():
    net, (x, y) = Supernet(SPACE).train(), batch(0)
    base = favourite(Alphas(SPACE))
    ops, depths = perturbation_scores(net, base, x, y, F.cross_entropy)

    def loss(choice):
        with torch.no_grad(), quant.frozen_statistics(net):
            return F.cross_entropy(net(x, choice), y).item()

    reference = loss(base)
    for s in (1, 2):
        for slot in range(2):
            for op in range(3):
                rows = [list(row) for row in base.ops]
                rows[s][slot] = op
                changed = type(base)(base.depths, tuple(map(tuple, rows)))
                assert ops[s][slot][op] == pytest.approx(loss(changed) - reference, abs=1e-6)
        shallow = type(base)(tuple(1 if i == s else d for i, d in enumerate(base.depths)), base.ops)
        assert depths[s] == pytest.approx([loss(shallow) - reference, 0.0], abs=1e-6)


def test_scoring_twice_gives_equal_scores_in_spite_of_dropout():
    net, (x, y) = Supernet(SPACE).train(), batch(0)
    base = favourite(Alphas(SPACE))
    assert perturbation_scores(net, base, x, y, F.cross_entropy) == perturbation_scores(
        net, base, x, y, F.cross_entropy
    )
    assert net.head.dropout.training


def test_a_target_that_every_network_meets_steers_nothing():
    s = search(Plan(0, 0, 3, 10, alpha_every=1), target=100.0)
    assert all(row["mu"] == 0.0 for row in run(s) if "mu" in row)


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
    return ops, [row(len(stage.slots) - stage.min_depth + 1) for stage in space.stages]


def test_finalists_differ_in_several_slots():
    space = long_space()
    points = front(space, *random_scores(space), latency_of(space))
    kept = unlike(points[::-1], 3)
    assert kept[0] is points[-1] and len(kept) >= 2
    assert all(distance(a.choice, b.choice) >= 3 for a, b in itertools.combinations(kept, 2))


@pytest.mark.parametrize("seed", range(4))
def test_what_a_target_leaves_is_used_even_if_scores_prefer_small_networks(seed):
    space = long_space()
    latency, (ops, depths) = latency_of(space), random_scores(space, seed)
    scores = priced((ops, depths), latency, -20.0)  # a price that the alphas were trained under
    fronts = fronts_for(space, scores, latency, 1.4)
    best = [max((p for p in points if p.latency_ms <= 1.4), key=lambda p: p.score) for points in fronts]
    assert best[0].latency_ms < FILLED * 1.4 <= best[-1].latency_ms <= 1.4
    assert [p.latency_ms for p in best] == sorted(p.latency_ms for p in best)
    assert len(fronts_for(space, scores, latency, best[0].latency_ms)) == 1, (
        "where the scores use the target they are left alone"
    )


def test_a_price_changes_the_score_of_a_network_by_its_latency():
    space = long_space()
    latency, scores = latency_of(space), random_scores(space)
    choice = space.random(torch.Generator().manual_seed(1))
    blocks = path_latency(choice, latency) - latency.stem_ms - latency.head_ms
    assert path_score(choice, priced(scores, latency, 3.0), space) == pytest.approx(
        path_score(choice, scores, space) + 3.0 * blocks
    )


# ---- networks by themselves --------------------------------------------------------------------------------


def tuned(steps=40, lr=0.05, seed=0, before=None):
    torch.manual_seed(0)
    graph = quant.attach(FrostNet(SPACE.architecture(all_choices(SPACE)[0])), images(), CONFIG)
    graph.train()(images())
    if before is not None:
        torch.manual_seed(before)
    fine = tune(graph, batch, steps, replace(PLAN, lr=lr), F.cross_entropy, seed)
    return graph, fine


def test_tuning_learns():
    graph, fine = tuned(steps=100, lr=0.1)
    assert fine and top1(graph, [batch(1000)]) > 0.6
    untouched, _ = tuned(steps=0)
    assert top1(untouched, [batch(1000)]) < 0.4


def test_tuning_and_recalibration_do_not_depend_on_what_was_drawn_before():
    ends = []
    for drawn in (1, 2):
        graph, _ = tuned(steps=3, before=drawn)
        torch.manual_seed(drawn + 10)
        quant.recalibrate(graph, [images(8, 1), images(8, 2)])
        ends.append(graph.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values()) if isinstance(a, torch.Tensor))


def test_recalibration_leaves_momenta_and_modes_as_they_were():
    graph, _ = tuned(steps=1)
    before = {name: (m.training, getattr(m, "momentum", None)) for name, m in graph.named_modules()}
    quant.recalibrate(graph, [images(8, 1)])
    assert before == {name: (m.training, getattr(m, "momentum", None)) for name, m in graph.named_modules()}


def test_a_tuning_that_diverges_says_so():
    try:
        assert not tuned(steps=30, lr=1e30)[1]
    except quant.QuantError as error:
        assert "diverged" in str(error)


def test_distance_counts_slots_that_only_one_choice_runs():
    a = Choice((1, 2, 1), ((0,), (0, 1), (2, 0)))
    assert distance(a, a) == 0
    assert distance(a, Choice((1, 2, 2), ((0,), (0, 2), (2, 0)))) == 2


def test_blended_scores_prefer_high_probability_and_low_loss():
    alphas = Alphas(SPACE)
    with torch.no_grad():
        alphas.ops[1][0].copy_(torch.tensor([2.0, 0.0, 0.0]))
    losses = (
        [[[0.0] * len(s.candidates) for s in st.slots] for st in SPACE.stages],
        [[0.0] * (len(st.slots) - st.min_depth + 1) for st in SPACE.stages],
    )
    losses[0][2][1] = [0.5, 0.1, 0.3]
    ops, _ = blended_scores(alphas, losses)
    assert max(range(3), key=ops[1][0].__getitem__) == 0
    assert max(range(3), key=ops[2][1].__getitem__) == 1


def test_finalists_meet_the_target_by_the_table():
    latency = latency_of(SPACE)
    scores = (
        [[[0.1 * i for i in range(len(s.candidates))] for s in st.slots] for st in SPACE.stages],
        [[0.0, 0.1][: len(st.slots)] for st in SPACE.stages],
    )
    found = finalists(SPACE, fronts_for(SPACE, scores, latency, 1.0), scores, latency, 1.0, 3, 4, seed=0)
    assert [f.kind for f in found if f.kind == "random"] == ["random"] * 4
    assert 1 <= sum(f.kind == "derived" for f in found) <= 3
    assert all(f.latency_ms <= 1.0 for f in found)
    for f in found:
        assert f.latency_ms == pytest.approx(path_latency(f.choice, latency))
        assert f.score == pytest.approx(path_score(f.choice, scores, SPACE))
    assert max(found, key=lambda f: f.score).kind == "derived"


def test_random_controls_are_the_slowest_that_meet_the_target():
    latency = latency_of(SPACE)
    controls = random_feasible(SPACE, latency, 0.95, 5, seed=0)
    assert all(0.85 <= path_latency(c, latency) <= 0.95 for c in controls)
    assert len(set(controls)) == 5


def test_inherited_networks_share_nothing_with_the_supernet():
    s = search()
    run(s)
    before = {k: v.clone() for k, v in s.supernet.state_dict().items() if isinstance(v, torch.Tensor)}
    choice = fair_choice(SPACE, 0, 0)
    graph = inherited(s.supernet, choice, CONFIG, [batch(i)[0] for i in range(4)])
    assert not graph.training
    assert 0.0 <= top1(graph, [batch(2000)]) <= 1.0
    with torch.no_grad():
        for p in graph.parameters():
            p.zero_()
    assert all(torch.equal(before[k], v) for k, v in s.supernet.state_dict().items() if k in before)


def test_inherited_statistics_are_the_average_over_the_batches():
    s = search()
    run(s)
    batches = [batch(i)[0] for i in range(4)]
    graph = inherited(s.supernet, fair_choice(SPACE, 0, 0), CONFIG, batches)
    seen = []
    stem = graph.get_submodule("stem.conv")
    quantizer = graph.get_submodule("x_quant")
    with torch.no_grad():
        for x in batches:
            seen.append(
                nn.functional.conv2d(
                    quantizer(x), stem.weight_quant(stem.weight), None, stem.stride, stem.padding
                ).mean((0, 2, 3))
            )
    assert torch.allclose(graph.get_submodule("stem.bn").running_mean, torch.stack(seen).mean(0), atol=0.02)
