"""ResNet-18 with pre-activation units (arXiv:1603.05027), laid out as in MXNet's model zoo.

Batch norm on the images, a strided 7x7 stem with max-pool, four stages of 64, 128, 256 and 512 channels with two
units each, then batch norm, ReLU, mean and one linear layer. The first unit of EVERY stage has a 1x1 shortcut, taken
from the unit's first ReLU: that tensor feeds two convolutions and so, quantized, needs one quantizer for both. 21
convolutions, 19 batch norms, 18 ReLUs, 8 additions.
"""

from torch import Tensor, nn

from nas.arch import stem_stride
from nas.blocks import init_weights

CHANNELS = (64, 128, 256, 512)


class Unit(nn.Module):
    """conv(relu(bn(x))) twice, plus the shortcut.

    (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, first: bool):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if first else None

    def forward(self, x: Tensor) -> Tensor:
        act = self.relu1(self.bn1(x))
        y = self.conv2(self.relu2(self.bn2(self.conv1(act))))
        return y + (x if self.shortcut is None else self.shortcut(act))


class PreActResNet18(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes). Up to 64 px the stem keeps the resolution."""

    def __init__(self, num_classes: int = 1000, input_size: int = 224):
        super().__init__()
        self.bn_data = nn.BatchNorm2d(3)
        self.conv0 = nn.Conv2d(3, CHANNELS[0], 7, stem_stride(input_size), padding=3, bias=False)
        self.bn0 = nn.BatchNorm2d(CHANNELS[0])
        self.relu0 = nn.ReLU(inplace=True)
        self.pool0 = nn.MaxPool2d(3, 2, padding=1)
        self.stage1 = _stage(CHANNELS[0], CHANNELS[0], 1)
        self.stage2 = _stage(CHANNELS[0], CHANNELS[1], 2)
        self.stage3 = _stage(CHANNELS[1], CHANNELS[2], 2)
        self.stage4 = _stage(CHANNELS[2], CHANNELS[3], 2)
        self.bn1 = nn.BatchNorm2d(CHANNELS[3])
        self.relu1 = nn.ReLU(inplace=True)
        self.pool1 = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(CHANNELS[3], num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool0(self.relu0(self.bn0(self.conv0(self.bn_data(x)))))
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.fc(self.flatten(self.pool1(self.relu1(self.bn1(x)))))


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        Unit(in_channels, out_channels, stride, first=True), Unit(out_channels, out_channels, 1, first=False)
    )
