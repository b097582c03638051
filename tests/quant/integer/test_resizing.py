"""Bilinear resizing as integers: averages of codes, rounded to the grid that they come from."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant import QuantConfig
from quant.calibrate import calibrate
from quant.quantizers import SameGrid
from tests.quant.executors.kernels import each_engine, on_codes
from tests.quant.integer.test_outputs import observed


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


RESIZINGS = {
    "twice": {"scale_factor": 2},
    "twice, corners aligned": {"scale_factor": 2, "align_corners": True},
    "1.5 times": {"scale_factor": 1.5},
    "to a size": {"size": (13, 31), "align_corners": False},
    "to a size, corners aligned": {"size": (13, 31), "align_corners": True},
    "smaller": {"size": (3, 4), "align_corners": False},
}


@each_engine
@pytest.mark.parametrize("shape", [(2, 8, 7, 9), (1, 13, 5, 5), (2, 8, 1, 1)])
@pytest.mark.parametrize("name", RESIZINGS)
def test_bilinear_resizing_is_within_half_a_step_of_the_exact_average(name, shape, engine):
    options, x = {"mode": "bilinear"} | RESIZINGS[name], on_codes(*shape)
    graph = calibrate(nn.Sequential(nn.Upsample(**options)), [x], QuantConfig(engine=engine))
    executor = quant.convert(graph, engine)
    first, last = (next(op for op in executor.graph.ops if op.kind == kind) for kind in ("quantize", "resize"))
    assert last.qparams == first.qparams and executor.float_ops == []
    exact = F.interpolate(x.double(), **options)
    with torch.no_grad():
        error = (executor(x).double() - exact).abs().max() / first.qparams.scale
    assert error <= 0.509, "half a step, and the little by which halves are moved away from zero"
    assert error > 0.2 or shape[2:] == (1, 1), "an average of codes lies between them somewhere"


@each_engine
def test_halves_go_the_same_way_in_training_and_on_every_engine(engine):
    """Many averages of a doubled image are ties: neither rounding noise nor the zero point may decide."""
    x = 0.37 * (on_codes(2, 8, 9, 9) + 0.29)
    graph = calibrate(nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear")), [x], QuantConfig(engine=engine))
    executor = quant.convert(graph, engine)
    grid = executor.graph.ops[1].qparams
    averages = F.interpolate(grid.quantize(x).double() - grid.zero_point, scale_factor=2, mode="bilinear")
    assert (averages % 1 == 0.5).float().mean() > 0.02 and grid.zero_point % 2 == 1
    halves_away = torch.sign(averages) * (averages.abs() + 0.5).floor() * grid.scale
    with torch.no_grad():
        assert torch.allclose(graph(x).double(), halves_away, atol=0.01 * grid.scale)
        assert torch.allclose(executor(x).double(), halves_away, atol=0.01 * grid.scale)


@each_engine
@pytest.mark.parametrize("size", [(1, 1), (5, 3)])
def test_a_constant_picture_stays_constant_by_channel(size, engine):
    values = on_codes(1, 16, 1, 1)
    x = values.expand(2, 16, *size).contiguous()
    graph = calibrate(nn.Sequential(nn.Upsample((9, 11), mode="bilinear")), [x], QuantConfig(engine=engine))
    executor = quant.convert(graph, engine)
    with torch.no_grad():
        assert torch.equal(executor(x), graph(x)[:, :, :1, :1].expand(2, 16, 9, 11))
        assert torch.allclose(executor(x), values.expand(2, 16, 9, 11), atol=0.01)


def test_resizing_has_no_range_of_its_own_and_passes_the_gradient_as_it_is():
    model = nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"))
    x = (0.1 + torch.rand(2, 3, 5, 5)).requires_grad_()  # none that rounds to zero, where ReLU has no gradient
    graph = quant.attach(model, x.detach()).train()
    quantizers = quant.quantizers_of(graph)
    (same,) = (q for q in quantizers.values() if isinstance(q, SameGrid))
    assert len(quantizers) == 2 and not list(same.parameters()) and not list(same.buffers())
    y, weight = graph(x), torch.rand(2, 3, 10, 10)
    (got,) = torch.autograd.grad((y * weight).sum(), x)
    (expected,) = torch.autograd.grad((F.interpolate(x.relu(), scale_factor=2, mode="bilinear") * weight).sum(), x)
    assert torch.allclose(got, expected)
    codes = y.detach() / same.qparams().scale
    assert (codes - codes.round()).abs().max() < 1e-4
    assert same.of.batches == 1, "the source's quantizer has not watched its averages"


def test_resizing_follows_the_switches_and_the_width_of_its_inputs_quantizer():
    x = torch.rand(2, 3, 5, 5)
    graph = quant.attach(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 4, 1)), x
    ).train()
    graph(x)
    (same,) = (q for q in quant.quantizers_of(graph).values() if isinstance(q, SameGrid))
    averages = same.qparams().highest * torch.rand(3, 4, 5, 5)
    quant.set_mode(graph, observe=False, fake_quant=False)
    assert torch.equal(same(averages), averages)
    quant.set_mode(graph, observe=False, fake_quant=True)
    assert same(averages).unique().numel() > 17
    quant.set_bits(graph, 4)
    assert same(averages).unique().numel() <= 16


def test_a_resizing_of_what_lies_on_no_grid_stays_float():
    x = torch.randn(2, 3, 6, 6)
    model = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 4, 1))
    graph = observed(model, x, quantize_input=False)
    executor = quant.convert(graph, "reference")
    assert executor.float_ops == ["_0_read_quant"], "resized in float, then quantized"
    quant.parity(graph, executor, x).check()


def test_a_resizing_between_grids_chosen_by_the_kinds_of_operations_keeps_to_them():
    """Its input is quantized because it is a function, its result because a convolution reads it: on unlike grids."""
    x = torch.randn(2, 3, 6, 6)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample((2, 2), mode="bilinear"), nn.Conv2d(4, 4, 1), nn.Tanh())
    graph = observed(model, x, op_types=("conv", "function"))
    executor = quant.convert(graph, "reference")
    assert not any(op.kind == "resize" for op in executor.graph.ops)
    with torch.no_grad():
        assert (executor(x) - graph(x)).abs().max() <= 0.01
