"""pix2pix (arXiv:1611.07004): a generator learns from pairs, its discriminator sees input and output together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks import translation
from tasks.features import FeatureDistance, random_features
from tasks.judge import FcnScore, Judge
from tasks.picture_metrics import PairMetrics
from tasks.rival import Rival
from tasks.samples import Samples
from tasks.translation import Models, both, likeness, mine


@dataclass(frozen=True)
class Pix2Pix:
    """The task as the engine sees it.

    rival      a discriminator "pair" of input and output together; None where nothing is trained
    judge      a trained network whose opinion of the pictures is reported; None: pixels, and features of random weights
    l1_weight  what L1 counts beside the discriminator
    """

    rival: Rival | None = None
    judge: Judge | None = None
    l1_weight: float = 100.0
    score: ClassVar[str] = "psnr"

    @property
    def reported(self) -> tuple[str, ...]:
        fcn = ("fcn_miou", "fcn_pixel_accuracy", "fcn_counted") if self._reads_labels else ()
        return ("l1", "psnr", "ssim", "distance", *fcn)

    @property
    def _reads_labels(self) -> bool:
        return self.judge is not None and self.judge.palette is not None

    def train_step(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss to differentiate, and what to log (equation 4); the discriminator takes its step first."""
        given, wanted = both(batch)
        made = model(given).float()
        logs = self.rival.learn({"pair": torch.cat([given, wanted], 1)}, {"pair": torch.cat([given, made], 1)})
        fooled, l1 = self.rival.fooled("pair", torch.cat([given, made], 1)), F.l1_loss(made, wanted)
        # of a range of 2
        return fooled + self.l1_weight * l1, {"fooled": fooled.detach(), "l1": l1.detach() / 2, **logs}

    def check(self, held_out: Mapping[str, Samples]) -> None:
        """Raise UserError for what would come up only when pictures are first judged."""
        translation.check_parts(held_out)
        if self._reads_labels:
            self.found_in_photos(next(iter(held_out.values())).select(torch.arange(2)))

    @torch.inference_mode()
    def found_in_photos(self, samples: Samples) -> dict[str, float]:
        """What the judge finds of the labels in the real photos: made ones cannot be expected to show more."""
        fcn = FcnScore(self.judge)
        for given, wanted in mine(samples):
            fcn.update(wanted, given)
        return fcn.compute()

    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        """The pictures that a model of any sort makes."""
        return model(images)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, samples: Samples) -> dict[str, float]:
        """l1 in [0, 1], psnr in dB, ssim, means over images, and distance of generated to real images in feature space.

        With a judge that reads label maps, which are the input then, also its findings. The same numbers on all ranks.
        """
        model.eval()
        pixels, distance = PairMetrics(), FeatureDistance(self.judge or random_features())
        fcn = FcnScore(self.judge) if self._reads_labels else None
        for given, wanted in mine(samples):
            made = model(given).float()
            pixels.update(made, wanted)
            distance.update(wanted, real=True)
            distance.update(made, real=False)
            if fcn is not None:
                fcn.update(made, given)
        found = pixels.compute() | {"distance": distance.compute()} | (fcn.compute() if fcn is not None else {})
        return {name: round(value, 6) for name, value in found.items()}

    @torch.inference_mode()
    def agreement(self, graph: nn.Module, network: nn.Module, samples: Samples) -> float:
        """PSNR in dB of what an INT8 network, converted or read from a file, makes against what fake-quant makes."""
        graph.eval()
        return likeness(lambda batch: [graph(batch[0])], lambda batch: [network(batch[0])], samples)

    @torch.inference_mode()
    def rows(self, models: Models, samples: Samples) -> list[dict[str, Tensor]]:
        """Pictures to look at: what is given, what is wanted, and what each model makes of it."""
        return translation.rows(
            lambda batch: (
                {"input": batch[0], "target": batch[1]} | {name: model(batch[0]) for name, model in models.items()}
            ),
            samples,
        )
