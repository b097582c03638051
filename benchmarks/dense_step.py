"""A whole training step of a detector and of a segmenter, float and QAT side by side; and whether reading pictures
keeps up with it.

    PYTHONPATH=. python benchmarks/dense_step.py                                                        # on the
    embedded scenes
    PYTHONPATH=. python benchmarks/dense_step.py --data-root detection=PATH segmentation=PATH           # on VOC and
    CamVid folders
    PYTHONPATH=. python benchmarks/dense_step.py --profile                                              # and where the
    time goes

A step is the task's own: forward, losses (matching of boxes, or the resize to the picture and the weighted
cross-entropy), backward, SGD with momentum. Rounds take one step of each kind in turn; reported is the ratio of the
medians, whose bar is 1.5. Where it is missed, the longest operations of both kinds are printed. The last line is JSON.
"""

import gc
import itertools
import json
import os
import time
from dataclasses import dataclass
from statistics import median

import pandas
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

import quant
from benchmarks.qat_step import parameter_groups
from common.cli import guard, option, parse
from common.errors import UserError
from latency_lut.timing import torch_threads
from tasks import parts
from tasks.boxes import detection
from tasks.detection import Detection
from tasks.masks import class_weights, segmentation
from tasks.samples import Data, Stream
from tasks.segmentation import Segmentation
from zoo import detectors, segmenters

NETWORKS = {"detection": "ssdlite:frostnet_small_0_5", "segmentation": "lraspp:frostnet_small_0_5"}
LAYOUTS = {"detection": "voc", "segmentation": "camvid"}  # of the folders that are named
KINDS = ("float", "qat")
BAR = 1.5  # times as long as a float step
WARM_UP = 2  # steps of each kind before the clock runs
WORKERS = (0, 1)
TOP = 8  # operations that are printed

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler says at each start that there is no GPU


@dataclass(frozen=True)
class StepConfig:
    tasks: tuple[str, ...] = option(tuple(NETWORKS), "detection, segmentation or both")
    network: str = option("", f"another network than {' and '.join(NETWORKS.values())}; of one task")
    data_root: tuple[str, ...] = option(
        (), "detection=FOLDER (as VOC) and segmentation=FOLDER (as CamVid); else the embedded scenes"
    )
    input_size: int = option(192, "pixels")
    batch_size: int = option(8, "pictures a step")
    rounds: int = option(10, "steps of each kind that are timed")
    batches: int = option(12, "batches that reading is timed on; 0: reading is not timed")
    threads: int = option(1, "threads")
    profile: bool = option(False, "print the longest operations, whatever the ratio")

    def __post_init__(self):
        for task in self.tasks:
            if task not in NETWORKS:
                raise UserError(f"tasks: {task!r} is not one of {', '.join(NETWORKS)}")
        if self.network and len(self.tasks) > 1:
            raise UserError("network: name the one task that it is for (--tasks)")
        for field, low in (("input_size", 64), ("batch_size", 2), ("rounds", 1), ("batches", 0), ("threads", 1)):
            if getattr(self, field) < low:
                raise UserError(f"{field}: {getattr(self, field)}, must be at least {low}")
        for text in self.data_root:
            if text.partition("=")[0] not in NETWORKS or not text.partition("=")[2]:
                raise UserError(f"data_root: {text!r}, must be detection=FOLDER or segmentation=FOLDER")

    def network_of(self, task: str) -> str:
        return self.network or NETWORKS[task]

    def root_of(self, task: str) -> str | None:
        return dict(text.split("=", 1) for text in self.data_root).get(task)


@guard(errors=(quant.QuantError,))
def main(argv=None) -> dict:
    """Measure; returns what the last line says."""
    config = parse(StepConfig, argv, "dense_step.py", __doc__)
    results = {}
    with torch_threads(config.threads):
        for task in config.tasks:
            found = measure(config, task)
            show(config, found)
            results[task] = {field: value for field, value in found.items() if field != "profile"}
            gc.collect()
    print(json.dumps(results))
    return results


def measure(config: StepConfig, task: str) -> dict:
    """Milliseconds and pictures a second of a step of both kinds, their ratio, and how reading compares."""
    data = load(config, task)
    stream = Stream(data.train, config.batch_size, seed=0)
    steps = {kind: Step(config, task, data, kind, stream.batch(0)) for kind in KINDS}
    ms = {kind: median(values) for kind, values in timed(steps, config).items()}
    ratio = round(ms["qat"] / ms["float"], 3)
    found = {
        "network": config.network_of(task),
        "data": name_of(config, task),
        "ms": {kind: round(value, 1) for kind, value in ms.items()},
        "ratio": ratio,
        "bar": BAR,
        "holds": ratio <= BAR,
        "pictures_per_s": {kind: round(1e3 * stream.batch_size / value, 1) for kind, value in ms.items()},
    }
    if config.profile or ratio > BAR:
        found["profile"] = {kind: longest(step) for kind, step in steps.items()}
    if config.batches:
        found["reading"] = {f"{workers} workers": reading(config, task, workers, steps["qat"]) for workers in WORKERS}
    return found


def load(config: StepConfig, task: str, workers: int = 0) -> Data:
    """The task's pictures, with the augmentation of training."""
    read = {"detection": detection, "segmentation": segmentation}[task]
    return read(name_of(config, task), config.root_of(task), config.input_size, workers=workers, bad="skip")


