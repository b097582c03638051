"""quant.range_bn: the normalisation of arXiv:1805.11046 against worked numbers, closed forms and autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quant import QuantError
from quant.range_bn import RangeBN1d, RangeBN2d, _RangeNorm, chunks_for, gaussian_range, range_constant
from tests.strategies import examples


def range_norm(x, weight, bias, chunks, factor, eps=1e-5):
    return _RangeNorm.apply(x, weight, bias, eps, chunks, factor)


def by_autograd(x, weight, bias, chunks, factor, eps=1e-5):
    """The definition in plain operations; max and min send their gradient to the first extreme element."""
    values = x.movedim(1, -1).reshape(chunks, -1, x.shape[1])
    scale = factor * (values.max(1).values - values.min(1).values).mean(0)
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean = values.mean((0, 1)).view(shape)
    return weight.view(shape) * (x - mean) / torch.sqrt(scale.view(shape) ** 2 + eps) + bias.view(shape)


def test_gaussian_range_known_values():
    assert gaussian_range(2) == pytest.approx(2 / math.sqrt(math.pi), rel=1e-9)
    assert gaussian_range(3) == pytest.approx(3 / math.sqrt(math.pi), rel=1e-9)
    # the d2 of control charts
    assert [gaussian_range(n) for n in (5, 10, 25)] == pytest.approx([2.32593, 3.07751, 3.93063], abs=1e-5)


def test_the_constants_relate_to_sigma_as_known():
    sizes = (16, 64, 256, 1024, 65536)
    released = [range_constant(n, "released") * gaussian_range(n) for n in sizes]
    assert released == pytest.approx([0.81, 0.88, 0.92, 0.94, 0.99], abs=0.01)
    paper = [range_constant(n, "paper") * gaussian_range(n) for n in sizes]
    assert paper == pytest.approx([1.50, 1.63, 1.70, 1.745, 1.82], abs=0.01)


# x = 1, 2, 3, 6 and g = 1, 2, -1, 0.5: mean 3, range 5 in one chunk, mean range 2 in two
VECTORS = [
    (
        "paper",
        1,
        3.00280602,
        [-0.66604369, -0.33302184, 0.0, 0.99906553],
        [-0.04162773, 0.45790504, -0.54116050, 0.12488319],
    ),
    (
        "released",
        1,
        1.62214092,
        [-1.23293850, -0.61646925, 0.0, 1.84940775],
        [-0.07705866, 0.84764522, -1.00176253, 0.23117597],
    ),
    (
        "released",
        2,
        0.91762148,
        [-2.17954794, -1.08977397, 0.0, 3.26932191],
        [-0.27244349, 2.17954794, -2.45199143, 0.54488698],
    ),
]


@pytest.mark.parametrize("constant, chunks, scale, y, dx", VECTORS)
def test_worked_numbers(constant, chunks, scale, y, dx):
    x = torch.tensor([[1.0], [2.0], [3.0], [6.0]], dtype=torch.float64, requires_grad=True)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    out, mean, got_scale = range_norm(x, one, zero, chunks, range_constant(4 // chunks, constant), eps=1e-14)
    out.backward(torch.tensor([[1.0], [2.0], [-1.0], [0.5]], dtype=torch.float64))
    assert (mean.item(), got_scale.item()) == pytest.approx((3.0, scale), abs=1e-8)
    assert out.flatten().tolist() == pytest.approx(y, abs=2e-8)
    assert x.grad.flatten().tolist() == pytest.approx(dx, abs=2e-8)


@pytest.mark.parametrize("shape, chunks", [((4, 3, 5, 2), 4), ((2, 3, 6, 6), 1), ((3, 3, 8), 3), ((8, 3), 2)])
@pytest.mark.parametrize("ties", [False, True])
def test_gradients_are_those_of_the_definition(shape, chunks, ties):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    x = x.mul(2).round() if ties else x
    g, weight, bias = torch.randn_like(x), torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    results = []
    for function in (lambda *a: range_norm(*a)[0], by_autograd):
        inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = function(*inputs, chunks, 0.3)
        results.append((y, *torch.autograd.grad(y, inputs, g)))
    for got, expected in zip(*results):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_gradcheck():
    torch.manual_seed(1)
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((6, 2, 3), (2,), (2,))]
    assert torch.autograd.gradcheck(lambda *a: range_norm(*a, 2, 0.4)[0], inputs)


@given(st.integers(1, 5000))
def test_chunks(values):
    chunks = chunks_for(values)
    assert values % chunks == 0 and chunks <= 16
    assert chunks == 1 or values // chunks >= 16
    assert not any(values % k == 0 and values // k >= 16 for k in range(chunks + 1, 17))


def test_chunks_examples():
    assert [chunks_for(n) for n in (1, 15, 33, 40, 16 * 16, 64 * 32 * 32, 49 * 7)] == [1, 1, 1, 2, 16, 16, 7]


@examples(40)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 5), st.sampled_from(["gauss", "released", "paper"]))
def test_any_batch_works(n, h, w, constant):
    torch.manual_seed(n)
    bn = RangeBN2d(3, constant=constant)
    x = torch.randn(n, 3, h, w, requires_grad=True)
    y = bn(x)
    y.square().sum().backward()
    for tensor in (y, x.grad, bn.weight.grad, bn.running_mean, bn.running_scale):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("shape", [(5, 4), (64, 4), (32, 4, 8, 8), (6, 4, 5, 3)])
def test_the_default_scale_is_sigma(shape):
    torch.manual_seed(0)
    bn = (RangeBN2d if len(shape) == 4 else RangeBN1d)(4, momentum=0.01)
    for _ in range(1500):
        bn(torch.randn(shape) * 2.0 + 3.0)
    assert bn.running_mean.tolist() == pytest.approx([3.0] * 4, abs=0.15)
    assert bn.running_scale.mean().item() == pytest.approx(2.0, rel=0.03)


def test_a_trained_batch_norm_converts():
    torch.manual_seed(0)
    bn = nn.BatchNorm2d(8, eps=1e-3)
    for _ in range(50):
        bn(torch.randn(32, 8, 8, 8) * torch.arange(1, 9).view(1, 8, 1, 1) + 2.0)
    nn.init.normal_(bn.weight)
    x = torch.randn(32, 8, 8, 8) * torch.arange(1, 9).view(1, 8, 1, 1) + 2.0
    new = RangeBN2d.from_float(bn)
    assert new.weight is bn.weight and new.bias is bn.bias and new.training
    torch.testing.assert_close(new.eval()(x), bn.eval()(x))
    difference = (new.train()(x) - bn.train()(x)).square().mean().sqrt() / bn.weight.square().mean().sqrt()
    assert difference < 0.05  # the range of 128 values in 16 chunks estimates sigma within a few percent


def test_momentum_is_torchs():
    bn = RangeBN1d(1, momentum=0.25, constant="paper")
    x = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    bn(x)
    assert bn.running_mean.item() == pytest.approx(0.25 * 3.0)
    assert bn.running_scale.item() == pytest.approx(0.75 * 1.0 + 0.25 * 3.0028060)


def test_evaluation_uses_and_keeps_the_running_statistics():
    bn = RangeBN2d(2).eval()
    x = torch.randn(4, 2, 3, 3) * 5 + 1
    torch.testing.assert_close(bn(x), x / math.sqrt(1 + 1e-5))  # untrained: mean 0, scale 1
    bn.running_mean.fill_(2.0)
    bn.running_scale.fill_(4.0)
    before = {k: v.clone() for k, v in bn.state_dict().items()}
    torch.testing.assert_close(bn(x), (x - 2) / math.sqrt(16 + 1e-5))
    assert all(torch.equal(before[k], v) for k, v in bn.state_dict().items())


def test_one_value_per_channel_leaves_the_statistics_alone():
    bn = RangeBN2d(2)
    x = torch.randn(1, 2, 1, 1)
    torch.testing.assert_close(bn(x), x / math.sqrt(1 + 1e-5))
    assert bn.running_scale.tolist() == [1.0, 1.0] and bn.running_mean.tolist() == [0.0, 0.0]


def test_a_constant_channel_gives_beta_and_gradients_of_batch_norms_size():
    x = torch.full((8, 1, 4, 4), 3.0, requires_grad=True)
    bn = RangeBN2d(1)
    nn.init.constant_(bn.bias, 0.5)
    y = bn(x)
    assert torch.equal(y, torch.full_like(y, 0.5))
    g = torch.randn_like(y)
    y.backward(g)
    torch.testing.assert_close(x.grad, (g - g.mean()) / math.sqrt(1e-5), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("affine", [True, False])
def test_layouts_agree_and_channels_last_is_kept(affine):
    torch.manual_seed(0)
    bn, x, g = RangeBN2d(3, affine=affine), torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    a = x.clone().requires_grad_()
    b = x.to(memory_format=torch.channels_last).requires_grad_()
    ya, yb = bn(a), bn(b)
    assert yb.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ya, yb)
    grad_a = torch.autograd.grad(ya, a, g)[0]
    grad_b = torch.autograd.grad(yb, b, g.to(memory_format=torch.channels_last))[0]
    torch.testing.assert_close(grad_a, grad_b)


def test_bfloat16_input_is_computed_in_float32():
    torch.manual_seed(0)
    bn, x = RangeBN2d(3), torch.randn(8, 3, 8, 8).bfloat16()
    g = torch.randn(8, 3, 8, 8).bfloat16()
    half, full = x.clone().requires_grad_(), x.float().requires_grad_()
    y = bn(half)
    assert y.dtype == torch.bfloat16 and bn.running_scale.dtype == torch.float32
    torch.testing.assert_close(y.float(), bn(full), rtol=2**-8, atol=1e-3)
    dx = torch.autograd.grad(y, half, g)[0]
    torch.testing.assert_close(dx.float(), torch.autograd.grad(bn(full), full, g.float())[0], rtol=2**-7, atol=1e-2)


def test_mistakes_are_named():
    with pytest.raises(QuantError, match="constant: 'sigma' is not one of gauss, released, paper"):
        RangeBN2d(3, constant="sigma")
    with pytest.raises(QuantError, match="needs 3 channels in axis 1"):
        RangeBN2d(3)(torch.randn(2, 4, 5, 5))
    with pytest.raises(QuantError, match="RangeBN2d: got shape"):
        RangeBN2d(3)(torch.randn(2, 3))
    with pytest.raises(QuantError, match="running statistics"):
        RangeBN2d.from_float(nn.BatchNorm2d(3, track_running_stats=False))
