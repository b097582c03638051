"""Classification: cross-entropy to train, top-1 accuracy to judge."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common import distributed
from tasks.pictures import Pictures, in_order

EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Classification:
    """The task as the engine sees it: a training step and an evaluation."""

    num_classes: int
    label_smoothing: float = 0.0
    score: ClassVar[str] = "top1"
    reported: ClassVar[tuple[str, ...]] = ("top1",)

    def train_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss to differentiate, and what to log, for x (B, 3, H, W) and y (B,)."""
        x, y = batch
        logits = model(x)
        loss = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        return loss, {"train_top1": (logits.detach().argmax(1) == y).float().mean()}

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, pictures: Pictures) -> dict[str, float]:
        """top1 in [0, 1] and cross-entropy of a float, fake-quant or integer model over all images, in evaluation mode.

        The ranks divide the images among themselves and return the same numbers.
        """
        from torchmetrics.classification import MulticlassAccuracy  # a slow import, not needed to read images

        model.eval()
        device = pictures.mean.device
        top1, loss = (
            MulticlassAccuracy(self.num_classes, average="micro").to(device),
            torch.zeros((), dtype=torch.float64, device=device),
        )
        batches = -(-len(pictures) // (EVALUATION_BATCH * distributed.world_size()))
        mine = in_order(pictures, EVALUATION_BATCH, distributed.share())
        for x, y in tqdm(mine, desc="evaluating", total=batches, unit="batch", delay=3, leave=False):
            logits = model(x)
            top1.update(logits, y)
            loss += F.cross_entropy(logits, y, reduction="sum").double()
        return {
            "top1": round(top1.compute().item(), 6),
            "loss": round(distributed.sum_(loss).item() / len(pictures), 6),
        }

    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        """The class (B,) that a model of any sort gives each picture."""
        return model(images).argmax(1)

    @torch.inference_mode()
    def agreement(self, graph: nn.Module, network: nn.Module, pictures: Pictures) -> float:
        """Share of images to which fake-quant and an INT8 network, converted or read from a file, give one class."""
        graph.eval()
        same = [self.predict(graph, x) == self.predict(network, x) for x, _ in in_order(pictures, EVALUATION_BATCH)]
        return round(torch.cat(same).double().mean().item(), 6)
