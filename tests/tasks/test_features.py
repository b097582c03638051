"""The Frechet distance against closed forms, and the fixed random network."""

import itertools
import math

import numpy as np
import pytest
import torch

from common.errors import UserError
from tasks import features
from tasks.features import FeatureDistance, frechet, random_features


class Given:
    """ "Pictures" whose features are their pixels."""

    def __init__(self, count):
        self.name, self.num_features = "given", count

    def features(self, pictures):
        return pictures.flatten(1)


def draw(count, size, seed=0):
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def distance(real, made, network=None, batch=1000):
    found = FeatureDistance(network or Given(real[0].numel()))
    for pictures, is_real in ((real, True), (made, False)):
        for some in pictures.split(batch):
            found.update(some, is_real)
    return found.compute()


@pytest.fixture(autouse=True)
def unsaid():
    features._say.cache_clear()


# ---- the formula -------------------------------------------------------------------------------------------


def test_gaussians_along_the_same_axes():
    """|m - n|^2 + sum (sqrt a - sqrt b)^2, however the axes lie."""
    turn = torch.linalg.qr(draw(4, 4))[0]
    a, b = torch.tensor([4.0, 1.0, 9.0, 0.0]).double(), torch.tensor([1.0, 1.0, 16.0, 4.0]).double()
    mean = torch.tensor([1.0, -2.0, 0.0, 3.0]).double()
    found = frechet(mean, turn @ a.diag() @ turn.T, torch.zeros(4).double(), turn @ b.diag() @ turn.T)
    assert found == pytest.approx(14 + (1 + 0 + 1 + 4), abs=1e-9)


def test_gaussians_of_two_dimensions_along_unlike_axes():
    """tr sqrt(AB) = sqrt(tr AB + 2 sqrt(det AB)) for 2 x 2 matrices."""
    a, b = torch.tensor([[3.0, 1.0], [1.0, 2.0]]).double(), torch.tensor([[1.0, -0.5], [-0.5, 5.0]]).double()
    root = math.sqrt((a @ b).trace() + 2 * math.sqrt((a @ b).det()))
    zero = torch.zeros(2).double()
    assert frechet(zero, a, zero, b) == pytest.approx((a.trace() + b.trace()).item() - 2 * root, abs=1e-9)


def test_it_is_the_figure_that_numpy_computes():
    real, made = draw(300, 6), draw(200, 6, seed=1) @ draw(6, 6, seed=2) + 0.3
    a, b = np.cov(real.numpy().T), np.cov(made.numpy().T)
    moved, shared = (real.mean(0) - made.mean(0)).square().sum().item(), np.sqrt(np.linalg.eigvals(a @ b)).real.sum()
    expected = moved + np.trace(a + b) - 2 * shared
    assert distance(real, made) == pytest.approx(expected, abs=1e-5)


def test_equal_sets_are_at_no_distance():
    for count in (200, 5):  # of 5 the covariance is singular
        x = draw(count, 8)
        assert distance(x, x) == 0


def test_moving_all_features():
    x = draw(200, 8)
    assert distance(x, x + 0.5) == pytest.approx(8 * 0.25, abs=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_singular_covariances(size):
    """Of 10 images with 60 features: tr sqrt(AB) is a sum of singular values of the centred features."""
    real = draw(10, 60)
    made = real + size * draw(10, 60, seed=1)
    a, b = ((x - x.mean(0)) / 3 for x in (real, made))
    shared = np.linalg.svd((a @ b.T).numpy(), compute_uv=False).sum()
    expected = (real.mean(0) - made.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * shared
    assert distance(real, made) == pytest.approx(expected.item(), rel=0.02, abs=2e-6)


def test_broken_pictures_have_no_distance():
    x = draw(20, 4)
    assert math.isnan(distance(x, x * math.inf))


# ---- collecting --------------------------------------------------------------------------------------------


def test_batches_do_not_matter():
    real, made = draw(50, 6), draw(40, 6, seed=1)
    assert distance(real, made, batch=7) == pytest.approx(distance(real, made), abs=1e-6)


def test_ranks_divide_the_pictures(monkeypatch):
    real, made = draw(50, 6), draw(40, 6, seed=1)
    first, second = FeatureDistance(Given(6)), FeatureDistance(Given(6))
    for part, rows in ((first, slice(None, None, 2)), (second, slice(1, None, 2))):
        part.update(real[rows], True)
        part.update(made[rows], False)
    expected, others = distance(real, made), itertools.cycle(second._sums.values())
    monkeypatch.setattr(features.distributed, "sum_", lambda mine: mine.add_(next(others)))
    for _ in range(2):  # what was summed up is not summed up again
        assert first.compute() == pytest.approx(expected, abs=1e-6)


def test_few_pictures_are_said_once(capsys):
    x = draw(9, 6)
    distance(x, x)
    assert not capsys.readouterr().err
    for _ in range(2):
        distance(x, x[:6])
    assert capsys.readouterr().err.count("6 pictures with 6 features") == 1


@pytest.mark.parametrize("real, made", [(0, 5), (5, 1)])
def test_a_single_picture_is_refused(real, made):
    with pytest.raises(UserError, match="at least 2"):
        distance(draw(real, 4).view(real, 4), draw(made, 4).view(made, 4), Given(4))


# ---- the random network ------------------------------------------------------------------------------------

FIRST_WEIGHTS = [0.344037, -0.044294, 0.430125]


def pictures(count=12, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_random_features_are_the_same_whatever_was_drawn_before():
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), random_features().features(pictures())
    assert first.shape == (12, 64) and torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(random_features().features(pictures()), first)


def test_random_features_are_those_of_every_machine():
    """As matrix products in float64. The first weights stand here, so that they cannot change unnoticed."""
    network, picture = random_features(), pictures(1, 8)
    x, found = picture[0].double(), []
    for weight in network._weights:
        windows = torch.nn.functional.unfold(x[None], 3, padding=1, stride=2)[0]
        side = math.isqrt(windows.shape[1])
        x = (weight.double().flatten(1) @ windows).relu().view(-1, side, side)
        found.append(x.mean((1, 2)))
    assert torch.allclose(network.features(picture)[0].double(), torch.cat(found), atol=1e-5)
    assert network._weights[0][0, 0, 0].tolist() == pytest.approx(FIRST_WEIGHTS, abs=1e-6)


def test_worse_pictures_are_further_away():
    x, noise = pictures(), torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    distances = [distance(smooth, smooth + size * noise, random_features()) for size in (0, 0.01, 0.1, 1)]
    assert distances[0] == 0 and distances == sorted(distances) and distances[1] < distances[3] / 100
