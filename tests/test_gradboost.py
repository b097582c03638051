"""quant.gradboost: the recursion of arXiv:2006.09679 against a scalar transcription, and torch.optim where it is off."""

import math

import pytest
import torch

from quant import GradBoost, QuantError
from quant.gradboost import boost, update_stats

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,))]


def run(optimizer, params, steps=8):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["off", "paper", "released"])
def test_without_boost_the_optimizer_is_torchs(name, mode):
    plain, wrapped = parameters(), parameters()
    expected = run(OPTIMIZERS[name](plain), plain)
    got = run(GradBoost(OPTIMIZERS[name](wrapped), mode), wrapped)
    assert all(torch.equal(a, b) for a, b in zip(expected, got))


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_released_statistics_are_the_published_recursion(beta):
    n_min, n_max = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    low = high = 0.0
    for step, a in enumerate((0.3, 0.1, 0.7, 0.2), start=1):
        c = 1 - beta**step
        low = (beta * low + (1 - beta) * min(low, a)) / c
        high = (beta * high + (1 - beta) * max(high, a)) / c
        got = update_stats(n_min, n_max, torch.tensor([a], dtype=torch.float64), step, beta, "released")
        assert [g.item() for g in got] == pytest.approx([low, high], rel=1e-12)
    assert low == 0.0  # the published minimum starts at 0 and stays there


def test_released_maximum_is_inflated_as_measured():
    # with a constant gradient, beta 0.9: by 77 756 in the limit
    n_min, n_max = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for step in range(1, 400):
        update_stats(n_min, n_max, torch.ones(1, dtype=torch.float64), step, 0.9, "released")
    assert n_max.item() == pytest.approx(77_756, rel=1e-3)


def test_paper_statistics_are_corrected_averages_of_the_running_extremes():
    n_min, n_max = torch.zeros(1), torch.zeros(1)
    low, high = update_stats(n_min, n_max, torch.tensor([0.4]), 1, 0.9, "paper")
    assert (low.item(), high.item()) == pytest.approx((0.4, 0.4))  # the first step knows one value: no spread
    low, high = update_stats(n_min, n_max, torch.tensor([0.8]), 2, 0.9, "paper")
    assert high.item() == pytest.approx((0.9 * 0.4 + 0.8) / 1.9)
    assert low.item() == pytest.approx(0.4)
    for step in range(3, 200):
        low, high = update_stats(n_min, n_max, torch.tensor([0.6]), step, 0.9, "paper")
    assert high.item() <= 0.8
    assert low.item() >= 0.4 - 1e-6


def test_boost_lengthens_half_of_the_elements_and_never_turns_one():
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(20_000, generator=generator)
    boosted = boost(grad, torch.ones_like(grad), 1.0, 0.0, torch.rand(20_000, generator=generator))
    longer = boosted.abs() > grad.abs()
    assert (torch.sign(boosted) == torch.sign(grad)).all()
    assert longer.float().mean().item() == pytest.approx(0.5, abs=0.02)
    added = (boosted.abs() - grad.abs())[longer]
    assert added.mean().item() == pytest.approx(1.0, abs=0.03)  # |Laplace(0, 1)| is exponential: mean 1, deviation 1
    assert added.std().item() == pytest.approx(1.0, abs=0.05)


def test_boost_is_clipped_and_zero_gradients_get_none():
    grad = torch.tensor([0.0, 1.0, -1.0])
    boosted = boost(grad, torch.full((3,), 1e6), 1.0, 1e-3, torch.full((3,), 0.99))
    assert boosted.tolist() == pytest.approx([0.0, 1.001, -1.001])


def test_an_infinite_spread_never_makes_a_gradient_that_is_not_a_number():
    grad = torch.tensor([0.0, 1.0, -1.0, 2.0])
    for uniform in (0.2, 0.5, 0.9):
        boosted = boost(grad, torch.full((4,), float("inf")), 1.0, 1e-3, torch.full((4,), uniform))
        assert boosted.isfinite().all()


@pytest.mark.parametrize(("mode", "boosted"), [("paper", [0]), ("released", [0, 1])])
def test_paper_mode_boosts_weights_and_released_mode_everything(mode, boosted):
    params = parameters()
    optimizer = GradBoost(torch.optim.SGD(params, lr=0.1), mode)
    run(optimizer, params, 1)
    assert list(optimizer.stats) == boosted


def test_released_decay_counts_boosted_steps_and_paper_decay_follows_progress():
    p = [torch.nn.Parameter(torch.zeros(1, 1000))]
    sizes = {}
    for mode in ("released", "paper"):
        optimizer = GradBoost(torch.optim.SGD(p, lr=0.0), mode, clip_by=0.0, noise_decay=0.5)
        optimizer.active = True
        for step in range(4):
            optimizer.progress = step / 3
            p[0].grad = torch.full((1, 1000), float(2 + step % 2))
            before = p[0].grad.clone()
            spread = optimizer._spread(0)
            optimizer._boost([0], [torch.ones_like(spread)])
            sizes.setdefault(mode, []).append((p[0].grad - before).mean().item() * 2)
    assert sizes["released"] == pytest.approx([0.5, 0.25, 0.125, 0.0625], rel=0.2)
    assert sizes["paper"] == pytest.approx([math.exp(-5 * s / 3) for s in range(4)], rel=0.2)


def test_adam_folds_its_weight_decay_in_before_the_noise():
    # statistics see g + wd p, as in the published QAdam
    p = [torch.nn.Parameter(torch.full((4,), 10.0))]
    optimizer = GradBoost(torch.optim.Adam(p, lr=0.0, weight_decay=0.1), "released")
    p[0].grad = torch.full((4,), 0.5)
    optimizer.step()
    assert optimizer.stats[0]["n_max"].tolist() == pytest.approx([1.5] * 4)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_a_resumed_optimizer_goes_on_bit_for_bit(mode):
    def fresh():
        params = parameters()
        optimizer = GradBoost(OPTIMIZERS["sgd"](params), mode, seed=3)
        optimizer.active = True
        return params, optimizer

    params, optimizer = fresh()
    run(optimizer, params, 3)
    state, middle = optimizer.state_dict(), [p.detach().clone() for p in params]
    state = torch.load(_saved(state), weights_only=True)
    expected = run(optimizer, params, 3)
    params, optimizer = fresh()
    for p, value in zip(params, middle):
        p.data.copy_(value)
    optimizer.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(expected, run(optimizer, params, 3)))


def _saved(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_parameters_without_gradient_are_left_alone():
    params = parameters()
    optimizer = GradBoost(torch.optim.SGD(params, lr=0.1), "paper")
    optimizer.active = True
    params[0].grad = torch.ones_like(params[0])
    before = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[1], before)
    assert list(optimizer.stats) == [0]


def test_seeds_decide_the_noise():
    results = []
    for seed in (1, 1, 2):
        params = parameters()
        optimizer = GradBoost(torch.optim.SGD(params, lr=0.1), "released", seed=seed)
        optimizer.active = True
        results.append(torch.cat([p.flatten() for p in run(optimizer, params)]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_bad_modes_are_named():
    with pytest.raises(QuantError, match="loud.*paper"):
        GradBoost(torch.optim.SGD(parameters(), lr=0.1), "loud")


def test_state_of_another_mode_is_refused():
    paper, released = (GradBoost(torch.optim.SGD(parameters(), lr=0.1), mode) for mode in ("paper", "released"))
    with pytest.raises(QuantError, match="released.*paper"):
        paper.load_state_dict(released.state_dict())
