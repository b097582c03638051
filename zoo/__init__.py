"""Comparison networks by name: `zoo.build("mobilenet_v2", num_classes=10)`; the FrostNets too.

torchvision's own definitions, untrained. Up to 64 px the first convolution keeps the resolution, as in the FrostNets.
"""

from pathlib import Path

from torch import nn
from torchvision import models

import frostnet
from nas import UserError
from nas.arch import stem_stride

TORCHVISION = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0")


def build(name: str, num_classes: int = 1000, input_size: int = 224, runs: str | Path = "runs") -> nn.Module:
    """The float network of a name: one of TORCHVISION, else whatever frostnet.find knows. Raises UserError."""
    if name not in TORCHVISION:
        try:
            arch = frostnet.find(name, runs)
        except UserError as error:
            raise UserError(f"{error}; or a comparison network: {', '.join(TORCHVISION)}") from error
        return frostnet.FrostNet(arch.for_input(input_size).with_classes(num_classes))
    model = getattr(models, name)(num_classes=num_classes)
    if stem_stride(input_size) == 1:
        first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        first.stride = (1, 1)
    return model


__all__ = ["TORCHVISION", "build"]
