import functools

import pytest
import torch

from latency_lut import build, prepare, time_interleaved, timing
from latency_lut.sections import CALL
from nas import signature


@pytest.fixture
def fakes(monkeypatch):
    """Parts and networks that only count: a network takes as long as its parts. Returns what was prepared."""
    prepared = []

    def callable_of(units):
        return lambda: sum(range(int(300 * units)))

    def part(spec, size, engine, batch):
        prepared.append(signature(spec, size))
        return callable_of(1)

    def call(engine, batch):
        prepared.append(CALL)
        return callable_of(0.2)

    def network(arch, engine, batch):
        prepared.append(arch.name)
        return callable_of(len(arch.blocks) + 2)

    monkeypatch.setattr(build, "MAX_ROUNDS", 1)
    monkeypatch.setattr(timing, "TICKS", 50)
    monkeypatch.setattr(build, "time_interleaved", functools.partial(time_interleaved, spacing=0, rest=0))
    monkeypatch.setattr(prepare, "part", part)
    monkeypatch.setattr(prepare, "call", call)
    monkeypatch.setattr(prepare, "network", network)
    return prepared


@pytest.fixture
def images():
    return torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
