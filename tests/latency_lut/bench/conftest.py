import pytest
import torch

import quant
from tests.latency_lut.small import SmallNetwork


@pytest.fixture
def model(images):
    torch.manual_seed(0)
    small = SmallNetwork()
    quant.recalibrate(small.eval(), [images])
    return small
