"""The contract that all quantizers keep, method by method: one suite."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.errors import QuantError
from quant.quantizers import activation_quantizer, weight_quantizer
from quant.quantizers import gdrq as gdrq_file
from quant.quantizers import int8 as int8_file
from quant.quantizers import lsq as lsq_file
from quant.quantizers import pact as pact_file
from quant.quantizers import qil as qil_file
from quant.quantizers.ranges import MovingRange
from tests.quant.quantizers.methods import ACTIVATIONS, SIGNS, WEIGHTS, a_weight, an_activation
from tests.strategies import examples

# weights


@pytest.mark.parametrize("spec", WEIGHTS)
def test_weights_keep_shape_and_dtype_on_few_values_with_finite_gradients(spec):
    quantizer, weight = a_weight(spec)
    y = quantizer(weight)
    assert (y.shape, y.dtype) == (weight.shape, weight.dtype)
    assert max(len(torch.unique(y[c])) for c in range(len(y))) <= 2**quantizer.bits
    (y * torch.randn_like(y)).sum().backward()
    assert weight.grad.isfinite().all() and weight.grad.any()
    for parameter in (p for p in quantizer.parameters() if p.requires_grad):
        assert parameter.grad.isfinite().all() and parameter.grad.any()


@pytest.mark.parametrize("spec", WEIGHTS)
def test_weights_are_their_codes_times_their_scale(spec):
    quantizer, weight = a_weight(spec)
    y, codes, scale = quantizer(weight), quantizer.codes(weight), quantizer.scale(weight)
    assert codes.dtype == torch.int8
    torch.testing.assert_close(codes * scale, y.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("value", [0.0, 0.7, -0.7])
@pytest.mark.parametrize("spec", WEIGHTS)
def test_constant_weights_stay_finite(spec, value):
    weight = torch.full((4, 2, 1, 1), value, requires_grad=True)
    quantizer = weight_quantizer(spec, 127, 0)
    quantizer.init_from(weight)
    y = quantizer(weight)
    y.sum().backward()
    assert y.isfinite().all() and weight.grad.isfinite().all()
    if value == 0.0 and not spec.startswith("dorefa"):  # which has no zero
        assert not y.any()


@pytest.mark.parametrize("spec", WEIGHTS)
def test_transposed_layers_have_their_channels_on_axis_1(spec):
    quantizer, weight = a_weight(spec, (4, 6, 3, 3), axis=1)
    scale = quantizer.scale(weight)
    assert scale.dim() == 0 or scale.shape[0] == 1
    quantizer(weight).sum().backward()


@pytest.mark.parametrize("spec", ["int8:5", "fqn:5", "gdrq:5", "lsq:5", "int8:4,scheme=affine"])
def test_weights_on_a_standing_grid_stay_where_they_are(spec):
    quantizer, weight = a_weight(spec)
    grid = quantizer.scale(weight)
    y = quantizer(weight).detach()
    torch.testing.assert_close(torch.round(y / grid) * grid, y)


@pytest.mark.parametrize("method", ["int8", "fqn", "gdrq", "lsq", "qil", "dorefa"])
@examples(25)
@given(values=st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=30), bits=st.integers(2, 8))
def test_quantizing_keeps_the_order_of_weights(method, values, bits):
    quantizer = weight_quantizer(f"{method}:{bits}", 127, 0)
    weight = torch.tensor([sorted(values)])
    quantizer.init_from(weight)
    assert (quantizer(weight).diff() >= -1e-6).all()


@pytest.mark.parametrize("spec", ["fqn:8", "int8:8,scheme=affine", "qil:8", "lsq:8", "gdrq:8", "int8:8"])
def test_eight_bits_keep_to_the_codes_of_an_engine_that_adds_in_sixteen(spec):
    weight = torch.rand(4, 2, 3, 3) + 0.1
    quantizer = weight_quantizer(spec, 63, 0)
    quantizer.init_from(weight)
    assert quantizer.codes(weight).abs().max() <= 63


def test_what_has_no_integer_form_says_why():
    weight = torch.randn(4, 4)
    for spec, reason in (
        ("dorefa:8", "codes reach 255"),
        ("fqn:4,zero_point=False", "zero"),
        ("int8:4,bias_correct=True", "off their grid"),
    ):
        with pytest.raises(QuantError, match=reason):
            weight_quantizer(spec, 127, 0).codes(weight)
    groups, x = an_activation("gdrq:4,group_size=2")
    with pytest.raises(QuantError, match="one scale a group"):
        groups.qparams()


@pytest.mark.parametrize("spec", ["int8:3", "gdrq:3", "qil:3", "lsq:3", "dorefa:3", "dorefa:1", "lsq:8", "int8:8"])
def test_codes_of_weights_lie_within_their_levels(spec):
    quantizer, weight = a_weight(spec)
    below, above = quantizer.levels()
    codes = quantizer.codes(10 * weight if spec.startswith("lsq") else weight)
    assert -below <= codes.min() and codes.max() <= above
    assert max(-codes.min() / below, codes.max() / above) == 1.0


# activations


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("spec", ACTIVATIONS)
def test_activations_keep_shape_and_dtype_on_few_values_with_finite_gradients(spec, sign):
    quantizer, x = an_activation(spec, sign)
    x.requires_grad_()
    y = quantizer(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert len(torch.unique(y)) <= 2**quantizer.bits * (4 if "group" in spec else 1)
    if sign[0] == 0.0:
        assert y.min() >= 0
    (y * torch.randn_like(y)).sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()
    for parameter in quantizer.parameters():
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("spec", [s for s in ACTIVATIONS if "group" not in s])
def test_activations_lie_on_the_grid_they_name(spec, sign):
    quantizer, x = an_activation(spec, sign)
    y, grid = quantizer.eval()(x).detach(), quantizer.qparams()
    torch.testing.assert_close(grid.dequantize(grid.quantize(y)), y, rtol=1e-6, atol=1e-6)
    assert 0 <= grid.qmin <= grid.zero_point <= grid.qmax <= 255
    if not quantizer.transforms:  # then the grid alone quantizes
        assert (grid.dequantize(grid.quantize(x)) - y).abs().max() <= 1.001 * grid.scale
        # only where a tie went the other way
        assert ((grid.dequantize(grid.quantize(x)) - y).abs() > 1e-5).float().mean() < 0.01


@pytest.mark.parametrize("spec", ["fqn:4", "int8:8"])
def test_affine_grids_have_no_fixed_levels(spec):
    quantizer, _ = an_activation(spec)
    with pytest.raises(QuantError, match="no fixed levels"):
        quantizer.levels()


@pytest.mark.parametrize(
    ("spec", "signed", "levels"),
    [
        ("int8:4,scheme=symmetric", True, (7, 7)),
        ("int8:4,scheme=symmetric", False, (7, 7)),
        ("int8:4,scheme=symmetric,unsigned=True", True, (7, 7)),
        ("int8:4,scheme=symmetric,unsigned=True", False, (0, 15)),
        *((f"{method}:4", True, (7, 7)) for method in ("pact", "qil", "gdrq", "dorefa")),
        *((f"{method}:4", False, (0, 15)) for method in ("pact", "qil", "gdrq", "dorefa", "lsq")),
        ("lsq:4", True, (8, 7)),
    ],
)
def test_levels_are_the_steps_below_and_above_zero(spec, signed, levels):
    quantizer, x = an_activation(spec, (-math.inf, signed))
    assert quantizer.levels() == levels
    grid = quantizer.qparams()
    assert (grid.zero_point - grid.qmin, grid.qmax - grid.zero_point) == levels


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("spec", ACTIVATIONS)
def test_constant_activations_stay_finite(spec, value, sign):
    floor, signed = sign
    quantizer = activation_quantizer(spec, floor, math.inf, signed)
    x = torch.full((2, 4, 2, 2), value, requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    if value == 0.0:
        assert not y.any()


@pytest.mark.parametrize("spec", ACTIVATIONS)
def test_evaluation_changes_nothing(spec):
    quantizer, x = an_activation(spec)
    quantizer.eval()
    before = copy.deepcopy(quantizer.state_dict())
    first = quantizer(x)
    assert torch.equal(quantizer(100 * x).shape and quantizer(x), first)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name]


@pytest.mark.parametrize("spec", ACTIVATIONS)
def test_a_checkpoint_brings_back_the_same_bits(spec):
    quantizer, x = an_activation(spec)
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    new = activation_quantizer(spec, -math.inf, math.inf, True)
    new.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(2):
        assert torch.equal(new(x), quantizer(x))  # in training too: the next range is the same


@pytest.mark.parametrize("spec", WEIGHTS)
def test_a_checkpoint_brings_back_weight_quantizers(spec):
    quantizer, weight = a_weight(spec)
    for parameter in quantizer.parameters():
        parameter.data.mul_(0.9)
    new, _ = a_weight(spec, seed=1)
    new.load_state_dict(quantizer.state_dict())
    assert torch.equal(new(weight), quantizer(weight))


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("spec", ACTIVATIONS)
def test_autocast_stays_within_a_step(spec, sign):
    quantizer, x = an_activation(spec, sign)
    quantizer.eval()
    with torch.autocast("cpu", torch.bfloat16):
        half = quantizer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    full = quantizer(x)
    step = torch.unique(full).diff().max()
    assert (half.float() - full).abs().max() <= 1.01 * step + full.abs().max() / 128


@pytest.mark.parametrize("spec", ACTIVATIONS)
def test_channels_last_is_kept(spec):
    quantizer, x = an_activation(spec)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = quantizer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("spec", ACTIVATIONS)
def test_without_a_host_to_ask_the_numbers_are_the_same(spec, sign, monkeypatch):
    """On a GPU scales stay tensors; here that path runs on the CPU."""
    quantizer, x = an_activation(spec, sign)
    quantizer.eval()
    results = []
    for _ in range(2):
        x = x.detach().requires_grad_()
        quantizer.zero_grad()
        y = quantizer(x)
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in quantizer.parameters())])
        for file in (pact_file, lsq_file, qil_file, gdrq_file, int8_file):
            if hasattr(file, "numbers"):
                monkeypatch.setattr(file, "numbers", lambda *values: tuple(v.detach() for v in values))
        monkeypatch.setattr(MovingRange, "_bounds", MovingRange._device_bounds)
    for number, tensor in zip(*results, strict=True):
        torch.testing.assert_close(number, tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", ACTIVATIONS)
def test_before_any_data_values_pass_and_no_grid_is_claimed(spec):
    quantizer = activation_quantizer(spec, 0.0, math.inf, True).eval()
    x = torch.randn(10, 4)
    if spec.startswith("dorefa"):
        assert quantizer.qparams().zero_point == 0  # its range is fixed
    else:
        assert torch.equal(quantizer(x), torch.relu(x))
        with pytest.raises(QuantError, match="seen no data"):
            quantizer.qparams()


@pytest.mark.parametrize("spec", [s for s in ACTIVATIONS if "group" not in s])
def test_a_fused_relu6_holds(spec):
    quantizer = activation_quantizer(spec, 0.0, 6.0, True)
    x = 10 * torch.randn(4, 8, 6, 6)
    quantizer(x)
    y = quantizer.eval()(x)
    grid = quantizer.qparams()
    assert y.min() == 0.0 and y.max() <= 6.0 + grid.scale / 2
    assert y.max() <= grid.highest * 1.0001
    assert quantizer.transforms or grid.highest <= 6.0 + grid.scale / 2


@pytest.mark.parametrize("ceiling", [6.0, math.inf])
@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_gradients_beyond_the_range_stop_at_a_fused_relu(scheme, ceiling):
    quantizer = activation_quantizer(f"int8:8,grad=ste,scheme={scheme}", 0.0, ceiling, False)
    quantizer(torch.tensor([0.5, 2.0]))
    x = torch.tensor([-3.0, -1.0, 1.0, 3.0, 9.0], requires_grad=True)
    quantizer.eval()(x).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0 if ceiling == 6.0 else 1.0]


@pytest.mark.parametrize("spec", ["pact:4", "lsq:4", "qil:4"])
def test_learned_ranges_stay_in_bounds_while_nothing_is_observed(spec):
    quantizer, x = an_activation(spec, (0.0, False))
    quantizer.observer_enabled = False
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        (10 * quantizer(x).sum()).backward()
        optimizer.step()
    y = quantizer.eval()(x)  # right after a step that may have crossed a bound
    assert y.isfinite().all() and (y >= 0).all()
    grid = quantizer.qparams()
    torch.testing.assert_close(grid.dequantize(grid.quantize(y)), y, rtol=1e-5, atol=1e-7)
