"""FrostNet (arXiv:2006.09679): the network of an `Architecture`, the published tables, and one factory.

    model = frostnet("small", width=0.5, num_classes=10, input_size=32)

* ReLU everywhere, linear bottlenecks, no bias in convolutions but the classifier's; a plain float module.
* Up to 64 px the stem has stride 1. *Nominal* strides still count it as 2, so that the names of feature maps and of
  `output_stride` do not depend on the input size.
* `output_stride` 8, 16 or 32 dilates: past it the network computes the same function as the strided one, on a finer
  grid. Without it every block has the stride of its spec.
* `zoo.released` reads the weights that the paper's authors published.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from common.cli import guard, option, parse
from common.errors import UserError
from nas.arch import SHIPPED, Architecture, BlockSpec, find_file, resolve
from nas.blocks import build, init_weights
from nas.cost import table
from nas.spaces import frostnet_head, frostnet_stem, scaled

# One row a block: kernel_size, out_channels at width 1, expand_ratio, squeeze_factor, stride.
TABLES = {
    "large": (
        (3, 16, 1, 1, 1), (3, 24, 6, 4, 2), (3, 24, 3, 4, 1),
        (5, 40, 6, 4, 2), (3, 40, 3, 4, 1),
        (5, 80, 6, 4, 2), (5, 80, 3, 4, 1), (5, 80, 3, 4, 1),
        (5, 96, 6, 4, 1), (5, 96, 3, 4, 1), (3, 96, 3, 4, 1), (3, 96, 3, 4, 1),
        (5, 192, 6, 2, 2), (5, 192, 6, 4, 1), (5, 192, 6, 4, 1), (5, 192, 3, 4, 1), (5, 192, 3, 4, 1),
        (5, 320, 6, 2, 1),
    ),
    "base": (
        (3, 16, 1, 1, 1), (5, 24, 6, 4, 2), (3, 24, 3, 4, 1),
        (5, 40, 3, 4, 2), (5, 40, 3, 4, 1),
        (5, 80, 3, 4, 2), (3, 80, 3, 4, 1),
        (5, 96, 3, 2, 1), (3, 96, 3, 4, 1), (5, 96, 3, 4, 1), (5, 96, 3, 4, 1),
        (5, 192, 6, 2, 2), (5, 192, 3, 2, 1), (5, 192, 3, 2, 1), (5, 192, 3, 2, 1),
        (5, 320, 6, 2, 1),
    ),
    "small": (
        (3, 16, 1, 1, 1), (5, 24, 3, 4, 2), (3, 24, 3, 4, 1),
        (5, 40, 3, 4, 2),
        (5, 80, 3, 4, 2), (5, 80, 3, 4, 1), (3, 80, 3, 4, 1),
        (5, 96, 3, 2, 1), (5, 96, 3, 4, 1), (5, 96, 3, 4, 1),
        (5, 192, 6, 4, 2), (5, 192, 6, 4, 1), (5, 192, 6, 4, 1),
        (5, 320, 6, 2, 1),
    ),
}  # fmt: skip
WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.25)
PUBLISHED = {f"frostnet_{size}_{width}".replace(".", "_"): (size, width) for size in TABLES for width in WIDTHS}


class FrostNet(nn.Module):
    """(N, in_channels, H, W) -> logits (N, num_classes).

    `feature_channels` and `feature_strides` describe what `forward_features` returns.
    """

    def __init__(self, arch: Architecture, output_stride: int | None = None):
        super().__init__()
        if output_stride not in (None, 8, 16, 32):
            raise UserError(f"output_stride: {output_stride}, must be 8, 16 or 32")
        self.arch = arch
        self.stem = build(arch.stem)
        self.blocks = nn.Sequential(*_blocks(arch.blocks, output_stride))
        self.head = build(arch.head)
        self.taps = _taps(arch.blocks)
        self.feature_channels = [arch.blocks[i].out_channels for i in self.taps]
        self.feature_strides = [min(stride, output_stride or stride) for stride in self.taps.values()]
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """The last block's output at each nominal stride 4, 8, 16, .. (none above `output_stride`)."""
        return tapped(self.stem(x), self.blocks, self.taps)


def tapped(x: Tensor, blocks: Iterable[nn.Module], taps: Container[int]) -> list[Tensor]:
    """The outputs of those of the blocks, run one after another, whose numbers are in `taps`."""
    features = []
    for i, block in enumerate(blocks):
        x = block(x)
        if i in taps:
            features.append(x)
    return features


