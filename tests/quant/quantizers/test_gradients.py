"""quant.quantizers.gradients: stochastic rounding against worked numbers, its mean, its streams of noise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common import distributed
from quant import QuantError
from quant.quantizers import GRADIENT_QUANTIZERS
from quant.quantizers.gradients import (
    DorefaGradient,
    MinMaxGradient,
    NoiseStream,
    dorefa_gradient,
    minmax_gradient,
    on_grid,
)
from tests.strategies import examples

PURE = {
    "dorefa": dorefa_gradient,
    "minmax": minmax_gradient,
    "minmax with zero": lambda g, bits, u: minmax_gradient(g, bits, u, zero_point=True),
}


def noise(x, offset):
    """The uniform number in [0, 1) that is `offset` in the centred notation of the papers, everywhere."""
    return torch.full_like(x, 0.5 + offset)


@pytest.mark.parametrize("offset, out", [(0.0, 4 / 30), (0.3, 4 / 30), (-0.3, -4 / 30)])
def test_dorefa_worked_numbers(offset, out):
    g = torch.tensor([[0.4, -0.1, 0.05], [-8.0, 2.0, 6.0]], dtype=torch.float64)
    last = 8 / 3 if offset == -0.3 else 8.0
    expected = torch.tensor([[0.4, -4 / 30, out], [-8.0, 8 / 3, last]], dtype=torch.float64)
    torch.testing.assert_close(dorefa_gradient(g, 2, noise(g, offset)), expected)


@pytest.mark.parametrize(
    "offset, out", [(0.0, [0.9, -0.1, -0.1, -0.6]), (0.4, [0.9, -0.1, 0.4, -0.6]), (-0.4, [0.9, -0.6, -0.1, -0.6])]
)
def test_minmax_worked_numbers(offset, out):
    g = torch.tensor([0.9, -0.3, 0.12, -0.6], dtype=torch.float64)
    assert minmax_gradient(g, 2, noise(g, offset)).tolist() == pytest.approx(out, abs=1e-12)


def test_zero_point_worked_numbers():
    # levels of a 2-bit grid that holds zero: the step is (0.9 + 0.6) / 2 = 0.75, from floor(-0.8) = -1 to ceil(1.2) = 2
    g = torch.tensor([0.9, -0.3, 0.0, -0.6], dtype=torch.float64)
    assert minmax_gradient(g, 2, noise(g, 0.0), zero_point=True).tolist() == pytest.approx([0.75, 0.0, 0.0, -0.75])
    assert minmax_gradient(g, 2, noise(g, 0.4), zero_point=True).tolist() == pytest.approx([1.5, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize("bits", [2, 4])
def test_rounding_is_unbiased(name, bits):
    draws = 4000
    g = torch.tensor([[0.4, -0.1, 0.05, 0.0], [-8.0, 2.0, 6.0, 0.3]], dtype=torch.float64)
    many = g.repeat(draws, 1)  # the ranges stay
    mean = PURE[name](many, bits, NoiseStream(3).uniform_like(many)).view(draws, 2, 4).mean(0)
    step = torch.tensor([[0.8], [16.0]]) / (2**bits - 1) if name == "dorefa" else torch.tensor(14.0) / (2**bits - 2)
    assert ((mean - g).abs() < 4 * 0.5 * step / draws**0.5).all()


@examples(60)
@given(st.sampled_from(list(PURE)), st.integers(2, 8), st.floats(1e-6, 1e3), st.floats(-3, 3), st.integers(0, 1000))
def test_at_most_two_to_the_bits_values_within_a_step(name, bits, spread, shift, seed):
    torch.manual_seed(seed)
    g = (torch.randn(4, 64) + shift) * spread
    out = PURE[name](g, bits, NoiseStream(seed).uniform_like(g))
    rows = out if name == "dorefa" else out.reshape(1, -1)
    assert all(row.unique().numel() <= 2**bits for row in rows)
    step = 2 * max(g.abs().max().item(), (g.max() - g.min()).item()) / (2**bits - 2)
    assert (out - g).abs().max() <= step * 1.001


@examples(40)
@given(st.integers(0, 1000), st.integers(2, 16), st.floats(-2, 2))
def test_zeros_stay_zero_with_a_zero_point(seed, bits, shift):
    torch.manual_seed(seed)
    g = (torch.randn(2000) + shift) * (torch.rand(2000) > 0.5)
    for u in (NoiseStream(seed).uniform_like(g), torch.full_like(g, 1 - 2**-17), torch.full_like(g, 2**-17)):
        assert (minmax_gradient(g, bits, u, zero_point=True)[g == 0] == 0).all()


def test_without_a_zero_point_zeros_turn_to_noise():
    torch.manual_seed(0)
    g = torch.randn(2000).relu() - 0.001
    g[g < 0] = 0.0
    g[0] = -0.3
    out = minmax_gradient(g, 8, NoiseStream(0).uniform_like(g))
    assert (out[g == 0] == 0).float().mean() < 0.01


@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize("value", [0.0, 1e-42])
def test_no_range_no_rounding(name, value):
    g = torch.full((3, 5), value)
    g[0, 0] = -value
    out = PURE[name](g, 8, noise(g, 0.2))
    assert torch.equal(out, g) and out.data_ptr() != g.data_ptr()


def test_one_silent_sample_leaves_the_others_alone():
    g = torch.tensor([[0.0, 0.0, 0.0], [-8.0, 2.0, 6.0]])
    torch.testing.assert_close(
        dorefa_gradient(g, 2, noise(g, 0.0)), torch.tensor([[0.0, 0.0, 0.0], [-8.0, 8 / 3, 8.0]])
    )


@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_an_overflow_stays_visible(name, bad):
    g = torch.randn(4, 8)
    g[1, 2] = bad  # a loss scaler must see it
    assert not torch.isfinite(PURE[name](g, 8, noise(g, 0.1))).all()


def test_numbers_and_tensors_compute_the_same():
    """Ranges are Python numbers on a CPU and tensors on other devices; shape (1,) takes the tensors' way."""
    torch.manual_seed(0)
    x, u = torch.randn(1000), torch.rand(1000)
    base, step = x.amin(), (x.amax() - x.amin()) / 255
    torch.testing.assert_close(
        on_grid(x, base[None], step[None], 0, 255, u), on_grid(x, base, step, 0, 255, u), atol=0.011 * step, rtol=0
    )
    low, high = torch.tensor(-3.0), torch.tensor(4.0)
    expected = on_grid(x, base * 0, step, -3, 4, u)
    torch.testing.assert_close(on_grid(x, base[None] * 0, step[None], low, high, u), expected)
    assert torch.equal(on_grid(x, base[None], step[None] * 0, 0, 255, u), x)


