"""One network, traced and with quantizers attached, for all tests of a file."""

import pytest

import quant
from quant.attach.graph_pass import trace
from tests.zoo.graphs import DEMO, example_images, shared_model


@pytest.fixture(scope="module")
def demo():
    model = shared_model()
    return trace(model), quant.attach(model, example_images(), DEMO)
