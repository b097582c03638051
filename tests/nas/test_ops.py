"""The table of block ops: each row agrees with the block that is built of it."""

import re

import pytest

from nas import BlockSpec, build
from nas.ops import OPS

SQUEEZING = [name for name, op in OPS.items() if op.squeezes]


def spec_of(name: str) -> BlockSpec:
    return BlockSpec(name, 5, 32, 32, 1, 3, 4 if OPS[name].squeezes else 0, "relu")


def test_the_order_is_that_of_the_candidates_and_new_ops_come_last():
    assert list(OPS)[:4] == ["mb", "se", "add", "frost"]


@pytest.mark.parametrize("name", OPS)
def test_a_row_is_complete(name):
    op = OPS[name]
    assert op.title and all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in (op.colour, op.dark))
    squeezes = op.squeezes != ""
    assert bool(op.writes) == bool(op.reads) == squeezes
    assert all(factor >= 2 for factor in op.factors) if squeezes else op.factors == (0,)


def test_titles_and_colours_tell_ops_apart():
    for field in ("title", "colour", "dark"):
        assert len({getattr(op, field) for op in OPS.values()}) == len(OPS)


@pytest.mark.parametrize("name", SQUEEZING)
def test_the_layers_that_write_and_read_the_squeeze_have_its_channels(name):
    spec = spec_of(name)
    block, op = build(spec), OPS[name]
    for layer in op.writes:
        assert next(block.get_submodule(layer).parameters()).shape[0] == spec.squeeze_channels
    for layer in op.reads:
        beside = spec.in_channels if layer == "expand" else 0
        assert next(block.get_submodule(layer).parameters()).shape[1] == spec.squeeze_channels + beside


@pytest.mark.parametrize("name", OPS)
def test_only_an_op_that_concatenates_widens_the_depthwise_convolution(name):
    spec = spec_of(name)
    assert OPS[name].concatenates == (name == "frost")
    assert (spec.hidden_channels > spec.expand_ratio * spec.in_channels) == OPS[name].concatenates
