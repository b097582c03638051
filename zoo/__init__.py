"""Networks by name: `zoo.build("mobilenet_v2", num_classes=10)`; the FrostNets too. All untrained plain float modules.

torchvision's own definitions, whose first convolution keeps the resolution up to 64 px, as in the FrostNets; the ResNets for small
pictures, which always do; and a pre-activation ResNet-18.
"""

from pathlib import Path

from torch import nn
from torchvision import models

import frostnet
from nas import UserError
from nas.arch import stem_stride
from zoo.preact import PreActResNet18
from zoo.resnet_cifar import CifarResNet

TORCHVISION = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0")
CIFAR_RESNETS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56)}
NAMES = (*TORCHVISION, *CIFAR_RESNETS, "preact_resnet18")


def build(name: str, num_classes: int = 1000, input_size: int = 224, runs: str | Path = "runs") -> nn.Module:
    """The float network of a name: one of NAMES, else whatever frostnet.find knows. Raises UserError."""
    if name in CIFAR_RESNETS:
        return CifarResNet(CIFAR_RESNETS[name], num_classes)
    if name == "preact_resnet18":
        return PreActResNet18(num_classes, input_size)
    if name in TORCHVISION:
        return _torchvision(name, num_classes, input_size)
    try:
        arch = frostnet.find(name, runs)
    except UserError as error:
        raise UserError(f"{error}; or a comparison network: {', '.join(NAMES)}") from error
    return frostnet.FrostNet(arch.for_input(input_size).with_classes(num_classes))


def _torchvision(name: str, num_classes: int, input_size: int) -> nn.Module:
    model = getattr(models, name)(num_classes=num_classes)
    if stem_stride(input_size) == 1:
        first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        first.stride = (1, 1)
    return model


__all__ = ["CIFAR_RESNETS", "NAMES", "TORCHVISION", "build"]
