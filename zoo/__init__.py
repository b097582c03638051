"""Networks by name: `zoo.build("mobilenet_v2", num_classes=10)`; the FrostNets too. All untrained plain float modules.

The definitions are torchvision's and timm's where they have them. The first convolution keeps the resolution of
pictures up to 64 px, as in the FrostNets. docs/zoo.md has each network's cost and how it differs from its namesakes
elsewhere.
"""

from difflib import get_close_matches
from pathlib import Path

from torch import nn

import frostnet
from common.errors import UserError
from nas.arch import RULES, find_file
from zoo.classifiers import from_timm, from_torchvision
from zoo.classifiers.preact import PreActResNet18
from zoo.classifiers.resnet_cifar import CifarResNet

CIFAR_RESNETS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56)}
NAMES = (*from_torchvision.NAMES, *from_timm.NETWORKS, *CIFAR_RESNETS, "preact_resnet18")


def knows(name: str) -> bool:
    """Whether `name` is a comparison network: one of NAMES, or a MobileNet at another width ("mobilenet_v2_x0_75")."""
    return name in NAMES or from_torchvision.split_width(name)[1] is not None


def build(name: str, num_classes: int = 1000, input_size: int = 224, runs: str | Path = "runs") -> nn.Module:
    """The float network of a name: one that `knows` knows, else whatever frostnet.find knows; (N, 3, H, W) -> logits
    (N, num_classes).

    input_size  pixels; any picture of about that size will do, the choice is between the first layers for small and for
                large ones
    Raises UserError.
    """
    for field, value in (("num_classes", num_classes), ("input_size", input_size)):
        if not RULES[field][0](value):
            raise UserError(f"{field}: {value!r}, must be {RULES[field][1]}")
    if name in CIFAR_RESNETS:
        return CifarResNet(CIFAR_RESNETS[name], num_classes)
    if name == "preact_resnet18":
        return PreActResNet18(num_classes, input_size)
    if from_torchvision.split_width(name)[0] in from_torchvision.NAMES:
        return from_torchvision.build(name, num_classes, input_size)
    if name in from_timm.NETWORKS:
        return from_timm.build(name, num_classes, input_size)
    return frostnet.FrostNet(_architecture(name, runs).for_input(input_size).with_classes(num_classes))


def _architecture(name: str, runs: str | Path) -> frostnet.Architecture:
    try:
        return frostnet.find(name, runs)
    except UserError as error:
        if find_file(name, runs) is not None:
            raise
        known = (*NAMES, *frostnet.PUBLISHED)
        near = get_close_matches(name, known, 5, 0.5) or known[:5]
        raise UserError(
            f"arch: {name!r} is neither a file, a run nor a known name; near it: {', '.join(near)}; all names: python "
            "-m zoo list"
        ) from error


__all__ = ["CIFAR_RESNETS", "NAMES", "build", "knows"]
