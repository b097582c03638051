"""supernet: which paths run, and the gates that carry the gradient to the alphas; tied spaces."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nas.derive import front
from nas.space import Choice
from supernet import (
    SAMPLERS,
    Alphas,
    Plan,
    Search,
    Supernet,
    blended_scores,
    fair_choice,
    favourite,
    perturbation_scores,
    sampled_choice,
    sampled_gates,
)
from supernet.finalists import finalists, fronts_for, path_latency, path_score
from supernet.samplers import round_length
from supernet.score import evaluations, first_choice_only
from tests.spaces import latency_of
from tests.supernet.test_supernet import CONFIG, SPACE, batch, run

# ---- samplers ----------------------------------------------------------------------------------------------


def test_a_round_runs_every_candidate_of_every_running_slot_equally_often():
    length = round_length(SPACE)
    for first in (0, length, 2 * length):
        round_ = [fair_choice(SPACE, 3, first + i) for i in range(length)]
        assert len({c.depths for c in round_}) == 1
        for s, stage in enumerate(SPACE.stages):
            for i in range(round_[0].depths[s]):
                counts = torch.bincount(
                    torch.tensor([c.ops[s][i] for c in round_]), minlength=len(stage.slots[i].candidates)
                )
                assert counts.unique().numel() == 1


def test_even_rounds_run_every_slot():
    assert fair_choice(SPACE, 0, 0).depths == (1, 2, 2)
    assert {fair_choice(SPACE, 0, 3 + 6 * i).depths for i in range(20)} == {(1, a, b) for a in (1, 2) for b in (1, 2)}


def test_paths_depend_on_seed_and_step_alone():
    assert [fair_choice(SPACE, 1, i) for i in range(9)] == [fair_choice(SPACE, 1, i) for i in range(9)]
    assert [fair_choice(SPACE, 1, i) for i in range(9)] != [fair_choice(SPACE, 2, i) for i in range(9)]


def test_sampled_paths_follow_the_probabilities():
    alphas = Alphas(SPACE)
    with torch.no_grad():
        alphas.ops[1][0].copy_(torch.tensor([0.7, 0.2, 0.1]).log())
    drawn = torch.tensor([sampled_choice(alphas, 1.0, 0.0, 0, i).ops[1][0] for i in range(2000)])
    assert torch.bincount(drawn, minlength=3).div(2000).tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.04)


def test_two_path_gates_have_the_value_of_one_path_and_gradients_for_both():
    alphas = Alphas(SPACE)
    ops, depths = sampled_gates("proxyless", alphas, 1.0, 0, 0)
    gates = ops[1][0]
    assert sorted(w.item() for w in gates.weights) == pytest.approx([0.0, 1.0])
    assert gates.indices[0] != gates.indices[1]
    values = torch.tensor([2.0, 5.0])
    sum(w * v for w, v in zip(gates.weights, values)).backward()
    i, j = gates.indices
    # d/d alpha_i of p_i v_i + p_j v_j with p = 1/2 each: p_i p_j (v_i - v_j)
    assert alphas.ops[1][0].grad[i].item() == pytest.approx(0.25 * (2.0 - 5.0))
    assert alphas.ops[1][0].grad[j].item() == pytest.approx(0.25 * (5.0 - 2.0))
    assert len(depths[0].indices) == 1, "a stage of one depth has nothing to choose"


def test_mixture_gates_are_the_probabilities():
    alphas = Alphas(SPACE)
    with torch.no_grad():
        alphas.ops[1][0].copy_(torch.tensor([0.7, 0.2, 0.1]).log())
    gates = sampled_gates("darts", alphas, 1.0, 0, 0)[0][1][0]
    assert gates.indices == (0, 1, 2)
    assert [w.item() for w in gates.weights] == pytest.approx([0.7, 0.2, 0.1])
    sum(w * v for w, v in zip(gates.weights, (2.0, 5.0, 1.0))).backward()
    mean = 0.7 * 2 + 0.2 * 5 + 0.1 * 1
    assert alphas.ops[1][0].grad.tolist() == pytest.approx([0.7 * (2 - mean), 0.2 * (5 - mean), 0.1 * (1 - mean)])


def test_straight_through_gates_run_one_path_drawn_by_the_probabilities():
    alphas = Alphas(SPACE)
    with torch.no_grad():
        alphas.ops[1][0].copy_(2 * torch.tensor([0.7, 0.2, 0.1]).log())
    drawn = [sampled_gates("gumbel", alphas, 2.0, 0, i)[0][1][0] for i in range(2000)]
    assert all(len(g.indices) == 1 and g.weights[0].item() == pytest.approx(1.0) for g in drawn)
    counts = torch.bincount(torch.tensor([g.indices[0] for g in drawn]), minlength=3)
    assert counts.div(2000).tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.04)
    drawn[0].weights[0].backward()
    gradient = alphas.ops[1][0].grad
    assert gradient[drawn[0].indices[0]] > 0 and gradient.sum().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_moves_alphas_to_the_better_and_to_the_faster_candidate(sampler):
    """Slot (1, 0): candidate 1 halves the loss; slot (2, 0): all are equal, candidate 0 is the fastest."""
    alphas, latency = Alphas(SPACE), latency_of(SPACE)
    optimizer = torch.optim.Adam(alphas.parameters(), lr=0.05, betas=(0.0, 0.999))
    values = torch.tensor([1.0, 0.5, 1.0])
    for step in range(150):
        gates = sampled_gates(sampler, alphas, 1.0, 0, step)[0][1][0]
        loss = sum(w * values[i] for i, w in zip(gates.indices, gates.weights)) + alphas.expected_latency(latency)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert alphas.ops[1][0].argmax() == 1
    assert alphas.ops[2][0].argmax() == 0


# ---- tied spaces -------------------------------------------------------------------------------------------


TIED = replace(SPACE, name="tied", tied=True)


def one_everywhere(choice):
    """The set of candidates that a choice takes in the slots with a choice."""
    return {
        op
        for stage, d, row in zip(TIED.stages, choice.depths, choice.ops)
        for slot, op in zip(stage.slots[:d], row)
        if len(slot.candidates) > 1
    }


def test_all_slots_of_a_tied_space_take_the_same_candidate():
    alphas = Alphas(TIED)
    generator = torch.Generator().manual_seed(0)
    drawn = [TIED.random(generator) for _ in range(30)]
    drawn += [fair_choice(TIED, 0, i) for i in range(30)] + [sampled_choice(alphas, 1.0, 0.0, 0, i) for i in range(30)]
    assert all(len(one_everywhere(choice)) == 1 for choice in drawn)
    assert {next(iter(one_everywhere(choice))) for choice in drawn} == {0, 1, 2}
    for sampler in SAMPLERS:
        ops, _ = sampled_gates(sampler, alphas, 1.0, 0, 0)
        assert ops[1][0] is ops[1][1] is ops[2][0]


def test_a_tied_alpha_gathers_the_gradients_of_all_slots():
    alphas, free, latency = Alphas(TIED), Alphas(SPACE), latency_of(SPACE)
    assert sum(p.numel() for p in alphas.parameters()) == 3 + 1 + (1 + 2 + 2)
    alphas.expected_latency(latency).backward()
    free.expected_latency(latency).backward()
    total = sum(free.ops[i][j].grad for i in (1, 2) for j in (0, 1))
    assert torch.allclose(alphas.ops[1][0].grad, total)


def test_the_front_of_a_tied_space_is_the_best_of_all_its_networks():
    generator, latency = torch.Generator().manual_seed(0), latency_of(SPACE)
    scores = torch.randn(3, generator=generator).tolist()
    ops = first_choice_only(TIED, scores)
    depths = [
        torch.randn(len(stage.slots) - stage.min_depth + 1, generator=generator).tolist() for stage in TIED.stages
    ]
    every = [
        TIED.with_candidate(Choice((1, a, b), ((0,), (0, 0), (0, 0))), i)
        for a in (1, 2)
        for b in (1, 2)
        for i in range(3)
    ]
    reckoned = [
        (
            path_latency(c, latency),
            scores[next(iter(one_everywhere(c)))]
            + depths[0][0]
            + depths[1][c.depths[1] - 1]
            + depths[2][c.depths[2] - 1],
        )
        for c in every
    ]
    best = sorted(
        {(t, s) for t, s in reckoned if all(not (t2 <= t and s2 >= s and (t2, s2) != (t, s)) for t2, s2 in reckoned)}
    )
    points = front(TIED, ops, depths, latency)
    assert [p.latency_ms for p in points] == pytest.approx([t for t, _ in best])
    assert [p.score for p in points] == pytest.approx([s for _, s in best])
    assert all(path_score(p.choice, (ops, depths), TIED) == pytest.approx(p.score) for p in points)


def test_a_tied_search_runs_and_every_candidate_is_a_finalist():
    torch.manual_seed(0)
    s = Search(
        Supernet(TIED),
        Plan(2, 3, 3, 6),
        latency_of(SPACE),
        1.0,
        F.cross_entropy,
        batch,
        lambda i: batch(10_000 + i),
        CONFIG,
    )
    run(s)
    x, y = batch(0)
    counted = []
    losses = perturbation_scores(s.supernet, favourite(s.alphas), x, y, F.cross_entropy, lambda: counted.append(1))
    assert len(counted) == evaluations(TIED)
    scores = blended_scores(s.alphas, losses)
    networks = finalists(TIED, fronts_for(TIED, scores, s.latency, 1.0), scores, s.latency, 1.0, 2, 2, 0)
    assert [n.kind for n in networks] == ["derived"] * 3 + ["random"] * 2
    assert {next(iter(one_everywhere(n.choice))) for n in networks[:3]} == {0, 1, 2}
    assert all(n.latency_ms <= 1.0 for n in networks)
