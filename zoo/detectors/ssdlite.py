"""SSDLite (arXiv:1512.02325, arXiv:1801.04381) as the authors of StatAssist (arXiv:2006.09679) measured it.

It has a backbone, four coarser maps, and two convolutions on each of the six. Sources are the backbone's last block at
stride 8 and its last map at output stride 16 (where MobileNet V2 has 32 and 1280 channels, at 300 px 38 x 38 and 19 x
19), then three pairs of a 1x1 and a strided 3x3 convolution (10, 5, 3 pixels a side), then the mean over the image.

How it differs from its namesakes:
* The heads' 3x3 convolutions are dense, without bias, and with batch norm behind them, as those that were measured;
  "Lite" heads are depthwise elsewhere. The batch norm folds into the convolution, whose bias it is. Its scales begin at
  UNDECIDED, not 1: at 1 the hard negatives of a fresh network are the outliers among thousands of random logits, and it
  takes long to unlearn them.
* ReLU instead of ReLU6 only where the backbone has it: ssdlite:mobilenet_v2_relu is what was measured,
  ssdlite:mobilenet_v2 costs the same.
* Stride 16 instead of 32 is reached by dilation that keeps the network's function (zoo/backbones.py): the block that
  would stride is not dilated, those after it are. What was measured dilates that block too, which costs the same.
* The mean is over the whole map, so that images of any size will do; at 300 px that is the 3x3 window that was
  measured.
* Weights are fresh: extras and heads as measured (Xavier), the backbone as it initialises itself. No ImageNet weights
  are needed.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from nas.blocks import ConvBNAct
from zoo.backbones import Backbone

OUTPUT_STRIDE = 16  # of the backbone
# Aspect ratios of the boxes that each cell of the six maps predicts, each also on its side, beside two squares
RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
EXTRA = 128  # channels of the extra maps ..
NARROW = 32  # .. and between their convolutions, which is also how many groups the second has
UNDECIDED = 0.1  # deviation of a fresh network's outputs


class SSDLite(nn.Module):
    """(N, 3, H, W) -> class logits of the six maps, then box regressions of the six.

    Their shapes: (N, boxes x (num_classes + 1), h, w) and (N, boxes x 4, h, w). Class 0 is the background.
    """

    def __init__(self, backbone: Backbone, num_classes: int):
        super().__init__()
        fine, coarse = backbone.feature_channels[1], backbone.feature_channels[-1]
        self.backbone = backbone
        self.extras = nn.ModuleList(_extra(channels) for channels in (coarse, EXTRA, EXTRA))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.heads = Heads((fine, coarse, EXTRA, EXTRA, EXTRA, EXTRA), num_classes)
        init_xavier(self.extras)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone(x)
        maps = [features[1], features[-1]]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return self.heads([*maps, self.pool(maps[-1])])


class Heads(nn.Module):
    """Six maps of the given channels -> class logits of the six, then box regressions of the six."""

    def __init__(self, channels: Sequence[int], num_classes: int):
        super().__init__()
        boxes = [2 + 2 * len(ratios) for ratios in RATIOS]
        self.classes = _heads(channels, [(num_classes + 1) * n for n in boxes])
        self.boxes = _heads(channels, [4 * n for n in boxes])
        init_xavier(self)
        for head in (*self.classes, *self.boxes):
            nn.init.constant_(head.bn.weight, UNDECIDED)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(head(x) for heads in (self.classes, self.boxes) for head, x in zip(heads, maps))


def init_xavier(model: nn.Module) -> None:
    """Convolutions Xavier uniform, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)


def _heads(channels: Sequence[int], outputs: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(
        ConvBNAct(before, after, 3, activation=None) for before, after in zip(channels, outputs, strict=True)
    )


def _extra(channels: int) -> nn.Sequential:
    return nn.Sequential(ConvBNAct(channels, NARROW), ConvBNAct(NARROW, EXTRA, 3, stride=2, groups=NARROW))
