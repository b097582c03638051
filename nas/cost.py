"""Parameters and multiply-accumulates: analytic for an architecture, counted for any module."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.arch import Architecture, BlockSpec, HeadSpec, StemSpec


@dataclass(frozen=True)
class Row:
    """One part of a network: `name` as in the module ("stem", "blocks.3", "head"), `size` its input's pixels."""

    name: str
    spec: StemSpec | BlockSpec | HeadSpec
    size: int
    params: int
    macs: int


@dataclass(frozen=True)
class Cost:
    """Trainable parameters and multiply-accumulates of one picture, convolutions only."""

    params: int
    macs: int
    rows: tuple[Row, ...]


def cost(arch: Architecture) -> Cost:
    """Parameters and MACs of `arch` at its input size, from the numbers alone."""
    sizes = arch.sizes()
    rows = [_stem_row(arch.stem, arch.input_size)]
    rows += [_block_row(f"blocks.{i}", b, s) for i, (b, s) in enumerate(zip(arch.blocks, sizes))]
    rows.append(_head_row(arch.head, sizes[-1]))
    return Cost(sum(r.params for r in rows), sum(r.macs for r in rows), tuple(rows))


def table(arch: Architecture) -> str:
    """Rows and totals of `arch` as text."""
    total = cost(arch)
    lines = [_COLUMNS.format("part", "block", "channels", "stride", "expand", "squeeze", "input", "params", "MACs")]
    lines += [_COLUMNS.format(*_words(row), f"{row.params:,}", f"{row.macs:,}") for row in total.rows]
    lines.append(_COLUMNS.format("total", "", "", "", "", "", "", f"{total.params:,}", f"{total.macs:,}"))
    return "\n".join([f"{arch.name}, {arch.input_size} px, {arch.head.num_classes} classes", *lines])


_COLUMNS = "{:<10} {:<9} {:>12} {:>6} {:>10} {:>9} {:>7} {:>12} {:>14}"


def _words(row: Row) -> tuple[str, ...]:
    """part, block, channels, stride, expand, squeeze, input of one row."""
    spec, input_size = row.spec, f"{row.size} px"
    if isinstance(spec, HeadSpec):
        return row.name, "", f"{spec.in_channels}-{spec.channels}-{spec.num_classes}", "", "", "", input_size
    channels, kernel = f"{spec.in_channels}-{spec.out_channels}", f"{spec.kernel_size}x{spec.kernel_size}"
    if isinstance(spec, StemSpec):
        return row.name, kernel, channels, str(spec.stride), "", "", input_size
    expand = f"{spec.expand_ratio} ({spec.hidden_channels})"
    squeeze = f"{spec.squeeze_factor} ({spec.squeeze_channels})" if spec.squeeze_factor else "-"
    return row.name, f"{spec.op} {kernel}", channels, str(spec.stride), expand, squeeze, input_size


def _stem_row(spec: StemSpec, size: int) -> Row:
    weights = spec.in_channels * spec.out_channels * spec.kernel_size**2
    return Row("stem", spec, size, weights + 2 * spec.out_channels, weights * _pixels(size, spec.stride))


def _block_row(name: str, spec: BlockSpec, size: int) -> Row:
    squeezed, hidden, channels = spec.squeeze_channels, spec.hidden_channels, spec.in_channels
    before = bn = excite = 0  # `before`: weights that run at the input's size
    if spec.op in ("frost", "add"):
        before, bn = channels * squeezed, squeezed
    if spec.op == "add":
        before, bn = before + squeezed * channels, bn + channels
    if spec.expand_ratio != 1:
        before, bn = before + hidden * hidden // spec.expand_ratio, bn + hidden
    if spec.op == "se":
        excite = 2 * hidden * squeezed  # weights that run on one pixel
    after = hidden * spec.kernel_size**2 + hidden * spec.out_channels
    biases = hidden + squeezed if excite else 0
    params = before + after + excite + biases + 2 * (bn + hidden + spec.out_channels)
    return Row(name, spec, size, params, before * _pixels(size, 1) + after * _pixels(size, spec.stride) + excite)


def _head_row(spec: HeadSpec, size: int) -> Row:
    conv, classifier = spec.in_channels * spec.channels, spec.channels * spec.num_classes
    params = conv + 2 * spec.channels + classifier + spec.num_classes
    return Row("head", spec, size, params, conv * _pixels(size, 1) + classifier)


def _pixels(size: int, stride: int) -> int:
    return (-(-size // stride)) ** 2


def count(model: nn.Module, example: torch.Tensor) -> tuple[int, int]:
    """(parameters, MACs per picture) of any module, counted while it runs on `example` (N, C, H, W)."""
    mode = model.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(example)
    model.train(mode)
    macs = counter.get_total_flops() // 2 // len(example)  # the counter's flop is half a multiply-accumulate
    return sum(p.numel() for p in model.parameters()), macs
