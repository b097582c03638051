"""Segmenters by name: `build("lraspp:frostnet_small_1_0", num_classes=21)`; untrained plain float modules, images ->
logits.

Logits come at the network's finest stride: 8 from LR-ASPP, 16 from R-ASPP, 2 from ESPNetv2, 1 from ESPNet. The resize
to the picture's size has no parameters and belongs to the task.
"""

from difflib import get_close_matches
from pathlib import Path

from torch import nn

from common.errors import UserError
from nas import Architecture
from nas.arch import RULES
from zoo import backbones
from zoo.segmenters.espnet import ESPNet
from zoo.segmenters.espnetv2 import SCALES, ESPNetv2
from zoo.segmenters.lraspp import LRASPP, RASPP

HEADS = {"lraspp": LRASPP, "raspp": RASPP}
ESPNETV2 = {"espnetv2": 1.0} | {f"espnetv2_x{scale}".replace(".", "_"): scale for scale in SCALES}
NAMES = (*(f"{head}:<backbone>" for head in HEADS), "espnet", *ESPNETV2)


def knows(name: str) -> bool:
    """Whether `name` has the form of a segmenter's; its backbone is looked for by `build`."""
    return name == "espnet" or name in ESPNETV2 or name.partition(":")[0] in HEADS and ":" in name


def build(name: str, num_classes: int, runs: str | Path = "runs", arch: Architecture | None = None) -> nn.Module:
    """The float network of a name: images (N, 3, H, W), 64 pixels or more a side -> logits (N, num_classes, h, w).

    "espnetv2" is "espnetv2_x1_0"; a backbone is one that `zoo.backbones.backbone` knows, or the FrostNet of `arch`.
    Raises UserError.
    """
    if not RULES["num_classes"][0](num_classes):
        raise UserError(f"num_classes: {num_classes!r}, must be {RULES['num_classes'][1]}")
    if not knows(name):
        near = get_close_matches(name, ("espnet", *ESPNETV2), 3, 0.5)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise UserError(f"arch: {name!r} is no segmenter{hint}; the forms are {', '.join(NAMES)}")
    if name == "espnet":
        return ESPNet(num_classes)
    if name in ESPNETV2:
        return ESPNetv2(num_classes, ESPNETV2[name])
    head, _, backbone = name.partition(":")
    return HEADS[head](backbones.backbone(arch or backbone, 16, runs), num_classes)
