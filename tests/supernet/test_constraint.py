"""supernet.constraint: the augmented Lagrangian in numbers."""

import pytest
import torch

from supernet import LatencyConstraint
from supernet.constraint import LOWEST_MU


def constraint(target_ms=2.0, slowest_ms=9.0, rho=3.0, mu_rate=0.1):
    return LatencyConstraint(target_ms, slowest_ms, rho, mu_rate)


def test_the_penalty_is_mu_x_plus_half_rho_x_squared():
    c = constraint()
    c.mu = 0.5
    expected = torch.tensor(3.0, requires_grad=True)
    penalty = c.penalty(expected)  # x = 3/2 - 1
    assert penalty.item() == pytest.approx(0.5 * 0.5 + 1.5 * 0.25)
    penalty.backward()
    assert expected.grad.item() == pytest.approx((0.5 + 3.0 * 0.5) / 2.0)


def test_mu_rises_above_the_target_and_falls_below_it():
    c = constraint()
    c.update(torch.tensor(3.0))
    assert c.mu == pytest.approx(0.1 * 0.5)
    c.update(torch.tensor(1.0))
    assert c.mu == pytest.approx(0.0)
    for _ in range(100):
        c.update(torch.tensor(1.0))
    assert c.mu == LOWEST_MU


def test_a_target_that_the_slowest_network_meets_steers_nothing():
    c = constraint(target_ms=9.0)
    c.update(torch.tensor(1.0))
    assert not c.steers and c.mu == 0.0 and c.penalty(torch.tensor(1.0)).item() == 0.0


def test_the_dual_variable_is_all_of_its_state():
    first, second = constraint(), constraint()
    first.update(torch.tensor(3.0))
    second.load_state_dict(first.state_dict())
    assert first.state_dict() == {"mu": first.mu} and second.mu == first.mu
