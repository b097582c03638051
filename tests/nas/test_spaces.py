"""The shipped spaces, one's own, and the bottleneck that one search hands to the next."""

import json
from dataclasses import replace
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from nas import SPACES, BlockSpec, Bottleneck, bottleneck_space, build, find_space, frostnet_space, init_weights
from nas.spaces import INSIDES
from supernet.alphas import Alphas
from supernet.inherit import inherit
from supernet.samplers import covering_length, fair_choice, largest, round_length
from supernet.score import blended_scores
from tests.spaces import tiny_space

SPACE = bottleneck_space(0.5, 32, 10)


def blocks(candidate):
    return SPACE.architecture(
        SPACE.with_candidate(SPACE.choice(tuple(len(s.slots) for s in SPACE.stages), _zeros()), candidate)
    ).blocks


def _zeros():
    return [[0] * len(stage.slots) for stage in SPACE.stages]


def test_the_bottleneck_space_holds_every_kind_once_and_the_same_everywhere():
    assert SPACE.tied and SPACE.tied_count == len(INSIDES) * 2 * 2
    wide = [slot for stage in SPACE.stages[1:] for slot in stage.slots if slot.candidates[0].in_channels >= 32]
    for slot in wide:
        kinds = [(s.op, s.squeeze_factor, s.kernel_size, s.activation) for s in slot.candidates]
        assert len(set(kinds)) == SPACE.tied_count and kinds == [
            (s.op, s.squeeze_factor, s.kernel_size, s.activation) for s in wide[0].candidates
        ]


def test_one_candidate_makes_a_network_of_one_block():
    kinds = [{(b.op, b.kernel_size, b.activation) for b in blocks(i)[1:]} for i in range(SPACE.tied_count)]
    assert all(len({k[1:] for k in kind}) == 1 for kind in kinds)
    assert all(len({k[0] for k in kind} - {"mb"}) <= 1 for kind in kinds), (
        "only where there is no room does a plain block stand in"
    )


def test_a_network_of_a_tied_space_is_found_in_it_and_a_mixed_one_is_not():
    choice = SPACE.random(torch.Generator().manual_seed(3))
    arch = SPACE.architecture(choice)
    assert SPACE.architecture(SPACE.choice_of(arch)).blocks == arch.blocks
    mixed = replace(arch.blocks[-1], kernel_size=8 - arch.blocks[-1].kernel_size)
    with pytest.raises(UserError, match="not in the space 'bottleneck'"):
        SPACE.choice_of(replace(arch, blocks=(*arch.blocks[:-1], mixed)))


def test_a_tied_space_needs_equally_many_candidates_everywhere():
    with pytest.raises(UserError, match="tied, but its slots have"):
        replace(frostnet_space(0.5, 32, 10), tied=True)


@pytest.mark.parametrize("name", SPACES)
def test_every_named_space_is_found_under_the_name_it_bears(name):
    assert find_space(name)(0.5, 32, 10).name == name


def test_a_bottleneck_goes_through_a_file_into_the_space_that_places_it(tmp_path):
    block = Bottleneck("se", "hard_swish")
    block.save(tmp_path / "b.json", {"seed": 3})
    loaded = Bottleneck.load(tmp_path / "b.json")
    assert loaded == block and json.loads((tmp_path / "b.json").read_text())["provenance"] == {"seed": 3}
    space = find_space(loaded.space)(0.5, 32, 10)
    specs = [spec for stage in space.stages[1:] for slot in stage.slots for spec in slot.candidates]
    assert {(s.op, s.activation) for s in specs} == {("se", "hard_swish")}
    assert {(s.kernel_size, s.expand_ratio, s.squeeze_factor) for s in specs} == {
        (k, e, r) for k in (3, 5) for e in (3, 6) for r in (2, 4)
    }
    assert Bottleneck().space == "frostnet"


