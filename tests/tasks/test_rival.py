"""Discriminators really learn, see the pictures they should, and remember older ones exactly."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tasks.rival import LR, Pool, Rival
from tests.tasks.test_engine import same


def linear() -> nn.Module:
    """Logits of each pixel."""
    return nn.Conv2d(3, 1, 1)


def pictures(count: int, value: float, size: int = 4) -> torch.Tensor:
    return torch.full((count, 3, size, size), value) + 0.01 * torch.randn(
        count, 3, size, size, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize(("loss", "undecided"), [("vanilla", math.log(2)), ("least_squares", 0.25)])
def test_one_that_cannot_tell_pictures_apart_has_the_known_loss(loss, undecided):
    rival = Rival(("a",), linear, loss)
    nn.init.zeros_(rival.networks["a"].weight)
    nn.init.constant_(rival.networks["a"].bias, 0.0 if loss == "vanilla" else 0.5)
    logs = rival.learn({"a": pictures(2, 0.5)}, {"a": pictures(2, -0.5)})
    assert logs["discriminator_a"].item() == pytest.approx(undecided, abs=1e-6)


@pytest.mark.parametrize("loss", ["vanilla", "least_squares"])
def test_it_learns_to_tell_real_pictures_from_made_ones_and_the_generators_loss_rises(loss):
    rival = Rival(("a", "b"), linear, loss)
    for network in rival.networks.values():  # undecided
        nn.init.zeros_(network.weight)
        nn.init.constant_(network.bias, 0.0 if loss == "vanilla" else 0.5)
    before, first = copy.deepcopy(rival.networks.state_dict()), rival.fooled("a", pictures(2, -0.5)).item()
    for group in rival.optimizer.param_groups:
        group["lr"] = 0.05
    losses = [rival.learn({n: pictures(4, 0.5) for n in "ab"}, {n: pictures(4, -0.5) for n in "ab"}) for _ in range(60)]
    for name in ("a", "b"):
        assert losses[-1][f"discriminator_{name}"] < 0.3 * losses[0][f"discriminator_{name}"]
    assert all(not torch.equal(value, before[name]) for name, value in rival.networks.state_dict().items())
    assert rival.fooled("a", pictures(2, -0.5)).item() > 1.5 * first  # who is seen through is told so


@pytest.mark.parametrize(
    ("loss", "reference"), [("vanilla", F.binary_cross_entropy_with_logits), ("least_squares", F.mse_loss)]
)
def test_its_step_is_adams_on_half_the_sum_of_both_losses(loss, reference):
    rival = Rival(("a",), linear, loss)
    twin = copy.deepcopy(rival.networks["a"])
    adam = torch.optim.Adam(twin.parameters(), lr=LR / 2, betas=(0.5, 0.999))
    rival.scale_lr(0.5)
    for step in range(3):
        real, made = pictures(2, 0.3 + step), pictures(2, -0.3)
        wanted = 0.5 * (reference(twin(real), torch.ones(2, 1, 4, 4)) + reference(twin(made), torch.zeros(2, 1, 4, 4)))
        adam.zero_grad()
        wanted.backward()
        adam.step()
        assert rival.learn({"a": real}, {"a": made})["discriminator_a"].item() == pytest.approx(wanted.item(), rel=1e-6)
    assert same(rival.networks["a"].state_dict(), twin.state_dict())


def test_a_generators_loss_reaches_its_pictures_and_leaves_the_discriminator_alone():
    rival, made = Rival(("a",), linear, "vanilla"), pictures(2, 0.1).requires_grad_()
    rival.fooled("a", made).backward()
    weight = rival.networks["a"].weight.detach()
    logits = F.conv2d(made.detach(), weight, rival.networks["a"].bias.detach())
    wanted = (torch.sigmoid(logits) - 1) / logits.numel() * weight  # of softplus(-logit), by hand
    torch.testing.assert_close(made.grad, wanted.expand_as(made))
    assert all(p.grad is None for p in rival.parameters())


def test_a_step_does_not_reach_the_generator():
    rival, made = Rival(("a",), linear, "vanilla"), pictures(2, 0.1).requires_grad_()
    rival.learn({"a": pictures(2, 0.5)}, {"a": made * 2})
    assert made.grad is None


def test_its_weights_come_from_the_seed_and_do_not_move_other_random_numbers():
    torch.manual_seed(3)
    alone = torch.rand(2)
    torch.manual_seed(3)
    first = Rival(("a",), linear, "vanilla", seed=1)
    assert torch.equal(torch.rand(2), alone)
    again, other = Rival(("a",), linear, "vanilla", seed=1), Rival(("a",), linear, "vanilla", seed=2)
    assert same(first.networks.state_dict(), again.networks.state_dict())
    assert not torch.equal(first.networks["a"].weight, other.networks["a"].weight)


# ---- the memory --------------------------------------------------------------------------------------------


def numbered(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1)


def test_a_pool_passes_pictures_on_until_it_is_full_and_then_exchanges_half_of_them():
    pool, given, found = Pool(50, 0, 0), [], []
    for start in range(0, 2000, 4):
        given += range(start, start + 4)
        found += pool.exchange(numbered(*range(start, start + 4))).flatten().int().tolist()
    assert found[:50] == given[:50]
    kept = sum(a == b for a, b in zip(given[50:], found[50:], strict=True))
    assert 0.46 < kept / 1950 < 0.54
    older = [f for g, f in zip(given[50:], found[50:], strict=True) if f != g]
    assert all(f < g for g, f in zip(given[50:], found[50:], strict=True) if f != g)
    assert len(pool.memory) == 50 and len(set(older)) == len(older)  # what is taken out is gone


def test_a_pool_of_none_passes_everything_on():
    x = numbered(1, 2)
    assert Pool(0, 0, 0).exchange(x) is x


def test_what_a_rival_keeps_is_all_that_it_needs_to_go_on():
    def steps(rival: Rival, numbers: range) -> list[float]:
        return [
            rival.learn({"a": pictures(2, 0.5)}, {"a": pictures(2, -0.01 * n)})["discriminator_a"].item()
            for n in numbers
        ]

    whole, begun = (Rival(("a",), linear, "least_squares", pool_size=5, seed=4) for _ in range(2))
    wanted = steps(whole, range(30))
    steps(begun, range(17))
    state = copy.deepcopy(begun.state_dict())
    resumed = Rival(("a",), linear, "least_squares", pool_size=5, seed=4)
    resumed.load_state_dict(state)
    assert steps(resumed, range(17, 30)) == wanted[17:]
    assert same(resumed.networks.state_dict(), whole.networks.state_dict()) and torch.equal(
        resumed.pools["a"].memory, whole.pools["a"].memory
    )
