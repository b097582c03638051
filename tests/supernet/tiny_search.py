"""A tiny search that the tests of supernet share."""

from dataclasses import replace

import torch
import torch.nn.functional as F

import quant
from supernet import Plan, Search, Supernet
from tests.spaces import latency_of, tiny_space

SPACE = tiny_space()
TIED = replace(SPACE, name="tied", tied=True)
CONFIG = quant.QuantConfig(engine="fbgemm")
PLAN = Plan(2, 4, 4, 8)


def images(n=8, seed=0):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def batch(step):
    """Images whose class is the sign pattern of two channels' means: learnable in a few steps."""
    x = images(32, step)
    y = torch.arange(32) % 4
    x[:, 0] += (y % 2 * 2 - 1).view(-1, 1, 1) * 1.0
    x[:, 1] += (y // 2 * 2 - 1).view(-1, 1, 1) * 1.0
    return x, y


def all_choices(space):
    generator = torch.Generator().manual_seed(0)
    return [space.random(generator) for _ in range(20)]


def search(plan=PLAN, target=0.9, seed=0, space=SPACE, **options):
    torch.manual_seed(seed)
    return Search(
        Supernet(space),
        plan,
        latency_of(space),
        target,
        F.cross_entropy,
        batch,
        lambda i: batch(1000 + i),
        CONFIG,
        seed=seed,
        **options,
    )


def run(s, steps=None):
    rows = []
    while not s.finished and (steps is None or len(rows) < steps):
        rows.append(s.step())
    return rows