@pytest.mark.parametrize("change", [{"format": "x"}, {"version": 2}, {"op": "conv"}, {"activation": None}])
def test_a_broken_bottleneck_file_is_refused_with_its_name_and_field(tmp_path, change):
    Bottleneck().save(tmp_path / "b.json", {})
    data = json.loads((tmp_path / "b.json").read_text()) | change
    (tmp_path / "b.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"b\.json: (format|version|op|activation)"):
        Bottleneck.load(tmp_path / "b.json")


# ---- the blocks --------------------------------------------------------------------------------------------


def built(op, factor=4, kernel=3, expand=3, activation="relu", seed=0):
    torch.manual_seed(seed)
    block = build(BlockSpec(op, kernel, 32, 32, 1, expand, factor if op != "mb" else 0, activation))
    for p in block.parameters():
        torch.nn.init.uniform_(p, -0.3, 0.3) if p.dim() > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
    return block.eval()


def test_squeeze_and_add_adds_a_bottleneck_of_the_input_to_it():
    block, x = built("add"), torch.randn(2, 32, 6, 6)
    y = x + block.restore.bn(block.restore.conv(block.squeeze.bn(block.squeeze.conv(x)).relu()))
    assert block.squeeze.conv.out_channels == 8 and block.expand.conv.in_channels == 32
    assert torch.equal(block(x), x + block.project(block.depthwise(block.expand(y))))


def test_squeeze_and_excite_scales_the_hidden_channels_by_a_gate():
    block, x = built("se"), torch.randn(2, 32, 6, 6)
    y = block.depthwise(block.expand(x))
    gate = F.hardsigmoid(block.excite.fc2(block.excite.fc1(y.mean((2, 3), keepdim=True)).relu()))
    assert block.excite.fc1.out_channels == 24 and block.depthwise.conv.out_channels == 96
    assert torch.allclose(block(x), x + block.project(y * gate), atol=1e-6)


def test_squeeze_and_add_begins_as_a_block_without_squeeze():
    torch.manual_seed(0)
    block, x = build(BlockSpec("add", 3, 32, 32, 1, 3, 4, "hard_swish")), torch.randn(2, 32, 6, 6)
    init_weights(block)
    assert torch.equal(block.join(x), x)


@pytest.mark.parametrize("op", ["se", "add"])
def test_a_smaller_block_inherits_the_important_part_of_gate_and_squeeze(op):
    """Where the rest of the giver is silent the taker computes the same."""
    giver, taker = built(op, factor=2, expand=6, kernel=5), built(op, factor=4, expand=3, kernel=3, seed=1)
    hidden, squeezed = (
        taker.project.conv.in_channels,
        taker.squeeze.conv.out_channels if op == "add" else taker.excite.fc1.out_channels,
    )
    with torch.no_grad():
        giver.project.conv.weight[:, torch.randperm(giver.project.conv.in_channels)[hidden:]] = 0.0
        giver.depthwise.conv.weight[:, :, [0, 4]] = 0.0
        giver.depthwise.conv.weight[:, :, :, [0, 4]] = 0.0
        if op == "add":
            giver.restore.conv.weight[:, torch.randperm(giver.restore.conv.in_channels)[squeezed:]] = 0.0
        else:
            silent = giver.project.conv.weight.abs().sum((0, 2, 3)) == 0
            giver.depthwise.bn.weight[silent] = 0.0
            giver.depthwise.bn.bias[silent] = 0.0
            giver.excite.fc2.weight[:, torch.randperm(giver.excite.fc2.in_channels)[squeezed:]] = 0.0
    inherit(giver, taker)
    x = torch.randn(2, 32, 8, 8)
    assert torch.allclose(giver(x), taker(x), atol=1e-5)


def test_every_candidate_of_a_slot_can_inherit_from_its_largest():
    torch.manual_seed(0)
    for space in (
        SPACE,
        find_space("frostnet_add_relu")(0.5, 32, 10),
        find_space("frostnet_se_hard_swish")(0.5, 32, 10),
    ):
        for stage in space.stages[1:]:
            slot = stage.slots[0]
            giver = build(slot.candidates[largest(slot)])
            for spec in slot.candidates:
                taker = build(spec)
                inherit(giver, taker)
                assert all(p.isfinite().all() for p in taker.parameters())
                assert torch.equal(taker.project.bn.bias, giver.project.bn.bias)


KINDS = [
    ("mb", 4, 1),
    ("mb", 4, 2),
    ("mb", 4, 6),
    ("se", 2, 1),
    ("se", 8, 6),
    ("frost", 2, 3),
    ("frost", 4, 6),
    ("add", 2, 3),
    ("add", 4, 6),
]


@pytest.mark.parametrize("giver, taker", list(permutations(KINDS, 2)))
def test_a_block_of_any_kind_takes_what_fits_from_another(giver, taker):
    giver, taker = built(giver[0], giver[1], 5, giver[2]), built(taker[0], taker[1], 3, taker[2], seed=1)
    before = {name: value.clone() for name, value in taker.state_dict().items()}
    inherit(giver, taker)
    fits = taker.project.conv.in_channels <= giver.project.conv.in_channels and (giver.expand is None) == (
        taker.expand is None
    )
    assert torch.equal(taker.project.bn.bias, (giver.project.bn.bias if fits else before["project.bn.bias"]))
    if not fits:
        assert all(torch.equal(value, before[name]) for name, value in taker.state_dict().items())


def test_more_squeeze_than_the_giver_has_stays_as_it_was():
    for op, part in (("frost", "squeeze.conv.weight"), ("add", "restore.conv.weight"), ("se", "excite.fc1.weight")):
        giver, taker = built(op, factor=4, expand=6), built(op, factor=2, expand=6 if op == "se" else 3, seed=1)
        before = taker.get_parameter(part).clone()
        inherit(giver, taker)
        assert torch.equal(taker.get_parameter(part), before) and torch.equal(
            taker.project.bn.bias, giver.project.bn.bias
        )


# ---- rounds, and nothing to choose -------------------------------------------------------------------------


def counted(*counts):
    """The tiny space with so many candidates in the slots of its two stages."""
    space = tiny_space()
    kinds = [(k, e) for k in (1, 3, 5, 7) for e in (2, 3, 4)]

    def slot(slot, n):
        return replace(
            slot,
            candidates=tuple(replace(slot.candidates[0], kernel_size=k, expand_ratio=e) for k, e in kinds[:n]),
        )

    slots = [slot(s, n) for s, n in zip([s for stage in space.stages[1:] for s in stage.slots], counts, strict=True)]
    stages = replace(space.stages[1], slots=tuple(slots[:2])), replace(space.stages[2], slots=tuple(slots[2:]))
    return replace(space, stages=(space.stages[0], *stages))


def test_the_first_steps_of_a_round_touch_every_candidate():
    space = counted(5, 7, 9, 11)
    assert round_length(space) == 3465 and covering_length(space) == 11
    choices = [fair_choice(space, 3, i) for i in range(covering_length(space))]
    for i, stage in enumerate(space.stages):
        for j, slot in enumerate(stage.slots):
            assert {c.ops[i][j] for c in choices if c.depths[i] > j} == set(range(len(slot.candidates)))


def test_where_there_is_nothing_to_choose_entropy_and_scores_are_zero():
    space = counted(1, 1, 1, 1)
    space = replace(space, stages=tuple(replace(stage, min_depth=len(stage.slots)) for stage in space.stages))
    alphas = Alphas(space)
    assert alphas.entropy().item() == 0.0
    assert blended_scores(alphas, alphas.log_scores()) == alphas.log_scores()
