"""quant.calibrate: the histogram, and ranges of least squared error against brute force."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.calibrate import HALF, METHODS, _Bins, _count, _edge, _squared_errors
from quant.quantizers.grid import QParams, affine_qparams
from tests.quant.calibration import INF, calibrated, config
from tests.strategies import examples

# ---- the histogram -----------------------------------------------------------------------------------------


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=50))
def test_every_number_lies_in_its_bin_and_bins_are_narrow(values):
    x = torch.tensor(values)
    filled = _count(x).nonzero()[:, 0]
    assert _count(x).sum() == len(values)
    left, right = _edge(filled - HALF), _edge(filled - HALF + 1)
    for value in x.double().tolist():
        mine = (left <= value) & (value <= right)
        assert mine.any(), value
        if abs(value) > 1e-36:  # below, bins are as wide as the smallest numbers
            assert (right - left)[mine].min() <= abs(value) / 64 * (1 + 1e-9)
    assert (left[1:] >= right[:-1]).all(), "in order"


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=6, unique=True).map(sorted),
    st.floats(0.01, 5),
    st.integers(0, 255),
    st.integers(1, 255),
)
@examples(50)
def test_the_squared_error_is_the_integral_that_it_claims_to_be(edges, step, zero_point, levels):
    """Against a fine sum over evenly spread points."""
    zero_point = min(zero_point, levels)
    grid = QParams(step, zero_point, 0, levels)
    left, right = torch.tensor(edges[:-1]).double(), torch.tensor(edges[1:]).double()
    count = torch.arange(1.0, len(edges)).double()
    points = torch.lerp(left, right, (torch.arange(4000).double() + 0.5).view(-1, 1) / 4000)
    nearest = step * torch.clamp(torch.round(points / step), -zero_point, levels - zero_point)
    expected = ((points - nearest).square().mean(0) @ count).item()
    assert _squared_errors([grid], _Bins(left, right, count)).item() == pytest.approx(
        expected, rel=1e-3, abs=1e-7 * step**2
    )


# ---- least squared error -----------------------------------------------------------------------------------


def brute_force(x, bits, candidates=48):
    """The least mean squared error over a dense grid of ranges, on the data themselves."""
    x, best, levels = x.flatten().double(), INF, 2**bits - 1
    lo, hi = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    ends = [[end * (1 - i / candidates) for i in range(candidates)] if end else [0.0] for end in (lo, hi)]
    for a, b in itertools.product(*ends):
        grid = affine_qparams(a, b, levels)
        nearest = grid.scale * torch.round(x / grid.scale).clamp_(-grid.zero_point, levels - grid.zero_point)
        best = min(best, (nearest - x).square().mean().item())
    return best


DATA = {
    "normal": lambda: torch.randn(4000),
    "relu": lambda: torch.randn(4000).relu(),
    "one sided": lambda: -torch.rand(4000).square(),
    "laplace": lambda: torch.distributions.Laplace(0.3, 1.0).sample((4000,)),
    "skewed": lambda: torch.randn(4000).exp() - 1,
    "pictures": lambda: torch.cat(
        [(torch.randint(0, 256, (2000,)) - mean) / std for mean, std in ((120, 60), (113.4, 65.7))]
    ),
    "relu6": lambda: (5 * torch.randn(4000)).clamp(0, 6),
}


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("name", DATA)
def test_mse_ranges_are_as_good_as_brute_force(name, bits):
    """Within 3 %: the histogram's bins and the candidates' spacing."""
    torch.manual_seed(0)
    x = DATA[name]().view(1, 1, 40, 100)
    *_, error = calibrated(x, "mse", config(bits))
    assert error <= 1.03 * brute_force(x, bits)


def test_mse_finds_both_ends_of_an_asymmetric_range():
    """Uniform on [-1, 3] with a share of 1e-4 at -40: at 4 bits the best range leaves -40 outside."""
    x = torch.linspace(-1, 3, 100_000)
    x[::10_000] = -40.0
    lo, hi, _ = calibrated(x.view(1, 1, 100, 1000), "mse", config(4))
    assert -12 < lo < -0.8
    assert 2.5 < hi <= 3.0


@pytest.mark.parametrize("bits", [4, 8])
def test_outliers_cost_minmax_more(bits):
    torch.manual_seed(0)
    x = torch.randn(1, 1, 500, 500)
    x[0, 0, 0, :2] = torch.tensor([60.0, -45.0])
    errors = {method: calibrated(x, method, config(bits))[2] for method in METHODS}
    assert errors["mse"] < 0.75 * errors["minmax"]
    assert errors["mse"] <= 1.001 * errors["percentile"]


def test_a_far_outlier_does_not_coarsen_the_histogram():
    """The bulk would fill a single one of 2048 even bins."""
    torch.manual_seed(0)
    bulk = torch.randn(1, 1, 1000, 1000)
    expected = calibrated(bulk, "percentile", percentile=99.9)
    bulk[0, 0, 0, 0] = 1e6
    found = calibrated(bulk, "percentile", percentile=99.9)
    assert found[:2] == pytest.approx(expected[:2], rel=2e-3)
