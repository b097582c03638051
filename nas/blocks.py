"""Plain float modules of an architecture's parts. torch.fx traces all of them; nothing here knows quantization."""

import torch
from torch import Tensor, nn

from nas.arch import BlockSpec, HeadSpec, StemSpec

# Not in place: graph passes may read a convolution's output after its activation has run.
ACTIVATIONS = {"relu": nn.ReLU}


class ConvBNAct(nn.Module):
    """Convolution without bias ("same" padding), batch norm and, unless `activation` is None, an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        activation: str | None = "relu",
    ):
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = ACTIVATIONS[activation]() if activation else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.act is None else self.act(x)


class Block(nn.Module):
    """Frost bottleneck (arXiv:2006.09679): [squeeze, concat,] [expand,] depthwise, project, [+ input].

    An mb block has no squeeze, a block with expand_ratio 1 no expansion. With `strided=False` the depthwise
    convolution runs at stride 1 whatever the spec says, which is how a network is dilated; the residual stays as
    the spec has it.
    """

    def __init__(self, spec: BlockSpec, dilation: int = 1, strided: bool = True):
        super().__init__()
        act, hidden, squeezed = spec.activation, spec.hidden_channels, spec.squeeze_channels
        stride = spec.stride if strided else 1
        self.squeeze = ConvBNAct(spec.in_channels, squeezed, activation=act) if squeezed else None
        wide = spec.in_channels + squeezed
        self.expand = ConvBNAct(wide, hidden, activation=act) if spec.expand_ratio != 1 else None
        self.depthwise = ConvBNAct(hidden, hidden, spec.kernel_size, stride, hidden, dilation, act)
        self.project = ConvBNAct(hidden, spec.out_channels, activation=None)
        self.residual = spec.residual

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.squeeze is None else torch.cat([self.squeeze(x), x], 1)
        y = y if self.expand is None else self.expand(y)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class Head(nn.Module):
    """(N, C, H, W) -> (N, num_classes): 1x1 convolution, global average pooling, dropout, 1x1 classifier."""

    def __init__(self, spec: HeadSpec):
        super().__init__()
        self.conv = ConvBNAct(spec.in_channels, spec.channels, activation=spec.activation)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Conv2d(spec.channels, spec.num_classes, 1)
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        return self.flatten(self.classifier(self.dropout(self.pool(self.conv(x)))))


def build_stem(spec: StemSpec) -> ConvBNAct:
    return ConvBNAct(spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride, activation=spec.activation)


def build_block(spec: BlockSpec, dilation: int = 1, strided: bool = True) -> Block:
    return Block(spec, dilation, strided)


def build_head(spec: HeadSpec) -> Head:
    return Head(spec)


def init_weights(model: nn.Module) -> None:
    """The published initialisation, in place: convolutions Kaiming normal by fan-out, biases 0, batch norm 1 and 0.

    NOTE: the classifier, the one convolution with a bias, starts at a deviation of 0.01 instead: by its fan-out, ten
    classes would begin at a loss of 12.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
