"""RetinaNet (arXiv:1708.02002) and Faster R-CNN (arXiv:1506.01497) on a light feature pyramid (arXiv:1612.03144).

The pyramid has CHANNELS channels at strides 8, 16, 32 and on. How it differs from the papers':
* 64 channels, not 256, and two convolutions before each of RetinaNet's outputs, not four.
* Batch norm behind every convolution but the last ones, so that detectors train from scratch, and nothing of it is left
  in integers. The levels share the convolutions before an output, each with separate batch norms: their values differ
  too much for one.
* As many levels as the image's size asks for (`strides`): at 300 px up to stride 64. None at stride 4, and so Faster
  R-CNN pools its regions from strides 8 to 32.
* Nearest upsampling, which is exact in integers, to the size of the map that it is added to.
* Faster R-CNN's regions go through two convolutions, the second strided, and one linear layer, not through two wide
  linear ones.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.blocks import ConvBNAct, init_weights
from zoo.backbones import Backbone

CHANNELS = 64
DEPTH = 2  # convolutions before each of RetinaNet's outputs
HIDDEN = 256  # width of the linear layer of Faster R-CNN's box head
POOLED = 7  # cells a side of a region's pooled features ..
REGION_LEVELS = 3  # .. which come from so many levels, the finest ones

# Anchors. A level's are a multiple of its stride wide; RetinaNet's next level begins an octave higher, where this
# level's three scales end.
RATIOS = (0.5, 1.0, 2.0)
RETINA_SIZES = tuple(3 * 2 ** (i / 3) for i in range(3))
REGION_SIZES = (4.0,)
BACKGROUND = 0.99  # how sure RetinaNet is at first that an anchor holds nothing


def strides(input_size: int) -> list[int]:
    """The levels' strides for an image of that size.

    They are 8, 16, 32, and on while RetinaNet's next anchors begin below the image's size.
    """
    found = [8, 16, 32]
    while 2 * RETINA_SIZES[0] * found[-1] < input_size:
        found.append(2 * found[-1])
    return found


class Pyramid(nn.Module):
    """A backbone's maps at strides 8, 16, 32 -> maps of CHANNELS channels there and at `extra` coarser strides."""

    def __init__(self, channels: list[int], extra: int):
        super().__init__()
        self.laterals = nn.ModuleList(ConvBNAct(c, CHANNELS, activation=None) for c in channels)
        self.outputs = nn.ModuleList(ConvBNAct(CHANNELS, CHANNELS, 3, activation=None) for _ in channels)
        self.extras = nn.ModuleList(ConvBNAct(CHANNELS, CHANNELS, 3, stride=2, activation=None) for _ in range(extra))
        init_weights(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        sums = [lateral(x) for lateral, x in zip(self.laterals, features)]
        for i in range(len(sums) - 2, -1, -1):
            sums[i] = sums[i] + F.interpolate(sums[i + 1], size=sums[i].shape[-2:], mode="nearest")
        maps = [output(x) for output, x in zip(self.outputs, sums)]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return maps


class Tower(nn.Module):
    """`depth` times 3x3 convolution, batch norm, ReLU: all levels share the convolutions, not the batch norms."""

    def __init__(self, depth: int, levels: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.ModuleList(nn.BatchNorm2d(CHANNELS) for _ in range(depth)) for _ in range(levels))
        self.act = nn.ReLU()
        init_weights(self)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [self.level(x, norms) for x, norms in zip(maps, self.norms)]

    def level(self, x: Tensor, norms: nn.ModuleList) -> Tensor:
        for conv, norm in zip(self.convs, norms):
            x = self.act(norm(conv(x)))
        return x


class RetinaNet(nn.Module):
    """(N, 3, H, W) -> class logits (N, 9 num_classes, h, w), then box regressions (N, 36, h, w), of each level."""

    def __init__(self, backbone: Backbone, num_classes: int, input_size: int):
        super().__init__()
        anchors, levels = len(RATIOS) * len(RETINA_SIZES), len(strides(input_size))
        self.backbone = backbone
        self.pyramid = Pyramid(backbone.feature_channels[1:], levels - 3)
        self.class_tower, self.box_tower = Tower(DEPTH, levels), Tower(DEPTH, levels)
        self.classes = _output(anchors * num_classes, 3)
        self.boxes = _output(anchors * 4, 3)
        nn.init.constant_(self.classes.bias, math.log((1 - BACKGROUND) / BACKGROUND))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.pyramid(self.backbone(x)[1:])
        classes = [self.classes(y) for y in self.class_tower(maps)]
        return *classes, *[self.boxes(y) for y in self.box_tower(maps)]


class Regions(nn.Module):
    """(N, 3, H, W) -> the three finest maps (N, CHANNELS, h, w), then the proposals' outputs.

    These are objectness (N, 3, h, w) of each level, then box regressions (N, 12, h, w) of each.
    """

    def __init__(self, backbone: Backbone, levels: int):
        super().__init__()
        anchors = len(RATIOS) * len(REGION_SIZES)
        self.backbone = backbone
        self.pyramid = Pyramid(backbone.feature_channels[1:], levels - 3)
        self.tower = Tower(1, levels)
        self.objectness, self.boxes = _output(anchors, 1), _output(anchors * 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.pyramid(self.backbone(x)[1:])
        found = self.tower(maps)
        return *maps[:REGION_LEVELS], *[self.objectness(y) for y in found], *[self.boxes(y) for y in found]


class BoxHead(nn.Module):
    """Regions' pooled features (R, CHANNELS, 7, 7) -> class logits and box regressions.

    The shapes are (R, num_classes + 1) and (R, 4 (num_classes + 1)); class 0 is the background.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        side = (POOLED + 1) // 2
        self.convs = nn.Sequential(ConvBNAct(CHANNELS, CHANNELS, 3), ConvBNAct(CHANNELS, CHANNELS, 3, stride=2))
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(CHANNELS * side**2, HIDDEN, bias=False)
        self.norm, self.act = nn.BatchNorm1d(HIDDEN), nn.ReLU()
        self.classes = nn.Linear(HIDDEN, num_classes + 1)
        self.boxes = nn.Linear(HIDDEN, 4 * (num_classes + 1))
        init_weights(self)
        for layer, std in ((self.classes, 0.01), (self.boxes, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.act(self.norm(self.hidden(self.flatten(self.convs(x)))))
        return self.classes(x), self.boxes(x)


class FasterRCNN(nn.Module):
    """Two traceable parts, `features` (Regions) and `box_head` (BoxHead).

    What is between them is no network (zoo/detectors/postprocess.py): proposals, suppression, pooling.
    """

    PARTS = ("features", "box_head")

    def __init__(self, backbone: Backbone, num_classes: int, input_size: int):
        super().__init__()
        self.features = Regions(backbone, len(strides(input_size)))
        self.box_head = BoxHead(num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What both parts make of images, each as one region: a run through all layers, no detection."""
        found = self.features(images)
        return *found, *self.box_head(_pooled(found))

    def part_examples(self, images: Tensor) -> dict[str, Tensor]:
        """An input for each part, such as images lead to; batch norm's statistics stay as they are."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with torch.no_grad():
                return {"features": images, "box_head": _pooled(self.features(images))}
        finally:
            for module, mode in modes.items():
                module.training = mode


def _pooled(found: tuple[Tensor, ...]) -> Tensor:
    """(N, CHANNELS, 7, 7): each image as one region."""
    return F.adaptive_avg_pool2d(found[0], POOLED)


def _output(channels: int, kernel_size: int) -> nn.Conv2d:
    conv = nn.Conv2d(CHANNELS, channels, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
    return conv
