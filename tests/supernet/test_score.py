"""supernet.score: perturbation losses, and their blend with the alphas."""

import pytest
import torch
import torch.nn.functional as F

from nas.derive import Scores
from quant.statistics import frozen_statistics
from supernet import Alphas, Supernet, blended_scores, evaluations, mean_scores, most_probable, perturbation_losses
from tests.supernet.tiny_search import SPACE, TIED, batch


def evaluated(net, choice, x, y):
    with torch.no_grad(), frozen_statistics(net):
        return F.cross_entropy(net(x, choice), y).item()


def test_perturbation_losses_equal_whole_evaluations_one_change_at_a_time():
    net, (x, y) = Supernet(SPACE).train(), batch(0)
    base = most_probable(Alphas(SPACE))
    losses = perturbation_losses(net, base, x, y, F.cross_entropy)
    reference = evaluated(net, base, x, y)
    for s in (1, 2):
        for slot in range(2):
            for op in range(3):
                rows = [list(row) for row in base.ops]
                rows[s][slot] = op
                changed = type(base)(base.depths, tuple(map(tuple, rows)))
                assert losses.ops[s][slot][op] == pytest.approx(evaluated(net, changed, x, y) - reference, abs=1e-6)
        shallow = type(base)(tuple(1 if i == s else d for i, d in enumerate(base.depths)), base.ops)
        assert losses.depths[s] == pytest.approx([evaluated(net, shallow, x, y) - reference, 0.0], abs=1e-6)


def test_in_a_tied_space_a_candidate_changes_in_all_slots_together():
    net, (x, y), counted = Supernet(TIED).train(), batch(0), []
    base = most_probable(Alphas(TIED))
    losses = perturbation_losses(net, base, x, y, F.cross_entropy, lambda: counted.append(1))
    assert len(counted) == evaluations(TIED)
    changes = [evaluated(net, TIED.with_candidate(base, i), x, y) for i in range(3)]
    assert losses.shared == pytest.approx([change - evaluated(net, base, x, y) for change in changes], abs=1e-6)
    assert not any(value for stage in losses.ops for row in stage for value in row)


def test_scoring_twice_gives_equal_scores_in_spite_of_dropout():
    net, (x, y) = Supernet(SPACE).train(), batch(0)
    base = most_probable(Alphas(SPACE))
    assert perturbation_losses(net, base, x, y, F.cross_entropy) == perturbation_losses(
        net, base, x, y, F.cross_entropy
    )
    assert net.head.dropout.training


def test_the_mean_of_scores_is_that_of_every_row():
    several = [Scores([[[0.0, 2.0]]], [[1.0]], [4.0, 0.0]), Scores([[[1.0, 4.0]]], [[2.0]], [0.0, 1.0])]
    assert mean_scores(several) == Scores([[[0.5, 3.0]]], [[1.5]], [2.0, 0.5])


def test_blended_scores_prefer_high_probability_and_low_loss():
    alphas = Alphas(SPACE)
    with torch.no_grad():
        alphas.ops[1][0].copy_(torch.tensor([2.0, 0.0, 0.0]))
    ops = [[[0.0] * len(s.candidates) for s in st.slots] for st in SPACE.stages]
    ops[2][1] = [0.5, 0.1, 0.3]
    losses = Scores(ops, [[0.0] * (len(st.slots) - st.min_depth + 1) for st in SPACE.stages])
    blended = blended_scores(alphas, losses)
    assert max(range(3), key=blended.ops[1][0].__getitem__) == 0
    assert max(range(3), key=blended.ops[2][1].__getitem__) == 1


def test_blended_scores_of_a_tied_space_are_one_shared_row():
    alphas = Alphas(TIED)
    zeros = [[[0.0] * len(s.candidates) for s in st.slots] for st in TIED.stages]
    losses = Scores(zeros, [[0.0] * (len(st.slots) - st.min_depth + 1) for st in TIED.stages], [0.5, 0.1, 0.3])
    blended = blended_scores(alphas, losses)
    # all alphas are equal; the losses deviate by 0.2, -0.2 and 0 from their mean; 4 slots of 3 and 2 stages of 2 depths
    spread = (2 * 0.2**2 / (4 * 3 + 2 * 2)) ** 0.5
    assert blended.shared == pytest.approx([-0.5 / spread, -0.1 / spread, -0.3 / spread])
    assert not any(value for stage in blended.ops for row in stage for value in row)
