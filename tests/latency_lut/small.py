"""A small FrostNet space and a small network."""

from dataclasses import replace

from torch import nn

import quant
from nas import frostnet_space
from nas.space import SearchSpace, Slot, Stage
from nas.spaces import candidates

ENGINE = quant.available()[0]


def small_space(input_size=16, num_classes=10) -> SearchSpace:
    """A FrostNet space of three slots and 13 blocks."""
    whole = frostnet_space(0.35, input_size, num_classes)
    stages = (
        whole.stages[0],
        Stage((Slot(candidates(8, 16, 2)), Slot(candidates(16, 16, 1)[:4])), 1),
        Stage((Slot(candidates(16, 24, 2)[:4]),), 1),
    )
    return SearchSpace(
        "frostnet", 0.35, input_size, whole.stem, stages, replace(whole.head, in_channels=24, channels=32)
    )


class SmallNetwork(nn.Module):
    """Two convolutions with batch norm, (N, 3, H, W) -> (N, 5)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.pool(self.body(x)).flatten(1))