def name_of(config: StepConfig, task: str) -> str:
    return LAYOUTS[task] if config.root_of(task) else "scenes"


def timed(steps: dict[str, "Step"], config: StepConfig) -> dict[str, list[float]]:
    """Milliseconds of each step, one of every kind a round; each round begins with another kind."""
    # other programs' turns do not count on one thread
    clock = time.process_time if config.threads == 1 else time.perf_counter
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    times = {kind: [] for kind in steps}
    for round_ in range(config.rounds):
        for kind in (KINDS, KINDS[::-1])[round_ % 2]:
            started = clock()
            steps[kind]()
            times[kind].append(1e3 * (clock() - started))
    return times


class Step:
    """A network, its optimizer, its task; calling it trains one step, on its own batch or on another."""

    def __init__(self, config: StepConfig, task: str, data: Data, kind: str, batch: tuple[Tensor, list]):
        torch.manual_seed(0)
        self.batch = batch
        name, classes = config.network_of(task), len(data.classes)
        if task == "detection":
            self.task = Detection(detectors.machinery(name, classes, config.input_size), data.classes)
            model = detectors.build(name, classes, config.input_size)
        else:
            self.task = Segmentation(data.classes, class_weights(data.train))
            model = segmenters.build(name, classes)
        model = model.to(memory_format=torch.channels_last).train()
        self.model = model if kind == "float" else qat(model, batch[0])
        self.optimizer = torch.optim.SGD(parameter_groups(self.model), lr=1e-3, momentum=0.9)

    def __call__(self, batch: tuple[Tensor, list] | None = None) -> None:
        with record_function("## forward and losses"):
            loss = self.task.train_step(self.model, batch or self.batch)[0] + quant.extra_loss(self.model)
        with record_function("## backward"):
            self.optimizer.zero_grad()
            loss.backward()
        with record_function("## optimizer"):
            self.optimizer.step()


def qat(model: nn.Module, images: Tensor) -> nn.Module:
    return parts.attach(model, images, quant.QuantConfig()).train()


# ---- where the time goes -----------------------------------------------------------------------------------


def longest(step: Step) -> list[dict]:
    """The operations of a step that take longest by themselves, and the whole of its three phases (##), in
    milliseconds.
    """
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    events = recorded.key_averages()
    phases = [
        {"op": e.key, "calls": e.count, "ms": round(e.cpu_time_total / 1e3, 1)}
        for e in events
        if e.key.startswith("##")
    ]
    others = [
        {"op": e.key, "calls": e.count, "ms": round(e.self_cpu_time_total / 1e3, 1)}
        for e in events
        if not e.key.startswith("##")
    ]
    return phases + sorted(others, key=lambda row: -row["ms"])[:TOP]


# ---- reading -----------------------------------------------------------------------------------------------


def reading(config: StepConfig, task: str, workers: int, step: Step) -> dict:
    """Pictures a second that a stream gives by itself, and that steps train on while they have pictures, both by the
    clock on the wall; and the share of its time that training on the stream waits for pictures."""
    stream = Stream(load(config, task, workers).train, config.batch_size, seed=0)
    stream.batch(0)  # starts the workers
    marks = [time.perf_counter()]
    for number in range(1, config.batches + 1):
        stream.batch(number)
    marks.append(time.perf_counter())
    for number in range(config.batches + 1, 2 * config.batches + 1):
        batch = stream.batch(number)
        marks.append(time.perf_counter())
        step(batch)
        marks.append(time.perf_counter())
    alone, *spent = (after - before for before, after in itertools.pairwise(marks))
    waits, steps = sum(spent[::2]), sum(spent[1::2])
    pictures = config.batches * stream.batch_size
    return {
        "pictures_per_s": round(pictures / alone, 1),
        "trained_per_s": round(pictures / steps, 1),
        "training_waits": round(waits / (waits + steps), 3),
    }


def show(config: StepConfig, found: dict) -> None:
    where = f"{config.threads} thread{'s' * (config.threads > 1)}, torch {torch.__version__}"
    print(
        f"\n{found['network']} on {found['data']}: {config.input_size} px, batch {config.batch_size}, {config.rounds} rounds, {where}"
    )
    rows = [{"step": kind, "ms": found["ms"][kind], "pictures/s": found["pictures_per_s"][kind]} for kind in KINDS]
    print(pandas.DataFrame(rows).to_string(index=False))
    print(f"QAT / float: {found['ratio']:.2f}, {'within' if found['holds'] else 'OVER'} the bar of {BAR}")
    for workers, row in found.get("reading", {}).items():
        print(f"reading with {workers}: {reading_words(row)}")
    for kind, operations in found.get("profile", {}).items():
        print(f"\n{kind}, by operation (the profiler costs time itself)")
        print(pandas.DataFrame(operations).to_string(index=False))


def reading_words(row: dict) -> str:
    keeps = "keeps up" if row["pictures_per_s"] >= row["trained_per_s"] else "DOES NOT KEEP UP"
    return (
        f"{row['pictures_per_s']:.0f} pictures/s, training takes {row['trained_per_s']:.0f}: {keeps}; "
        f"training waits {row['training_waits']:.0%} of its time"
    )


if __name__ == "__main__":
    main()
