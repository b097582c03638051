"""The cells of the study of StatAssist and GradBoost: arms (what is trained, by which recipe), columns (which
ingredients), their recipes.

All columns of an arm and seed begin with the same weights and see the same batches in the same order.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import quant
from common.cli import option
from common.errors import UserError
from quant import QuantConfig, Schedule
from tasks import Recipe
from tasks.kinds import KINDS

# epochs of the engine's that an arm's steps are cut into: phases change at their ends, so the smallest share is 0.5 %
PARTS = 200
LOOK_EVERY = 20  # parts between two looks at the watched pictures


@dataclass(frozen=True)
class Arm:
    """A network, its pictures and its recipe.

    root     the setting that names the folder of its data
    judged   the held-out part that is reported on; curves are of the other one, of at most `watched` pictures
    silent   residual branches begin silent
    usual    whether it trains as retraining does unless told otherwise
    """

    task: str
    network: str
    pictures: str
    data: str
    root: str
    judged: Literal["val", "test"]
    input_size: int
    batch_size: int
    steps: int
    lr: float
    tune_lr: float
    train_images: int | None = None
    watched: int = 40
    calibration_images: int = 128
    optimizer: str = "sgd"
    weight_decay: float = 4e-5
    warmup: float = 0.05
    decay: str = "cosine"
    clip_norm: float = 2.0
    silent: bool = True
    usual: bool = True


CIFAR10 = Arm(
    "classification",
    "frostnet_small_0_5",
    "CIFAR-10",
    "imagefolder",
    "cifar10_root",
    "val",
    32,
    32,
    600,
    0.05,
    0.01,
    watched=500,
)
GAN = {
    "optimizer": "adam_gan",
    "weight_decay": 0.0,
    "warmup": 0.0,
    "clip_norm": 0.0,
    "decay": "second_half",
    "silent": False,
}
ARMS = {
    "cifar10_frostnet": CIFAR10,
    "cifar10_frostnet_plain": replace(CIFAR10, clip_norm=0.0, silent=False, usual=False),
    "cifar10_mobilenet_v3": replace(CIFAR10, network="mobilenet_v3_small"),
    "detection": Arm(
        "detection", "ssdlite:frostnet_small_0_5", "BCCD", "voc", "bccd_root", "test", 160, 8, 400, 0.1, 0.02
    ),
    "segmentation": Arm(
        "segmentation",
        "lraspp:frostnet_small_0_5",
        "CamVid",
        "camvid",
        "camvid_root",
        "test",
        120,
        8,
        400,
        0.02,
        0.005,
        decay="poly",
    ),
    "pix2pix": Arm(
        "pix2pix",
        "frost_generator",
        "CamVid, labels to photos",
        "pairs",
        "pairs_root",
        "test",
        64,
        4,
        600,
        2e-4,
        5e-5,
        **GAN,
    ),
    "cyclegan": Arm(
        "cyclegan",
        "frost_generator",
        "CamVid, photos and labels",
        "unpaired",
        "unpaired_root",
        "test",
        64,
        2,
        600,
        2e-4,
        5e-5,
        **GAN,
    ),
}
SMOKE_STUDY = {"columns": ("float", "both", "ptq"), "seeds": (0,), "other_seeds": (0,)}
SMOKE = {"data": "scenes", "batch_size": 2, "steps": PARTS, "train_images": 16, "watched": 4, "calibration_images": 4}
SMOKE_SIZE = {"classification": 32}  # pixels; 64 of other tasks


# arms without clipped gradients and silent residual branches, and those that are the same with them
TWINS = {"cifar10_frostnet_plain": "cifar10_frostnet"}


class Column(NamedTuple):
    """An ingredient, or some together.

    float_share  percent of the steps before the quantizers are attached
    boost        GradBoost's mode while they are
    after        the column whose weights it goes on with; None: fresh ones
    steps        percent of the arm's steps that it trains for
    """

    words: str
    float_share: float
    boost: str = "off"
    after: str | None = None
    steps: int = 100


def _statassist(percent: float, boost: str = "off") -> Column:
    more = f", then QAT with GradBoost (`{boost}`)" if boost != "off" else ", then QAT"
    return Column(f"StatAssist: the first {percent:g} % of the steps in float{more}", percent, boost)


COLUMNS = {
    "float": Column("float from the first step to the last, judged as a float network", 100),
    "ptq": Column("that float network, its ranges calibrated (mse), not trained further", 0, after="float", steps=0),
    "finetune": Column(
        "that float network, then 10 % more steps as QAT at a smaller learning rate: it sees more pictures than the rest",
        0,
        after="float",
        steps=10,
    ),
    "naive": Column("QAT from the first step on", 0),
    "sa_0.5": _statassist(0.5),
    "sa_1": _statassist(1),
    "sa_2": _statassist(2),
    "sa_10": _statassist(10),
    "sa_33": _statassist(33),
    "gb_paper": Column("QAT from the first step on, with GradBoost (`paper`)", 0, "paper"),
    "gb_released": Column("the same with GradBoost (`released`)", 0, "released"),
    "both": _statassist(10, "paper"),
    "both_released": _statassist(10, "released"),
}
# the order in which they are computed, the most telling first; a stage needs the one before it
STAGES = (
    ("float", "naive", "both", "sa_10", "gb_paper"),
    ("ptq", "finetune", "sa_2", "sa_0.5", "sa_33", "sa_1", "both_released", "gb_released"),
)


@dataclass(frozen=True)
class StudyConfig:
    arms: tuple[str, ...] = option(tuple(name for name in ARMS if name != "cyclegan"), "arms")
    columns: tuple[str, ...] = option(tuple(COLUMNS), "columns")
    seeds: tuple[int, ...] = option((0, 1), "seeds of the classification arms")
    other_seeds: tuple[int, ...] = option((0,), "seeds of the other arms")
    cifar10_root: str | None = option(None, "FOLDER/{train,val,test}/<class>/*.png, 32 px")
    bccd_root: str | None = option(None, "FOLDER/VOCdevkit/VOC2007")
    camvid_root: str | None = option(None, "FOLDER/{train,val,test}/{images,labels}")
    pairs_root: str | None = option(None, "FOLDER/{train,val,test}/*.png, two pictures side by side")
    unpaired_root: str | None = option(None, "FOLDER/{trainA,trainB,testA,testB}/*.png")
    judge: str | None = option(
        None, "folder of a finished run of segmentation on the photos: it judges pictures that are made of labels"
    )
    palette: str | None = option(None, "JSON file of the labels' colours, {class of the judge: [red, green, blue]}")
    engine: Literal[tuple(quant.ENGINES)] = option("onednn", "engine of the integer networks")
    processes: int = option(2, "cells at a time, one thread each")
    minutes: float = option(math.inf, "begin no further cell after so many minutes")
    smoke: bool = option(
        False, "one step a part, a few pictures of scenes, to see that it runs; into folders of their own"
    )
    runs: str = option("runs/statassist_study", "folder of all runs of the study")
    output: str = option("docs/results", "folder of the results")

    def __post_init__(self):
        for field, known in (("arms", ARMS), ("columns", COLUMNS)):
            for value in getattr(self, field):
                if value not in known:
                    raise UserError(f"{field}: {value!r} is not one of {', '.join(known)}")

    def arm(self, name: str) -> Arm:
        arm = ARMS[name]
        return replace(arm, **SMOKE, input_size=SMOKE_SIZE.get(arm.task, 64)) if self.smoke else arm

    def root(self, name: str) -> str | None:
        return None if self.smoke else getattr(self, ARMS[name].root)

    def eyes(self, name: str) -> dict[str, Any]:
        """What made pictures are looked at with: the judge's folder name, if there is one, and whether it reads label
        pictures. {} for arms that make none."""
        if ARMS[name].task not in KINDS or not KINDS[ARMS[name].task].shows:
            return {}
        return {"judge": self.judge and Path(self.judge).name, "palette": self.palette is not None}

    def quantizers(self, seed: int) -> QuantConfig:
        return QuantConfig(engine=self.engine, seed=seed)


# settings that change no cell's result, or are kept with each cell, as its arm's row is and what judges made pictures
# (`eyes`)
FREE = ("arms", "columns", "seeds", "other_seeds", "cifar10_root", "bccd_root", "camvid_root", "pairs_root", "unpaired_root", "judge",
        "palette", "processes", "minutes", "smoke", "runs", "output")  # fmt: skip


class Cell(NamedTuple):
    arm: str
    seed: int
    column: str

    @property
    def name(self) -> str:
        return f"{self.arm}_{self.seed}_{self.column}"


def left_out(config: StudyConfig) -> dict[str, str]:
    """The wanted arms that cannot be computed, and why."""
    found = {}
    for name in config.arms:
        if ARMS[name].task not in KINDS:
            found[name] = f"there is no task {ARMS[name].task}"
        elif not config.smoke and config.root(name) is None:
            found[name] = f"--{ARMS[name].root.replace('_', '-')} was not given"
    return found


def planned(config: StudyConfig) -> list[Cell]:
    """Every cell, with those that the wanted ones go on from, in the order of their computation."""
    wanted = set(config.columns) | {COLUMNS[column].after for column in config.columns}
    arms = [name for name in config.arms if name not in left_out(config)]
    order = [column for stage in STAGES for column in stage if column in wanted]
    seeds = dict.fromkeys((*config.seeds, *config.other_seeds))
    return [
        Cell(arm, seed, column) for seed in seeds for column in order for arm in arms if seed in seeds_of(config, arm)
    ]


def seeds_of(config: StudyConfig, arm: str) -> tuple[int, ...]:
    return config.seeds if ARMS[arm].task == "classification" else config.other_seeds


def recipe(config: StudyConfig, cell: Cell) -> Recipe:
    """An epoch of the engine's is one of PARTS of the arm's steps."""
    arm, column = config.arm(cell.arm), COLUMNS[cell.column]
    length = PARTS * column.steps // 100
    return Recipe(
        Schedule(length, round(length * column.float_share / 100)),
        optimizer=arm.optimizer,
        lr=arm.tune_lr if column.after else arm.lr,
        weight_decay=arm.weight_decay,
        warmup=arm.warmup,
        boost=column.boost,
        quant=config.quantizers(cell.seed),
        seed=cell.seed,
        clip_norm=arm.clip_norm,
        decay=arm.decay,
        look_every=LOOK_EVERY,
    )


class Stretch:
    """A stream's batches from its step `first` on, in epochs of `steps_per_epoch` steps."""

    def __init__(self, stream: Any, first: int, steps_per_epoch: int):
        self.stream, self.first, self.steps_per_epoch, self.batch_size = (
            stream,
            first,
            steps_per_epoch,
            stream.batch_size,
        )

    def batch(self, step: int) -> Any:
        return self.stream.batch(self.first + step)


def stretch(config: StudyConfig, cell: Cell, stream: Any) -> Stretch:
    """What a cell sees of its seed's batches: all from the first on, or those behind what its float network has seen."""
    steps = config.arm(cell.arm).steps
    return Stretch(stream, steps if COLUMNS[cell.column].after else 0, steps // PARTS)
