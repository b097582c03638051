"""Segmenters on a backbone: LR-ASPP (arXiv:1905.02244, section 6.4) and R-ASPP (arXiv:1801.04381, section 6.3).

The backbones are the classifiers' own, dilated to stride 16, their last stage as wide as it is there; StatAssist's
authors (arXiv:2006.09679) halve it, and take MobileNetV2's maps from strides 4 and 8. The context is the mean of the
whole map: it fits images of any size and is not resized. It has no batch norm, which fails on one number a channel,
what a batch of one image has there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.blocks import ConvBNAct, init_weights
from zoo.backbones import Backbone


class LRASPP(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes, H / 8, W / 8).

    Coarse features, gated by their mean, and finer ones are classified and added. The gate is a hard sigmoid: no
    exponential for integers to imitate.
    """

    def __init__(self, backbone: Backbone, num_classes: int, channels: int = 128):
        super().__init__()
        _, low, _, high = backbone.feature_channels
        self.backbone = backbone
        self.project = ConvBNAct(high, channels)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(high, channels, 1, bias=False), nn.Hardsigmoid())
        self.low_classifier = nn.Conv2d(low, num_classes, 1)
        self.high_classifier = nn.Conv2d(channels, num_classes, 1)
        _init([self.project, self.gate], [self.low_classifier, self.high_classifier])

    def forward(self, images: Tensor) -> Tensor:
        _, low, _, high = self.backbone(images)
        y = self.project(high) * self.gate(high)
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=False)
        return self.low_classifier(low) + self.high_classifier(y)


class RASPP(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes, H / 16, W / 16).

    A 1x1 convolution of the coarse features beside their mean, classified. Of the five branches of ASPP these are the
    two that arXiv:1801.04381 keeps for mobile networks; the three atrous ones double its cost, for little.
    """

    def __init__(self, backbone: Backbone, num_classes: int, channels: int = 256):
        super().__init__()
        high = backbone.feature_channels[-1]
        self.backbone = backbone
        self.project = ConvBNAct(high, channels)
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(high, channels, 1), nn.ReLU())
        self.join = ConvBNAct(2 * channels, channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        _init([self.project, self.context, self.join], [self.classifier])

    def forward(self, images: Tensor) -> Tensor:
        high = self.backbone(images)[-1]
        # of one pixel: itself
        context = F.interpolate(self.context(high), size=high.shape[-2:], mode="bilinear", align_corners=False)
        return self.classifier(self.join(torch.cat([self.project(high), context], 1)))


def _init(parts: list[nn.Module], classifiers: list[nn.Conv2d]) -> None:
    """The published initialisation; classifiers begin near zero, as in `nas.blocks.init_weights`."""
    for part in parts:
        init_weights(part)
    for classifier in classifiers:
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)
