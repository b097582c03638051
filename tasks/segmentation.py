"""Semantic segmentation: weighted cross-entropy per pixel to train, mIoU at the masks' own size to judge.

A network gives logits (N, num_classes, h, w) at its finest stride; the bilinear resize to the mask's size is part of
the task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common import distributed
from common.errors import UserError
from tasks.masks import IGNORE
from tasks.samples import Samples, in_order

EVALUATION_BATCH = 8


@dataclass(frozen=True)
class Segmentation:
    """The task as the engine sees it. class_weights (num_classes,) or None: all classes weigh the same."""

    classes: tuple[str, ...]
    class_weights: Tensor | None = None
    score: ClassVar[str] = "miou"
    reported: ClassVar[tuple[str, ...]] = ("miou", "pixel_accuracy")

    def train_step(self, model: nn.Module, batch: tuple[Tensor, Sequence[Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss to differentiate, and what to log, for images (B, 3, S, S) and masks (S, S) uint8 of each."""
        images, masks = batch
        truth, logits = torch.stack(list(masks)), model(images).float()
        loss = self.loss(F.interpolate(logits, truth.shape[-2:], mode="bilinear", align_corners=False), truth)
        return loss, {"train_pixel_accuracy": _coarse_accuracy(logits.detach(), truth)}

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Weighted mean cross-entropy of logits (B, C, H, W) over the pixels of truth (B, H, W) without IGNORE.

        0 if all pixels are IGNORE.
        """
        truth = truth.long()
        weights = logits.new_ones(len(self.classes)) if self.class_weights is None else self.class_weights.to(logits)
        total = F.cross_entropy(logits, truth, weights, ignore_index=IGNORE, reduction="sum")
        by_id = F.pad(weights, (0, IGNORE + 1 - len(weights)))
        return total / by_id[truth].sum().clamp(min=1e-6)

    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        """Classes (B, h, w) uint8 that a model of any sort gives, at its own resolution."""
        return channels_last(model(images)).argmax(1).to(torch.uint8)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, samples: Samples) -> dict[str, float]:
        """mIoU over the classes that occur in the masks, and the share of pixels that are right; both in [0, 1].

        Counted over all pixels of the whole set but IGNORE, at the size of the masks. The ranks divide the images and
        return the same numbers.
        """
        counts, pictures = self._confusion(model, samples)
        iou, right = iou_of(counts), counts.diag().sum() / counts.sum()
        return {"miou": round(iou.nanmean().item(), 6), "pixel_accuracy": round(right.item(), 6), "pictures": pictures}

    @torch.inference_mode()
    def class_iou(self, model: nn.Module, samples: Samples) -> dict[str, float]:
        """IoU in [0, 1] of each class that occurs in the masks."""
        found = zip(self.classes, iou_of(self._confusion(model, samples)[0]).tolist(), strict=True)
        return {name: round(value, 6) for name, value in found if value == value}

    @torch.inference_mode()
    def agreement(self, graph: nn.Module, network: nn.Module, samples: Samples) -> float:
        """Share of output pixels to which fake-quant and an INT8 network, converted or from a file, give one class."""
        graph.eval()
        same = [self.predict(graph, x) == self.predict(network, x) for x, _ in in_order(samples, EVALUATION_BATCH)]
        return round(torch.cat([part.flatten() for part in same]).double().mean().item(), 6)

    def _confusion(self, model: nn.Module, samples: Samples) -> tuple[Tensor, int]:
        """Pixels (C, C) float64 of true class (row) and predicted class over all ranks, and the number of images."""
        model.eval()
        size, device = len(self.classes), samples.mean.device
        counts, pictures = torch.zeros(size * size, dtype=torch.float64, device=device), torch.zeros(1, device=device)
        total = -(-len(samples) // (EVALUATION_BATCH * distributed.world_size()))
        mine = in_order(samples, EVALUATION_BATCH, distributed.share())
        for images, masks in tqdm(mine, desc="evaluating", total=total, unit="batch", delay=3, leave=False):
            logits = channels_last(model(images))
            pictures += len(masks)
            for own, truth in zip(logits.split(1), masks, strict=True):  # masks of one batch may have unlike sizes
                whole = F.interpolate(own.float(), truth.shape, mode="bilinear", align_corners=False)[0]
                # max is several times quicker than argmax, and finds the same
                counts += class_pairs(whole.max(0).indices, truth, size)
        counts, pictures = distributed.sum_(counts).view(size, size), int(distributed.sum_(pictures).item())
        if not counts.any():
            raise UserError(
                f"data_root: of the {len(samples)} pictures to be judged none has a pixel with a class; mend the masks"
            )
        return counts, pictures


def channels_last(logits: Tensor) -> Tensor:
    """Logits as the resize and the search for the largest are quickest: a pixel's stand together."""
    return logits.contiguous(memory_format=torch.channels_last)


def class_pairs(predicted: Tensor, truth: Tensor, size: int) -> Tensor:
    """How often each (true class, predicted class) occurs, (size * size,), without IGNORE."""
    seen = truth != IGNORE
    return torch.bincount(truth[seen].long() * size + predicted[seen], minlength=size * size)


def iou_of(counts: Tensor) -> Tensor:
    """Intersection over union of each class from a confusion matrix; NaN for classes that do not occur in the truth."""
    right, true = counts.diag(), counts.sum(1)
    return torch.where(true > 0, right / (true + counts.sum(0) - right), torch.nan)


def _coarse_accuracy(logits: Tensor, truth: Tensor) -> Tensor:
    """Share of pixels that are right at the resolution of the logits: enough for a curve, and cheap."""
    truth = F.interpolate(truth[:, None].float(), logits.shape[-2:], mode="nearest-exact")[:, 0]
    right = logits.argmax(1) == truth
    return right.sum() / (truth != IGNORE).sum().clamp(min=1)
