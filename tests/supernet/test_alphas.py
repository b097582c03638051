"""supernet.alphas: probabilities, expected latency, entropy, log scores."""

import itertools

import pytest
import torch

from supernet import Alphas
from supernet.finalists import path_latency
from tests.spaces import latency_of
from tests.supernet.tiny_search import SPACE, TIED, all_choices


def test_one_hot_alphas_expect_the_latency_of_their_path():
    latency = latency_of(SPACE)
    for choice in all_choices(SPACE):
        alphas = Alphas(SPACE)
        with torch.no_grad():
            for stage, depth, ops, depth_alpha, op_alphas in zip(
                SPACE.stages, choice.depths, choice.ops, alphas.depths, alphas.ops
            ):
                depth_alpha[depth - stage.min_depth] = 100.0
                for alpha, op in zip(op_alphas, ops):
                    alpha[op] = 100.0
        assert alphas.expected_latency(latency).item() == pytest.approx(path_latency(choice, latency), rel=1e-5)


def test_uniform_alphas_expect_the_mean_over_all_networks():
    latency, alphas, total, weight = latency_of(SPACE), Alphas(SPACE), 0.0, 0.0
    for d1, d2 in itertools.product((1, 2), repeat=2):
        for ops in itertools.product(range(3), repeat=4):
            rows = ((0,), ops[:2], ops[2:])
            total += path_latency(type(all_choices(SPACE)[0])((1, d1, d2), rows), latency)
            weight += 1
    assert alphas.expected_latency(latency).item() == pytest.approx(total / weight, rel=1e-5)


def test_the_latency_gradient_points_to_cheaper_ops_and_shallower_stages():
    alphas = Alphas(SPACE)
    alphas.expected_latency(latency_of(SPACE)).backward()
    for stage in list(alphas.ops)[1:]:
        for alpha in stage:
            assert (alpha.grad.diff() > 0).all(), "a step against the gradient favours the cheaper candidate"
    for depth in list(alphas.depths)[1:]:
        assert depth.grad[0] < 0 < depth.grad[1]


def test_entropy_is_one_for_uniform_and_zero_for_certain():
    alphas = Alphas(SPACE)
    assert alphas.entropy().item() == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        for alpha in alphas.parameters():
            alpha[0] = 1000.0
    assert alphas.entropy().item() == pytest.approx(0.0, abs=1e-5)


def test_a_tied_alpha_gathers_the_gradients_of_all_slots():
    alphas, free, latency = Alphas(TIED), Alphas(SPACE), latency_of(SPACE)
    assert sum(p.numel() for p in alphas.parameters()) == 3 + 1 + (1 + 2 + 2)
    alphas.expected_latency(latency).backward()
    free.expected_latency(latency).backward()
    total = sum(free.ops[i][j].grad for i in (1, 2) for j in (0, 1))
    assert torch.allclose(alphas.ops[1][0].grad, total)


def test_log_scores_are_zero_for_the_most_probable_and_negative_for_the_others():
    alphas = Alphas(SPACE)
    with torch.no_grad():
        alphas.ops[1][0].copy_(torch.tensor([0.2, 0.7, 0.1]).log())
    scores = alphas.log_scores()
    assert scores.shared is None
    assert scores.ops[1][0] == pytest.approx(torch.tensor([0.2 / 0.7, 1.0, 0.1 / 0.7]).log().tolist(), abs=1e-6)
    assert scores.depths == [[0.0], [0.0, 0.0], [0.0, 0.0]]


def test_the_log_scores_of_a_tied_space_are_one_shared_row():
    alphas = Alphas(TIED)
    with torch.no_grad():
        alphas.ops[1][0].copy_(torch.tensor([0.2, 0.7, 0.1]).log())
    scores = alphas.log_scores()
    assert scores.shared == pytest.approx(torch.tensor([0.2 / 0.7, 1.0, 0.1 / 0.7]).log().tolist(), abs=1e-6)
    assert not any(value for stage in scores.ops for row in stage for value in row)
