"""Hypothesis strategies and settings that several tests share."""

import os

from hypothesis import settings
from hypothesis import strategies as st

from nas.arch import ACTIVATIONS, Architecture, BlockSpec, HeadSpec, StemSpec, resolve
from nas.ops import OPS

CHANNELS = st.sampled_from((8, 16, 24, 32, 40, 48))


def examples(count: int) -> settings:
    """Settings of a property test of `count` examples, or of as many as the environment variable EXAMPLES says."""
    return settings(max_examples=int(os.environ.get("EXAMPLES", count)))


@st.composite
def block_specs(draw, in_channels=None):
    """A resolved block of any kind."""
    op = draw(st.sampled_from(list(OPS)))
    return resolve(
        BlockSpec(
            op=op,
            kernel_size=draw(st.sampled_from((3, 5))),
            in_channels=in_channels or draw(CHANNELS),
            out_channels=draw(CHANNELS),
            stride=draw(st.sampled_from((1, 2))),
            expand_ratio=draw(st.sampled_from((1, 3, 6))),
            squeeze_factor=draw(st.sampled_from((2, 4))) if OPS[op].squeezes else 0,
            activation=draw(st.sampled_from(ACTIVATIONS)),
        )
    )


@st.composite
def architectures(draw, max_blocks=5):
    """A small valid network."""
    stem = StemSpec(draw(st.integers(1, 4)), draw(CHANNELS), 3, draw(st.sampled_from((1, 2))), "relu")
    channels, blocks = stem.out_channels, []
    for _ in range(draw(st.integers(1, max_blocks))):
        blocks.append(draw(block_specs(channels)))
        channels = blocks[-1].out_channels
    head = HeadSpec(channels, draw(CHANNELS), draw(st.integers(1, 20)), draw(st.sampled_from((0, 0.2))), "relu")
    provenance = draw(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=2))
    return Architecture("net", draw(st.integers(8, 70)), stem, tuple(blocks), head, provenance)
