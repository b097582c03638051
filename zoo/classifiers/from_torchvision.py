"""Networks by torchvision, the MobileNets also with ReLU alone.

AlexNet (arXiv:1404.5997), VGG (arXiv:1409.1556), ResNet (arXiv:1512.03385), ResNeXt (arXiv:1611.05431), ShuffleNet V2
(arXiv:1807.11164), MobileNet V2 (arXiv:1801.04381) and V3 (arXiv:1905.02244).
"""

import re

from torch import nn
from torchvision import models

from nas.arch import stem_stride

# MobileNets in which every ReLU6 and hard-swish is a ReLU, which costs nothing in integers. In the ReLU variants that
# StatAssist's authors measured (arXiv:2006.09679) the head of MobileNet V3 kept its hard-swish; here it has none.
RELU_ONLY = {f"{name}_relu": name for name in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")}
NAMES = (
    "alexnet",
    *(f"vgg{depth}{norm}" for norm in ("", "_bn") for depth in (11, 13, 16, 19)),
    *("resnet18", "resnet50", "resnext101_32x8d"),
    *(f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")),
    *RELU_ONLY.values(),
    *RELU_ONLY,
)


def split_width(name: str) -> tuple[str, float | None]:
    """A MobileNet's name and its width multiplier: "mobilenet_v2_x0_75" is 0.75 times as wide.

    The multiplier is None where the name says none.
    """
    found = re.fullmatch(r"(mobilenet_v\w+?)_x(\d+)_(\d+)", name)
    if not found or found[1] not in NAMES or not 0 < float(f"{found[2]}.{found[3]}") <= 4:
        return name, None
    return found[1], float(f"{found[2]}.{found[3]}")


def build(name: str, num_classes: int, input_size: int) -> nn.Module:
    """torchvision's network, untrained; a MobileNet also at another width, see `split_width`.

    Up to 64 px its first layers keep the resolution.
    """
    name, width = split_width(name)
    options = {} if width is None else {"width_mult": width}
    model = getattr(models, RELU_ONLY.get(name, name))(weights=None, num_classes=num_classes, **options)
    if name in RELU_ONLY:
        _only_relu(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # torch's; V3's 0.01 needs a few hundred steps before evaluation means anything
    if stem_stride(input_size) == 1:
        keep_resolution(model)
    return model


def keep_resolution(model: nn.Module) -> None:
    """First layers for small images, in place: the first convolution gets stride 1.

    That of AlexNet and of the ResNets, 11x11 and 7x7, becomes a 3x3 one, and the max-pool behind it goes.
    """
    if isinstance(model, models.AlexNet):
        model.features[0] = nn.Conv2d(3, 64, 3, padding=1)
        model.features[2] = nn.Identity()
    elif isinstance(model, models.ResNet):
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    else:
        first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        first.stride = (1, 1)


def _only_relu(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.ReLU6, nn.Hardswish)):
            model.set_submodule(name, nn.ReLU(inplace=True))
        elif isinstance(module, nn.Dropout):
            module.inplace = False  # a ReLU's gradient needs its output, which V3's dropout would overwrite
