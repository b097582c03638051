"""supernet.loop: phases, resume, and the way to the target."""

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from nas import find_space
from nas.derive import front
from supernet import Plan, Search, Supernet, blended_scores, most_probable, perturbation_losses
from tests import ROOT
from tests.spaces import latency_of
from tests.supernet.tiny_search import CONFIG, run, search


def test_phases_come_in_order_and_alphas_move_only_in_the_last():
    s = search()
    rows = run(s, 10)
    assert [r["phase"] for r in rows] == ["base"] * 2 + ["float"] * 4 + ["quant"] * 4
    assert all((a == 0).all() for a in s.alphas.parameters())
    rows = run(s)
    assert all(r["phase"] == "joint" for r in rows)
    assert any((a != 0).any() for a in s.alphas.parameters())
    assert [("expected_ms" in r) for r in rows] == [True, False] * 4


def test_training_lowers_the_loss():
    rows = run(search(Plan(8, 15, 5, 20)))
    assert sum(r["loss"] for r in rows[-9:]) < 0.7 * sum(r["loss"] for r in rows[:9])


@pytest.mark.parametrize("target", [0.8, 1.2])
def test_the_dual_variable_brings_the_expected_latency_to_the_target_from_either_side(target):
    s = search(Plan(0, 0, 3, 60, alpha_every=1, mu_rate=1.0, alpha_lr=0.2), target=target)
    start = s.alphas.expected_latency(s.latency).item()
    assert start == pytest.approx(1.0)
    rows = run(s)
    assert (rows[3]["mu"] > 0) == (start > target)
    assert sum(row["expected_ms"] for row in rows[-10:]) / 10 == pytest.approx(target, rel=0.05)


def test_a_target_that_every_network_meets_steers_nothing():
    s = search(Plan(0, 0, 3, 10, alpha_every=1), target=100.0)
    assert all(row["mu"] == 0.0 for row in run(s) if "mu" in row)


@pytest.fixture(scope="module")
def whole():
    """A search that has ended, and its rows."""
    s = search()
    return s, run(s)


# at the end of the base phase, in the float phase and after steps of the alphas
@pytest.mark.parametrize(
    "stop", [pytest.param(1, marks=pytest.mark.slow), 2, 5, 11, pytest.param(13, marks=pytest.mark.slow)]
)
def test_an_interrupted_search_ends_as_an_uninterrupted_one_bit_for_bit(whole, stop, tmp_path):
    ended, expected = whole
    first = search()
    run(first, stop)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = search(seed=0)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert run(second) == expected[stop:]
    pairs = zip(ended.supernet.state_dict().values(), second.supernet.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs if isinstance(a, torch.Tensor))
    assert all(torch.equal(a, b) for a, b in zip(ended.alphas.parameters(), second.alphas.parameters()))


def test_equal_seeds_give_equal_searches_and_unlike_seeds_do_not(whole):
    assert run(search()) == whole[1]
    assert run(search(seed=1), 3) != whole[1][:3]


def test_a_loss_that_is_not_a_number_names_the_step_and_the_fix():
    s = search()
    s.loss = lambda out, y: F.cross_entropy(out, y) * float("nan")
    with pytest.raises(UserError, match="nan at step 0.*base phase.*--lr"):
        s.step()


# ---- a user's space ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.35, 1.0])
def test_the_example_of_docs_search_is_a_space_that_can_be_searched(width):
    space = find_space("examples.kernels:kernels")(width, 32, 4)
    assert space.name == "examples.kernels:kernels"
    for stage in space.stages:
        assert stage.min_depth == 1 and all(c.stride == 1 for slot in stage.slots[1:] for c in slot.candidates)
        assert all(
            len({(c.in_channels, c.out_channels, c.stride) for c in slot.candidates}) == 1 for slot in stage.slots
        )
        assert all(c.out_channels % 8 == 0 for slot in stage.slots for c in slot.candidates)
    assert all({c.kernel_size for c in slot.candidates} == {3, 5, 7} for stage in space.stages for slot in stage.slots)


def test_a_search_of_the_example_runs_through_all_phases():
    space = find_space("examples.kernels:kernels")(0.35, 32, 4)

    def images(step):
        return (
            torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(step)),
            torch.arange(8) % 4,
        )

    s = Search(Supernet(space), Plan(1, 1, 1, 2), latency_of(space), 2.0, F.cross_entropy, images, images, CONFIG)
    run(s)
    point = front(
        space,
        blended_scores(s.alphas, perturbation_losses(s.supernet, most_probable(s.alphas), *images(0), F.cross_entropy)),
        s.latency,
    )[-1]
    assert space.choice_of(space.architecture(point.choice)) == point.choice
    assert "(../examples/kernels.py)" in (ROOT / "docs" / "search.md").read_text()
