"""The language of architectures: specs and their JSON, search spaces, blocks, costs, derivation, reports."""

from common.errors import UserError  # for modules of users' own spaces, which raise it
from nas.arch import Architecture, BlockSpec, HeadSpec, StemSpec, resolve, signature
from nas.blocks import build, init_weights
from nas.cost import Cost, cost, count
from nas.space import Choice, SearchSpace, Slot, Stage
from nas.spaces import SPACES, Bottleneck, bottleneck_space, find_space, frostnet_space

__all__ = [
    "SPACES",
    "Architecture",
    "BlockSpec",
    "Bottleneck",
    "Choice",
    "Cost",
    "HeadSpec",
    "SearchSpace",
    "Slot",
    "Stage",
    "StemSpec",
    "UserError",
    "bottleneck_space",
    "build",
    "cost",
    "count",
    "find_space",
    "frostnet_space",
    "init_weights",
    "resolve",
    "signature",
]
