"""Plain float modules of an architecture's parts. torch.fx traces all of them; nothing here knows quantization."""

import torch
from torch import Tensor, nn

from nas.arch import BlockSpec, HeadSpec, StemSpec
from nas.ops import OPS

# Not in place: graph passes may read a convolution's output after its activation has run.
ACTIVATIONS = {"relu": nn.ReLU, "hard_swish": nn.Hardswish}


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
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = ACTIVATIONS[activation]() if activation else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.act is None else self.act(x)


def _squeeze_excitation(hidden_channels: int, squeeze_channels: int) -> nn.Module:
    from torchvision.ops import SqueezeExcitation  # a slow import, not needed by most networks

    return SqueezeExcitation(hidden_channels, squeeze_channels, scale_activation=nn.Hardsigmoid)


# Ops that squeeze the hidden channels -> module of (hidden_channels, squeeze_channels): a gate on (N, hidden, H, W).
GATES = {"se": _squeeze_excitation}


class Block(nn.Module):
    """A bottleneck: [squeeze, join,] [expand,] depthwise, [excite,] project, [+ input]; see `nas.arch.BlockSpec`.

    The frost one is that of arXiv:2006.09679. A block with expand_ratio 1 has no expansion. With `strided=False` the
    depthwise convolution runs at stride 1 whatever the spec says, which is how a network is dilated; the residual stays
    as the spec has it.
    """

    def __init__(self, spec: BlockSpec, dilation: int = 1, strided: bool = True):
        super().__init__()
        self.spec, op = spec, OPS[spec.op]
        act, hidden, squeezed, channels = spec.activation, spec.hidden_channels, spec.squeeze_channels, spec.in_channels
        stride = spec.stride if strided else 1
        self.squeeze = ConvBNAct(channels, squeezed, activation=act) if op.squeezes == "input" else None
        self.restore = ConvBNAct(squeezed, channels, activation=None) if "restore" in op.reads else None
        wide = channels + squeezed if op.concatenates else channels
        self.expand = ConvBNAct(wide, hidden, activation=act) if spec.expand_ratio != 1 else None
        self.depthwise = ConvBNAct(hidden, hidden, spec.kernel_size, stride, hidden, dilation, act)
        self.excite = GATES[spec.op](hidden, squeezed) if op.squeezes == "hidden" else None
        self.project = ConvBNAct(hidden, spec.out_channels, activation=None)
        self.residual = spec.residual

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.squeeze is None else self.join(x)
        y = y if self.expand is None else self.expand(y)
        y = self.depthwise(y)
        y = self.project(y if self.excite is None else self.excite(y))
        return x + y if self.residual else y

    def join(self, x: Tensor) -> Tensor:
        """The input with what the squeeze makes of it: beside it (frost) or added to it (add)."""
        y = self.squeeze(x)
        return torch.cat([y, x], 1) if self.restore is None else x + self.restore(y)


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


def build(spec: StemSpec | BlockSpec | HeadSpec, dilation: int = 1, strided: bool = True) -> nn.Module:
    """The module of a component, with torch's initial weights.

    Args:
        spec: What to build.
        dilation: Of a block's depthwise convolution.
        strided: Whether a block has the stride of its spec, or none.
    """
    if isinstance(spec, BlockSpec):
        return Block(spec, dilation, strided)
    if isinstance(spec, HeadSpec):
        return Head(spec)
    return ConvBNAct(spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride, activation=spec.activation)


def init_weights(model: nn.Module) -> None:
    """The published initialisation, in place: convolutions Kaiming normal by fan-out, biases 0, batch norm 1 and 0.

    NOTE: the classifier starts at a deviation of 0.01 instead: by its fan-out, ten classes would begin at a loss of 12.
    What squeeze and add puts beside the input begins at 0, as residual branches do.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Head):
            nn.init.normal_(module.classifier.weight, std=0.01)
        elif isinstance(module, Block) and module.restore is not None:
            nn.init.zeros_(module.restore.bn.weight)
