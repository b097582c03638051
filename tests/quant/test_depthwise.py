"""The weight gradient of 5x5 depthwise convolutions that is put together from 3x3 ones."""

import copy

import pytest
import torch
from torch import nn

import quant
from quant import depthwise

GEOMETRIES = [
    (8, 8, 1, 2),
    (4, 4, 1, 2),
    (2, 2, 1, 2),
    (1, 1, 1, 2),
    (7, 5, 2, 2),
    (4, 4, 2, 2),
    (8, 6, (1, 2), (0, 1)),
    (5, 5, 1, 0),
]


def layer(stride=1, padding=2, bias=True, channels=6) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, channels, 5, stride, padding, groups=channels, bias=bias)


def counted(monkeypatch) -> list:
    """Notes each gradient that was put together."""
    calls, real = [], depthwise._weight_gradient
    monkeypatch.setattr(depthwise, "_weight_gradient", lambda *a: calls.append(1) or real(*a))
    return calls


@pytest.mark.parametrize("height, width, stride, padding", GEOMETRIES)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_torch(height, width, stride, padding, bias, monkeypatch):
    calls, plain = counted(monkeypatch), layer(stride, padding, bias).double()
    quick = quant.speed_up(copy.deepcopy(plain))
    x = torch.randn(3, 6, height, width, dtype=torch.float64, requires_grad=True)
    results = []
    for module in (plain, quick):
        y = module(x.contiguous(memory_format=torch.channels_last))
        results.append(
            (y, *torch.autograd.grad((y * torch.arange(y.numel()).view_as(y)).sum(), [x, *module.parameters()]))
        )
    assert calls == [1] and torch.equal(results[0][0], results[1][0])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_gradients_agree_with_differences():
    quick = quant.speed_up(layer(channels=2).double())
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)

    def function(x, weight, bias):
        return depthwise.conv_forward(quick, x, weight, bias)

    assert torch.autograd.gradcheck(function, (x, quick.weight, quick.bias))


def test_other_convolutions_and_large_maps_are_left_to_torch(monkeypatch):
    calls = counted(monkeypatch)
    others = [
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 12, 5, padding=2, groups=6),
        nn.Conv2d(6, 6, 5, padding=2),
        nn.Conv2d(6, 6, 5, padding="same", groups=6),
        nn.Conv2d(6, 6, 5, padding=2, groups=6, padding_mode="reflect"),
        nn.Conv2d(6, 6, 5, padding=4, dilation=2, groups=6),
    ]
    for other in others:
        quant.speed_up(other)(torch.randn(2, 6, 8, 8)).sum().backward()
        assert "_conv_forward" not in vars(other)
    quant.speed_up(layer())(torch.randn(2, 6, 9, 8)).sum().backward()
    with torch.no_grad():
        quant.speed_up(layer())(torch.randn(2, 6, 8, 8))
    frozen = quant.speed_up(layer()).requires_grad_(False)
    frozen(torch.randn(2, 6, 8, 8, requires_grad=True)).sum().backward()
    assert calls == []


def test_attached_layers_do_it_by_themselves_and_a_quick_model_is_attached_as_any_other(monkeypatch):
    model = nn.Sequential(layer(), nn.BatchNorm2d(6), nn.ReLU())
    x = torch.randn(2, 6, 4, 4)
    expected = quant.attach(copy.deepcopy(model), x).train()
    calls, graph = counted(monkeypatch), quant.attach(quant.speed_up(model), x).train()
    y = graph(x)
    assert torch.equal(y, expected(x)) and "_conv_forward" not in vars(graph.get_submodule("0"))
    y.sum().backward()
    assert calls == [1] and list(graph.state_dict()) == list(expected.state_dict())


def test_a_quick_model_is_copied_and_traced():
    model = quant.speed_up(nn.Sequential(layer(), nn.ReLU()))
    other, x = copy.deepcopy(model), torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        other[0].weight.zero_()
        other[0].bias.zero_()
    assert other(x).abs().max() == 0 and model(x).abs().max() > 0  # the copy computes with its weights
    torch.testing.assert_close(quant.freeze_float(model.eval(), x)(x), model(x).detach())


def test_under_autocast_and_with_no_images_it_trains_as_torch_does():
    quick, x = quant.speed_up(layer()), torch.randn(2, 6, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        quick(x).float().sum().backward()
    assert quick.weight.grad.abs().sum() > 0
    quick.zero_grad()
    quick(x[:0]).sum().backward()
    assert quick.weight.grad.abs().sum() == 0
