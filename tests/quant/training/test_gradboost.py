"""quant.training.gradboost: the recursion of arXiv:2006.09679 against scalar transcriptions, its noise, and torch.optim
where it is off.
"""

import io
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import gradboost_step
from quant import GradBoost, QuantError
from quant.training.gradboost import _Noise, boost, noise_levels, update_stats

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}
CPU = torch.device("cpu")
SHAPES = ((3, 4), (5,), (2, 3, 2, 2), (7, 1))


def parameters(seed=0, shapes=((3, 4), (5,)), dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def run(optimizer, params, steps=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in params]


def still(params, mode="released", **options):
    """GradBoost that boosts and moves nothing: its work is what it leaves in the gradients."""
    optimizer = GradBoost(torch.optim.SGD(params, lr=0.0), mode, **options)
    optimizer.active = True
    return optimizer


def saved(state):
    """Through a file, as a checkpoint goes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def stats_of(optimizer):
    """By position: (n_min, n_max, step)."""
    rows = [zip(s["positions"], s["n_min"], s["n_max"]) for s in optimizer.state_dict()["boost"]["buckets"]]
    steps = [s["step"] for s in optimizer.state_dict()["boost"]["buckets"]]
    return {i: (low, high, step) for row, step in zip(rows, steps) for i, low, high in row}


# ---- the recursion -----------------------------------------------------------------------------------------


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


def test_a_released_run_is_the_published_code_element_by_element():
    # float64, several shapes, a warm-up of two steps; gradients after each step against a loop over single numbers
    params = parameters(shapes=SHAPES, dtype=torch.float64)
    optimizer = GradBoost(torch.optim.SGD(params, lr=0.1), "released", clip_by=0.02, noise_decay=0.3, seed=5)
    twin, draw, beta = _Noise(CPU, 5), torch.Generator().manual_seed(2), 0.9
    count = sum(p.numel() for p in params)
    low, high = [0.0] * count, [0.0] * count
    for step in range(1, 9):
        optimizer.active = step > 2
        grads = [torch.randn(p.shape, generator=draw, dtype=torch.float64) * 0.01 for p in params]
        expected = torch.cat([g.flatten() for g in grads]).tolist()
        noise = twin.draw(twin.levels, count).tolist() if optimizer.active else [0.0] * count
        for i, g in enumerate(expected):
            a, c = abs(g), 1 - beta**step
            low[i] = (beta * low[i] + (1 - beta) * min(low[i], a)) / c
            high[i] = (beta * high[i] + (1 - beta) * max(high[i], a)) / c
            u = noise[i] * (high[i] - low[i]) * (1 - 0.3) ** (step - 2) * math.copysign(1, g)
            expected[i] = g + max(-0.02, min(0.02, u))
        for p, g in zip(params, grads):
            p.grad = g.clone()
        optimizer.step()
        assert torch.cat([p.grad.flatten() for p in params]).tolist() == pytest.approx(expected, rel=1e-12)


def test_statistics_of_a_layer_are_the_recursion_of_its_mean_gradient():
    params = parameters(shapes=((3, 4), (2, 2)))
    optimizer, grads = GradBoost(torch.optim.SGD(params, lr=0.0), "paper", stats="layer"), torch.rand(5, 2)
    n_min, n_max = torch.zeros(2), torch.zeros(2)
    for step, means in enumerate(grads, start=1):
        for p, mean in zip(params, means):
            p.grad = torch.full_like(p, mean.item()) * torch.tensor([[1.5], *[[-1.0]] * (len(p) - 2), [0.5]])
        optimizer.step()
        update_stats(n_min, n_max, means, step, 0.9, "paper")
    for i, (low, high, steps) in stats_of(optimizer).items():
        assert (low.item(), high.item(), steps) == pytest.approx((n_min[i].item(), n_max[i].item(), 5), rel=1e-5)


# ---- the noise ---------------------------------------------------------------------------------------------


def test_noise_levels_are_the_exponential_distribution_and_a_coin():
    levels = noise_levels()
    heads = levels[levels > 0]
    assert len(levels) == 2**16 and len(heads) == 2**15
    assert heads.mean().item() == pytest.approx(1.0, abs=1e-12)
    assert heads.var().item() == pytest.approx(1.0, abs=2e-4)
    ranks = (torch.arange(2**15) + 0.5) / 2**15
    assert torch.allclose(heads[:-100], -torch.log1p(-ranks.double())[:-100], rtol=1e-4)


def test_drawn_noise_is_spread_evenly_and_neighbours_are_independent():
    noise = _Noise(CPU, 0)
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
    grad, noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0)), _Noise(CPU, 0)
    boosted = boost(grad.clone(), torch.ones_like(grad), noise.draw(noise.levels.float(), 20_000))
    longer = boosted.abs() > grad.abs()
    assert (torch.sign(boosted) == torch.sign(grad)).all()
    assert longer.float().mean().item() == pytest.approx(0.5, abs=0.02)
    added = (boosted.abs() - grad.abs())[longer]
    assert added.mean().item() == pytest.approx(1.0, abs=0.03)  # |Laplace(0, 1)| is exponential: mean 1, deviation 1
    assert added.std().item() == pytest.approx(1.0, abs=0.05)


def test_boost_is_clipped_and_zero_gradients_get_none():
    grad, bounds = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([1e-3, 1e-3, 1e-2])
    assert boost(grad.clone(), torch.full((3,), 1e6), torch.ones(3), 1e-3).tolist() == pytest.approx(
        [0.0, 1.001, -1.001]
    )
    assert boost(grad.clone(), torch.full((3,), 1e6), torch.ones(3), bounds).tolist() == pytest.approx(
        [0.0, 1.001, -1.01]
    )


def test_statistics_that_overflow_never_make_a_gradient_that_is_not_a_number():
    # beta 0.999 inflates the published maximum beyond float32 within a few steps
    (p,) = parameters(shapes=((100, 10),))
    optimizer = still([p], beta=0.999)
    for _ in range(30):
        p.grad = torch.linspace(-1, 1, 1000).round(decimals=1).view(100, 10)
        optimizer.step()
        assert p.grad.isfinite().all()
    assert stats_of(optimizer)[0][1].max().item() == torch.finfo(torch.float32).max


# ---- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "decay", "expected"),
    [
        ("paper", None, [math.exp(-5 * s / 3) for s in range(4)]),
        ("released", None, [0.5, 0.25, 0.125, 0.0625]),
        ("paper", "step", [0.5, 0.25, 0.125, 0.0625]),
        ("released", "schedule", [math.exp(-5 * s / 3) for s in range(4)]),
    ],
)
def test_noise_decays_by_step_or_by_schedule(mode, decay, expected):
    (p,) = parameters(shapes=((200, 200),))
    optimizer, sizes = still([p], mode, clip_by=0.0, noise_decay=0.5, decay=decay), []
    for step in range(4):
        optimizer.progress = step / 3
        p.grad = torch.full_like(p, float(2 + step % 2))
        before = p.grad.clone()
        optimizer.step()
        low, high, _ = stats_of(optimizer)[0]
        spread = (high - low).mean().item()
        # at its first step `paper` has no spread
        sizes.append((p.grad - before).mean().item() * 2 / spread if spread else expected[step])
    assert sizes == pytest.approx(expected, rel=0.05)


@given(st.integers(-60, 60), st.sampled_from(["element", "layer"]))
@settings(max_examples=20, deadline=None)
def test_a_relative_clip_scales_with_the_gradient(exponent, stats):
    added = []
    for scale in (1.0, 2.0**exponent):
        params = parameters(shapes=((30, 4), (50,)))
        optimizer = still(params, clip="relative", clip_by=0.5, stats=stats, seed=3)
        for p in params:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * scale
        before = [p.grad.clone() for p in params]
        optimizer.step()
        for p, g in zip(params, before):
            length = p.grad.abs() - g.abs()
            assert length.max() <= 0.5 * g.abs().mean() + 1e-6 * g.abs().max()
            assert length.max() > 0.25 * g.abs().mean()
        added.append(torch.cat([p.grad.flatten() / scale for p in params]))
    assert torch.allclose(added[0], added[1], rtol=1e-6)


def test_the_default_clip_drowns_small_gradients_and_the_relative_one_does_not():
    lengths = {}
    for clip in ("absolute", "relative"):
        (p,) = parameters(shapes=((50, 20),))
        optimizer = still([p], clip=clip)
        for _ in range(10):  # the published maximum is thousands of times the gradient by then
            p.grad = torch.full_like(p, 1e-6)
            optimizer.step()
        lengths[clip] = p.grad.max().item() - 1e-6
    assert lengths["absolute"] == pytest.approx(1e-3, rel=1e-3) and lengths["relative"] == pytest.approx(1e-6, rel=1e-3)


def test_a_layers_elements_share_one_spread():
    (p,) = parameters(shapes=((40, 50),))
    optimizer, twin = still([p], stats="layer", clip_by=0.0, seed=4, decay="schedule"), _Noise(CPU, 4)
    p.grad = torch.randn(p.shape)
    before = p.grad.clone()
    optimizer.step()
    expected = twin.draw(twin.levels.float(), p.numel()).view(p.shape) * before.abs().mean()
    assert torch.allclose(p.grad.abs() - before.abs(), expected, atol=1e-5)


@pytest.mark.parametrize(("mode", "boosted"), [("paper", [0]), ("released", [0, 1])])
def test_paper_mode_boosts_weights_and_released_mode_everything(mode, boosted):
    params = parameters()
    optimizer = GradBoost(torch.optim.SGD(params, lr=0.1), mode)
    run(optimizer, params, 1)
    assert list(stats_of(optimizer)) == boosted


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_groups_can_be_added_later_and_kept_from_the_noise(mode):
    weight, learned, late = parameters(shapes=((30, 4), (30, 4), (20, 2)))
    optimizer = still([weight], mode, clip_by=0.0)
    run(optimizer, [weight], 2)
    optimizer.add_param_group({"params": [learned], "boost": False, "lr": 0.5, "weight_decay": 0.0})
    optimizer.add_param_group({"params": [late]})
    for value in (1.0, 2.0):
        for p in (weight, learned, late):
            p.grad = torch.full_like(p, value)
        before = learned.detach().clone()
        optimizer.step()
        assert (learned.grad == value).all()
        assert torch.allclose(learned, before - 0.5 * value)
    assert (weight.grad > 2).any() and (late.grad > 2).any()
    assert {i: step for i, (*_, step) in stats_of(optimizer).items()} == {0: 4, 2: 2}


@pytest.mark.parametrize("maximize", [False, True])
def test_adam_folds_its_weight_decay_in_before_the_noise(maximize):
    # statistics see g + wd p, as in the published QAdam; maximizing turns the gradient only
    p = [torch.nn.Parameter(torch.full((4,), 10.0))]
    optimizer = GradBoost(torch.optim.Adam(p, lr=0.0, weight_decay=0.1, maximize=maximize), "released")
    p[0].grad = torch.full((4,), -0.5 if maximize else 0.5)
    optimizer.step()
    assert stats_of(optimizer)[0][1].tolist() == pytest.approx([1.5] * 4)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop", "nadam"])
def test_the_others_add_their_weight_decay_after_the_noise(name):
    p = [torch.nn.Parameter(torch.full((4,), 10.0))]
    optimizer = GradBoost(OPTIMIZERS[name](p), "released")
    p[0].grad = torch.full((4,), 0.5)
    optimizer.step()
    assert stats_of(optimizer)[0][1].tolist() == pytest.approx([0.5] * 4)


# ---- around an optimizer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "mode, stats", [("off", "element"), ("paper", "element"), ("paper", "layer"), ("released", "element")]
)
def test_without_boost_the_optimizer_is_torchs(name, mode, stats):
    plain, wrapped = parameters(), parameters()
    expected = run(OPTIMIZERS[name](plain), plain)
    got = run(GradBoost(OPTIMIZERS[name](wrapped), mode, stats=stats), wrapped)
    assert all(torch.equal(a, b) for a, b in zip(expected, got))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_boosted_step_is_torchs_step_with_the_longer_gradient(name):
    plain, wrapped = parameters(), parameters()
    bare, optimizer = OPTIMIZERS[name](plain), GradBoost(OPTIMIZERS[name](wrapped), "released")
    optimizer.active = True
    for step in range(3):
        for p, q in zip(plain, wrapped):
            q.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
        if name == "adam":  # its gradients come back with their L2 term
            for group in bare.param_groups:
                group["weight_decay"] = 0.0
        for p, q in zip(plain, wrapped):
            p.grad = q.grad.clone()
        bare.step()
        assert all(torch.equal(p, q) for p, q in zip(plain, wrapped))


@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from(["element", "layer"]),
)
@settings(max_examples=30, deadline=None)
def test_parameters_without_gradient_are_left_out_of_a_step(pattern, stats):
    # whichever parameters have gradients together: each is as if it were alone
    params, alone = (parameters(shapes=((3, 4), (2, 2), (4, 1))) for _ in range(2))
    together = GradBoost(torch.optim.SGD(params, lr=0.1), "paper", stats=stats)
    single = [GradBoost(torch.optim.SGD([p], lr=0.1), "paper", stats=stats) for p in alone]
    draw = torch.Generator().manual_seed(0)
    for here in pattern:
        together.zero_grad()
        for p, q, optimizer, wanted in zip(params, alone, single, here):
            if wanted:
                p.grad = torch.randn(p.shape, generator=draw)
                q.grad = p.grad.clone()
                optimizer.step()
        together.step()
    assert all(torch.equal(p, q) for p, q in zip(params, alone))
    for i, found in stats_of(together).items():
        expected = stats_of(single[i])[0]
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1]) and found[2] == expected[2]


def test_a_parameter_without_gradient_does_not_move():
    params = parameters(shapes=((3, 4), (2, 2)))
    optimizer = GradBoost(torch.optim.SGD(params, lr=0.1), "paper")
    optimizer.active = True
    params[0].grad = torch.ones_like(params[0])
    before = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[1], before) and list(stats_of(optimizer)) == [0]


def test_any_layout_of_weights_and_gradients_is_one_to_one():
    plain = parameters(shapes=((4, 3, 2, 2), (2, 5)))
    formatted = [torch.nn.Parameter(p.detach().clone()) for p in plain]
    formatted[0].data = formatted[0].data.to(memory_format=torch.channels_last)
    formatted[1].data = formatted[1].data.t().contiguous().t()
    optimizers = [GradBoost(torch.optim.SGD(params, lr=0.1), "paper") for params in (plain, formatted)]
    for step in range(3):
        for p, q in zip(plain, formatted):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            q.grad = p.grad.clone() if step == 1 else torch.empty_like(q).copy_(p.grad)
        for optimizer in optimizers:
            optimizer.step()
    for i, (low, high, _) in stats_of(optimizers[1]).items():
        assert torch.equal(low, stats_of(optimizers[0])[i][0]) and torch.equal(high, stats_of(optimizers[0])[i][1])
        assert high.stride() == formatted[i].stride()
    optimizers[1].active = True
    before = [p.grad.clone() for p in formatted]
    optimizers[1].step()
    for p, g in zip(formatted, before):
        assert p.grad.stride() == g.stride() and (p.grad.sign() == g.sign()).all() and (p.grad.abs() >= g.abs()).all()


def test_statistics_of_half_precision_are_kept_in_float32():
    (p,) = parameters(shapes=((8, 8),), dtype=torch.bfloat16)
    optimizer = GradBoost(torch.optim.SGD([p], lr=0.1), "paper")
    optimizer.active = True
    run(optimizer, [p], 3)
    low, high, _ = stats_of(optimizer)[0]
    assert p.grad.dtype == torch.bfloat16 and low.dtype == high.dtype == torch.float32
    assert not torch.equal(high, high.bfloat16().float())


@pytest.mark.parametrize("mode", ["paper", "released"])
@pytest.mark.parametrize("stats", ["element", "layer"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_goes_on_bit_for_bit(name, mode, stats):
    def fresh():
        params = parameters(shapes=((3, 4), (5,), (2, 3, 2, 2), (6, 2)))
        params[2].data = params[2].data.to(memory_format=torch.channels_last)
        optimizer = GradBoost(OPTIMIZERS[name](params[:3]), mode, seed=3, stats=stats)
        optimizer.active = True
        return params, optimizer

    def go_on(optimizer, params, seed):
        run(optimizer, [params[0], params[2]], 2, seed)  # a part only: buckets split
        return run(optimizer, params, 2, seed)

    params, optimizer = fresh()
    run(optimizer, params[:3], 2)
    optimizer.add_param_group({"params": [params[3]], "boost": False})
    go_on(optimizer, params, 2)
    optimizer.progress = 0.25
    state, middle = saved(optimizer.state_dict()), [p.detach().clone() for p in params]
    expected = go_on(optimizer, params, 3)
    params, optimizer = fresh()
    optimizer.add_param_group({"params": [params[3]], "boost": False})
    for p, value in zip(params, middle):
        p.data.copy_(value)
    optimizer.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(expected, go_on(optimizer, params, 3)))


def test_seeds_decide_the_noise():
    results = []
    for seed in (1, 1, 2):
        params = parameters()
        optimizer = GradBoost(torch.optim.SGD(params, lr=0.1), "released", seed=seed)
        optimizer.active = True
        results.append(torch.cat([p.flatten() for p in run(optimizer, params)]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_more_elements_than_fit_a_chunk_are_all_taken_in(monkeypatch):
    gradients = []
    for chunk in (2**17, 64):
        monkeypatch.setattr("quant.training.gradboost.CHUNK", chunk)
        (p,) = parameters(shapes=((100, 4),))
        optimizer = still([p], clip="relative", seed=7)
        for step in range(3):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        gradients.append(p.grad)
    assert torch.equal(*gradients)  # 64 elements take whole 64-bit words of noise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("stats, clip", [("element", "absolute"), ("layer", "relative")])
def test_a_step_on_a_gpu_never_waits_for_it(stats, clip):
    params = [torch.nn.Parameter(p.detach().cuda()) for p in parameters(shapes=SHAPES)]
    optimizer = still(params, stats=stats, clip=clip)
    for step in range(4):
        for p in params:
            p.grad = torch.ones_like(p)
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step moves the levels there
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all((p.grad >= 1).all() for p in params) and any((p.grad > 1).any() for p in params)


# ---- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field, known", [("mode", "paper"), ("stats", "layer"), ("decay", "schedule"), ("clip", "relative")]
)
def test_bad_choices_are_named(field, known):
    with pytest.raises(QuantError, match=f"{field}: 'loud' is not one of .*{known}"):
        GradBoost(torch.optim.SGD(parameters(), lr=0.1), **{field: "loud"})


def test_state_of_another_mode_or_statistics_is_refused():
    paper, released = (GradBoost(torch.optim.SGD(parameters(), lr=0.1), mode) for mode in ("paper", "released"))
    with pytest.raises(QuantError, match="mode.*released.*paper"):
        paper.load_state_dict(released.state_dict())
    with pytest.raises(QuantError, match="stats.*element.*layer"):
        GradBoost(torch.optim.SGD(parameters(), lr=0.1), stats="layer").load_state_dict(paper.state_dict())


def test_sparse_gradients_are_named():
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = still(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(QuantError, match=r"gradient: torch.sparse_coo of a parameter of shape \(5, 2\).*dense"):
        optimizer.step()


# ---- benchmarks/gradboost_step.py --------------------------------------------------------------------------


def test_the_benchmark_reports_ratios_of_medians(monkeypatch, capsys):
    seconds = {"bare": (0.010, 0.002), "boosting": (0.010, 0.003), "gathering": (0.010, 0.0025)}
    monkeypatch.setattr(gradboost_step, "kinds", lambda *_: {k: lambda k=k: seconds[k[3] or k[1]] for k in KINDS})
    threads = torch.get_num_threads()
    found = gradboost_step.main(
        ["--nets", "mobilenet_v2_0_5", "--threads", "1", "--optimizers", "sgd", "--stats", "layer", "--rounds", "2"]
    )
    expected = {
        "overhead_of_optimizer_step": 0.5,
        "overhead_of_training_step": 0.0833,
        "gathering_overhead_of_optimizer_step": 0.25,
    }
    assert found["mobilenet_v2_0_5, cpu, 1 thread, paper, layer"] == {"sgd": expected}
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert torch.get_num_threads() == threads


def test_the_benchmark_times_training_steps_of_each_kind():
    config = gradboost_step.BoostConfig(optimizers=("sgd",), stats=("layer",))
    steps = gradboost_step.kinds(config, "mobilenet_v2_0_5", "cpu")
    assert list(steps) == KINDS
    assert all(seconds > 0 for step in steps.values() for seconds in step())


def test_the_benchmark_names_what_it_does_not_know(capsys):
    with pytest.raises(SystemExit):
        gradboost_step.main(["--optimizers", "lion"])
    assert "optimizers: 'lion' is not one of sgd, adamw" in capsys.readouterr().err


KINDS = [("sgd", "bare", "", ""), ("sgd", "paper", "layer", "boosting"), ("sgd", "paper", "layer", "gathering")]
