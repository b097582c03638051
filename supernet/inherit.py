"""Small candidates that start with the weights of the largest candidate of their slot.

Untrained candidates that take turns keep each other from learning: every block sees another random input at each step.
So the largest candidate is trained first. Of its hidden and squeezed channels each smaller candidate takes the most
important, those with the largest absolute weights behind them (arXiv:1908.09791, section 3.3), and the centre of its
kernel. Which layers write and read the squeezed channels stands in `nas.ops`.
"""

import torch
from torch import Tensor, nn

from nas.blocks import Block
from nas.ops import OPS
from supernet.model import Supernet
from supernet.samplers import largest


@torch.no_grad()
def hand_down(supernet: Supernet) -> None:
    """Overwrite every candidate's weights and batch norms by its share of the largest one's in the same slot."""
    for stage, blocks in zip(supernet.space.stages, supernet.stages, strict=True):
        for slot, candidates in zip(stage.slots, blocks, strict=True):
            giver = candidates[largest(slot)]
            for candidate in candidates:
                if candidate is not giver:
                    inherit(giver, candidate)


@torch.no_grad()
def inherit(giver: Block, taker: Block) -> None:
    """Fill `taker` from `giver`, a block with the same input and output channels.

    What the giver does not have, or has less of, stays as it is: a gate, a squeeze; the whole block where the giver has
    fewer hidden channels, or where one of the two has no expansion, whose hidden channels are the input itself.
    """
    fewer = giver.spec.hidden_channels < taker.spec.hidden_channels
    if fewer or (giver.expand is None) != (taker.expand is None):
        return
    hidden = _most_important([giver.project.conv.weight], taker.spec.hidden_channels)
    squeezed = _inherit_squeeze(giver, taker, hidden)
    _inherit_expansion(giver, taker, hidden, squeezed)
    _take(giver.depthwise, taker.depthwise, hidden, None)
    _take(giver.project, taker.project, None, hidden)


def _inherit_squeeze(giver: Block, taker: Block, hidden: Tensor) -> Tensor | None:
    """Fill the taker's squeeze, except for an expansion that reads it.

    Returns the giver's squeezed channels that it took, None if it took none.
    """
    op, count = OPS[giver.spec.op], taker.spec.squeeze_channels
    if taker.spec.op != giver.spec.op or not 0 < count <= giver.spec.squeeze_channels:
        return None
    outer = hidden if op.squeezes == "hidden" else None  # the channels around the squeeze; None: all of them
    readers = [_weight(giver.get_submodule(name), outer)[:, : giver.spec.squeeze_channels] for name in op.reads]
    squeezed = _most_important(readers, count)
    for name in op.writes:
        _take(giver.get_submodule(name), taker.get_submodule(name), squeezed, outer)
    for name in op.reads:
        if name != "expand":
            _take(giver.get_submodule(name), taker.get_submodule(name), outer, squeezed)
    return squeezed


def _inherit_expansion(giver: Block, taker: Block, hidden: Tensor, squeezed: Tensor | None) -> None:
    """Fill the taker's expansion; its columns are the squeezed channels of a concatenation, if any, and the input."""
    wants = OPS[taker.spec.op].concatenates
    if giver.expand is None or (wants and squeezed is None):
        return
    width = giver.expand.conv.in_channels
    columns = torch.arange(width - giver.spec.in_channels, width, device=hidden.device)
    _take(giver.expand, taker.expand, hidden, torch.cat([squeezed, columns]) if wants else columns)


def _weight(layer: nn.Module, rows: Tensor | None) -> Tensor:
    """The kernel (out, in, k, k) of a convolution, with or without batch norm; of the chosen output channels."""
    weight = getattr(layer, "conv", layer).weight
    return weight if rows is None else weight[rows]


def _most_important(weights: list[Tensor], count: int) -> Tensor:
    """Indices, in order, of the `count` input channels with the largest absolute weights (out, in, k, k)."""
    return sum(weight.abs().sum((0, 2, 3)) for weight in weights).topk(count).indices.sort().values


def _take(giver: nn.Module, taker: nn.Module, rows: Tensor | None, columns: Tensor | None) -> None:
    """Copy the chosen output (rows) and input channels (columns), None for all.

    The taker gets the centre of the kernel, the bias and the batch norm.
    """
    for target, value in zip(taker.state_dict().values(), giver.state_dict().values(), strict=True):
        if rows is not None and value.dim() > 0:
            value = value[rows]
        if value.dim() == 4:
            value = value if columns is None else value[:, columns]
            border = (value.shape[-1] - target.shape[-1]) // 2  # below 0: zeros around the kernel
            value = nn.functional.pad(value, (-border,) * 4)
        target.copy_(value)
