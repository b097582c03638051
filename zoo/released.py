"""The weights that FrostNet's authors published (arXiv:2006.09679), loaded into this project's networks.

    model = load_released("model_best.pth.tar")   # which of the published networks it is follows from the shapes

`python -m zoo released FILE` shows which network a file holds.
"""

import argparse
import io
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError
from common.files import read_bytes
from frostnet import PUBLISHED, FrostNet, architecture, nominal_strides
from nas import Architecture
from nas.cost import cost

# The convolutions of a bottleneck as they are called here and in the released checkpoints.
CONVOLUTIONS = {"squeeze": "squeeze_conv", "expand": "conv1", "depthwise": "conv2", "project": "reduce_conv"}


def load_released(path: str | Path, name: str | None = None) -> FrostNet:
    """The FrostNet in a float checkpoint of the paper's authors, for 224 px, in evaluation mode.

    Nothing in the file is executed.

    Args:
        path: A state dict, or what timm's training saves, of which averaged weights are preferred.
        name: The published network that it must be. By default the shapes decide. The number of classes always
            follows from them.

    Raises:
        UserError: The file is not a checkpoint, or a name, a shape or a value in it does not fit the network.
    """
    if name is not None and name not in PUBLISHED:
        raise UserError(f"name: {name!r}, must be one of {', '.join(PUBLISHED)}")
    weights = _read_weights(path)
    model = FrostNet(_architecture(path, weights, PUBLISHED if name is None else (name,)))
    broken = [key for key, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"{path}: {broken[0]} holds values that are not finite; get the file again")
    model.load_state_dict({ours: weights[theirs] for ours, theirs in released_names(model).items()})
    return model.eval()


def released_names(model: FrostNet) -> dict[str, str]:
    """The names in a published FrostNet's state dict -> those in the released checkpoints."""
    specs = model.arch.blocks
    # strides 2 and 4 are stage 1, 8 is 2 ..
    stages = [max(1, stride.bit_length() - 2) for stride in nominal_strides(specs[:-1])] + [5]
    modules = {"stem": "conv1", "head.conv": "last_layer"}
    for i, stage in enumerate(stages):
        block = f"layer{stage}.{stages[:i].count(stage)}"
        modules |= {f"blocks.{i}.{ours}": f"{block}.{theirs}" for ours, theirs in CONVOLUTIONS.items()}
    return {key: _released_name(key, modules) for key in model.state_dict()}


def _released_name(key: str, modules: dict[str, str]) -> str:
    module, layer, field = key.rsplit(".", 2)
    if layer == "classifier":
        return f"classifier.2.{field}"
    return f"{modules[module]}.conv.{('conv', 'bn').index(layer)}.{field}"


# ---- the file ----------------------------------------------------------------------------------------------


def _read_weights(path: str | Path) -> dict:
    """The state dict in a file, without the prefix that distributed training gives its names."""
    saved = _load(path)
    if not isinstance(saved, dict):
        raise UserError(f"{path}: holds a {type(saved).__name__}, must be a checkpoint's dict of weights")
    nested = [saved.get(key) for key in ("state_dict_ema", "state_dict")]
    weights = next((value for value in nested if isinstance(value, dict) and value), saved)
    prefix = "module." if all(str(key).startswith("module.") for key in weights) else ""
    return {str(key).removeprefix(prefix): value for key, value in weights.items()}


def _load(path: str | Path) -> object:
    data = read_bytes(path)
    try:
        # timm keeps its options in a Namespace: attributes, no code
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds, and where a file holds code advises to run it
        raise UserError(
            f"{path}: not a checkpoint that can be read without running code ({type(error).__name__}); get the file "
            "again, or save its state_dict alone"
        ) from error


# ---- which network it is -----------------------------------------------------------------------------------


def _architecture(path: str | Path, weights: dict, names: Iterable[str]) -> Architecture:
    """That one of the published networks `names` whose weights these are; no two have the same number of parameters."""
    classes = _num_classes(path, weights)
    params = sum(
        value.numel()
        for key, value in weights.items()
        if key.endswith((".weight", ".bias")) and isinstance(value, Tensor)
    )
    candidates = [architecture(*PUBLISHED[name], num_classes=classes) for name in names]
    arch = min(candidates, key=lambda arch: abs(cost(arch).params - params))
    unlike = _differences({key: _shape(value) for key, value in weights.items()}, arch)
    if unlike:
        more = f"; and {len(unlike) - 3} more" if len(unlike) > 3 else ""
        raise UserError(
            f"{path}: does not fit {arch.name}: {'; '.join(unlike[:3])}{more}; name another published network, or give "
            "a float checkpoint by the paper's authors"
        )
    return arch


def _num_classes(path: str | Path, weights: dict) -> int:
    classifier = weights.get("classifier.2.weight")
    if isinstance(classifier, Tensor) and classifier.dim() == 4:
        return len(classifier)
    found = "missing" if classifier is None else _shape(classifier)
    raise UserError(
        f"{path}: classifier.2.weight: {found}, must be (classes, channels, 1, 1); this is no released FrostNet"
    )


def _differences(found: dict[str, tuple | str], arch: Architecture) -> list[str]:
    """How the names and shapes in a file differ from those of a network, one message each."""
    with torch.device("meta"):  # shapes, no numbers
        model = FrostNet(arch)
    names, state = released_names(model), model.state_dict()
    wanted = {names[key]: tuple(value.shape) for key, value in state.items()}
    missing = [f"{key}: missing" for key in wanted if key not in found]
    unlike = [
        f"{key}: {found[key]}, must be {shape}" for key, shape in wanted.items() if found.get(key, shape) != shape
    ]
    return missing + unlike + [f"{key}: unexpected" for key in found if key not in wanted]


def _shape(value: object) -> tuple | str:
    """A tensor's shape; the type of anything but an ordinary dense tensor."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    ordinary = value.layout == torch.strided and not value.is_quantized
    return tuple(value.shape) if ordinary else f"{value.dtype} ({value.layout})"
