"""The columns of the studies of detection and segmentation: what is trained on which pictures, by which recipe, and
from what.

Every column sees the same E epochs of pictures in the same order, by one recipe: SGD, warm-up, clipped gradients,
residual branches that begin silent. A cell is a network, a seed and a column.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import quant
from common.cli import option
from common.errors import UserError
from quant import QuantConfig, Schedule
from tasks import Recipe
from tasks.samples import Stream

SMOKE = {"data": "scenes", "data_root": None, "input_size": 64, "batch_size": 4, "epochs": 2, "tune_epochs": 1, "every": 1, "seeds": (0,),
         "train_images": 16, "held_out_images": 16, "calibration_images": 8}  # fmt: skip


class Column(NamedTuple):
    """What a network goes through.

    after      the column whose weights it goes on with; None: fresh ones
    epochs     "all", "early" (all but those of tuning), "late" (those of tuning) or "none" of the epochs
    quantized  whether it trains with quantizers, from its first step on but for the float phase of `statassist`
    """

    after: str | None
    epochs: str
    quantized: bool = False
    statassist: bool = False
    boost: str = "off"


COLUMNS = {
    "base": Column(None, "early"),
    "straight": Column(None, "all"),
    "both": Column(None, "all", quantized=True, statassist=True, boost="paper"),
    "naive": Column(None, "all", quantized=True),
    "statassist": Column(None, "all", quantized=True, statassist=True),
    "float": Column("base", "late"),
    "finetune": Column("base", "late", quantized=True),
    "ptq": Column("float", "none"),
}  # each behind the one that it goes on from
FLOAT = ("straight", "float")  # judged as float networks
# the order in which they are computed
STAGES = (("base", "both"), ("float", "finetune"), ("ptq", "straight", "naive", "statassist"))


@dataclass(frozen=True)
class DenseConfig:
    task: ClassVar[str]
    data: str = option("scenes", "layout of the data")
    data_root: str | None = option(None, "folder of the data")
    networks: tuple[str, ...] = option((), "networks")
    columns: tuple[str, ...] = option(tuple(COLUMNS), "columns")
    seeds: tuple[int, ...] = option((0,), "seeds")
    input_size: int = option(160, "pixels of a picture")
    train_images: int | None = option(None, "pictures to train on (default: all)")
    held_out_images: int | None = option(None, "validate and report on so many pictures (default: all)")
    calibration_images: int = option(128, "training pictures that ptq calibrates on")
    batch_size: int = option(16, "pictures in a step")
    epochs: int = option(60, "epochs of pictures that each column sees")
    tune_epochs: int = option(12, "of these, the last ones of the columns that go on from a float training")
    every: int = option(3, "epochs between two looks at the validation part, of which all phases are multiples")
    float_share: float = option(0.1, "share of the epochs that StatAssist trains in float")
    lr: float = option(0.05, "peak learning rate of trainings from scratch")
    tune_lr: float = option(0.01, "peak learning rate of the last epochs")
    weight_decay: float = option(4e-5, "weight decay, of weights only")
    warmup: float = option(0.05, "share of the steps in which the learning rate rises")
    clip_norm: float = option(2.0, "largest norm of all gradients together")
    decay: Literal["cosine", "poly"] = option("cosine", "how the learning rate falls")
    engine: Literal[tuple(quant.ENGINES)] = option("onednn", "engine of the integer networks")
    bad_data: Literal["refuse", "skip"] = option("refuse", "pictures that cannot be used")
    processes: int = option(1, "cells at a time, one thread each")
    minutes: float = option(math.inf, "begin no further cell after so many minutes")
    smoke: bool = option(
        False, "a few pictures of scenes and two epochs, to see that it runs; into folders of their own"
    )
    runs: str = option("runs/dense", "folder of all runs of the study")
    output: str = option("docs/results", "folder of the results")

    def __post_init__(self):
        for value in self.columns:
            if value not in COLUMNS:
                raise UserError(f"columns: {value!r} is not one of {', '.join(COLUMNS)}")
        if not 0 < self.tune_epochs < self.epochs:
            raise UserError(f"tune_epochs: {self.tune_epochs}, must be at least 1 and below epochs ({self.epochs})")
        for field in ("epochs", "tune_epochs"):
            if getattr(self, field) % self.every:
                raise UserError(f"{field}: {getattr(self, field)}, must be a multiple of every ({self.every})")

    def span(self, column: str) -> tuple[int, int]:
        """The first epoch of pictures that a column trains on by itself, and the first after it."""
        begin = self.epochs - self.tune_epochs
        return {"all": (0, self.epochs), "early": (0, begin), "late": (begin, self.epochs), "none": (0, 0)}[
            COLUMNS[column].epochs
        ]

    def quantizers(self, seed: int) -> QuantConfig:
        return QuantConfig(engine=self.engine, seed=seed)


# settings that change no cell's result
FREE = ("data_root", "networks", "columns", "seeds", "processes", "minutes", "smoke", "runs", "output")
# settings that change nothing but where and how fast
WHERE = ("data_root", "processes", "minutes", "smoke", "runs", "output")


class Cell(NamedTuple):
    network: str
    seed: int
    column: str

    @property
    def name(self) -> str:
        return f"{self.network}_{self.seed}_{self.column}".replace(":", "_").replace("/", "_")


def planned(config: DenseConfig) -> list[Cell]:
    """Every cell, with those that the wanted ones go on from."""
    wanted = set(config.columns)
    for column in reversed(COLUMNS):
        wanted |= {COLUMNS[column].after} & set(COLUMNS) if column in wanted else set()
    return [Cell(n, s, c) for s in config.seeds for n in config.networks for c in COLUMNS if c in wanted]


def recipe(config: DenseConfig, cell: Cell) -> Recipe:
    """An epoch of the engine's is `every` epochs of pictures: it looks at the validation part, and may change phase,
    after each.
    """
    column, (first, end) = COLUMNS[cell.column], config.span(cell.column)
    looks = (end - first) // config.every
    in_float = looks if not column.quantized else max(1, round(config.float_share * looks)) if column.statassist else 0
    lr = config.tune_lr if column.after else config.lr
    return Recipe(
        Schedule(looks, in_float),
        lr=lr,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        boost=column.boost,
        quant=config.quantizers(cell.seed),
        seed=cell.seed,
        clip_norm=config.clip_norm,
        decay=config.decay,
    )


class Window:
    """A stream's batches from its epoch `first` on, in epochs as long as `every` of its own."""

    def __init__(self, stream: Stream, first: int, every: int):
        self.stream, self.first, self.batch_size = stream, first * stream.steps_per_epoch, stream.batch_size
        self.steps_per_epoch = every * stream.steps_per_epoch

    def batch(self, step: int) -> Any:
        return self.stream.batch(self.first + step)
