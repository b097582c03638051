"""Networks by timm: GhostNet (arXiv:1911.11907) and EfficientNet-Lite.

EfficientNet-Lite is the EfficientNets (arXiv:1905.11946) without squeeze-and-excitation and with ReLU6. timm's fused
layers are taken apart, so that a trace shows torch's own.
"""

from torch import nn

from nas.arch import stem_stride
from zoo.classifiers.from_torchvision import keep_resolution

# name: (timm's name, dropout before the classifier)
NETWORKS = {
    "ghostnet_0_5": ("ghostnet_050", 0.2),
    "ghostnet_1_0": ("ghostnet_100", 0.2),
    "ghostnet_1_3": ("ghostnet_130", 0.2),
    "efficientnet_lite0": ("efficientnet_lite0", 0.2),
    "efficientnet_lite1": ("efficientnet_lite1", 0.2),
    "efficientnet_lite2": ("efficientnet_lite2", 0.3),
}


def build(name: str, num_classes: int, input_size: int) -> nn.Module:
    """timm's network, untrained, of torch's own layers. Up to 64 px its first convolution keeps the resolution."""
    import timm  # here, because it takes seconds

    timms_name, dropout = NETWORKS[name]
    model = timm.create_model(timms_name, pretrained=False, num_classes=num_classes, drop_rate=dropout)
    _take_apart(model)
    if stem_stride(input_size) == 1:
        keep_resolution(model)
    return model


def _take_apart(model: nn.Module) -> None:
    """Replace timm's subclasses of torch's layers, in place: the linear layer, batch norm with an activation."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and type(module) is not nn.BatchNorm2d:
            norm = nn.BatchNorm2d(module.num_features, module.eps, module.momentum)
            model.set_submodule(name, norm if isinstance(module.act, nn.Identity) else nn.Sequential(norm, module.act))
        elif isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            model.set_submodule(name, nn.Linear(module.in_features, module.out_features))
