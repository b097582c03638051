"""supernet.inherit: smaller candidates start from the largest."""

import torch

from nas.arch import BlockSpec
from nas.blocks import build
from supernet import Supernet
from supernet.inherit import hand_down, inherit
from supernet.samplers import largest
from tests.supernet.tiny_search import SPACE


def spec(op="frost", k=5, e=6, r=2):
    return BlockSpec(op, k, 32, 32, 1, e, r if op == "frost" else 0, "relu")


def test_a_smaller_candidate_computes_what_the_largest_does_where_the_rest_of_it_is_silent():
    torch.manual_seed(0)
    giver, taker = build(spec()), build(spec(k=3, e=3, r=4))
    hidden, squeezed = taker.project.conv.in_channels, taker.squeeze.conv.out_channels
    with torch.no_grad():
        giver.project.conv.weight[:, torch.randperm(giver.project.conv.in_channels)[hidden:]] = 0.0
        giver.expand.conv.weight[:, torch.randperm(giver.squeeze.conv.out_channels)[squeezed:]] = 0.0
        giver.depthwise.conv.weight[:, :, [0, 4]] = 0.0
        giver.depthwise.conv.weight[:, :, :, [0, 4]] = 0.0
        for p in giver.parameters():
            if p.dim() == 1:
                p.uniform_(0.5, 1.5)
    giver.train()(torch.randn(8, 32, 8, 8))  # statistics unlike their initial values
    inherit(giver, taker)
    x = torch.randn(2, 32, 8, 8)
    assert torch.allclose(giver.eval()(x), taker.eval()(x), atol=1e-5)


def test_a_block_without_squeeze_takes_the_columns_of_the_input():
    giver, taker = build(spec()), build(spec("mb", 5, 6))
    inherit(giver, taker)
    kept = giver.project.conv.weight.abs().sum((0, 2, 3)).topk(taker.project.conv.in_channels).indices.sort().values
    assert torch.equal(taker.expand.conv.weight, giver.expand.conv.weight[kept][:, giver.squeeze.conv.out_channels :])


def test_handing_down_leaves_the_largest_as_it_is_and_changes_the_others():
    net = Supernet(SPACE)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    hand_down(net)
    largest_prefix = f"stages.1.0.{largest(SPACE.stages[1].slots[0])}."
    for k, v in net.state_dict().items():
        if k.startswith("stages.1.0.") and "conv.weight" in k:
            assert torch.equal(before[k], v) == k.startswith(largest_prefix)
