"""Candidates that start from the largest one's weights, so that all of a slot speak the same language from their first
step.

Untrained candidates that take turns would keep each other from learning: every block would see another random code at
each step. The largest is trained first; of its hidden and squeeze channels each smaller candidate takes the most
important, those with the largest weights behind them (arXiv:1908.09791, section 3.3), and the centre of its kernel.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from nas.blocks import Block, ConvBNAct
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
    if taker.project.conv.in_channels > giver.project.conv.in_channels or (giver.expand is None) != (
        taker.expand is None
    ):
        return
    hidden = _important(giver.project.conv.weight, taker.project.conv.in_channels)
    given, taken = _joined(giver), _joined(taker)
    kept = _important(giver.expand.conv.weight[:, :given], taken) if 0 < taken <= given else torch.arange(0)
    if len(kept):
        _take(giver.squeeze, taker.squeeze, kept, None)
    if (
        giver.restore is not None
        and taker.restore is not None
        and taker.squeeze.conv.out_channels <= giver.squeeze.conv.out_channels
    ):
        added = _important(giver.restore.conv.weight, taker.restore.conv.in_channels)
        _take(giver.squeeze, taker.squeeze, added, None)
        _take(giver.restore, taker.restore, None, added)
    if giver.expand is not None and taken <= given:
        beside = torch.arange(given, giver.expand.conv.in_channels)
        _take(giver.expand, taker.expand, hidden, torch.cat([kept, beside.to(kept.device)]))
    _take(giver.depthwise, taker.depthwise, hidden, None)
    _take(giver.project, taker.project, None, hidden)
    if (
        giver.excite is not None
        and taker.excite is not None
        and taker.excite.fc1.out_channels <= giver.excite.fc1.out_channels
    ):
        _take_gate(giver.excite, taker.excite, hidden)


def _joined(block: Block) -> int:
    """Channels that a block puts beside its input before the expansion."""
    return block.squeeze.conv.out_channels if block.squeeze is not None and block.restore is None else 0


def _take_gate(giver: SqueezeExcitation, taker: SqueezeExcitation, hidden: Tensor) -> None:
    """The gates of the chosen hidden channels, through the most important of the channels in between."""
    kept = _important(giver.fc2.weight[hidden], taker.fc1.out_channels)
    taker.fc1.weight.copy_(giver.fc1.weight[kept][:, hidden])
    taker.fc1.bias.copy_(giver.fc1.bias[kept])
    taker.fc2.weight.copy_(giver.fc2.weight[hidden][:, kept])
    taker.fc2.bias.copy_(giver.fc2.bias[hidden])


def _important(weight: Tensor, count: int) -> Tensor:
    """Indices, in order, of the `count` input channels that `weight` (out, in, k, k) leans on most."""
    return weight.abs().sum((0, 2, 3)).topk(count).indices.sort().values


def _take(giver: ConvBNAct, taker: ConvBNAct, rows: Tensor | None, columns: Tensor | None) -> None:
    """Copy the chosen output (rows) and input channels (columns), None for all, the kernel's centre, and the batch
    norm.
    """
    weight = giver.conv.weight
    weight = weight if rows is None else weight[rows]
    weight = weight if columns is None else weight[:, columns]
    border = (weight.shape[-1] - taker.conv.weight.shape[-1]) // 2
    taker.conv.weight.copy_(weight if border == 0 else _resized(weight, border))
    for name, value in giver.bn.state_dict().items():
        target: Tensor = getattr(taker.bn, name)
        target.copy_(value if rows is None or value.dim() == 0 else value[rows])


def _resized(weight: Tensor, border: int) -> Tensor:
    """A kernel without `border` pixels at each side; with a negative border, zeros around it."""
    return nn.functional.pad(weight, (-border,) * 4)
