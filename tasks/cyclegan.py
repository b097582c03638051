"""CycleGAN (arXiv:1703.10593): two generators between two unpaired collections of images, each the other's inverse."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quant
from common import distributed
from tasks import translation
from tasks.features import FeatureDistance, random_features
from tasks.judge import Judge
from tasks.rival import Rival
from tasks.samples import Samples
from tasks.translation import Batch, Models, both, likeness, mine


@dataclass(frozen=True)
class CycleGan:
    """The task as the engine sees it.

    rival            discriminators "a" and "b" of the two collections; None where nothing is trained
    judge            a trained network in whose features collections are compared; None: one of random weights
    cycle_weight     what the way there and back counts beside the discriminators
    identity_weight  what staying as it is counts for a picture that is of the wanted collection already, as a share of
                     cycle_weight
    """

    rival: Rival | None = None
    judge: Judge | None = None
    cycle_weight: float = 10.0
    identity_weight: float = 0.5
    score: ClassVar[str] = "distance"
    reported: ClassVar[tuple[str, ...]] = ("distance_a", "distance_b", "distance", "cycle_l1")

    def train_step(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss to differentiate (equation 3; section 5.2 for the identity), and what to log.

        The discriminators take their step first.
        """
        a, b = both(batch)
        made_b, made_a = model.a_to_b(a).float(), model.b_to_a(b).float()
        logs = self.rival.learn({"a": a, "b": b}, {"a": made_a, "b": made_b})
        fooled = self.rival.fooled("a", made_a) + self.rival.fooled("b", made_b)
        # a generator in use is given images of its own collection alone, so these uses must not move its statistics
        # (with them, images were nine times as far from real ones by the feature distance)
        with quant.frozen_statistics(model, dropout=True):
            cycle = F.l1_loss(model.b_to_a(made_b).float(), a) + F.l1_loss(model.a_to_b(made_a).float(), b)
            same = F.l1_loss(model.b_to_a(a).float(), a) + F.l1_loss(model.a_to_b(b).float(), b)
        loss = fooled + self.cycle_weight * (cycle + self.identity_weight * same)
        return loss, {
            "fooled": fooled.detach(),
            "cycle": cycle.detach() / 4,
            "identity": same.detach() / 4,
            **logs,
        }  # both ways, of a range of 2

    def check(self, held_out: Mapping[str, Samples]) -> None:
        """Raise UserError for what would come up only when pictures are first judged."""
        translation.check_parts(held_out)

    def predict(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures of A as B, and back as A: so b_to_a is calibrated and compared on made pictures of B."""
        made = model.a_to_b(images)
        return made, model.b_to_a(made)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, samples: Samples) -> dict[str, float]:
        """distance_a, distance_b, distance and cycle_l1; the same numbers on all ranks.

        distance_a, distance_b  how far generated images lie from real ones of that collection in feature space
        distance                their mean; smaller is better
        cycle_l1                in [0, 1]: what an image loses on its way there and back
        """
        model.eval()
        network, device = self.judge or random_features(), samples.mean.device
        distances = {"a": FeatureDistance(network), "b": FeatureDistance(network)}
        lost = torch.zeros(2, dtype=torch.float64, device=device)  # sum of differences, and their number
        for a, b in mine(samples):
            made = {"a": model.b_to_a(b).float(), "b": model.a_to_b(a).float()}
            for name, real in (("a", a), ("b", b)):
                distances[name].update(real, real=True)
                distances[name].update(made[name], real=False)
            for back, before in ((model.b_to_a(made["b"]), a), (model.a_to_b(made["a"]), b)):
                lost += torch.stack(
                    [(back - before).double().abs().sum(), torch.tensor(float(before.numel()), device=device)]
                )
        found = {f"distance_{name}": distance.compute() for name, distance in distances.items()}
        total, count = distributed.sum_(lost).tolist()
        found |= {"distance": sum(found.values()) / 2, "cycle_l1": total / count / 2}
        return {name: round(value, 6) for name, value in found.items()}

    @torch.inference_mode()
    def agreement(self, graph: nn.Module, network: nn.Module, samples: Samples) -> float:
        """PSNR in dB of what INT8 generators, converted or read from files, make against fake-quant ones, both ways."""
        graph.eval()
        return likeness(lambda batch: _across(graph, batch), lambda batch: _across(network, batch), samples)

    @torch.inference_mode()
    def rows(self, models: Models, samples: Samples) -> list[dict[str, Tensor]]:
        """Pictures to look at: those of both collections, and what each model makes of them."""

        def columns(batch: Batch) -> dict[str, Tensor]:
            made = {name: _across(model, batch) for name, model in models.items()}
            there = {f"{name}: A to B": found[0] for name, found in made.items()}
            back = {f"{name}: B to A": found[1] for name, found in made.items()}
            return {"A": batch[0], **there, "B": batch[1], **back}

        return translation.rows(columns, samples)


def _across(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """A as B, and B as A."""
    return model.a_to_b(batch[0]), model.b_to_a(batch[1])
