"""Networks with quantizers, and random graphs to draw."""

from functools import cache

import networkx as nx
import torch
from hypothesis import strategies as st

import quant
import zoo
from quant import QuantConfig

SIZE = 32
CHOSEN = ("conv", "linear", "deconv")
DEMO = QuantConfig(op_types=CHOSEN)


@cache
def shared_model(name="preact_resnet18"):
    """Shared by the tests: quantizers are attached to graphs of it, it stays as it is."""
    torch.manual_seed(0)
    return zoo.build(name, 10, SIZE).eval()


def example_images():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def plan(config, name="preact_resnet18"):
    return quant.plan(shared_model(name), example_images(), config)


ADD = {"kind": "add", "title": "add"}
CONV = {"kind": "conv", "title": "conv 3×3", "weight": "64×64×3×3", "weight_quantizer": "int8:8"}
QUANTIZER = {"kind": "quantizer", "title": "int8:8"}


def flow_of(edges, attributes=()):
    """A graph of nodes 0, 1, .., additions unless their attributes say otherwise."""
    flow = nx.DiGraph(edges)
    for n, at in flow.nodes(data=True):
        at |= (attributes[n] if attributes else ADD) | {"name": f"block{n}"}
    return flow


@st.composite
def flows(draw):
    """A directed graph without cycles."""
    attributes = draw(st.lists(st.sampled_from([ADD, CONV, QUANTIZER]), min_size=2, max_size=14))
    readers = range(1, len(attributes))
    return flow_of(
        [(a, b) for b in readers for a in draw(st.sets(st.integers(0, b - 1), min_size=1, max_size=3))], attributes
    )
