"""quant.training.gradient_noise: the recursion of arXiv:2006.09679 against scalar transcriptions, and its noise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.training.gradient_noise import Noise, boost, noise_levels, update_stats

CPU = torch.device("cpu")


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_released_statistics_are_the_published_recursion(beta):
    n_min, n_max = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    low = high = 0.0
    for step, a in enumerate((0.3, 0.1, 0.7, 0.2), start=1):
        c = 1 - beta**step
        low = (beta * low + (1 - beta) * min(low, a)) / c
        high = (beta * high + (1 - beta) * max(high, a)) / c
        update_stats(n_min, n_max, torch.tensor([a], dtype=torch.float64), step, beta, "released")
        assert [n_min.item(), n_max.item()] == pytest.approx([low, high], rel=1e-12)
    assert low == 0.0  # the published minimum starts at 0 and stays there


def test_released_maximum_is_inflated_as_measured():
    # with a constant gradient, beta 0.9: by 77 756 in the limit
    n_min, n_max = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for step in range(1, 400):
        update_stats(n_min, n_max, torch.ones(1, dtype=torch.float64), step, 0.9, "released")
    assert n_max.item() == pytest.approx(77_756, rel=1e-3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 0.999))
def test_paper_statistics_are_corrected_averages_of_the_running_extremes(magnitudes, beta):
    n_min, n_max = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    low = high = 0.0  # uncorrected averages
    for step, a in enumerate(magnitudes, start=1):
        before, now = 1 - beta ** (step - 1), 1 - beta**step
        low = beta * low + (1 - beta) * (a if step == 1 else min(low / before, a))
        high = beta * high + (1 - beta) * (a if step == 1 else max(high / before, a))
        update_stats(n_min, n_max, torch.tensor([a], dtype=torch.float64), step, beta, "paper")
        assert [n_min.item(), n_max.item()] == pytest.approx([low / now, high / now], rel=1e-9, abs=1e-12)
    assert min(magnitudes) - 1e-12 <= n_min.item() <= n_max.item() <= max(magnitudes) + 1e-12


def test_noise_levels_are_the_exponential_distribution_and_a_coin():
    levels = noise_levels()
    heads = levels[levels > 0]
    assert len(levels) == 2**16 and len(heads) == 2**15
    assert heads.mean().item() == pytest.approx(1.0, abs=1e-12)
    assert heads.var().item() == pytest.approx(1.0, abs=2e-4)
    ranks = (torch.arange(2**15) + 0.5) / 2**15
    assert torch.allclose(heads[:-100], -torch.log1p(-ranks.double())[:-100], rtol=1e-4)


def test_drawn_noise_is_spread_evenly_and_neighbours_are_independent():
    noise = Noise(CPU, 0)
    drawn = noise.draw(noise.levels, 400_003)
    assert drawn.shape == (400_003,)
    heads = drawn[drawn > 0].sort().values
    assert len(heads) / len(drawn) == pytest.approx(0.5, abs=0.004)  # 5 standard deviations
    uniform = -torch.expm1(-heads)
    steps = torch.linspace(0, 1, len(heads), dtype=torch.float64)
    assert (uniform - steps).abs().max() < 2.0 / len(heads) ** 0.5  # Kolmogorov-Smirnov, 1 in 1500
    centred = drawn - drawn.mean()
    for lag in (1, 2, 3, 4, 5, 8):
        correlation = (centred[lag:] * centred[:-lag]).mean() / centred.var()
        assert abs(correlation.item()) < 5 / len(drawn) ** 0.5


def test_boost_lengthens_half_of_the_elements_and_never_turns_one():
    grad, noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0)), Noise(CPU, 0)
    boosted = boost(grad.clone(), torch.ones_like(grad), noise.draw(noise.levels.float(), 20_000))
    longer = boosted.abs() > grad.abs()
    assert (torch.sign(boosted) == torch.sign(grad)).all()
    assert longer.float().mean().item() == pytest.approx(0.5, abs=0.02)
    added = (boosted.abs() - grad.abs())[longer]
    assert added.mean().item() == pytest.approx(1.0, abs=0.03)  # |Laplace(0, 1)| is exponential: mean 1, deviation 1
    assert added.std().item() == pytest.approx(1.0, abs=0.05)


def test_boost_is_clipped_and_zero_gradients_get_none():
    grad = torch.tensor([0.0, 1.0, -1.0])
    assert boost(grad.clone(), torch.full((3,), 1e6), torch.ones(3), 1e-3).tolist() == pytest.approx(
        [0.0, 1.001, -1.001]
    )
