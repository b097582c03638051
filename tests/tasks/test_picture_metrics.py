"""L1, PSNR and SSIM of pairs against answers worked out by hand or pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from common.errors import UserError
from tasks import picture_metrics
from tasks.picture_metrics import MOST_PSNR, PairMetrics


def pictures(count, size=16, seed=0):
    return 2 * torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) - 1


def measured(made, wanted, batch=100):
    metrics = PairMetrics()
    for a, b in zip(made.split(batch), wanted.split(batch)):
        metrics.update(a, b)
    return metrics.compute()


def direct_ssim(a, b):
    """SSIM of two maps (H, W) in [0, 1], one window after another, in float64."""
    steps = np.arange(-5, 6)
    window = np.exp(-(steps[:, None] ** 2 + steps[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    a, b = (np.pad(x, 5, mode="reflect") for x in (a, b))
    found = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mean_p, mean_q = (window * p).sum(), (window * q).sum()
            var_p, var_q = (window * (p - mean_p) ** 2).sum(), (window * (q - mean_q) ** 2).sum()
            both = (window * (p - mean_p) * (q - mean_q)).sum()
            found.append(
                (2 * mean_p * mean_q + 1e-4)
                * (2 * both + 9e-4)
                / ((mean_p**2 + mean_q**2 + 1e-4) * (var_p + var_q + 9e-4))
            )
    return np.mean(found)


def test_equal_pictures():
    x = pictures(3)
    assert measured(x, x) == {"l1": 0.0, "psnr": MOST_PSNR, "ssim": pytest.approx(1, abs=1e-6)}


@pytest.mark.parametrize("error", [0.02, 0.5, 2.0])
def test_a_known_error(error):
    """A constant error e of pictures in [-1, 1] is e / 2 of the full range: L1 e / 2, PSNR -20 log10(e / 2)."""
    wanted = torch.full((2, 3, 16, 16), -1.0)
    found = measured(wanted + error, wanted)
    assert found["l1"] == pytest.approx(error / 2, abs=1e-6)
    assert found["psnr"] == pytest.approx(-20 * math.log10(error / 2), abs=1e-3)


def test_ssim_is_the_published_formula():
    made, wanted = pictures(1, 14), pictures(1, 14, seed=1) * 0.3 + pictures(1, 14) * 0.6
    pairs = zip(((made[0].double() + 1) / 2).numpy(), ((wanted[0].double() + 1) / 2).numpy())
    expected = np.mean([direct_ssim(a, b) for a, b in pairs])
    assert 0.1 < expected < 0.95 and measured(made, wanted)["ssim"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("a, b", [(0.2, 0.6), (0.0, 1.0), (0.4, 0.5)])
def test_ssim_of_flat_pictures_compares_brightness_from_black_on(a, b):
    """(2ab + c) / (a^2 + b^2 + c), where black is 0 and not -1."""
    made, wanted = (torch.full((1, 3, 16, 16), 2 * value - 1) for value in (a, b))
    assert measured(made, wanted)["ssim"] == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), abs=2e-4)


def test_every_pair_counts_alike():
    wanted = torch.zeros(2, 3, 16, 16)
    # 20 and 40 dB; the PSNR of both errors together would be 23
    made = wanted + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)
    assert measured(made, wanted)["psnr"] == pytest.approx(30, abs=1e-3)


def test_values_beyond_the_range_are_no_better_than_its_ends():
    wanted = pictures(1).sign()
    assert measured(3 * wanted, wanted) == measured(wanted, wanted)


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_batches_do_not_matter(batch):
    made, wanted = pictures(7), pictures(7, seed=1)
    assert measured(made, wanted, batch) == pytest.approx(measured(made, wanted), abs=1e-6)


def test_ranks_divide_the_pairs(monkeypatch):
    made, wanted = pictures(5), pictures(5, seed=1)
    whole, first, second = (PairMetrics() for _ in range(3))
    whole.update(made, wanted)
    first.update(made[:2], wanted[:2])
    second.update(made[2:], wanted[2:])
    expected = whole.compute()
    monkeypatch.setattr(picture_metrics.distributed, "sum_", lambda mine: mine.add_(second._sums))
    assert first.compute() == pytest.approx(expected, abs=1e-6)
    assert first.compute() == pytest.approx(expected, abs=1e-6)  # what was summed up is not summed up again


def test_no_pictures_at_all():
    with pytest.raises(UserError, match="no pictures"):
        PairMetrics().compute()
