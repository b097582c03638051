"""zoo.build: comparison networks and FrostNets by name."""

import pytest
import torch

import zoo
from frostnet import FrostNet
from nas import UserError, count


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


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UserError, match="'resnet19'.*frostnet_large_1_0.*mobilenet_v2"):
        zoo.build("resnet19")
