"""supernet.model: the supernet against plain networks."""

import pytest
import torch

import quant
from frostnet import FrostNet
from quant.statistics import frozen_statistics
from supernet import Supernet, fair_choice
from supernet.samplers import Gates
from tests.supernet.tiny_search import CONFIG, SPACE, all_choices, images, search


@pytest.mark.parametrize("attached", [False, True])
def test_a_path_computes_what_the_network_of_its_architecture_computes(attached):
    torch.manual_seed(0)
    net, x = Supernet(SPACE).train(), images()
    if attached:
        net.attach(CONFIG, x)
    for choice in all_choices(SPACE)[:6]:
        for _ in range(2):
            net(x, choice)  # statistics and ranges of this path
    net.eval()
    for choice in all_choices(SPACE)[:6]:
        network = FrostNet(SPACE.architecture(choice))
        if attached:
            network = quant.attach(network, x, CONFIG)
        network.load_state_dict(net.path_state(choice))
        assert torch.equal(network.eval()(x), net(x, choice))


def test_gates_at_one_path_give_that_path():
    net, x, choice = Supernet(SPACE).eval(), images(), all_choices(SPACE)[0]
    one = torch.ones(())
    ops = [[Gates((op,), (one,)) for op in row] for row in choice.ops]
    depths = [Gates((d - stage.min_depth,), (one,)) for d, stage in zip(choice.depths, SPACE.stages)]
    assert torch.allclose(net.forward_gated(x, ops, depths), net(x, choice), atol=1e-6)


def test_weights_and_alphas_share_no_parameter():
    s = search()
    weights = {id(p) for p in s.supernet.parameters()}
    assert not weights & {id(p) for p in s.alphas.parameters()}
    assert {id(p) for g in s.optimizer.param_groups for p in g["params"]} == weights


def test_held_out_images_leave_no_statistics():
    net = Supernet(SPACE).train()
    net.attach(CONFIG, images())
    net.train()
    choice = fair_choice(SPACE, 0, 0)
    net(images(), choice)
    before = {k: v.clone() for k, v in net.named_buffers() if "num_batches" not in k}
    with frozen_statistics(net):
        net(5 * images(seed=1), choice)
    assert all(torch.equal(before[k], v) for k, v in net.named_buffers() if k in before)
    net(5 * images(seed=1), choice)
    assert any(not torch.equal(before[k], v) for k, v in net.named_buffers() if k in before)
