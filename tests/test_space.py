"""The search space: what it holds, each block once, and choices as architectures."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostnet import PUBLISHED, architecture
from nas import SPACES, Choice, UserError, cost, frostnet_space
from nas.blocks import build_block

SPACE = frostnet_space()
WIDTHS = st.sampled_from((0.35, 0.5, 0.75, 1.0, 1.25))


def test_the_default_space_has_a_fixed_block_and_23_slots():
    assert [len(stage.slots) for stage in SPACE.stages] == [1, 4, 4, 4, 5, 5, 1]
    assert [stage.slots[-1].candidates[0].out_channels for stage in SPACE.stages] == [16, 24, 40, 80, 96, 192, 320]
    assert len(SPACE.stages[0].slots[0].candidates) == 1


@pytest.mark.parametrize("stage, slot, count", [(1, 0, 8), (1, 1, 8), (2, 1, 8), (6, 0, 8)])
def test_at_full_width_every_slot_has_eight_blocks(stage, slot, count):
    assert len(SPACE.stages[stage].slots[slot].candidates) == count


def test_where_both_squeezes_vanish_four_candidates_are_left():
    assert len(frostnet_space(0.5).stages[1].slots[0].candidates) == 4  # 8 input channels


@pytest.mark.parametrize("width", [0.1, 0.35, 0.5, 1.0, 1.25, 2.0])
def test_no_slot_holds_the_same_block_twice(width):
    for stage in frostnet_space(width).stages:
        for slot in stage.slots:
            built = {str(build_block(spec)) for spec in slot.candidates}
            assert len(built) == len(slot.candidates)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_space_holds_every_published_network(name):
    size, width = PUBLISHED[name]
    space, net = frostnet_space(width), architecture(size, width)
    assert space.architecture(space.choice_of(net), name) == net


@settings(max_examples=30, deadline=None)
@given(WIDTHS, st.sampled_from((32, 64, 224)), st.integers(0, 10**6))
def test_a_random_choice_is_a_network_that_the_space_recognises(width, input_size, seed):
    space = frostnet_space(width, input_size, 10)
    choice = space.random(torch.Generator().manual_seed(seed))
    net = space.architecture(choice, "net")
    assert len(net.blocks) == sum(choice.depths)
    assert space.architecture(space.choice_of(net), "net") == net


@settings(max_examples=20, deadline=None)
@given(WIDTHS, st.sampled_from((32, 100, 224)), st.integers(0, 10**6))
def test_every_part_of_a_random_network_is_in_the_spaces_list(width, input_size, seed):
    space = frostnet_space(width, input_size, 10)
    net = space.architecture(space.random(torch.Generator().manual_seed(seed)))
    parts = set(space.specs().values())
    assert all((row.spec, row.size) in parts for row in cost(net).rows)


def test_distinct_parts_have_distinct_signatures():
    parts = {(SPACE.stem, SPACE.input_size), (SPACE.head, SPACE.head_size)}
    for stage, sizes in zip(SPACE.stages, SPACE.sizes):
        parts |= {(spec, size) for slot, size in zip(stage.slots, sizes) for spec in slot.candidates}
    assert len(parts) == len(SPACE.specs())


def test_random_choices_reach_every_depth_and_every_candidate():
    generator = torch.Generator().manual_seed(0)
    choices = [SPACE.random(generator) for _ in range(300)]
    for i, stage in enumerate(SPACE.stages):
        assert {c.depths[i] for c in choices} == set(range(1, len(stage.slots) + 1))
        assert {c.ops[i][0] for c in choices} == set(range(len(stage.slots[0].candidates)))


def test_the_same_seed_draws_the_same_choice():
    draws = [SPACE.random(torch.Generator().manual_seed(5)) for _ in range(2)]
    assert draws[0] == draws[1]


def test_a_slot_that_does_not_run_leaves_no_trace():
    one = Choice((1,) * 7, tuple((0,) * len(stage.slots) for stage in SPACE.stages))
    assert len(SPACE.architecture(one).blocks) == 7
    assert SPACE.choice_of(SPACE.architecture(one)) == one


def test_a_network_from_elsewhere_is_refused():
    with pytest.raises(UserError, match="frostnet_small_0_5: its blocks are not in the space 'frostnet' at width 1.0"):
        SPACE.choice_of(architecture("small", 0.5))


def test_the_hash_is_stable_and_ignores_the_number_of_classes():
    assert frostnet_space(0.5, 32, 10).hash() == frostnet_space(0.5, 32, 100).hash()


@pytest.mark.parametrize(
    "other",
    [frostnet_space(0.5), frostnet_space(input_size=192), frostnet_space(in_channels=1), replace(SPACE, name="x")],
)
def test_the_hash_differs_when_anything_else_does(other):
    assert other.hash() != SPACE.hash()


@pytest.mark.parametrize("width", [0, -1, float("nan"), 100])
def test_an_impossible_width_is_refused(width):
    with pytest.raises(UserError, match="width"):
        frostnet_space(width)


def test_spaces_are_found_by_name():
    assert SPACES["frostnet"](0.5, 32).width == 0.5
