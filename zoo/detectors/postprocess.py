"""From the outputs of detectors to losses and detections, by torchvision; float, without parameters.

These are anchors, matching, losses, decoding and non-maximum suppression. A machinery calls `model` whatever it is: the
float network, the same with quantizers attached, an integer network. Labels are 0 .. num_classes - 1; the background is
no label.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, permute_and_flatten
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign, box_iou

from zoo.detectors import pyramid, ssdlite

# Sides of SSD's boxes as shares of the image's (arXiv:1512.02325); a map's second square lies between two of them
SCALES = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)

Boxes = list[dict[str, Tensor]]


class Machinery(ABC):
    """What a detector does beside its network. Works on the device of what the network returns."""

    @abstractmethod
    def losses(self, model: Callable, images: Tensor, targets: Boxes) -> dict[str, Tensor]:
        """Differentiable scalars; their sum is the loss.

        Args:
            model: The network.
            images: (B, 3, S, S), normalised, S the detector's input size.
            targets: Of each image {boxes (K, 4) float xyxy in pixels, labels (K,) int64}; K may be 0.
        """

    @abstractmethod
    def detections(self, model: Callable, images: Tensor) -> Boxes:
        """Of each image {boxes (K, 4) xyxy in pixels, scores (K,), labels (K,) int64}, best first."""


# ---- SSD ---------------------------------------------------------------------------------------------------


@final
class SSDMachinery(Machinery):
    """Of SSDLite and Tiny-DSOD: softmax over classes and background, boxes at variances .1 and .2.

    Each positive comes with three hard negatives. Cells divide the image evenly whatever its size; SSD's fixed steps
    hold for 300 px, and put the last of Tiny-DSOD's 2 x 2 cells outside. In an image without objects there is no
    positive and so no loss.
    """

    def __init__(self, num_classes: int, input_size: int):
        self.columns, self.size = num_classes + 1, (input_size, input_size)
        self.generator = DefaultBoxGenerator([list(ratios) for ratios in ssdlite.RATIOS], scales=list(SCALES))
        self.ssd = SSD(
            nn.Identity(),
            self.generator,
            self.size,
            self.columns,
            head=nn.Identity(),
            score_thresh=0.01,
            nms_thresh=0.45,
            detections_per_img=200,
            topk_candidates=200,
        )

    def losses(self, model: Callable, images: Tensor, targets: Boxes) -> dict[str, Tensor]:
        outputs, anchors = self._run(model, images)
        targets = _with_background(targets)
        matched = [self._match(target["boxes"], boxes) for target, boxes in zip(targets, anchors, strict=True)]
        losses = self.ssd.compute_loss(targets, outputs, anchors, matched)
        return {"class": losses["classification"], "box": losses["bbox_regression"]}

    @torch.no_grad()
    def detections(self, model: Callable, images: Tensor) -> Boxes:
        outputs, anchors = self._run(model, images)
        return _without_background(self.ssd.postprocess_detections(outputs, anchors, [self.size] * len(images)))

    def anchors(self, images: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """Of each image (boxes, 4), in the order of `_run`'s rows."""
        return self.generator(ImageList(images, [self.size] * len(images)), list(maps))

    def _run(self, model: Callable, images: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        classes, boxes = _split(model(images), 2)
        rows = {
            "cls_logits": torch.cat(_rows(classes, self.columns), 1),
            "bbox_regression": torch.cat(_rows(boxes, 4), 1),
        }
        return rows, self.anchors(images, classes)

    def _match(self, truth: Tensor, anchors: Tensor) -> Tensor:
        """For each anchor the number of a true box, or -1."""
        if not len(truth):
            return torch.full((len(anchors),), -1, device=anchors.device)
        return self.ssd.proposal_matcher(box_iou(truth, anchors))


# ---- pyramids ----------------------------------------------------------------------------------------------


class LevelAnchors(AnchorGenerator):
    """torchvision's anchors around the cells of maps of known strides.

    torchvision divides the image's size by the map's, rounded down. That is wrong by up to a pixel a cell where the
    stride does not divide the image's size.
    """

    def __init__(self, input_size: int, sizes: Sequence[float]):
        self.strides = pyramid.strides(input_size)
        super().__init__(
            [[size * stride for size in sizes] for stride in self.strides], [pyramid.RATIOS] * len(self.strides)
        )

    def levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(cells x anchors, 4) of each map."""
        self.set_cell_anchors(torch.float32, maps[0].device)
        return self.grid_anchors([list(x.shape[-2:]) for x in maps], [[stride, stride] for stride in self.strides])

    def forward(self, images: ImageList, features: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
        """The anchors of each image; `features` are tuples that begin with a level's map, as for region proposals."""
        return [torch.cat(self.levels([level[0] for level in features]))] * len(images.image_sizes)


@final
class RetinaMachinery(Machinery):
    """Of RetinaNet: focal loss on each class by itself, no background class."""

    def __init__(self, num_classes: int, input_size: int):
        self.num_classes, self.size = num_classes, (input_size, input_size)
        self.generator = LevelAnchors(input_size, pyramid.RETINA_SIZES)
        unused = nn.Identity()
        unused.out_channels = 1
        with torch.device("meta"):  # the losses alone are wanted, not the layers that come with them
            self.retinanet = TorchvisionRetinaNet(unused, num_classes, anchor_generator=self.generator)

    def losses(self, model: Callable, images: Tensor, targets: Boxes) -> dict[str, Tensor]:
        classes, boxes, anchors = self._run(model, images)
        outputs = {"cls_logits": torch.cat(classes, 1), "bbox_regression": torch.cat(boxes, 1)}
        losses = self.retinanet.compute_loss(targets, outputs, [torch.cat(anchors)] * len(images))
        return {"class": losses["classification"], "box": losses["bbox_regression"]}

    @torch.no_grad()
    def detections(self, model: Callable, images: Tensor) -> Boxes:
        classes, boxes, anchors = self._run(model, images)
        outputs = {"cls_logits": classes, "bbox_regression": boxes}
        return self.retinanet.postprocess_detections(outputs, [anchors] * len(images), [self.size] * len(images))

    def _run(self, model: Callable, images: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Rows (N, anchors, columns) of logits and of regressions, and the anchors, of each level."""
        classes, boxes = _split(model(images), 2)
        return _rows(classes, self.num_classes), _rows(boxes, 4), self.generator.levels(classes)


@final
class RegionMachinery(Machinery):
    """Of Faster R-CNN: proposals from `model.features`, their pooled features through `model.box_head`."""

    def __init__(self, num_classes: int, input_size: int):
        self.columns, self.size = num_classes + 1, (input_size, input_size)
        self.pool = MultiScaleRoIAlign([str(i) for i in range(pyramid.REGION_LEVELS)], pyramid.POOLED, sampling_ratio=2)
        self.proposals = RegionProposalNetwork(
            LevelAnchors(input_size, pyramid.REGION_SIZES),
            _Unzip(),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 500, "testing": 150},
            post_nms_top_n={"training": 250, "testing": 150},
            nms_thresh=0.7,
        )

    def losses(self, model: Callable, images: Tensor, targets: Boxes) -> dict[str, Tensor]:
        maps, sizes, proposals, found = self._propose(model, images, targets)
        _, losses = self._regions(model, training=True)(maps, proposals, sizes, _with_background(targets))
        return {
            "objectness": found["loss_objectness"],
            "proposal": found["loss_rpn_box_reg"],
            "class": losses["loss_classifier"],
            "box": losses["loss_box_reg"],
        }

    @torch.no_grad()
    def detections(self, model: Callable, images: Tensor) -> Boxes:
        maps, sizes, proposals, _ = self._propose(model, images, None)
        found, _ = self._regions(model, training=False)(maps, proposals, sizes)
        return _without_background(found)

    def _propose(self, model: Callable, images: Tensor, targets: Boxes | None):
        """The maps to pool from, the images' sizes, the proposals of each image and, with targets, their losses."""
        outputs = model.features(images)
        maps = {str(i): x.float() for i, x in enumerate(outputs[: pyramid.REGION_LEVELS])}
        objectness, boxes = _split(outputs[pyramid.REGION_LEVELS :], 2)
        image_list = ImageList(images, [self.size] * len(images))
        self.proposals.training = targets is not None
        levels = {str(i): (o.float(), b.float()) for i, (o, b) in enumerate(zip(objectness, boxes, strict=True))}
        return maps, image_list.image_sizes, *self.proposals(image_list, levels, targets)

    def _regions(self, model: Callable, training: bool) -> RoIHeads:
        """torchvision's second stage around this model's box head.

        It is made anew: what it is given becomes a part of it.
        """

        def box_head(pooled: Tensor) -> tuple[Tensor, Tensor]:
            if not len(pooled):  # nothing proposed: integer networks know no empty batches
                return pooled.new_zeros(0, self.columns), pooled.new_zeros(0, 4 * self.columns)
            classes, boxes = model.box_head(pooled)
            return classes.float(), boxes.float()

        heads = RoIHeads(
            self.pool,
            box_head,
            nn.Identity(),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=64,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
        )
        heads.training = training
        return heads


class _Unzip(nn.Module):
    """A region proposal head whose levels are computed already: pairs -> all first ones, all second ones."""

    def forward(self, levels: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        first, second = zip(*levels, strict=True)
        return list(first), list(second)


def _split(outputs: Sequence[Tensor], parts: int) -> list[Sequence[Tensor]]:
    """A network's outputs by sort: all levels' logits, all levels' regressions."""
    levels = len(outputs) // parts
    return [outputs[i * levels : (i + 1) * levels] for i in range(parts)]


def _rows(maps: Sequence[Tensor], columns: int) -> list[Tensor]:
    """Maps (N, boxes x columns, h, w) -> (N, h x w x boxes, columns), one row an anchor."""
    return [permute_and_flatten(x.float(), len(x), x.shape[1] // columns, columns, *x.shape[-2:]) for x in maps]


def _with_background(targets: Boxes) -> Boxes:
    """Labels from 1 on, as torchvision has them where 0 is the background."""
    return [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]


def _without_background(found: Boxes) -> Boxes:
    return [{"boxes": one["boxes"], "scores": one["scores"], "labels": one["labels"] - 1} for one in found]
