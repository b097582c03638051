"""supernet: alphas, samplers, the supernet against plain networks, the search loop."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from frostnet import FrostNet
from nas import UserError, find_space
from nas.arch import BlockSpec
from nas.blocks import build_block
from nas.derive import front
from nas.space import Choice, Slot, Stage
from supernet import (
    SAMPLERS,
    Alphas,
    Plan,
    Search,
    Supernet,
    blended_scores,
    fair_choice,
    favourite,
    inherited,
    perturbation_scores,
    recalibrate,
    sampled_choice,
    sampled_gates,
    top1,
    tune,
)
from supernet.finalists import FILLED, distance, finalists, fronts_for, path_latency, path_score, priced, random_feasible, unlike
from supernet.inherit import hand_down, inherit
from supernet.loop import frozen_statistics
from supernet.samplers import Gates, largest, round_length
from supernet.score import evaluations, first_choice_only
from tests.spaces import latency_of, tiny_space

ROOT = Path(__file__).parent.parent
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
        Supernet(SPACE), plan, latency_of(SPACE), target, F.cross_entropy, batch, lambda i: batch(1000 + i), CONFIG, seed=seed, **options
    )


# ---- alphas --------------------------------------------------------------------------------------------------


def test_one_hot_alphas_expect_the_latency_of_their_path():
    latency = latency_of(SPACE)
    for choice in all_choices(SPACE):
        alphas = Alphas(SPACE)
        with torch.no_grad():
            for stage, depth, ops, depth_alpha, op_alphas in zip(SPACE.stages, choice.depths, choice.ops, alphas.depths, alphas.ops):
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


# ---- samplers ------------------------------------------------------------------------------------------------


def test_a_round_runs_every_candidate_of_every_running_slot_equally_often():
    length = round_length(SPACE)
    for first in (0, length, 2 * length):
        round_ = [fair_choice(SPACE, 3, first + i) for i in range(length)]
        assert len({c.depths for c in round_}) == 1
        for s, stage in enumerate(SPACE.stages):
            for i in range(round_[0].depths[s]):
                counts = torch.bincount(torch.tensor([c.ops[s][i] for c in round_]), minlength=len(stage.slots[i].candidates))
                assert counts.unique().numel() == 1


def test_even_rounds_run_every_slot():
    assert fair_choice(SPACE, 0, 0).depths == (1, 2, 2)
    assert {fair_choice(SPACE, 0, 3 + 6 * i).depths for i in range(20)} == {(1, a, b) for a in (1, 2) for b in (1, 2)}


def test_paths_depend_on_seed_and_step_alone():
    assert [fair_choice(SPACE, 1, i) for i in range(9)] == [fair_choice(SPACE, 1, i) for i in range(9)]
    assert [fair_choice(SPACE, 1, i) for i in range(9)] != [fair_choice(SPACE, 2, i) for i in range(9)]


def test_sampled_paths_follow_the_probabilities():
    alphas = Alphas(SPACE)
    with torch.no_grad():
        alphas.ops[1][0].copy_(torch.tensor([0.7, 0.2, 0.1]).log())
    drawn = torch.tensor([sampled_choice(alphas, 1.0, 0.0, 0, i).ops[1][0] for i in range(2000)])
    assert torch.bincount(drawn, minlength=3).div(2000).tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.04)


def test_two_path_gates_have_the_value_of_one_path_and_gradients_for_both():
    alphas = Alphas(SPACE)
    ops, depths = sampled_gates("proxyless", alphas, 1.0, 0, 0)
    gates = ops[1][0]
    assert sorted(w.item() for w in gates.weights) == pytest.approx([0.0, 1.0])
    assert gates.indices[0] != gates.indices[1]
    values = torch.tensor([2.0, 5.0])
    sum(w * v for w, v in zip(gates.weights, values)).backward()
    i, j = gates.indices
    # d/d alpha_i of p_i v_i + p_j v_j with p = 1/2 each: p_i p_j (v_i - v_j)
    assert alphas.ops[1][0].grad[i].item() == pytest.approx(0.25 * (2.0 - 5.0))
    assert alphas.ops[1][0].grad[j].item() == pytest.approx(0.25 * (5.0 - 2.0))
    assert len(depths[0].indices) == 1, "a stage of one depth has nothing to choose"


def test_mixture_gates_are_the_probabilities():
    alphas = Alphas(SPACE)
    with torch.no_grad():
        alphas.ops[1][0].copy_(torch.tensor([0.7, 0.2, 0.1]).log())
    gates = sampled_gates("darts", alphas, 1.0, 0, 0)[0][1][0]
    assert gates.indices == (0, 1, 2)
    assert [w.item() for w in gates.weights] == pytest.approx([0.7, 0.2, 0.1])
    sum(w * v for w, v in zip(gates.weights, (2.0, 5.0, 1.0))).backward()
    mean = 0.7 * 2 + 0.2 * 5 + 0.1 * 1
    assert alphas.ops[1][0].grad.tolist() == pytest.approx([0.7 * (2 - mean), 0.2 * (5 - mean), 0.1 * (1 - mean)])


def test_straight_through_gates_run_one_path_drawn_by_the_probabilities():
    alphas = Alphas(SPACE)
    with torch.no_grad():
        alphas.ops[1][0].copy_(2 * torch.tensor([0.7, 0.2, 0.1]).log())
    drawn = [sampled_gates("gumbel", alphas, 2.0, 0, i)[0][1][0] for i in range(2000)]
    assert all(len(g.indices) == 1 and g.weights[0].item() == pytest.approx(1.0) for g in drawn)
    counts = torch.bincount(torch.tensor([g.indices[0] for g in drawn]), minlength=3)
    assert counts.div(2000).tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.04)
    drawn[0].weights[0].backward()
    gradient = alphas.ops[1][0].grad
    assert gradient[drawn[0].indices[0]] > 0 and gradient.sum().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_moves_alphas_to_the_better_and_to_the_faster_candidate(sampler):
    """Slot (1, 0): candidate 1 halves the loss; slot (2, 0): all are equal, candidate 0 is the fastest."""
    alphas, latency = Alphas(SPACE), latency_of(SPACE)
    optimizer = torch.optim.Adam(alphas.parameters(), lr=0.05, betas=(0.0, 0.999))
    values = torch.tensor([1.0, 0.5, 1.0])
    for step in range(150):
        gates = sampled_gates(sampler, alphas, 1.0, 0, step)[0][1][0]
        loss = sum(w * values[i] for i, w in zip(gates.indices, gates.weights)) + alphas.expected_latency(latency)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert alphas.ops[1][0].argmax() == 1
    assert alphas.ops[2][0].argmax() == 0


# ---- tied spaces ---------------------------------------------------------------------------------------------


TIED = replace(SPACE, name="tied", tied=True)


def one_everywhere(choice):
    """The set of candidates that a choice takes in the slots with a choice."""
    return {op for stage, d, row in zip(TIED.stages, choice.depths, choice.ops) for slot, op in zip(stage.slots[:d], row)
            if len(slot.candidates) > 1}  # fmt: skip


def test_all_slots_of_a_tied_space_take_the_same_candidate():
    alphas = Alphas(TIED)
    generator = torch.Generator().manual_seed(0)
    drawn = [TIED.random(generator) for _ in range(30)]
    drawn += [fair_choice(TIED, 0, i) for i in range(30)] + [sampled_choice(alphas, 1.0, 0.0, 0, i) for i in range(30)]
    assert all(len(one_everywhere(choice)) == 1 for choice in drawn)
    assert {next(iter(one_everywhere(choice))) for choice in drawn} == {0, 1, 2}
    for sampler in SAMPLERS:
        ops, _ = sampled_gates(sampler, alphas, 1.0, 0, 0)
        assert ops[1][0] is ops[1][1] is ops[2][0]


def test_a_tied_alpha_gathers_the_gradients_of_all_slots():
    alphas, free, latency = Alphas(TIED), Alphas(SPACE), latency_of(SPACE)
    assert sum(p.numel() for p in alphas.parameters()) == 3 + 1 + (1 + 2 + 2)
    alphas.expected_latency(latency).backward()
    free.expected_latency(latency).backward()
    total = sum(free.ops[i][j].grad for i in (1, 2) for j in (0, 1))
    assert torch.allclose(alphas.ops[1][0].grad, total)


def test_the_front_of_a_tied_space_is_the_best_of_all_its_networks():
    generator, latency = torch.Generator().manual_seed(0), latency_of(SPACE)
    scores = torch.randn(3, generator=generator).tolist()
    ops = first_choice_only(TIED, scores)
    depths = [torch.randn(len(stage.slots) - stage.min_depth + 1, generator=generator).tolist() for stage in TIED.stages]
    every = [TIED.with_candidate(Choice((1, a, b), ((0,), (0, 0), (0, 0))), i) for a in (1, 2) for b in (1, 2) for i in range(3)]
    reckoned = [(path_latency(c, latency), scores[next(iter(one_everywhere(c)))] + depths[0][0] + depths[1][c.depths[1] - 1]
                 + depths[2][c.depths[2] - 1]) for c in every]  # fmt: skip
    best = sorted({(t, s) for t, s in reckoned if all(not (t2 <= t and s2 >= s and (t2, s2) != (t, s)) for t2, s2 in reckoned)})
    points = front(TIED, ops, depths, latency)
    assert [p.latency_ms for p in points] == pytest.approx([t for t, _ in best])
    assert [p.score for p in points] == pytest.approx([s for _, s in best])
    assert all(path_score(p.choice, (ops, depths), TIED) == pytest.approx(p.score) for p in points)


def test_a_tied_search_runs_and_every_candidate_is_a_finalist():
    torch.manual_seed(0)
    s = Search(Supernet(TIED), Plan(2, 3, 3, 6), latency_of(SPACE), 1.0, F.cross_entropy, batch, lambda i: batch(10_000 + i), CONFIG)
    run(s)
    x, y = batch(0)
    counted = []
    losses = perturbation_scores(s.supernet, favourite(s.alphas), x, y, F.cross_entropy, lambda: counted.append(1))
    assert len(counted) == evaluations(TIED)
    scores = blended_scores(s.alphas, losses)
    networks = finalists(TIED, fronts_for(TIED, scores, s.latency, 1.0), scores, s.latency, 1.0, 2, 2, 0)
    assert [n.kind for n in networks] == ["derived"] * 3 + ["random"] * 2
    assert {next(iter(one_everywhere(n.choice))) for n in networks[:3]} == {0, 1, 2}
    assert all(n.latency_ms <= 1.0 for n in networks)


# ---- the supernet --------------------------------------------------------------------------------------------


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
    with frozen_statistics(net):
        net(5 * images(seed=1), choice)
    assert all(torch.equal(before[k], v) for k, v in net.named_buffers() if k in before)
    net(5 * images(seed=1), choice)
    assert any(not torch.equal(before[k], v) for k, v in net.named_buffers() if k in before)


# ---- the loop ------------------------------------------------------------------------------------------------


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


# ---- inheritance ---------------------------------------------------------------------------------------------


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


# ---- a space of one's own ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.35, 1.0])
def test_the_example_of_docs_search_is_a_space_that_can_be_searched(width):
    space = find_space("examples.kernels:kernels")(width, 32, 4)
    assert space.name == "examples.kernels:kernels"
    for stage in space.stages:
        assert stage.min_depth == 1 and all(c.stride == 1 for slot in stage.slots[1:] for c in slot.candidates)
        assert all(len({(c.in_channels, c.out_channels, c.stride) for c in slot.candidates}) == 1 for slot in stage.slots)
        assert all(c.out_channels % 8 == 0 for slot in stage.slots for c in slot.candidates)
    assert all({c.kernel_size for c in slot.candidates} == {3, 5, 7} for stage in space.stages for slot in stage.slots)


def test_a_search_of_the_example_runs_through_all_phases():
    space = find_space("examples.kernels:kernels")(0.35, 32, 4)
    pictures = lambda step: (torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(step)), torch.arange(8) % 4)  # noqa: E731
    s = Search(Supernet(space), Plan(1, 1, 1, 2), latency_of(space), 2.0, F.cross_entropy, pictures, pictures, CONFIG)
    run(s)
    point = front(space, *blended_scores(s.alphas, perturbation_scores(s.supernet, favourite(s.alphas), *pictures(0), F.cross_entropy)),
                  s.latency)[-1]  # fmt: skip
    assert space.choice_of(space.architecture(point.choice)) == point.choice
    assert "(../examples/kernels.py)" in (ROOT / "docs" / "search.md").read_text()


# ---- scores and finalists ------------------------------------------------------------------------------------


def test_perturbation_scores_equal_whole_evaluations_one_change_at_a_time():
    net, (x, y) = Supernet(SPACE).train(), batch(0)
    base = favourite(Alphas(SPACE))
    ops, depths = perturbation_scores(net, base, x, y, F.cross_entropy)

    def loss(choice):
        with torch.no_grad(), frozen_statistics(net):
            return F.cross_entropy(net(x, choice), y).item()

    reference = loss(base)
    for s in (1, 2):
        for slot in range(2):
            for op in range(3):
                rows = [list(row) for row in base.ops]
                rows[s][slot] = op
                changed = type(base)(base.depths, tuple(map(tuple, rows)))
                assert ops[s][slot][op] == pytest.approx(loss(changed) - reference, abs=1e-6)
        shallow = type(base)(tuple(1 if i == s else d for i, d in enumerate(base.depths)), base.ops)
        assert depths[s] == pytest.approx([loss(shallow) - reference, 0.0], abs=1e-6)


def test_scoring_twice_gives_equal_scores_in_spite_of_dropout():
    net, (x, y) = Supernet(SPACE).train(), batch(0)
    base = favourite(Alphas(SPACE))
    assert perturbation_scores(net, base, x, y, F.cross_entropy) == perturbation_scores(net, base, x, y, F.cross_entropy)
    assert net.head.dropout.training


def test_a_target_that_every_network_meets_steers_nothing():
    s = search(Plan(0, 0, 3, 10, alpha_every=1), target=100.0)
    assert all(row["mu"] == 0.0 for row in run(s) if "mu" in row)


def long_space():
    """Three stages of four slots."""
    space = tiny_space()
    follow = lambda slot: Slot(tuple(replace(c, in_channels=c.out_channels, stride=1) for c in slot.candidates))  # noqa: E731
    firsts = [stage.slots[0] for stage in space.stages[1:]]
    stages = (space.stages[0], *(Stage((slot, *[follow(slot)] * 3), 1) for slot in firsts))
    return replace(space, stages=stages)


def random_scores(space, seed=0):
    generator = torch.Generator().manual_seed(seed)
    row = lambda count: torch.randn(count, generator=generator).tolist()  # noqa: E731
    ops = [[row(len(slot.candidates)) for slot in stage.slots] for stage in space.stages]
    return ops, [row(len(stage.slots) - stage.min_depth + 1) for stage in space.stages]


def test_finalists_differ_in_several_slots():
    space = long_space()
    points = front(space, *random_scores(space), latency_of(space))
    kept = unlike(points[::-1], 3)
    assert kept[0] is points[-1] and len(kept) >= 2
    assert all(distance(a.choice, b.choice) >= 3 for a, b in itertools.combinations(kept, 2))


@pytest.mark.parametrize("seed", range(4))
def test_what_a_target_leaves_is_used_even_if_scores_prefer_small_networks(seed):
    space = long_space()
    latency, (ops, depths) = latency_of(space), random_scores(space, seed)
    scores = priced((ops, depths), latency, -20.0)  # a price that the alphas were trained under
    fronts = fronts_for(space, scores, latency, 1.4)
    best = [max((p for p in points if p.latency_ms <= 1.4), key=lambda p: p.score) for points in fronts]
    assert best[0].latency_ms < FILLED * 1.4 <= best[-1].latency_ms <= 1.4
    assert [p.latency_ms for p in best] == sorted(p.latency_ms for p in best)
    assert len(fronts_for(space, scores, latency, best[0].latency_ms)) == 1, "where the scores use the target they are left alone"


def test_a_price_changes_the_score_of_a_network_by_its_latency():
    space = long_space()
    latency, scores = latency_of(space), random_scores(space)
    choice = space.random(torch.Generator().manual_seed(1))
    blocks = path_latency(choice, latency) - latency.stem_ms - latency.head_ms
    assert path_score(choice, priced(scores, latency, 3.0), space) == pytest.approx(path_score(choice, scores, space) + 3.0 * blocks)


# ---- networks by themselves ----------------------------------------------------------------------------------


def tuned(steps=40, lr=0.05, seed=0, before=None):
    torch.manual_seed(0)
    graph = quant.attach(FrostNet(SPACE.architecture(all_choices(SPACE)[0])), images(), CONFIG)
    graph.train()(images())
    if before is not None:
        torch.manual_seed(before)
    fine = tune(graph, batch, steps, replace(PLAN, lr=lr), F.cross_entropy, seed)
    return graph, fine


def test_tuning_learns():
    graph, fine = tuned(steps=100, lr=0.1)
    assert fine and top1(graph, [batch(1000)]) > 0.6
    untouched, _ = tuned(steps=0)
    assert top1(untouched, [batch(1000)]) < 0.4


def test_tuning_and_recalibration_do_not_depend_on_what_was_drawn_before():
    ends = []
    for drawn in (1, 2):
        graph, _ = tuned(steps=3, before=drawn)
        torch.manual_seed(drawn + 10)
        recalibrate(graph, [images(8, 1), images(8, 2)])
        ends.append(graph.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values()) if isinstance(a, torch.Tensor))


def test_recalibration_leaves_momenta_and_modes_as_they_were():
    graph, _ = tuned(steps=1)
    before = {name: (m.training, getattr(m, "momentum", None)) for name, m in graph.named_modules()}
    recalibrate(graph, [images(8, 1)])
    assert before == {name: (m.training, getattr(m, "momentum", None)) for name, m in graph.named_modules()}


def test_a_tuning_that_diverges_says_so():
    try:
        assert not tuned(steps=30, lr=1e30)[1]
    except quant.QuantError as error:
        assert "diverged" in str(error)


def test_distance_counts_slots_that_only_one_choice_runs():
    a = Choice((1, 2, 1), ((0,), (0, 1), (2, 0)))
    assert distance(a, a) == 0
    assert distance(a, Choice((1, 2, 2), ((0,), (0, 2), (2, 0)))) == 2


def test_blended_scores_prefer_high_probability_and_low_loss():
    alphas = Alphas(SPACE)
    with torch.no_grad():
        alphas.ops[1][0].copy_(torch.tensor([2.0, 0.0, 0.0]))
    losses = (
        [[[0.0] * len(s.candidates) for s in st.slots] for st in SPACE.stages],
        [[0.0] * (len(st.slots) - st.min_depth + 1) for st in SPACE.stages],
    )
    losses[0][2][1] = [0.5, 0.1, 0.3]
    ops, _ = blended_scores(alphas, losses)
    assert max(range(3), key=ops[1][0].__getitem__) == 0
    assert max(range(3), key=ops[2][1].__getitem__) == 1


def test_finalists_meet_the_target_by_the_table():
    latency = latency_of(SPACE)
    scores = (
        [[[0.1 * i for i in range(len(s.candidates))] for s in st.slots] for st in SPACE.stages],
        [[0.0, 0.1][: len(st.slots)] for st in SPACE.stages],
    )
    found = finalists(SPACE, fronts_for(SPACE, scores, latency, 1.0), scores, latency, 1.0, 3, 4, seed=0)
    assert [f.kind for f in found if f.kind == "random"] == ["random"] * 4
    assert 1 <= sum(f.kind == "derived" for f in found) <= 3
    assert all(f.latency_ms <= 1.0 for f in found)
    for f in found:
        assert f.latency_ms == pytest.approx(path_latency(f.choice, latency))
        assert f.score == pytest.approx(path_score(f.choice, scores, SPACE))
    assert max(found, key=lambda f: f.score).kind == "derived"


def test_random_controls_are_the_slowest_that_meet_the_target():
    latency = latency_of(SPACE)
    controls = random_feasible(SPACE, latency, 0.95, 5, seed=0)
    assert all(0.85 <= path_latency(c, latency) <= 0.95 for c in controls)
    assert len(set(controls)) == 5


def test_inherited_networks_share_nothing_with_the_supernet():
    s = search()
    run(s)
    before = {k: v.clone() for k, v in s.supernet.state_dict().items() if isinstance(v, torch.Tensor)}
    choice = fair_choice(SPACE, 0, 0)
    graph = inherited(s.supernet, choice, CONFIG, [batch(i)[0] for i in range(4)])
    assert not graph.training
    assert 0.0 <= top1(graph, [batch(2000)]) <= 1.0
    with torch.no_grad():
        for p in graph.parameters():
            p.zero_()
    assert all(torch.equal(before[k], v) for k, v in s.supernet.state_dict().items() if k in before)


def test_inherited_statistics_are_the_average_over_the_batches():
    s = search()
    run(s)
    batches = [batch(i)[0] for i in range(4)]
    graph = inherited(s.supernet, fair_choice(SPACE, 0, 0), CONFIG, batches)
    seen = []
    stem = graph.get_submodule("stem.conv")
    quantizer = graph.get_submodule("x_quant")
    with torch.no_grad():
        for x in batches:
            seen.append(nn.functional.conv2d(quantizer(x), stem.weight_quant(stem.weight), None, stem.stride, stem.padding).mean((0, 2, 3)))
    assert torch.allclose(graph.get_submodule("stem.bn").running_mean, torch.stack(seen).mean(0), atol=0.02)