def nominal_strides(specs: tuple[BlockSpec, ...]) -> list[int]:
    """Stride of each block's output relative to the image, the stem counted as 2."""
    strides = [2]
    for spec in specs:
        strides.append(strides[-1] * spec.stride)
    return strides[1:]


def _taps(specs: tuple[BlockSpec, ...]) -> dict[int, int]:
    """Index of the last block of each nominal stride from 4 on -> that stride."""
    last = {stride: i for i, stride in enumerate(nominal_strides(specs)) if stride >= 4}
    return {i: stride for stride, i in last.items()}


def _blocks(specs: tuple[BlockSpec, ...], output_stride: int | None) -> list[nn.Module]:
    """The blocks. Past `output_stride` a block does not stride; the blocks *after* it are dilated instead.

    With d the dilation of its input grid, y[i] = sum_k w[k] x[s i + k] becomes, on the finer grid,
    y'[d s i] = sum_k w[k] x'[d s i + d k]: the block itself keeps d, its successors get d s.
    """
    blocks, dilation = [], 1
    for spec, stride in zip(specs, nominal_strides(specs)):
        strided = output_stride is None or stride <= output_stride
        blocks.append(build(spec, dilation, strided))
        dilation *= 1 if strided else spec.stride
    return blocks


def architecture(
    size: str,
    width: float = 1.0,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    drop_rate: float = 0.2,
) -> Architecture:
    """The published FrostNet `size` ("large", "base", "small") at a width multiplier. Raises UserError."""
    if size not in TABLES:
        raise UserError(f"size: {size!r}, must be one of {', '.join(TABLES)}")
    if not 0 < width <= 4:
        raise UserError(f"width: {width!r}, must be above 0 and at most 4")
    stem = frostnet_stem(width, input_size, in_channels)
    blocks, before = [], stem.out_channels
    for kernel, channels, expand, squeeze, stride in TABLES[size]:
        out = scaled(channels, width)
        blocks.append(_block(kernel, before, out, stride, expand, squeeze))
        before = out
    name = f"frostnet_{size}_{float(width)}".replace(".", "_")
    return Architecture(name, input_size, stem, tuple(blocks), frostnet_head(before, num_classes, drop_rate))


def _block(kernel: int, in_channels: int, out_channels: int, stride: int, expand: int, squeeze: int) -> BlockSpec:
    if squeeze == 1:  # the tables' way of writing "no squeeze"
        return BlockSpec("mb", kernel, in_channels, out_channels, stride, expand, 0, "relu")
    return resolve(BlockSpec("frost", kernel, in_channels, out_channels, stride, expand, squeeze, "relu"))


def frostnet(
    size: str,
    width: float = 1.0,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    output_stride: int | None = None,
    drop_rate: float = 0.2,
) -> FrostNet:
    """A published FrostNet with fresh weights. Raises UserError."""
    return FrostNet(architecture(size, width, num_classes, input_size, in_channels, drop_rate), output_stride)


def find(name: str, runs: str | Path = "runs") -> Architecture:
    """The architecture that `name` means: a path, runs/NAME/arch.json, a shipped file, or a published name.

    A path may be a JSON file or a run's folder; a published name without a width means width 1.0. Raises UserError.
    """
    file = find_file(name, runs)
    if file is not None:
        return Architecture.load(file)
    for known in (name, f"{name}_1_0"):
        if known in PUBLISHED:
            return architecture(*PUBLISHED[known])
    raise UserError(f"arch: {name!r} is neither a file nor a known name; known here: {', '.join(_known(runs))}")


def _known(runs: str | Path) -> list[str]:
    made = sorted(p.parent.name for p in Path(runs).glob("*/arch.json"))
    return made + sorted(p.stem for p in SHIPPED.glob("*.json")) + list(PUBLISHED)


@dataclass(frozen=True)
class Config:
    """The arguments of the program."""

    arch: str = option("frostnet_small_1_0", f"for example {', '.join(PUBLISHED)}", positional=True)


@guard
def main(argv: Sequence[str] | None = None) -> None:
    about = "Show rows and cost of a network, by file or name. Of the authors' checkpoint: python -m zoo released FILE."
    config = parse(Config, argv, "frostnet.py", about)
    print(table(find(config.arch)))


if __name__ == "__main__":
    main()
