"""Architectures as numbers: rounding, resolution, JSON there and back, and what is refused."""

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from frostnet import architecture
from nas import Architecture, BlockSpec, HeadSpec, StemSpec, resolve, signature
from nas.arch import round8, stem_stride
from tests.strategies import architectures, block_specs

FROST = BlockSpec("frost", 5, 24, 40, 2, 6, 2, "relu")


@pytest.mark.parametrize(
    "channels, rounded", [(1, 8), (8, 8), (11, 16), (12, 16), (17, 16), (18, 24), (20, 24), (27, 32)]
)
def test_round8_known_values(channels, rounded):
    assert round8(channels) == rounded


@given(st.integers(1, 10_000))
def test_round8_gives_a_near_multiple_of_8_that_loses_at_most_a_tenth(channels):
    rounded = round8(channels)
    assert rounded % 8 == 0 and rounded >= 0.9 * channels and rounded - channels < 8


def test_hidden_channels_count_the_concatenated_squeeze():
    spec = BlockSpec("frost", 5, 96, 192, 2, 6, 2, "relu")
    assert (spec.squeeze_channels, spec.hidden_channels) == (48, 6 * (96 + 48))


def test_an_mb_block_has_no_squeeze():
    spec = BlockSpec("mb", 3, 16, 24, 2, 6, 0, "relu")
    assert (spec.squeeze_channels, spec.hidden_channels) == (0, 96)


@pytest.mark.parametrize(
    "in_channels, out_channels, stride, residual", [(24, 24, 1, True), (24, 24, 2, False), (24, 32, 1, False)]
)
def test_a_block_is_residual_when_it_keeps_shape(in_channels, out_channels, stride, residual):
    assert BlockSpec("mb", 3, in_channels, out_channels, stride, 3, 0, "relu").residual is residual


@pytest.mark.parametrize(
    "in_channels, factor, op", [(24, 4, "mb"), (31, 4, "mb"), (32, 4, "frost"), (16, 2, "frost"), (14, 2, "mb")]
)
def test_a_frost_block_is_an_mb_block_below_eight_squeezed_channels(in_channels, factor, op):
    assert resolve(BlockSpec("frost", 3, in_channels, 24, 1, 3, factor, "relu")).op == op


def test_a_frost_block_without_expansion_is_an_mb_block():
    assert resolve(replace(FROST, expand_ratio=1)) == BlockSpec("mb", 5, 24, 40, 2, 1, 0, "relu")


@given(block_specs())
def test_resolving_twice_is_resolving_once(spec):
    assert resolve(spec) == spec


def test_signatures_of_the_three_kinds_of_part():
    assert signature(replace(FROST, squeeze_factor=4), 56) == "frost_k5_e6_r4_relu_24-40_s2@56"
    assert signature(StemSpec(3, 16, 3, 1, "relu"), 32) == "stem_k3_relu_3-16_s1@32"
    assert signature(HeadSpec(160, 1280, 10, 0.2, "relu"), 2) == "head_relu_160-1280-10@2"


def test_dropout_does_not_change_a_signature():
    head = HeadSpec(160, 1280, 10, 0.2, "relu")
    assert signature(head, 2) == signature(replace(head, dropout=0.0), 2)


def test_sizes_at_224_and_at_32_pixels():
    small = architecture("small")
    assert small.sizes() == (112, 112, 56, 56, 28, 14, 14, 14, 14, 14, 14, 7, 7, 7, 7)
    assert small.for_input(32).sizes() == (32, 32, 16, 16, 8, 4, 4, 4, 4, 4, 4, 2, 2, 2, 2)


@pytest.mark.parametrize("size, stride", [(32, 1), (64, 1), (65, 2), (224, 2)])
def test_the_stem_keeps_the_resolution_of_small_pictures(size, stride):
    assert stem_stride(size) == stride == architecture("base").for_input(size).stem.stride


def test_another_input_size_changes_nothing_but_size_and_stem_stride():
    large = architecture("large")
    assert large.for_input(32).for_input(224) == large


def test_with_classes_and_with_name_change_only_that():
    net = architecture("small")
    assert net.with_classes(7).head == replace(net.head, num_classes=7)
    assert net.with_name("other") == replace(net, name="other")


def test_provenance_plays_no_part_in_equality():
    net = architecture("small")
    assert replace(net, provenance={"seed": 1}) == net


