"""supernet: alphas, the supernet against plain networks, the search loop, inheritance."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import quant
from common.errors import UserError
from frostnet import FrostNet
from nas import find_space
from nas.arch import BlockSpec
from nas.blocks import build_block
from nas.derive import front
from supernet import (
    Alphas,
    Plan,
    Search,
    Supernet,
    blended_scores,
    fair_choice,
    favourite,
    perturbation_scores,
)
from supernet.finalists import path_latency
from supernet.inherit import hand_down, inherit
from supernet.samplers import Gates, largest
from tests import ROOT
from tests.spaces import latency_of, tiny_space

SPACE = tiny_space()
CONFIG = quant.QuantConfig(engine="fbgemm")


def images(n=8, seed=0):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def batch(step):
    """Pictures whose class is the sign pattern of two channels' means: learnable in a few steps."""
    x = images(32, step)
    y = torch.arange(32) % 4
    x[:, 0] += (y % 2 * 2 - 1).view(-1, 1, 1) * 1.0
    x[:, 1] += (y // 2 * 2 - 1).view(-1, 1, 1) * 1.0
    return x, y


def all_choices(space):
    generator = torch.Generator().manual_seed(0)
    return [space.random(generator) for _ in range(20)]


PLAN = Plan(2, 4, 4, 8)


def search(plan=PLAN, target=0.9, seed=0, **options):
    torch.manual_seed(seed)
    return Search(
        Supernet(SPACE),
        plan,
        latency_of(SPACE),
        target,
        F.cross_entropy,
        batch,
        lambda i: batch(1000 + i),
        CONFIG,
        seed=seed,
        **options,
    )


# ---- alphas ------------------------------------------------------------------------------------------------


def test_one_hot_alphas_expect_the_latency_of_their_path():
    latency = latency_of(SPACE)
    for choice in all_choices(SPACE):
        alphas = Alphas(SPACE)
        with torch.no_grad():
            for stage, depth, ops, depth_alpha, op_alphas in zip(
                SPACE.stages, choice.depths, choice.ops, alphas.depths, alphas.ops
            ):
                depth_alpha[depth - stage.min_depth] = 100.0
                for alpha, op in zip(op_alphas, ops):
                    alpha[op] = 100.0
        assert alphas.expected_latency(latency).item() == pytest.approx(path_latency(choice, latency), rel=1e-5)


def test_uniform_alphas_expect_the_mean_over_all_networks():
    latency, alphas, total, weight = latency_of(SPACE), Alphas(SPACE), 0.0, 0.0
    for d1, d2 in itertools.product((1, 2), repeat=2):
        for ops in itertools.product(range(3), repeat=4):
            rows = ((0,), ops[:2], ops[2:])
            total += path_latency(type(all_choices(SPACE)[0])((1, d1, d2), rows), latency)
            weight += 1
    assert alphas.expected_latency(latency).item() == pytest.approx(total / weight, rel=1e-5)


def test_the_latency_gradient_points_to_cheaper_ops_and_shallower_stages():
    alphas = Alphas(SPACE)
    alphas.expected_latency(latency_of(SPACE)).backward()
    for stage in list(alphas.ops)[1:]:
        for alpha in stage:
            assert (alpha.grad.diff() > 0).all(), "a step against the gradient favours the cheaper candidate"
    for depth in list(alphas.depths)[1:]:
        assert depth.grad[0] < 0 < depth.grad[1]


def test_entropy_is_one_for_uniform_and_zero_for_certain():
    alphas = Alphas(SPACE)
    assert alphas.entropy().item() == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        for alpha in alphas.parameters():
            alpha[0] = 1000.0
    assert alphas.entropy().item() == pytest.approx(0.0, abs=1e-5)


# ---- the supernet ------------------------------------------------------------------------------------------


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


def test_held_out_pictures_leave_no_statistics():
    net = Supernet(SPACE).train()
    net.attach(CONFIG, images())
    net.train()
    choice = fair_choice(SPACE, 0, 0)
    net(images(), choice)
    before = {k: v.clone() for k, v in net.named_buffers() if "num_batches" not in k}
    with quant.frozen_statistics(net):
        net(5 * images(seed=1), choice)
    assert all(torch.equal(before[k], v) for k, v in net.named_buffers() if k in before)
    net(5 * images(seed=1), choice)
    assert any(not torch.equal(before[k], v) for k, v in net.named_buffers() if k in before)


# ---- the loop ----------------------------------------------------------------------------------------------


def run(s, steps=None):
    rows = []
    while not s.finished and (steps is None or len(rows) < steps):
        rows.append(s.step())
    return rows


def test_phases_come_in_order_and_alphas_move_only_in_the_last():
    s = search()
    rows = run(s, 10)
    assert [r["phase"] for r in rows] == ["base"] * 2 + ["float"] * 4 + ["quant"] * 4
    assert all((a == 0).all() for a in s.alphas.parameters())
    rows = run(s)
    assert all(r["phase"] == "joint" for r in rows)
    assert any((a != 0).any() for a in s.alphas.parameters())
    assert [("expected_ms" in r) for r in rows] == [True, False] * 4


def test_training_lowers_the_loss():
    rows = run(search(Plan(15, 30, 10, 30)))
    assert sum(r["loss"] for r in rows[-9:]) < 0.7 * sum(r["loss"] for r in rows[:9])


@pytest.mark.parametrize("target", [0.8, 1.2])
def test_the_dual_variable_brings_the_expected_latency_to_the_target_from_either_side(target):
    s = search(Plan(0, 0, 3, 120, alpha_every=1, mu_rate=0.5, alpha_lr=0.1), target=target)
    start = s.alphas.expected_latency(s.latency).item()
    assert start == pytest.approx(1.0)
    rows = run(s)
    assert (rows[3]["mu"] > 0) == (start > target)
    assert sum(row["expected_ms"] for row in rows[-10:]) / 10 == pytest.approx(target, rel=0.05)


@pytest.mark.parametrize("stop", [1, 2, 5, 11, 13])
def test_an_interrupted_search_ends_as_an_uninterrupted_one_bit_for_bit(stop, tmp_path):
    whole = search()
    expected = run(whole)
    first = search()
    run(first, stop)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = search(seed=0)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert run(second) == expected[stop:]
    pairs = zip(whole.supernet.state_dict().values(), second.supernet.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs if isinstance(a, torch.Tensor))
    assert all(torch.equal(a, b) for a, b in zip(whole.alphas.parameters(), second.alphas.parameters()))


def test_equal_seeds_give_equal_searches_and_unlike_seeds_do_not():
    assert run(search()) == run(search())
    assert run(search(), 3) != run(search(seed=1), 3)


def test_a_loss_that_is_not_a_number_names_step_and_mend():
    s = search()
    s.loss = lambda out, y: F.cross_entropy(out, y) * float("nan")
    with pytest.raises(UserError, match="nan at step 0.*base phase.*--lr"):
        s.step()


# ---- inheritance -------------------------------------------------------------------------------------------


def spec(op="frost", k=5, e=6, r=2):
    return BlockSpec(op, k, 32, 32, 1, e, r if op == "frost" else 0, "relu")


def test_a_smaller_candidate_computes_what_the_largest_does_where_the_rest_of_it_is_silent():
    torch.manual_seed(0)
    giver, taker = build_block(spec()), build_block(spec(k=3, e=3, r=4))
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
    giver, taker = build_block(spec()), build_block(spec("mb", 5, 6))
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


# ---- a space of one's own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.35, 1.0])
def test_the_example_of_docs_search_is_a_space_that_can_be_searched(width):
    space = find_space("examples.kernels:kernels")(width, 32, 4)
    assert space.name == "examples.kernels:kernels"
    for stage in space.stages:
        assert stage.min_depth == 1 and all(c.stride == 1 for slot in stage.slots[1:] for c in slot.candidates)
        assert all(
            len({(c.in_channels, c.out_channels, c.stride) for c in slot.candidates}) == 1 for slot in stage.slots
        )
        assert all(c.out_channels % 8 == 0 for slot in stage.slots for c in slot.candidates)
    assert all({c.kernel_size for c in slot.candidates} == {3, 5, 7} for stage in space.stages for slot in stage.slots)


def test_a_search_of_the_example_runs_through_all_phases():
    space = find_space("examples.kernels:kernels")(0.35, 32, 4)

    def pictures(step):
        return (
            torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(step)),
            torch.arange(8) % 4,
        )

    s = Search(Supernet(space), Plan(1, 1, 1, 2), latency_of(space), 2.0, F.cross_entropy, pictures, pictures, CONFIG)
    run(s)
    point = front(
        space,
        *blended_scores(s.alphas, perturbation_scores(s.supernet, favourite(s.alphas), *pictures(0), F.cross_entropy)),
        s.latency,
    )[-1]
    assert space.choice_of(space.architecture(point.choice)) == point.choice
    assert "(../examples/kernels.py)" in (ROOT / "docs" / "search.md").read_text()
