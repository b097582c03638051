import pytest
import torch

from latency_lut import prepare
from tests.latency_lut.small import SmallNetwork


@pytest.fixture
def model(images):
    torch.manual_seed(0)
    small = SmallNetwork()
    prepare.settle(small, images)
    return small