@given(architectures())
def test_json_there_and_back_is_the_same_architecture(net):
    back = Architecture.from_json(json.loads(json.dumps(net.to_json())))
    assert back == net and back.provenance == net.provenance


def test_a_saved_file_loads_and_has_one_block_a_line(tmp_path):
    net = architecture("large", 0.5)
    net.save(tmp_path / "arch.json")
    assert Architecture.load(tmp_path / "arch.json") == net
    assert sum('"op"' in line for line in (tmp_path / "arch.json").read_text().splitlines()) == 18


def _with(path, value):
    """The JSON of a good architecture with one entry replaced, or deleted where value is ..."""
    data = copy.deepcopy(architecture("small", 0.5).to_json())
    at = data
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return data


@pytest.mark.parametrize(
    "path, value, words",
    [
        (("format",), "latency", "format: 'latency', must be 'architecture'"),
        (("version",), 2, "version: 2, must be 1"),
        (("version",), True, "version: True, must be 1"),
        (("name",), "", "name: '', must be"),
        (("name",), "../x", "name: '../x', must be"),
        (("input_size",), 10**9, "input_size: 1000000000, must be"),
        (("input_size",), "224", "input_size: '224', must be"),
        (("stem",), [], "stem: [], must be an object"),
        (("stem", "stride"), 3, "stem.stride: 3, must be 1 or 2"),
        (("stem", "stride"), 1.0, "stem.stride: 1.0, must be 1 or 2"),
        (("stem", "activation"), "swish", "stem.activation: 'swish', must be 'relu'"),
        (("blocks",), {}, "blocks: {}, must be a list of 1 to 512 items"),
        (("blocks",), [], "blocks: [], must be a list of 1 to 512 items"),
        (("blocks",), [1] * 600, "must be a list of 1 to 512 items"),
        (("blocks", 3), None, "blocks[3]: None, must be an object"),
        (("blocks", 3, "stride"), 3, "blocks[3].stride: 3, must be 1 or 2"),
        (("blocks", 3, "stride"), True, "blocks[3].stride: True, must be 1 or 2"),
        (("blocks", 3, "stride"), ..., "blocks[3].stride: missing"),
        (("blocks", 3, "groups"), 2, "blocks[3].groups: unknown"),
        (("blocks", 3, "op"), ["mb"], "blocks[3].op: ['mb'], must be 'mb', 'se', 'add' or 'frost'"),
        (("blocks", 3, "kernel_size"), 4, "blocks[3].kernel_size: 4, must be 1, 3, 5 or 7"),
        (("blocks", 3, "expand_ratio"), 0, "blocks[3].expand_ratio: 0, must be"),
        (("blocks", 3, "out_channels"), 10**9, "blocks[3].out_channels: 1000000000, must be"),
        (("blocks", 3, "out_channels"), 32, "blocks[4].in_channels: 24, must be 32, the blocks[3].out_channels"),
        (("blocks", 3, "squeeze_factor"), 2, "blocks[3].squeeze_factor: 2, must be 0"),
        (("blocks", 5, "squeeze_factor"), 0, "blocks[5].squeeze_factor: 0, must be 2 or more"),
        (("blocks", 5, "squeeze_factor"), 8, "blocks[5].op: 'frost', but squeeze_factor 8 with in_channels 40"),
        (("head", "in_channels"), 8, "head.in_channels: 8, must be 160"),
        (("head", "dropout"), float("nan"), "head.dropout: nan, must be"),
        (("head", "dropout"), 1, "head.dropout: 1, must be"),
        (("head", "num_classes"), 0, "head.num_classes: 0, must be"),
        (("provenance",), 3, "provenance: 3, must be an object"),
        (("extra",), 3, "extra: unknown"),
    ],
)
def test_broken_json_is_refused_with_the_field_in_the_message(path, value, words):
    with pytest.raises(UserError) as error:
        Architecture.from_json(_with(path, value))
    assert words in str(error.value)


@pytest.mark.parametrize("data", [None, [], "net", 3])
def test_json_that_is_no_object_is_refused(data):
    with pytest.raises(UserError, match="must be an object"):
        Architecture.from_json(data)


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "arch.json"
    path.write_text(json.dumps(_with(("blocks", 0, "stride"), 9)))
    with pytest.raises(UserError, match=r"arch\.json: blocks\[0\]\.stride: 9"):
        Architecture.load(path)


def test_an_impossible_input_size_is_refused():
    with pytest.raises(UserError, match="input_size: 0"):
        architecture("small").for_input(0)
