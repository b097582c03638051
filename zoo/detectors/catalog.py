"""Detectors by name.

model = build("ssdlite:frostnet_small_0_5", num_classes=20, input_size=300)   # the network: trained and quantized
post = machinery("ssdlite:frostnet_small_0_5", num_classes=20, input_size=300)    # float, without parameters
losses = post.losses(model, images, targets)
detections = post.detections(model, images)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from common.errors import UserError
from nas import Architecture
from zoo.backbones import Backbone, backbone
from zoo.catalog import Catalog, check
from zoo.detectors import ssdlite
from zoo.detectors.postprocess import Machinery, RegionMachinery, RetinaMachinery, SSDMachinery
from zoo.detectors.pyramid import FasterRCNN, RetinaNet
from zoo.detectors.tdsod import TDSOD

SMALLEST = 64  # pixels a side


@final
@dataclass(frozen=True)
class Detector:
    """A row: the network, its machinery, and the output stride of the backbone."""

    network: Callable[[Backbone | None, int, int], nn.Module]  # of backbone, num_classes, input_size
    machinery: Callable[[int, int], Machinery]  # of num_classes, input_size
    output_stride: int = 32


CATALOG = Catalog(
    "detector",
    heads={
        "ssdlite": Detector(
            lambda body, classes, size: ssdlite.SSDLite(body, classes), SSDMachinery, ssdlite.OUTPUT_STRIDE
        ),
        "retinanet": Detector(RetinaNet, RetinaMachinery),
        "faster_rcnn": Detector(FasterRCNN, RegionMachinery),
    },
    alone={"tdsod": Detector(lambda body, classes, size: TDSOD(classes), SSDMachinery)},
)
NAMES = CATALOG.names
knows = CATALOG.knows


def build(
    name: str, num_classes: int, input_size: int, runs: str | Path = "runs", arch: Architecture | None = None
) -> nn.Module:
    """A float detector with fresh weights: images (N, 3, H, W) -> raw outputs.

    Args:
        name: One of NAMES, with a backbone that `zoo.backbones` knows in place of <backbone>.
        num_classes: Without the background.
        input_size: Pixels a side of the images.
        runs: The folder of the runs, whose names are backbones too.
        arch: A FrostNet that is to be the backbone, whatever its name means elsewhere.

    Raises:
        UserError: The name is unknown, or a number out of range.
    """
    row, of = _find(name, num_classes, input_size)
    body = backbone(arch or of, row.output_stride, runs) if of else None
    return row.network(body, num_classes, input_size)


def machinery(name: str, num_classes: int, input_size: int) -> Machinery:
    """The machinery of a detector that `build` made with the same arguments. Raises UserError."""
    row, _ = _find(name, num_classes, input_size)
    return row.machinery(num_classes, input_size)


def _find(name: str, num_classes: int, input_size: int) -> tuple[Detector, str]:
    row, of = CATALOG.find(name)
    check(num_classes=num_classes)
    if not isinstance(input_size, int) or input_size < SMALLEST:
        raise UserError(
            f"input_size: {input_size!r}, must be a whole number of at least {SMALLEST} pixels for a detector"
        )
    return row, of
