"""Networks trained alone by one short recipe and judged as integer networks: the truth that searches and rankings are
measured by.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import quant
from benchmarks.low_bit import RESULT, held_out
from common.runs import Run
from frostnet import FrostNet
from nas import Architecture
from quant import QuantConfig, Schedule
from tasks import Classification, ClassificationData, Diverged, Pictures, Recipe, Stream, classification, fit, in_order
from tasks.classification import EVALUATION_BATCH
from tasks.residuals import silence_residuals

SIZE = 32


@dataclass(frozen=True)
class Training:
    """The recipe that all share:

    StatAssist and GradBoost, SGD, gradients clipped, residual branches silent at the start.
    """

    data_root: str
    train_images: int
    held_out_images: int | None
    epochs: int
    float_epochs: int
    lr: float
    engine: str
    runs: str
    data: str = "imagefolder"
    batch_size: int = 64

    def recipe(self, seed: int) -> Recipe:
        return Recipe(
            Schedule(self.epochs, self.float_epochs),
            lr=self.lr,
            quant=QuantConfig(engine=self.engine, seed=seed),
            seed=seed,
        )


class Cell(NamedTuple):
    """One training: a network, by the name of a comparison network or the path of an architecture, under a name of its
    own.
    """

    network: str
    source: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder; another architecture in the same file is another training."""
        return f"{self.network}_{digest(self.source)}_{self.seed}"


def digest(source: str) -> str:
    """A few characters that stand for a network: for its blocks, whatever the file says beside them."""
    if not source.endswith(".json"):
        return hashlib.sha256(source.encode()).hexdigest()[:8]
    arch = Architecture.load(source).to_json()
    text = json.dumps([arch[part] for part in ("stem", "blocks", "head")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_cell(training: Training, cell: Cell) -> str:
    """Train a network and judge it; the text says how it went. What is done already is not done again."""
    run = Run(Path(training.runs) / cell.name)
    if not run.has(RESULT):
        try:
            result = judged(training, cell, run)
        except Diverged as error:  # a result too, as a full disk is not
            result = {"int8": None, "fake_quant": None, "refused": str(error)}
        run.write_json(RESULT, cell._asdict() | result)
    result = run.read_json(RESULT)
    fate = result["refused"] or f"INT8 {100 * result['int8']:.1f} %, fake-quant {100 * result['fake_quant']:.1f} %"
    return f"{cell.network}, seed {cell.seed}: {fate} in {result.get('seconds', 0):.0f} s"


def judged(training: Training, cell: Cell, run: Run) -> dict:
    """Accuracy of a trained network as an integer network and under fake-quant, on all held-out pictures."""
    data = load(training.data, training.data_root, training.train_images)
    torch.manual_seed(cell.seed)
    model = build(cell.source, len(data.classes))
    silence_residuals(model)
    task, stream = Classification(len(data.classes)), Stream(data.train, training.batch_size, cell.seed)
    example = torch.zeros(2, 3, SIZE, SIZE)
    fitted = fit(
        model.to(memory_format=torch.channels_last), task, stream, {}, training.recipe(cell.seed), run, example
    )
    pictures = held_out(training, data)
    executor = quant.convert(fitted.model, training.engine)
    with quant.use_engine(training.engine):
        integer = predictions(executor, pictures)
    simulated = predictions(fitted.model, pictures)
    return {
        "int8": share(integer == pictures.labels),
        "fake_quant": share(simulated == pictures.labels),
        "agreement": share(integer == simulated),
        "pictures": len(pictures),
        "refused": None,
        "float_ops": list(executor.float_ops),
        "seconds": round(fitted.seconds, 1),
    }


@functools.cache
def load(data: str, data_root: str, train_images: int) -> ClassificationData:
    return classification(data, data_root, SIZE, train_images=train_images)


def build(source: str, num_classes: int) -> nn.Module:
    """The float network of a comparison network's name or of an architecture's file."""
    if source.endswith(".json"):
        return FrostNet(Architecture.load(source).for_input(SIZE).with_classes(num_classes))
    import zoo  # here: it takes seconds to import

    return zoo.build(source, num_classes, SIZE)


@torch.inference_mode()
def predictions(model: nn.Module, pictures: Pictures) -> Tensor:
    """The class that a model gives each picture, (N,)."""
    model.eval()
    return torch.cat([model(x).argmax(1) for x, _ in in_order(pictures, EVALUATION_BATCH)])


def share(hits: Tensor) -> float:
    """The share of True in a tensor of bools."""
    return round(hits.double().mean().item(), 6)
