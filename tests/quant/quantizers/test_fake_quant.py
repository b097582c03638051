"""quant.quantizers.fake_quant and quant.quantizers.int8 against known answers, torch's own operator and float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quant.engines import ENGINES, has_vnni, weight_qmax
from quant.errors import QuantError
from quant.quantizers import Int8Activation, Int8Weight
from quant.quantizers.fake_quant import fake_quantize, fake_quantize_weight
from quant.quantizers.grid import QParams, affine_qparams


def test_affine_grid_has_the_papers_numbers():
    # arXiv:1712.05877: 2 bits, lo = -1, hi = 2 gives scale 1, zero point 1
    grid = affine_qparams(-1.0, 2.0, steps=3)
    assert (grid.scale, grid.zero_point) == (1.0, 1)


def test_affine_grid_is_nudged_so_that_zero_is_exact():
    grid = affine_qparams(-1.0, 2.1, steps=3)
    assert grid.scale == pytest.approx(3.1 / 3)
    assert grid.zero_point == 1
    assert grid.dequantize(torch.tensor([1], dtype=torch.uint8)).item() == 0.0


def test_a_range_above_zero_is_widened_to_zero():
    grid = affine_qparams(0.5, 2.0, steps=3)
    assert grid.zero_point == 0
    assert grid.scale == pytest.approx(2 / 3)


@given(st.floats(-50, 50), st.floats(-50, 50), st.sampled_from((127, 255)))
def test_every_grid_holds_zero_and_fits_a_byte(a, b, levels):
    grid = affine_qparams(min(a, b), max(a, b), levels)
    assert grid.scale > 0
    assert 0 <= grid.qmin <= grid.zero_point <= grid.qmax <= 255
    assert grid.zero_point <= levels


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40), st.sampled_from((127, 255)))
def test_values_in_range_come_back_within_half_a_step(values, levels):
    x = torch.tensor(values)
    grid = affine_qparams(x.min().item(), x.max().item(), levels)
    y = grid.dequantize(grid.quantize(x))
    # the nudge moves the range by at most half a step, so its ends are within one
    assert ((x - y).abs() <= grid.scale * 1.0001 + 1e-7).all()
    assert ((x - y).abs() <= grid.scale * 0.5001 + 1e-7)[(x >= grid.lowest) & (x <= grid.highest)].all()


def test_a_relu6_ceiling_is_exact_below_the_top_code():
    grid = affine_qparams(-4.0, 8.0, steps=127, ceiling=6.0)
    assert grid.qmax == grid.zero_point + round(6.0 / grid.scale) < 127
    assert grid.highest == pytest.approx(6.0, abs=grid.scale / 2)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_end_at_the_last_level(bits):
    grid = affine_qparams(0.0, 1.0, steps=2**bits - 1)
    assert grid.quantize(torch.tensor([0.0, 1.0, 2.0])).tolist() == [0, 2**bits - 1, 2**bits - 1]


def test_the_weight_range_follows_the_engine():
    assert weight_qmax("fbgemm") == weight_qmax("x86") == 63
    assert weight_qmax("qnnpack") == weight_qmax("reference") == 127
    assert weight_qmax("onednn") == (127 if has_vnni() else 63)
    with pytest.raises(QuantError, match="tpu.*fbgemm"):
        weight_qmax("tpu")
    assert set(ENGINES) >= {"reference", "fbgemm"}


@pytest.mark.parametrize("as_tensor", [False, True])
def test_forward_equals_torchs_fake_quantize(as_tensor):
    x = torch.randn(4, 5, 6) * 3
    scale, zero_point = 0.031, 37
    lo, hi = -zero_point * scale, (255 - zero_point) * scale
    bounds = [torch.tensor(v) for v in (lo, hi, scale)] if as_tensor else (lo, hi, scale)
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)
    difference = (fake_quantize(x, *bounds) - expected).abs()
    assert (difference <= scale * 1.001).all()  # ties may fall to the neighbour
    assert (difference > scale / 2).float().mean() < 0.01


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    ("lo", "relu", "mask"),
    [(-1.0, False, [0.0, 1, 1, 1, 1, 0]), (0.0, True, [0.0, 0, 0, 1, 1, 0]), (0.0, False, [0.0, 0, 1, 1, 1, 0])],
)
def test_gradient_is_one_inside_inclusive_and_zero_outside(as_tensor, lo, relu, mask):
    # the lower bound belongs to the range unless it is the zero of a ReLU
    x = torch.tensor([-1.5, -1.0, 0.0, 0.5, 2.0, 2.5], requires_grad=True)
    bounds = [torch.tensor(v) for v in (lo, 2.0, 0.25)] if as_tensor else (lo, 2.0, 0.25)
    fake_quantize(x, *bounds, relu=relu).backward(torch.full((6,), 3.0))
    assert x.grad.tolist() == [3 * m for m in mask]


def test_weight_gradient_is_the_identity():
    w = torch.randn(3, 4, requires_grad=True)
    grad = torch.randn(3, 4)
    fake_quantize_weight(w, torch.tensor([[0.1], [1.0], [1e-8]])).backward(grad)
    assert torch.equal(w.grad, grad)


def test_weight_codes_have_the_known_values():
    w = torch.tensor([[127.0, -63.4, 0.2], [-2.0, 1.0, 0.0]])
    quantizer = Int8Weight()
    assert quantizer.codes(w).tolist() == [[127, -63, 0], [-127, 64, 0]]  # 63.5 rounds to even
    assert quantizer.scale(w).flatten().tolist() == pytest.approx([1.0, 2 / 127])


def test_a_channel_of_zeros_stays_zero():
    quantizer = Int8Weight()
    w = torch.zeros(2, 3, 1, 1)
    assert torch.equal(quantizer(w), w)
    assert torch.equal(quantizer.codes(w), torch.zeros(2, 3, 1, 1, dtype=torch.int8))


def test_weight_scale_follows_the_current_weight_at_once():
    quantizer = Int8Weight()
    w = torch.randn(4, 4)
    before = quantizer.scale(w)
    assert torch.allclose(quantizer.scale(2 * w), 2 * before)


def test_ranges_follow_a_moving_average_that_starts_at_the_first_batch():
    quantizer = Int8Activation(momentum=0.1)
    for low, high in ((-1.0, 4.0), (-2.0, 6.0), (0.0, 2.0)):
        quantizer(torch.tensor([low, 0.0, high]))
    assert quantizer.hi.item() == pytest.approx((4 * 0.9 + 0.6) * 0.9 + 0.2)
    assert quantizer.lo.item() == pytest.approx((-1 * 0.9 - 0.2) * 0.9)


def test_evaluation_changes_no_buffer():
    quantizer = Int8Activation()
    quantizer(torch.randn(100))
    quantizer.eval()
    before = {k: v.clone() for k, v in quantizer.named_buffers()}
    quantizer(100 * torch.randn(100))
    assert all(torch.equal(before[k], v) for k, v in quantizer.named_buffers())


@pytest.mark.parametrize(
    ("floor", "ceiling", "act"),
    [(float("-inf"), float("inf"), nn.Identity()), (0.0, float("inf"), nn.ReLU()), (0.0, 6.0, nn.ReLU6())],
)
def test_switched_off_it_is_the_fused_activation(floor, ceiling, act):
    quantizer = Int8Activation(8, floor, ceiling)
    quantizer.fake_quant_enabled = False
    x = 10 * torch.randn(50)
    assert torch.equal(quantizer(x), act(x))


def test_a_relu_quantizer_never_gives_negative_values_and_at_most_256_levels():
    quantizer = Int8Activation(8, 0.0)
    y = quantizer(torch.randn(10_000))
    assert y.min() == 0
    assert len(y.unique()) <= 256


def test_constant_and_zero_inputs_stay_finite():
    for value in (0.0, 3.0, -3.0):
        quantizer = Int8Activation()
        assert torch.allclose(quantizer(torch.full((8,), value)), torch.full((8,), value), atol=0.05)


def test_a_quantizer_without_data_says_so():
    with pytest.raises(QuantError, match="seen no data"):
        Int8Activation().qparams()


def test_device_bounds_equal_the_python_bounds():
    for floor, ceiling in ((float("-inf"), float("inf")), (0.0, float("inf")), (0.0, 6.0)):
        quantizer = Int8Activation(8, floor, ceiling)
        quantizer(3 * torch.randn(1000))
        assert [b.item() for b in quantizer._device_bounds()] == pytest.approx(list(quantizer._bounds()), rel=1e-7)


def test_bfloat16_stays_within_a_step_and_keeps_its_dtype():
    quantizer = Int8Activation()
    x = torch.randn(1000)
    expected = quantizer(x)
    quantizer.eval()
    y = quantizer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert ((y.float() - expected).abs() <= 1.01 * quantizer.qparams().scale + x.abs() / 100).all()


def test_channels_last_is_kept():
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    assert Int8Activation(8, 0.0)(x).is_contiguous(memory_format=torch.channels_last)


def test_the_switches_travel_in_the_state_dict():
    quantizer = Int8Activation()
    quantizer(torch.randn(10))
    quantizer.observer_enabled = quantizer.fake_quant_enabled = False
    new = Int8Activation()
    new.load_state_dict(quantizer.state_dict())
    assert (new.observer_enabled, new.fake_quant_enabled, new.hi.item()) == (False, False, quantizer.hi.item())


def test_grids_quantize_to_codes_within_bounds():
    grid = QParams(0.1, 10, 0, 70)
    assert grid.quantize(torch.tensor([-9.0, -1.0, 0.0, 0.26, 99.0])).tolist() == [0, 0, 10, 13, 70]


@pytest.mark.parametrize("bound", [float("nan"), float("inf")])
def test_a_range_that_is_not_finite_says_that_training_diverged(bound):
    with pytest.raises(QuantError, match="diverged"):
        affine_qparams(0.0, bound, 127)
