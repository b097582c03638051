"""What is special about each quantization method, and the gradients of what it learns."""

import math

import pytest
import torch

from quant.errors import QuantError
from quant.quantizers import activation_quantizer, weight_quantizer
from quant.quantizers import lsq as lsq_file
from quant.quantizers import pact as pact_file
from quant.quantizers import qil as qil_file
from quant.quantizers.base import quantiles
from tests.quant.quantizers.methods import a_weight, an_activation


def test_a_delay_tracks_ranges_and_rounds_nothing():
    quantizer = activation_quantizer("int8:2,delay=2", -math.inf, math.inf, True)
    x = torch.randn(100)
    for _ in range(2):
        assert torch.equal(quantizer(x), x)
    assert torch.equal(quantizer.eval()(x), x)
    assert quantizer.hi.item() == x.max().item()
    with pytest.raises(QuantError, match="still in its delay"):
        quantizer.qparams()
    quantizer.observer_enabled = False  # time passes all the same
    assert len(quantizer.train()(x).unique()) <= 4


def test_fqn_leaves_outliers_out_and_settles():
    x = torch.cat((torch.linspace(-1, 1, 10_000), torch.tensor([1000.0])))
    quantizer = activation_quantizer("fqn:8", -math.inf, math.inf, True)
    for _ in range(30):
        quantizer(x)
    assert quantizer.hi.item() == pytest.approx(1.0, abs=0.01)
    assert quantizer.newest_weight() == quantizer.momentum


def test_pact_never_lets_alpha_reach_zero():
    quantizer = activation_quantizer("pact:4", 0.0, math.inf, False)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0)
    x = torch.rand(100)
    for _ in range(20):
        optimizer.zero_grad()
        (10 * quantizer(x).sum()).backward()  # wants it smaller at each step
        optimizer.step()
        y = quantizer(x)
        assert y.isfinite().all() and quantizer.alpha.item() > 0


@pytest.mark.parametrize("reshape", [0, 3])
def test_gdrq_only_clips_in_its_first_stage(reshape):
    quantizer, x = activation_quantizer(f"gdrq:2,reshape={reshape}", -math.inf, math.inf, True), torch.randn(1000)
    weight_side, weight = a_weight(f"gdrq:2,reshape={reshape}")
    for step in range(5):
        few, few_weights = len(quantizer(x).unique()) <= 4, len(weight_side(weight).unique()) <= 4
        assert few == few_weights == (step >= reshape)
        if step < reshape:
            with pytest.raises(QuantError, match="only clipped"):
                weight_side.codes(weight)
            with pytest.raises(QuantError, match="only clipped"):
                quantizer.qparams()


def test_gdrq_spreads_a_bell_over_its_levels():
    """k = 2 clips a Gaussian where a uniform distribution would end: levels are used evenly."""
    weight = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    shares = {}
    for spec in ("gdrq:3", "int8:3"):
        counts = torch.unique(weight_quantizer(spec, 127, 0)(weight), return_counts=True)[1].float()
        p = counts / counts.sum()
        shares[spec] = -(p * p.log()).sum().item()
    assert shares["gdrq:3"] > shares["int8:3"] + 0.2


def test_lsq_starts_and_learns_as_published():
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    quantizer = weight_quantizer("lsq:3", 127, 0)
    quantizer.init_from(weight)
    assert quantizer.step.item() == pytest.approx(2 * weight.abs().mean().item() / math.sqrt(3))
    g = torch.randn_like(weight)
    (quantizer(weight) * g).sum().backward()
    s = quantizer.step.item()
    v = weight / s
    inside = (v > -4) & (v < 3)
    slope = torch.where(inside, torch.round(v) - v, torch.where(v <= -4, -4.0, 3.0))
    assert quantizer.step.grad.item() == pytest.approx(
        (g * slope).sum().item() / math.sqrt(weight.numel() * 3), rel=1e-6
    )


@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_lsq_keeps_its_range_when_bits_change(kind):
    quantizer = a_weight("lsq:5")[0] if kind == "weight" else an_activation("lsq:5")[0]
    before = quantizer.step.item() * 15
    quantizer.set_bits(3)
    assert quantizer.step.item() * 3 == pytest.approx(before)


def test_qil_keeps_its_interval_in_order():
    quantizer, weight = a_weight("qil:3")
    quantizer.c.data.fill_(-1.0)
    quantizer.d.data.fill_(-1.0)
    assert quantizer(weight).isfinite().all()
    assert quantizer.c.item() >= quantizer.d.item() > 0


def test_quantiles_see_every_channel():
    x = torch.zeros(16, 96, 32, 32).contiguous(memory_format=torch.channels_last)
    x[:, 7] = 5.0
    lo, hi = quantiles(x, 0.001)
    assert (lo.item(), hi.item()) == (0.0, 5.0)


# gradients against closed forms and finite differences, with rounding out of the way


@pytest.mark.parametrize("function", ["pact", "pact_signed", "lsq", "qil", "qil_weight"])
def test_gradients_of_learned_ranges_are_those_of_the_unrounded_function(function):
    """With 10^9 levels rounding vanishes and autograd's numbers are finite differences'."""
    x = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    own = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.9, 0.4)]
    gamma = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    levels = 10**9
    functions = {
        "pact": lambda x, c, d: pact_file.learned_clip(x, c, levels),
        "pact_signed": lambda x, c, d: pact_file.learned_clip(x, c, levels, signed=True),
        "lsq": lambda x, c, d: lsq_file.learned_step(x, c / levels, levels, levels) + 0 * d,
        "qil": lambda x, c, d: qil_file.activation_interval(x, c, d, levels),
        "qil_weight": lambda x, c, d: qil_file.weight_interval(x, c, d, gamma, levels),
    }
    assert torch.autograd.gradcheck(functions[function], (x, *own), eps=1e-6, atol=1e-3)
