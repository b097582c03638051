"""Classifiers by name; the FrostNets too.

The definitions are torchvision's and timm's where they have them. The first convolution keeps the resolution of
images up to 64 px, as in the FrostNets.
"""

from functools import partial
from pathlib import Path

from torch import nn

import frostnet
from common.errors import UserError
from nas import Architecture
from nas.arch import find_file
from zoo.catalog import check, near
from zoo.classifiers import from_timm, from_torchvision
from zoo.classifiers.preact import PreActResNet18
from zoo.classifiers.resnet_cifar import CifarResNet


def _cifar_resnet(depth: int, num_classes: int, input_size: int) -> nn.Module:
    return CifarResNet(depth, num_classes)  # whose first convolution keeps the resolution at any input size


# name: (num_classes, input_size) -> network
CLASSIFIERS = {
    **{name: partial(from_torchvision.build, name) for name in from_torchvision.NAMES},
    **{name: partial(from_timm.build, name) for name in from_timm.NETWORKS},
    **{f"resnet{depth}": partial(_cifar_resnet, depth) for depth in (20, 32, 44, 56)},
    "preact_resnet18": PreActResNet18,
}
NAMES = tuple(CLASSIFIERS)


def knows(name: str) -> bool:
    """Whether `name` is a comparison network: one of NAMES, or a MobileNet at another width ("mobilenet_v2_x0_75")."""
    return name in CLASSIFIERS or from_torchvision.split_width(name)[1] is not None


def build(name: str, num_classes: int = 1000, input_size: int = 224, runs: str | Path = "runs") -> nn.Module:
    """A float classifier with fresh weights: images (N, 3, H, W) -> logits (N, num_classes).

    Args:
        name: One that `knows` knows, else whatever `frostnet.find` knows.
        num_classes: Columns of the logits.
        input_size: Pixels a side. It chooses between the first layers for small and for large images; images of about
            that size will do.
        runs: The folder of the runs, whose names `frostnet.find` knows.

    Raises:
        UserError: The name is unknown, or a number out of range.
    """
    check(num_classes=num_classes, input_size=input_size)
    if name in CLASSIFIERS:
        return CLASSIFIERS[name](num_classes, input_size)
    if knows(name):
        return from_torchvision.build(name, num_classes, input_size)
    return frostnet.FrostNet(_find_frostnet(name, runs).for_input(input_size).with_classes(num_classes))


def _find_frostnet(name: str, runs: str | Path) -> Architecture:
    try:
        return frostnet.find(name, runs)
    except UserError as error:
        if find_file(name, runs) is not None:
            raise
        raise UserError(
            f"arch: {name!r} is neither a file, a run nor a known name; near it: "
            f"{near(name, (*NAMES, *frostnet.PUBLISHED))}; all names: python -m zoo list"
        ) from error