@pytest.mark.parametrize("name", GRADIENT_QUANTIZERS)
def test_forward_is_the_identity_and_consumers_may_work_in_place(name):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    skip = torch.randn(2, 4, 4, 4)
    quantizer = GRADIENT_QUANTIZERS[name](6)
    plain = torch.relu(conv(x) + skip)
    y = quantizer(conv(x))
    y += skip
    y.relu_()
    assert torch.equal(y, plain)
    g = torch.randn_like(y)
    rounded = torch.autograd.grad(y, x, g)[0]
    exact = torch.autograd.grad(plain, x, g)[0]
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.2


def test_the_gradient_is_the_pure_functions():
    x = torch.randn(3, 5, requires_grad=True)
    g = torch.randn(3, 5)
    for quantizer, pure in (
        (DorefaGradient(4, seed=7), PURE["dorefa"]),
        (MinMaxGradient(4, 7, zero_point=True), PURE["minmax with zero"]),
    ):
        got = torch.autograd.grad(quantizer(x), x, g)[0]
        assert torch.equal(got, pure(g, 4, NoiseStream(7).uniform_like(g)))


def test_without_gradients_nothing_happens():
    quantizer, x = MinMaxGradient(8), torch.randn(3, 5, requires_grad=True)
    with torch.no_grad():
        assert quantizer(x) is x
    assert quantizer(x.detach()).data_ptr() == x.data_ptr()
    quantizer(x)
    assert quantizer.noise.draws == 0


@pytest.mark.parametrize("name", PURE)
def test_bfloat16_within_a_step(name):
    torch.manual_seed(0)
    g = torch.randn(4, 3, 8, 8).bfloat16().to(memory_format=torch.channels_last)
    u = NoiseStream(0).uniform_like(g)
    assert u.dtype == torch.float32
    out = PURE[name](g, 8, u)
    assert out.dtype == torch.bfloat16 and out.is_contiguous(memory_format=torch.channels_last)
    full = PURE[name](g.float(), 8, u)
    assert (out.float() - full).abs().max() <= 2 * full.abs().max() / 254


def test_noise_is_uniform():
    u = NoiseStream(1).uniform_like(torch.empty(400, 251))
    assert 0 < u.min() and u.max() < 1
    counts = torch.histc(u, 20, 0, 1)
    assert ((counts - u.numel() / 20).abs() < 5 * (u.numel() / 20) ** 0.5).all()
    neighbours = torch.corrcoef(torch.stack((u.flatten()[:-1], u.flatten()[1:])))[0, 1]
    assert abs(neighbours) < 5 / u.numel() ** 0.5


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 5, 7)])
def test_noise_takes_any_shape(shape):
    assert NoiseStream(1).uniform_like(torch.empty(shape)).shape == shape


def test_noise_keeps_the_memory_format_and_is_float64_for_float64():
    x = torch.empty(2, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    u = NoiseStream(1).uniform_like(x)
    assert u.dtype == torch.float64 and u.stride() == x.stride()
    expanded = torch.ones(()).expand(3, 4)
    assert NoiseStream(1).uniform_like(expanded).unique().numel() == 12


def test_streams_differ_by_seed_draw_and_rank(monkeypatch):
    x = torch.empty(64)
    first, other = NoiseStream(1), NoiseStream(2)
    draws = [first.uniform_like(x), first.uniform_like(x), other.uniform_like(x)]
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    draws.append(NoiseStream(1).uniform_like(x))
    for i, a in enumerate(draws):
        assert all((a - b).abs().max() > 0.1 for b in draws[:i])


def test_a_stream_resumes_from_the_checkpoint(tmp_path):
    x = torch.empty(64)
    going, fresh = MinMaxGradient(8, seed=5), MinMaxGradient(8, seed=0)
    for _ in range(3):
        going.noise.uniform_like(x)
    torch.save(going.state_dict(), tmp_path / "state.pt")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(going.noise.uniform_like(x), fresh.noise.uniform_like(x))


@pytest.mark.parametrize("bits", [1, 17])
@pytest.mark.parametrize("name", GRADIENT_QUANTIZERS)
def test_widths_are_checked(name, bits):
    with pytest.raises(QuantError, match=f"bits: {bits}, a gradient takes 2 to 16"):
        GRADIENT_QUANTIZERS[name](bits)
