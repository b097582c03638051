"""quant.statistics: what is frozen leaves no trace, and statistics measured anew are those of the batches."""

import pytest
import torch
from torch import nn

import quant
from quant import QuantConfig
from quant.quantizers import Int8Activation
from quant.statistics import FrozenBatchNorm2d, frozen_weights


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


def images(count: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def tensors(model: nn.Module) -> list[torch.Tensor]:
    return [v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor) and "num_batches" not in k]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def switches(model: nn.Module) -> dict[str, tuple]:
    names = ("training", "momentum", "observer_enabled", "fake_quant_enabled")
    return {name: tuple(getattr(m, n, None) for n in names) for name, m in model.named_modules()}


def test_recalibrated_statistics_are_the_average_over_batches():
    model, batches = network().eval(), [images(seed=seed) for seed in range(3)]
    model(images(seed=9))
    quant.recalibrate(model, batches)
    values = [model[0](batch) for batch in batches]
    norm = model[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([v.mean((0, 2, 3)) for v in values]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([v.var((0, 2, 3)) for v in values]).mean(0))


def test_of_one_batch_they_are_its_own_to_the_bit():
    """As a momentum of 1 gives them."""
    model, other = network(), network()
    quant.recalibrate(model, [images()])
    other.eval()
    other[1].momentum = 1.0
    other[1].train()
    other(images())
    assert torch.equal(model[1].running_mean, other[1].running_mean)
    assert torch.equal(model[1].running_var, other[1].running_var)


def test_recalibration_moves_ranges_and_leaves_everything_else():
    graph = quant.attach(network().train(), images())
    graph(images())
    first = next(q for q in quant.quantizers_of(graph).values() if isinstance(q, Int8Activation))
    before, parameters, hi = switches(graph), [p.clone() for p in graph.parameters()], first.hi.item()
    quant.recalibrate(graph, [2 * images()])
    assert switches(graph) == before
    assert same(parameters, list(graph.parameters()))
    assert first.hi.item() == pytest.approx(hi + 0.3 * hi)


def test_frozen_batch_norms_keep_theirs():
    graph = quant.attach(network().train(), images(), QuantConfig(freeze_bn=True))
    norm = next(m for m in graph.modules() if isinstance(m, FrozenBatchNorm2d))
    norm.running_mean.fill_(3.0)
    quant.recalibrate(graph, [images()])
    assert norm.running_mean.eq(3.0).all() and not norm.training


@pytest.mark.parametrize("dropout", [False, True])
def test_frozen_statistics_leave_no_trace(dropout):
    graph = quant.attach(network().train(), images())
    graph(images())
    before, modes = tensors(graph), switches(graph)
    seen = []
    hook = graph.get_submodule("1").register_forward_hook(lambda _, args, y: seen.append(y))
    with quant.frozen_statistics(graph, dropout=dropout):
        drawn = torch.get_rng_state()
        graph(5 * images())
        assert torch.equal(drawn, torch.get_rng_state()) != dropout
    hook.remove()
    assert seen[0].mean((0, 2, 3)).abs().max() < 1e-5  # normalised by the batch
    assert same(tensors(graph), before) and switches(graph) == modes


def test_frozen_weights_get_no_gradient_and_come_back_as_they_were():
    model = network()
    model[0].bias.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    with frozen_weights(model):
        assert not any(p.requires_grad for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == before


def test_weights_are_decayed_and_vectors_are_not():
    weights, vectors = quant.weight_decay_groups(network(), 0.1)
    assert (weights["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert [p.dim() for p in weights["params"]] == [4, 4]
    assert {p.dim() for p in vectors["params"]} == {1} and len(vectors["params"]) == 4
