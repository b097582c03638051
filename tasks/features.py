"""How far two sets of images are apart: the Frechet distance (arXiv:1706.08500) between Gaussians of their features.

The published figure (FID) takes the features of one downloaded network. Here they are those of a network that the
figure is named after: one with random weights, which sees colours and textures, or one of the user's own (tasks.judge).
Figures of two networks, or of unlike numbers of images, cannot be compared.
"""

import functools
import math
import sys
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from common import distributed
from common.errors import UserError

SEED, SCALES, WIDTH = 1706, 4, 16  # of the random network


class Features(Protocol):
    """What looks at pictures: (N, 3, H, W) in [-1, 1] -> (N, num_features)."""

    name: str
    num_features: int

    def features(self, pictures: Tensor) -> Tensor: ...


class RandomFeatures:
    """A fixed network of random weights: stride-2 convolutions with ReLU. Features are each layer's channel means."""

    name, num_features = "random", SCALES * WIDTH

    def __init__(self):
        generator = torch.Generator().manual_seed(SEED)
        widths = (3, *(WIDTH,) * SCALES)
        self._weights = [
            torch.randn(b, a, 3, 3, generator=generator) * math.sqrt(2 / (9 * a)) for a, b in zip(widths, widths[1:])
        ]

    @torch.inference_mode()
    def features(self, pictures: Tensor) -> Tensor:
        x, found = pictures.float(), []
        for weight in self._weights:
            x = F.conv2d(x, weight.to(x.device), stride=2, padding=1).relu()
            found.append(x.mean((2, 3)))
        return torch.cat(found, 1)


def random_features() -> RandomFeatures:
    """The network that needs neither a download nor a training; the same on every machine."""
    return RandomFeatures()


class FeatureDistance:
    """The Frechet distance between made and real pictures, as `network` sees them; 0 for equal sets."""

    def __init__(self, network: Features):
        count = network.num_features
        self.network = network
        self._sums = {real: torch.zeros(1 + count + count * count, dtype=torch.float64) for real in (True, False)}

    def update(self, pictures: Tensor, real: bool) -> None:
        """Add pictures (N, 3, H, W) in [-1, 1] to one of the two sets."""
        x = self.network.features(pictures).double().cpu()
        self._sums[real] += torch.cat([torch.tensor([len(x)]), x.sum(0), (x.T @ x).flatten()])

    def compute(self) -> float:
        """The distance between the sets of all ranks.

        Says where they are small; raises UserError for one of fewer than two pictures.
        """
        sets = [distributed.sum_(sums.clone()) for sums in self._sums.values()]
        fewest, features = int(min(sums[0] for sums in sets)), self.network.num_features
        if fewest < 2:
            raise UserError(
                f"data_root: a set of {fewest} pictures, must be at least 2 for a feature distance; add some"
            )
        if fewest <= features:
            _say(
                f"note: feature distances of only {fewest} pictures with {features} "
                "features each are overestimated; compare them only with others of as many"
            )
        return round(frechet(*_gaussian(sets[0]), *_gaussian(sets[1])), 6)


def frechet(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 sqrt(AB)) of two Gaussians, singular ones too.

    Means are (F,) and covariances (F, F) float64. tr sqrt(AB) is the sum of the singular values of sqrt(A) sqrt(B). The
    eigenvalues of AB, which torchmetrics takes, are too coarse where A and B are singular: distances as small as
    between a network and its INT8 form come out wrong by half, or negative.
    """
    if not all(t.isfinite().all() for t in (mean_a, covariance_a, mean_b, covariance_b)):
        return math.nan
    shared = torch.linalg.svdvals(_root(covariance_a) @ _root(covariance_b)).sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * shared
    return max(distance.item(), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root; what is zero but for rounding is zero."""
    values, vectors = torch.linalg.eigh(covariance)
    noise = values.max() * len(values) * torch.finfo(values.dtype).eps
    return vectors * torch.where(values > noise, values, 0).sqrt() @ vectors.T


def _gaussian(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (F,) and unbiased covariance (F, F) from the count of rows, their sum and that of their outer products."""
    count, size = sums[0], math.isqrt(len(sums) - 1)
    mean, products = sums[1 : 1 + size] / count, sums[1 + size :].view(size, size)
    return mean, (products - count * mean.outer(mean)) / (count - 1)


@functools.cache
def _say(words: str) -> None:
    """Once, however often it is true."""
    print(words, file=sys.stderr)
