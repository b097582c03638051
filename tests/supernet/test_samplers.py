"""supernet.samplers: which paths run, and the gates that carry the gradient to the alphas."""

import pytest
import torch

from supernet import SAMPLERS, Alphas, fair_choice, sampled_choice, sampled_gates
from supernet.samplers import round_length
from tests.spaces import latency_of
from tests.supernet.tiny_search import SPACE, TIED


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


def test_all_slots_of_a_tied_space_take_the_same_candidate():
    alphas = Alphas(TIED)
    generator = torch.Generator().manual_seed(0)
    drawn = [TIED.random(generator) for _ in range(30)]
    drawn += [fair_choice(TIED, 0, i) for i in range(30)] + [sampled_choice(alphas, 1.0, 0.0, 0, i) for i in range(30)]
    assert all(choice == TIED.with_candidate(choice, TIED.tied_candidate(choice)) for choice in drawn)
    assert {TIED.tied_candidate(choice) for choice in drawn} == {0, 1, 2}
    for sampler in SAMPLERS:
        ops, _ = sampled_gates(sampler, alphas, 1.0, 0, 0)
        assert ops[1][0] is ops[1][1] is ops[2][0]
