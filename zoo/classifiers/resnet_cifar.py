"""ResNets for small images (arXiv:1512.03385, section 4.2): ResNet-20, -32, -44 and -56.

A 3x3 stem, three stages of 16, 32 and 64 channels with (depth - 2) / 6 blocks each, stages two and three start with
stride 2, then the mean over the image and one linear layer: depth - 1 convolutions on the main path. Where the shape
changes the shortcut is a 1x1 convolution with batch norm (the paper's option B), which is one more ordinary integer
layer; option A would pad channels with zeros.
"""

from torch import Tensor, nn

from common.errors import UserError
from nas.blocks import init_weights

CHANNELS = (16, 32, 64)


class Block(nn.Module):
    """relu(conv-bn-relu-conv-bn(x) + shortcut(x)).

    (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes).

    `depth` is 6 n + 2 with n >= 1; raises UserError. Weights as in arXiv:1502.01852.
    """

    def __init__(self, depth: int, num_classes: int = 10):
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise UserError(f"depth: {depth!r}, must be 6 n + 2: 20, 32, 44 or 56 in the paper")
        first, second, third = CHANNELS
        self.conv = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.stage1 = _stage(first, first, 1, depth // 6)
        self.stage2 = _stage(first, second, 2, depth // 6)
        self.stage3 = _stage(second, third, 2, depth // 6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(third, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(self.flatten(self.pool(x)))


def _stage(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [Block(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(in_channels, out_channels, stride), *rest)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
