"""Segmenters by name: `build("lraspp:frostnet_small_1_0", num_classes=21)`.

Logits come at the network's finest stride: 8 from LR-ASPP, 16 from R-ASPP, 2 from ESPNetv2, 1 from ESPNet. The resize
to the image's size has no parameters and belongs to the task.
"""

from functools import partial
from pathlib import Path

from torch import nn

from nas import Architecture
from zoo.backbones import backbone
from zoo.catalog import Catalog, check
from zoo.segmenters.espnet import ESPNet
from zoo.segmenters.espnetv2 import SCALES, ESPNetv2
from zoo.segmenters.lraspp import LRASPP, RASPP

OUTPUT_STRIDE = 16  # of the backbones
CATALOG = Catalog(
    "segmenter",
    heads={"lraspp": LRASPP, "raspp": RASPP},
    alone={
        "espnet": ESPNet,
        "espnetv2": ESPNetv2,
        **{f"espnetv2_x{scale}".replace(".", "_"): partial(ESPNetv2, scale=scale) for scale in SCALES},
    },
)
NAMES = CATALOG.names
knows = CATALOG.knows


def build(name: str, num_classes: int, runs: str | Path = "runs", arch: Architecture | None = None) -> nn.Module:
    """A float segmenter with fresh weights.

    Images are (N, 3, H, W), 64 pixels or more a side, and logits (N, num_classes, h, w).

    Args:
        name: One of NAMES, with a backbone that `zoo.backbones` knows in place of <backbone>; "espnetv2" is
            "espnetv2_x1_0".
        num_classes: Channels of the logits.
        runs: The folder of the runs, whose names are backbones too.
        arch: A FrostNet that is to be the backbone, whatever its name means elsewhere.

    Raises:
        UserError: The name is unknown, or a number out of range.
    """
    check(num_classes=num_classes)
    network, of = CATALOG.find(name)
    return network(backbone(arch or of, OUTPUT_STRIDE, runs), num_classes) if of else network(num_classes)
