"""Detection: a detector's own losses to train, average precision to judge."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou
from tqdm import tqdm

from common import distributed
from tasks.box_transforms import Target
from tasks.detection_metrics import average_precisions
from tasks.samples import Samples, in_order

EVALUATION_BATCH = 16
SURE = 0.3  # score from which on a box is a decision
HALF_SURE = 0.15  # least score at which another network has it, too
SAME = 0.9  # least IoU of boxes that are one and the same decision

Found = dict[str, Tensor]  # boxes (K, 4) x0 y0 x1 y1, scores (K,), labels (K,)


class Machinery(Protocol):
    """Anchors, matching, losses, decoding, suppression (zoo.detectors) around a network that computes raw outputs."""

    def losses(self, model: nn.Module, images: Tensor, targets: list[Target]) -> dict[str, Tensor]: ...
    def detections(self, model: nn.Module, images: Tensor) -> list[Found]: ...


@dataclass(frozen=True)
class Detection:
    """The task as the engine sees it: a training step and an evaluation."""

    machinery: Machinery
    classes: tuple[str, ...]

    score: ClassVar[str] = "ap"
    reported: ClassVar[tuple[str, ...]] = ("ap", "ap50", "voc_ap")

    def train_step(self, model: nn.Module, batch: tuple[Tensor, list[Target]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss to differentiate, and its terms to log, for images (B, 3, S, S) and targets with boxes in pixels."""
        losses = self.machinery.losses(model, *batch)
        return sum(losses.values()), {name: loss.detach() for name, loss in losses.items()}

    def predict(self, model: nn.Module, images: Tensor) -> list[Found]:
        """The boxes that a model of any sort finds in each picture, in input pixels."""
        return self.machinery.detections(model, images)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, samples: Samples) -> dict[str, float]:
        """ap, ap50 and voc_ap in [0, 1] (tasks.detection_metrics) of a float, fake-quant or integer model, and a count.

        The count is that of the images, which the ranks divide among themselves; all return the same numbers. Raises
        UserError where there are no objects.
        """
        model.eval()
        rows = []
        for images, targets in _batches(samples, "evaluating"):
            for found, target in zip(self.predict(model, images), targets, strict=True):
                found = found | {"boxes": found["boxes"] * _scale(target, samples.input_size)}
                rows.append(tuple({name: value.cpu() for name, value in part.items()} for part in (found, target)))
        rows = sorted(distributed.gather(rows), key=lambda row: int(row[1]["number"]))
        found, truths = zip(*rows) if rows else ((), ())
        return {name: round(value, 6) for name, value in average_precisions(found, truths).items()} | {
            "pictures": len(rows)
        }

    @torch.inference_mode()
    def agreement(self, graph: nn.Module, network: nn.Module, samples: Samples) -> float:
        """Share of the decisions (boxes with a score from SURE on) of either network that the other has, too.

        It has one if it finds a box of the same class with an IoU of at least SAME and a score of at least HALF_SURE. 1
        where there are no decisions.
        """
        graph.eval()
        counts = torch.zeros(2, dtype=torch.float64)
        for images, _ in _batches(samples, "comparing"):
            for a, b in zip(self.predict(graph, images), self.predict(network, images), strict=True):
                for one, other in ((a, b), (b, a)):
                    same = _has(one, other)
                    counts += torch.tensor([same.sum(), len(same)])
        same, all_ = distributed.sum_(counts).tolist()
        return round(same / all_, 6) if all_ else 1.0


def _batches(samples: Samples, words: str) -> Iterator[tuple[Tensor, list[Target]]]:
    """This rank's share of the pictures."""
    total = -(-len(samples) // (EVALUATION_BATCH * distributed.world_size()))
    return tqdm(
        in_order(samples, EVALUATION_BATCH, distributed.share()),
        desc=words,
        total=total,
        unit="batch",
        delay=3,
        leave=False,
    )


def _scale(target: Target, input_size: int) -> Tensor:
    """From input pixels to those of the picture: x, y, x, y."""
    return target["size"].flip(0).repeat(2) / input_size


def _has(one: Found, other: Found) -> Tensor:
    """For each decision of one network, whether the other has it, too."""
    sure, half_sure = one["scores"] >= SURE, other["scores"] >= HALF_SURE
    same_class = one["labels"][sure, None] == other["labels"][None, half_sure]
    return ((box_iou(one["boxes"][sure], other["boxes"][half_sure]) >= SAME) & same_class).any(1).cpu()
