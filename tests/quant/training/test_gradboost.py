"""quant.GradBoost: the published code element by element, and torch.optim where it is off."""

import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import GradBoost, QuantError
from quant.training.gradient_noise import Noise
from tests.strategies import examples

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


def test_a_released_run_is_the_published_code_element_by_element():
    # float64, several shapes, a warm-up of two steps; gradients after each step against a loop over single numbers
    params = parameters(shapes=SHAPES, dtype=torch.float64)
    optimizer = GradBoost(torch.optim.SGD(params, lr=0.1), "released", clip_by=0.02, noise_decay=0.3, seed=5)
    twin, draw, beta = Noise(CPU, 5), torch.Generator().manual_seed(2), 0.9
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


def test_statistics_that_overflow_never_make_a_gradient_that_is_not_a_number():
    # beta 0.999 inflates the published maximum beyond float32 within a few steps
    (p,) = parameters(shapes=((100, 10),))
    optimizer = still([p], beta=0.999)
    for _ in range(30):
        p.grad = torch.linspace(-1, 1, 1000).round(decimals=1).view(100, 10)
        optimizer.step()
        assert p.grad.isfinite().all()
    assert stats_of(optimizer)[0][1].max().item() == torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("paper", [math.exp(-5 * s / 3) for s in range(4)]), ("released", [0.5, 0.25, 0.125, 0.0625])],
)
def test_noise_decays_by_step_or_by_schedule(mode, expected):
    (p,) = parameters(shapes=((200, 200),))
    optimizer, sizes = still([p], mode, clip_by=0.0, noise_decay=0.5), []
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
@pytest.mark.parametrize("mode", ["off", "paper", "released"])
def test_without_boost_the_optimizer_is_torchs(name, mode):
    plain, wrapped = parameters(), parameters()
    expected = run(OPTIMIZERS[name](plain), plain)
    got = run(GradBoost(OPTIMIZERS[name](wrapped), mode), wrapped)
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


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6))
@examples(30)
def test_parameters_without_gradient_are_left_out_of_a_step(pattern):
    # whichever parameters have gradients together: each is as if it were alone
    params, alone = (parameters(shapes=((3, 4), (2, 2), (4, 1))) for _ in range(2))
    together = GradBoost(torch.optim.SGD(params, lr=0.1), "paper")
    single = [GradBoost(torch.optim.SGD([p], lr=0.1), "paper") for p in alone]
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
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_goes_on_bit_for_bit(name, mode):
    def fresh():
        params = parameters(shapes=((3, 4), (5,), (2, 3, 2, 2), (6, 2)))
        params[2].data = params[2].data.to(memory_format=torch.channels_last)
        optimizer = GradBoost(OPTIMIZERS[name](params[:3]), mode, seed=3)
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
        optimizer = still([p], seed=7)
        for step in range(3):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        gradients.append(p.grad)
    assert torch.equal(*gradients)  # 64 elements take whole 64-bit words of noise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_a_gpu_never_waits_for_it():
    params = [torch.nn.Parameter(p.detach().cuda()) for p in parameters(shapes=SHAPES)]
    optimizer = still(params)
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


def test_an_unknown_mode_is_named():
    with pytest.raises(QuantError, match="mode: 'loud' is not one of paper, released, off"):
        GradBoost(torch.optim.SGD(parameters(), lr=0.1), "loud")


def test_state_of_another_mode_or_statistics_is_refused():
    paper, released = (GradBoost(torch.optim.SGD(parameters(), lr=0.1), mode) for mode in ("paper", "released"))
    with pytest.raises(QuantError, match="mode.*released.*paper"):
        paper.load_state_dict(released.state_dict())
    state = paper.state_dict()
    state["boost"]["stats"] = "layer"
    with pytest.raises(QuantError, match="stats.*layer.*element"):
        paper.load_state_dict(state)


def test_sparse_gradients_are_named():
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = still(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(QuantError, match=r"gradient: torch.sparse_coo of a parameter of shape \(5, 2\).*dense"):
        optimizer.step()
