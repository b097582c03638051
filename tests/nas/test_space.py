"""The search space: what it holds, each block once, and choices as architectures."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from frostnet import PUBLISHED, architecture
from nas import SPACES, BlockSpec, Choice, HeadSpec, SearchSpace, Slot, Stage, StemSpec, cost, frostnet_space
from nas.blocks import build
from tests.strategies import examples

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
            built = {str(build(spec)) for spec in slot.candidates}
            assert len(built) == len(slot.candidates)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_space_holds_every_published_network(name):
    size, width = PUBLISHED[name]
    space, net = frostnet_space(width), architecture(size, width)
    assert space.architecture(space.choice_of(net), name) == net


@examples(30)
@given(WIDTHS, st.sampled_from((32, 64, 224)), st.integers(0, 10**6))
def test_a_random_choice_is_a_network_that_the_space_recognises(width, input_size, seed):
    space = frostnet_space(width, input_size, 10)
    choice = space.random(torch.Generator().manual_seed(seed))
    net = space.architecture(choice, "net")
    assert len(net.blocks) == sum(choice.depths)
    assert space.architecture(space.choice_of(net), "net") == net


@examples(20)
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


# ---- what a space must keep to -----------------------------------------------------------------------------


def block(before=8, out=8, stride=1, kernel=3, expand=2, op="mb", squeeze=0):
    return BlockSpec(op, kernel, before, out, stride, expand, squeeze, "relu")


def space(*stages, stem=8, head=16, **options):
    """A space of stages, each (min_depth, slots) with a slot as a list of blocks."""
    stages = tuple(Stage(tuple(Slot(tuple(slot)) for slot in slots), least) for least, slots in stages)
    return SearchSpace(
        "own", 1.0, 16, StemSpec(3, stem, 3, 1, "relu"), stages, HeadSpec(head, 32, 4, 0.2, "relu"), **options
    )


FIRST, LATER = [block(8, 16, 2), block(8, 16, 2, 5)], [block(16, 16), block(16, 16, 1, 5)]


def test_a_space_that_keeps_to_the_rules_is_accepted():
    assert space((1, [FIRST, LATER]), (2, [LATER, [block(16, 16)]])).sizes == ((16, 8), (8, 8))
    assert space((1, [[block(8, 16)]]), (1, [LATER, LATER]), tied=True).tied_count == 2


def test_the_first_slot_with_a_choice_of_a_tied_space_may_be_skipped():
    tied = space((1, [FIRST[:1], LATER]), (1, [LATER, LATER]), tied=True)
    choices = [tied.with_candidate(Choice((1, depth), ((0, 0), (0, 0))), 1) for depth in (1, 2)]
    assert [choice.ops for choice in choices] == [((0, 0), (1, 0)), ((0, 0), (1, 1))]
    assert [tied.tied_candidate(choice) for choice in choices] == [1, 1]


@pytest.mark.parametrize(
    "stages, words",
    [
        ([], "stages: none, must be at least one"),
        ([(1, [])], "stage 0: slots: none, must be at least one"),
        ([(1, [FIRST, []])], "stage 0, slot 1: candidates: none"),
        ([(0, [FIRST])], "stage 0: min_depth: 0, must be a whole number from 1 to 1"),
        ([(3, [FIRST, LATER])], "stage 0: min_depth: 3, must be a whole number from 1 to 2"),
        ([(1.0, [FIRST])], "stage 0: min_depth: 1.0"),
        ([(1, [[block(16, 16)]])], "stage 0, slot 0: in_channels: 16, must be 8, what comes out before it"),
        ([(1, [FIRST]), (1, [FIRST])], "stage 1, slot 0: in_channels: 8, must be 16"),
        (
            [(1, [[block(8, 16), block(16, 16)]])],
            "stage 0, slot 0, candidate 1: in_channels: 16, must be 8 as in candidate 0",
        ),
        ([(1, [[block(8, 16), block(8, 24)]])], "stage 0, slot 0, candidate 1: out_channels: 24, must be 16"),
        ([(1, [FIRST, [block(16, 16), block(16, 16, 2)]])], "stage 0, slot 1, candidate 1: stride: 2, must be 1"),
        ([(1, [FIRST, [block(16, 16, 2)]])], "stage 0, slot 1: stride: 2, must be 1: a stage may end"),
        ([(2, [[block(8, 8)], [block(8, 16)]])], "stage 0, slot 1: out_channels: 16, must be 8: a stage may end"),
        ([(1, [[block(8, 24)]])], "head.in_channels: 16, must be 24, what the last stage gives"),
        (
            [(1, [[block(8, 16, op="frost", squeeze=2)]])],
            "stage 0, slot 0, candidate 0: op: 'frost', but .* has no room for a squeeze",
        ),
        (
            [(1, [FIRST, [*LATER, block(16, 16)]])],
            "stage 0, slot 1, candidate 2: .* builds the same block as candidate 0",
        ),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_with_the_place(stages, words):
    with pytest.raises(UserError, match=f"space 'own': {words}"):
        space(*stages)


def test_two_factors_that_round_to_one_squeeze_are_one_block():
    twice = [block(32, 32, op="frost", squeeze=factor) for factor in (2, 3)]
    assert twice[0].squeeze_channels == twice[1].squeeze_channels
    with pytest.raises(UserError, match="stage 0, slot 0, candidate 1: .* the same block as candidate 0"):
        space((1, [twice]), stem=32, head=32)


@pytest.mark.parametrize(
    "stages, words",
    [
        ([(1, [FIRST, [*LATER, block(16, 16, 1, 7)]])], r"tied, but its slots have \[2, 3\] candidates"),
        ([(1, [FIRST[:1]])], "tied, but its slots have 1 candidates"),
        ([(1, [FIRST[:1], LATER])], "tied, but a network may run none of the slots with a choice"),
    ],
)
def test_a_tied_space_whose_choice_is_not_one_for_all_is_refused(stages, words):
    with pytest.raises(UserError, match=words):
        space(*stages, tied=True)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"stages": [Stage((Slot((block(8, 16),)),), 1)]}, "stages: .* must be a tuple of nas.Stage"),
        (
            {"stages": (Stage((Slot(block(8, 16)),), 1),)},
            "stage 0, slot 0: candidates: .* must be a tuple of nas.BlockSpec",
        ),
        ({"stages": (Stage(((block(8, 16),),), 1),)}, "stage 0: slots: .* must be a tuple of nas.Slot"),
        ({"stem": None}, "stem: a NoneType, must be a nas.StemSpec"),
        ({"head": block()}, "head: a BlockSpec, must be a nas.HeadSpec"),
        ({"input_size": 4}, "input_size: 4, must be a whole number from 8"),
        (
            {"stages": (Stage((Slot((block(),)),), 1),) * 600, "head": HeadSpec(8, 32, 4, 0.2, "relu")},
            "blocks: 600 of them",
        ),
    ],
)
def test_a_space_of_the_wrong_parts_is_refused_with_the_field(change, words):
    with pytest.raises(UserError, match=f"space 'own': {words}"):
        replace(space((1, [FIRST])), **change)
