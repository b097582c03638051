"""Parameters and multiply-accumulates (MACs): of an architecture, and of any module.

Nothing here repeats what a block looks like: the modules run once, and each convolution and matrix product is counted
by its shapes. The components of an architecture are built on the meta device, which holds shapes without values.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from nas.arch import Architecture, BlockSpec, HeadSpec, StemSpec
from nas.blocks import build

aten = torch.ops.aten
# Matrix products -> where their left factor stands among the arguments.
PRODUCTS = {aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1, aten.baddbmm.default: 1}


@dataclass(frozen=True)
class Row:
    """One component of a network: `name` as in the module ("stem", "blocks.3", "head"), `size` its input's pixels."""

    name: str
    spec: StemSpec | BlockSpec | HeadSpec
    size: int
    params: int
    macs: int


@dataclass(frozen=True)
class Cost:
    """Parameters and MACs of one image."""

    params: int
    macs: int
    rows: tuple[Row, ...]


def cost(arch: Architecture) -> Cost:
    """Parameters and MACs of `arch` at its input size."""
    rows = tuple(Row(name, spec, size, *_counted(spec, size)) for name, (spec, size) in arch.components().items())
    return Cost(sum(r.params for r in rows), sum(r.macs for r in rows), rows)


@lru_cache(maxsize=8192)  # some hundred components make up all networks of a space
def _counted(spec: StemSpec | BlockSpec | HeadSpec, size: int) -> tuple[int, int]:
    """(parameters, MACs) of one component whose input has `size` x `size` pixels."""
    with torch.device("meta"):
        return count(build(spec), torch.empty(1, spec.in_channels, size, size))


def count(model: nn.Module, example: Tensor) -> tuple[int, int]:
    """(parameters, MACs per image) of any module, counted while it runs in evaluation mode.

    Convolutions and matrix products count, biases and element-wise operations do not. Attention runs by its
    definition here, so that the count does not depend on which fused kernel torch would choose.

    Args:
        model: Its mode is as before afterwards.
        example: Images (N, C, H, W).
    """
    mode = model.training
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Macs() as macs:
        model.eval()(example)
    model.train(mode)
    return sum(p.numel() for p in model.parameters()), macs.total // len(example)


class _Macs(TorchDispatchMode):
    """Adds up the MACs of every operator that runs under it, from shapes alone."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:  # inference mode hands over composite operators (conv2d, linear): count what they are made of
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        if func is aten.convolution.default:
            x, weight, transposed = args[0], args[1], args[6]
            # A kernel per output value; in a transposed convolution, per input value.
            self.total += (x if transposed else result).numel() * prod(weight.shape[1:])
        elif func in PRODUCTS:
            self.total += result.numel() * args[PRODUCTS[func]].shape[-1]
        return result


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
