"""zoo.build: comparison networks and FrostNets by name."""

import pytest
import torch
from torch import nn

import zoo
from frostnet import FrostNet
from nas import UserError, count
from zoo.resnet_cifar import CifarResNet


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_689_512), ("mobilenet_v2", 3_504_872), ("shufflenet_v2_x1_0", 2_278_604)])
def test_torchvisions_networks_have_their_published_parameters(name, parameters):
    assert sum(p.numel() for p in zoo.build(name).parameters()) == parameters


def test_a_published_frostnet_comes_at_the_size_and_classes_asked_for():
    model = zoo.build("frostnet_small_0_5", num_classes=7, input_size=32)
    assert isinstance(model, FrostNet)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", zoo.TORCHVISION)
def test_small_pictures_keep_their_resolution_in_the_first_convolution(name):
    strided, kept = (zoo.build(name, 10, size) for size in (224, 32))
    example = torch.zeros(1, 3, 32, 32)
    assert count(kept, example)[1] > 2 * count(strided, example)[1]


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_cifar_resnets_have_the_papers_parameters_and_two_shortcuts_more(depth, millions):
    """arXiv:1512.03385, table 6, counts shortcuts without parameters; ours are two 1x1 convolutions with batch norm."""
    model = zoo.build(f"resnet{depth}", 10, 32)
    shortcuts = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert round((sum(p.numel() for p in model.parameters()) - shortcuts) / 1e6, 2) == millions
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == depth - 1 + 2


def test_cifar_resnets_compute_what_the_paper_counts():
    """41 million multiply-accumulates in ResNet-20 at 32 px, features of 64 channels at 8 px; any size of picture will do."""
    model = zoo.build("resnet20", 10).eval()
    assert count(model, torch.zeros(1, 3, 32, 32))[1] == pytest.approx(41e6, rel=0.01)
    assert model.stage3(model.stage2(model.stage1(torch.zeros(1, 16, 32, 32)))).shape == (1, 64, 8, 8)
    assert model(torch.zeros(2, 3, 40, 48)).shape == (2, 10)


def test_cifar_resnets_start_as_he_et_al_say():
    """Deviation sqrt(2 / fan-out), arXiv:1502.01852."""
    torch.manual_seed(0)
    for module in zoo.build("resnet56", 10).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_a_depth_that_no_cifar_resnet_has_is_refused(depth):
    with pytest.raises(UserError, match=f"depth: {depth}, must be 6 n"):
        CifarResNet(depth)


def test_the_pre_activation_network_adds_what_its_first_relu_does_not_see():
    """With all convolutions of a later unit at zero the unit is the identity: its skip connection is untouched (arXiv:1603.05027)."""
    unit, x = zoo.build("preact_resnet18", 10, 32).stage1[1].eval(), torch.randn(1, 64, 4, 4)
    nn.init.zeros_(unit.conv2.weight)
    assert torch.equal(unit(x), x)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UserError, match="'resnet19'.*frostnet_large_1_0.*mobilenet_v2"):
        zoo.build("resnet19")
