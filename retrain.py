"""Train a network from scratch and turn it into an INT8 network of known accuracy and latency.

    python retrain.py --arch frostnet_a                          # from search.py; or a path, a known name
    python retrain.py --arch frostnet_small --data imagefolder --data-root pictures --input-size 32
    python retrain.py --arch mobilenet_v3_small_relu             # a comparison network (python -m zoo list)
    python retrain.py --arch frostnet_a --calibrate mse          # float training, then ranges; no quantized training
    python retrain.py --task detection --arch ssdlite:frostnet_a --data voc --data-root FOLDER
    python retrain.py --task segmentation --arch lraspp:frostnet_a --data camvid --data-root FOLDER
    python retrain.py --task pix2pix --arch resnet_6blocks --data pairs --data-root FOLDER
    python retrain.py --task cyclegan --arch frost_generator --data unpaired --data-root FOLDER

Float phase, then quantized training with StatAssist and GradBoost (arXiv:2006.09679), then conversion. Writes to
runs/NAME: the checkpoint, log.jsonl, metrics.json, report.html, and what is shipped: int8.onnx and, for torch's
engines, int8.pt (the frozen network). The same command goes on after a stop; python -m tasks export makes files for
other engines later. On a CPU it trains with one process per CPU (--processes); with several GPUs or machines
(docs/scaling.md):

    torchrun --nproc-per-node 2 retrain.py --arch frostnet_a

The tasks are described in docs/classification.md, docs/detection.md, docs/segmentation.md and docs/style.md.
"""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas
import torch
from torch import nn

import quant
from common import distributed
from common.cli import check_folder_name, guard, option, parse
from common.errors import UserError
from common.launch import process_count, ranks
from common.processes import cpu_count
from common.runs import CHECKPOINT, Run
from common.shared import made_once
from latency_lut import Timing, time_networks, torch_threads
from latency_lut.timing import TOLERANCE
from nas.report.page import write_report
from quant.attach.settings import load_settings
from quant.calibrate import METHODS
from tasks import OPTIMIZERS, Fitted, Recipe, fit, pairs, parts
from tasks.engine import DECAYS
from tasks.features import random_features
from tasks.judge import judge
from tasks.kinds import DISCRIMINATORS, KINDS, Choices, Kind, Request
from tasks.pictures import generator
from tasks.residuals import silence_residuals
from tasks.samples import normalise
from tasks.ship import Checked, compare, doubts, onnx_words, parity_words, ship, shipped, state_bytes
from tasks.trained import (
    AROUND,
    CALIBRATED,
    NETWORK,
    Network,
    Trained,
    about,
    find_network,
    float_settings,
    load_backbone,
    load_float,
    load_network,
    load_rival,
    save_network,
)
from tasks.watcher import Watcher

ENDINGS = {"qat": "int8", "ptq": "ptq", "float": "float"}  # of a run's name, by method
CALIBRATION_IMAGES = 1024
LOWEST = {
    "epochs": 1,
    "batch_size": 2,
    "checkpoint_seconds": 0,
    "weight_decay": 0,
    "calibration_images": 1,
    "clip_norm": 0,
    "workers": 0,
    "input_size": 8,
    "sheet_every": 1,
}
# what only training takes notice of
TRAINING = (
    "epochs",
    "lr",
    "optimizer",
    "weight_decay",
    "warmup",
    "decay",
    "clip_norm",
    "label_smoothing",
    "backbone",
    "discriminator",
)
# settings that do not change what is trained
FREE = (
    "command",
    "runs",
    "restart",
    "download",
    "checkpoint_seconds",
    "processes",
    "threads",
    "workers",
    "sheet_every",
)
DATA_WORDS = "; ".join(f"{name}: {', '.join(kind.data)}" for name, kind in KINDS.items())
EVERY_DATA = tuple(dict.fromkeys(data for kind in KINDS.values() for data in kind.data))


# settings of tasks whose networks make pictures
SHOWN = ("direction", "discriminator", "judge", "palette", "sheet_every")
# defaults of tasks that have none of their own
COMMON = {"optimizer": "sgd", "weight_decay": 4e-5, "warmup": 0.05, "clip_norm": 2.0, "zero_residuals": True}


def default_words(field: str) -> str:
    """The defaults of the tasks in words, with the tasks that share them."""
    tasks: dict[Any, list[str]] = {}
    for name, kind in KINDS.items():
        tasks.setdefault((COMMON | kind.defaults)[field], []).append(name)
    return "; ".join(f"{value} in {', '.join(names)}" for value, names in tasks.items())


@dataclass(frozen=True)
class RetrainConfig:
    """One training run."""

    arch: str = option(
        help="network: a name in --runs, a path, a shipped or a published name, a name in python -m zoo list; in the "
        "other tasks FORM:NAME, such as ssdlite:frostnet_a or lraspp:mobilenet_v2, or tdsod, espnet; "
        "generators: resnet_6blocks, unet_256, frost_generator .., also with :instance or :none"
    )
    task: Literal[tuple(KINDS)] = option("classification", "what to train for")
    name: str | None = option(
        None, "name of the run's folder in --runs (default: the network's name and _int8, _ptq or _float)"
    )
    data: Literal[EVERY_DATA] = option("scenes", f"pictures to train on ({DATA_WORDS})")
    data_root: str | None = option(None, "folder of the pictures")
    download: bool = option(False, "fetch the data set into --data-root if it is not there")
    bad_data: Literal["refuse", "skip"] = option(
        "refuse",
        "pictures, boxes and masks that cannot be used: an error, or left out, named "
        "and counted (not in classification)",
    )
    workers: int | None = option(
        None, "processes that read pictures ahead (not in classification; default: the CPUs less one, up to 4)"
    )
    input_size: int | None = option(
        None,
        "pixels of a square picture, in segmentation of the shorter side (default: an architecture "
        "file's own in classification, else what is usual for the data; 256 for generators)",
    )
    train_images: int | None = option(
        None,
        "train on so many pictures, in classification balanced over the classes, in cyclegan of "
        "either collection (default: all)",
    )
    engine: Literal[tuple(quant.ENGINES)] = option("fbgemm", "engine that the INT8 network is for")
    settings: str | None = option(None, "JSON file of quantizers: methods, bits, exceptions (default: INT8 everywhere)")
    bits: tuple[int, ...] = option(
        (), "widths that follow one another in the quantized epochs, as in 5 4 3 2 (default: the settings' own)"
    )
    epochs: int | None = option(
        None, f"epochs in all, float and quantized together (default: {default_words('epochs')})"
    )
    float_epochs: int | None = option(None, "epochs before the quantizers are attached (default: a third of all)")
    batch_size: int | None = option(
        None, f"images in a step of all processes together (default: {default_words('batch_size')})"
    )
    optimizer: Literal[tuple(OPTIMIZERS)] | None = option(None, f"optimizer (default: {default_words('optimizer')})")
    lr: float | None = option(None, "peak learning rate (default: the optimizer's); that of discriminators is 2e-4")
    weight_decay: float | None = option(
        None, f"weight decay, of weights only (default: {default_words('weight_decay')})"
    )
    warmup: float | None = option(
        None, f"share of the steps in which the learning rate rises (default: {default_words('warmup')})"
    )
    decay: Literal[tuple(DECAYS)] | None = option(None, f"how it falls afterwards (default: {default_words('decay')})")
    clip_norm: float | None = option(
        None, f"largest norm of all gradients together, 0: no limit (default: {default_words('clip_norm')})"
    )
    label_smoothing: float = option(0.0, "label smoothing")
    zero_residuals: bool | None = option(
        None,
        "begin with silent residual branches: their last batch norms at weight 0 (default: "
        f"{default_words('zero_residuals')})",
    )
    statassist: bool = option(True, "float epochs first; --no-statassist trains quantized from the first step")
    gradboost: bool = option(True, "noise on the gradients early in the quantized phase")
    boost_mode: Literal["paper", "released"] = option(
        "paper", "GradBoost as the paper means it or as its code was released"
    )
    float_only: bool = option(False, "train in float to the end, convert nothing")
    backbone: str | None = option(
        None,
        "begin with the backbone of a run of classification, float or INT8: its name in --runs, or its "
        "folder (detection and segmentation)",
    )
    direction: pairs.Direction = option("a_to_b", "which half of a pair becomes which (pix2pix)")
    discriminator: Literal[DISCRIMINATORS] | None = option(
        None,
        "pix2pix, cyclegan: what judges patches of 70 pixels or "
        "single ones, with batch, instance or no norm (default: patch)",
    )
    judge: str | None = option(
        None,
        "finished run of classification or segmentation in whose features pictures are compared: its name in "
        "--runs, or its folder (pix2pix, cyclegan; default: features of random weights)",
    )
    palette: str | None = option(
        None,
        "JSON file of colours of label maps, {class of the judge: [red, green, blue]}: pix2pix from labels "
        "is then judged by what a --judge of segmentation sees in its photos",
    )
    sheet_every: int = option(500, "steps between two sheets of sample pictures in figures/ (pix2pix, cyclegan)")
    from_float: str | None = option(
        None, "begin quantized from the weights of a float run: its name in --runs or its checkpoint.pt"
    )
    calibrate: Literal[METHODS] | None = option(
        None,
        "post-training quantization: train in float to the end (or not at all, with "
        "--from-float), then choose ranges by this method",
    )
    calibration_images: int | None = option(None, "training pictures that --calibrate looks at (default: 1024)")
    seed: int = option(0, "seed of everything random")
    runs: str = option("runs", "folder of all runs")
    processes: int | None = option(
        None, "processes that train together, of one thread each (default: one for each CPU that may be used)"
    )
    threads: int = option(1, "threads while the latency is measured")
    checkpoint_seconds: float = option(60.0, "seconds between two checkpoints")
    restart: bool = option(False, "start over where the folder holds an earlier run")

    def __post_init__(self):
        self._check_task()
        for field, low in LOWEST.items():
            if getattr(self, field) is not None and getattr(self, field) < low:
                raise UserError(f"{field}: {getattr(self, field)}, must be at least {low}")
        cpus = cpu_count()
        if not 1 <= self.threads <= cpus:
            raise UserError(f"threads: {self.threads}, must be 1 to {cpus} (the CPUs that this process may use)")
        if self.name is not None:
            check_folder_name("name", self.name)
        for field in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"{field}: {getattr(self, field)}, must be at least 0 and below 1")
        if self.lr is not None and self.lr <= 0:
            raise UserError(f"lr: {self.lr}, must be above 0")
        self._check_switches()
        if self.float_epochs is not None and not 1 <= self.float_epochs < self.epochs:
            raise UserError(f"float_epochs: {self.float_epochs}, must be at least 1 and below epochs ({self.epochs})")

    def _check_task(self) -> None:
        """Fill in what depends on the task; raise UserError for what another one has."""
        if self.data not in self.kind.data:
            raise UserError(
                f"data: {self.data!r} is nothing that {self.task} reads; choose one of {', '.join(self.kind.data)}"
            )
        if self.backbone and (self.task not in AROUND or self.from_float):
            raise UserError(
                "backbone: is for detection and segmentation, where "
                "--from-float does not bring all weights; leave it out"
            )
        if self.label_smoothing and self.task != "classification":
            raise UserError("label_smoothing: only classification has it; leave it out")
        for field in () if self.kind.shows else SHOWN:
            if getattr(self, field) != getattr(RetrainConfig, field):
                raise UserError(
                    f"{field}: is for {' and '.join(name for name, kind in KINDS.items() if kind.shows)}; leave it out"
                )
        if self.palette and (not self.judge or self.task != "pix2pix"):
            raise UserError(
                "palette: names the colours of label maps that pix2pix begins with, for a "
                "judge; add --judge RUN, a finished run of segmentation, or leave it out"
            )
        if self.data == "scenes" and self.data_root:
            raise UserError(
                f"data_root: scenes are drawn, nothing is read from {self.data_root}; add --data, one of "
                f"{', '.join(self.kind.data[1:])}, or leave it out"
            )
        own = COMMON | self.kind.defaults | {"workers": min(4, cpu_count() - 1)}
        for field, value in own.items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, value)

    def _check_switches(self) -> None:
        """Raise UserError where one excludes another."""
        if self.float_only and (self.from_float or self.calibrate):
            raise UserError("float_only: excludes --from-float and --calibrate, which make an integer network")
        if self.method != "qat" and (self.bits or not self.statassist or self.boost_mode != RetrainConfig.boost_mode):
            switch = "float_only" if self.float_only else "calibrate"
            raise UserError(
                f"{switch}: trains no quantized epochs, which --bits, "
                "--no-statassist and --boost-mode are about; leave these out"
            )
        if self.float_epochs is not None and (self.method != "qat" or self.from_float or not self.statassist):
            raise UserError(
                "float_epochs: --float-only, --calibrate, --from-float and --no-statassist decide it; leave it out"
            )
        own = COMMON | self.kind.defaults
        ignored = [
            name for name in TRAINING if getattr(self, name) not in (getattr(RetrainConfig, name), own.get(name))
        ]
        if self.trains_nothing and ignored:
            flags = " and ".join("--" + name.replace("_", "-") for name in ignored)
            raise UserError(
                f"{', '.join(ignored)}: --calibrate with --from-float "
                f"trains nothing; leave out {flags}, or one of the two"
            )
        if self.calibration_images is not None and not self.calibrate:
            raise UserError("calibration_images: are what --calibrate looks at; add it, or leave this out")

    @property
    def kind(self) -> Kind:
        return KINDS[self.task]

    @property
    def method(self) -> str:
        """How the network becomes INT8: by quantized training, after training, or not at all."""
        return "float" if self.float_only else "ptq" if self.calibrate else "qat"

    @property
    def trains_nothing(self) -> bool:
        return bool(self.calibrate and self.from_float)

    def schedule(self) -> quant.Schedule:
        """The phases that the switches mean. A single epoch has no room for a float phase."""
        if self.method != "qat":
            return quant.Schedule(self.epochs, self.epochs)
        if self.from_float or not self.statassist:
            return quant.Schedule(self.epochs, 0, bits=self.bits)
        third = min(max(1, round(self.epochs / 3)), self.epochs - 1)
        return quant.Schedule(self.epochs, third if self.float_epochs is None else self.float_epochs, bits=self.bits)

    def recipe(self) -> Recipe:
        lr = OPTIMIZERS[self.optimizer].lr if self.lr is None else self.lr
        boost = self.boost_mode if self.gradboost and self.method == "qat" else "off"
        return Recipe(
            self.schedule(),
            self.optimizer,
            lr,
            self.weight_decay,
            self.warmup,
            boost,
            self.quantizers(),
            self.seed,
            self.checkpoint_seconds,
            self.clip_norm,
            self.decay,
        )

    def quantizers(self) -> quant.QuantConfig:
        """What the settings file says, for --engine."""
        given = {"engine": self.engine, "seed": self.seed}
        chosen = load_settings(self.settings, **given) if self.settings else quant.QuantConfig(**given)
        if chosen.engine != self.engine:
            raise UserError(
                f"settings: {self.settings} is for {chosen.engine}, --engine is {self.engine}; name one engine in both"
            )
        widths = {name: first_width(getattr(chosen, name), self.bits) for name in ("weight", "activation")}
        if self.bits and widths["activation"] == chosen.residual:
            raise UserError(
                f"bits: begin at {self.bits[0]}, as `residual` ({chosen.residual}) "
                "does, so that they could not fall apart; begin lower"
            )
        return dataclasses.replace(chosen, **widths)


def first_width(spec: str, bits: tuple[int, ...]) -> str:
    """`spec` at the first of progressive widths."""
    return str(dataclasses.replace(quant.parse_spec(spec), bits=bits[0])) if bits and spec != quant.FLOAT else spec


@guard(errors=(quant.QuantError,))
def main(argv=None) -> Path:
    """Train, convert, measure, or go on with a run that was stopped; returns its folder."""
    with distributed.joined():
        config = parse(RetrainConfig, argv, "retrain.py", __doc__)
        command = shlex.join([*distributed.launcher(), "retrain.py", *(sys.argv[1:] if argv is None else argv)])
        network = find(config)
        path = None if config.restart else folder(config, network)
        count = process_count(config.processes, config.batch_size, path)
        config = dataclasses.replace(config, processes=count)
        with ranks(main, argv, count):
            job = prepare(config, network, command)
            model, fitted = train(job)
        return finish(job, model, fitted)


@dataclass(frozen=True)
class Job:
    """A run and what it works with."""

    config: RetrainConfig
    network: Network
    run: Run
    data: Any  # see tasks.kinds
    task: Any

    def evaluate(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """The metrics of each held-out split."""
        return {name: self.task.evaluate(model, part) for name, part in self.data.held_out.items()}

    @property
    def checked(self) -> Checked:
        """Pictures to compare networks on."""
        return Checked(self.config.kind, self.task, self.data.val)

    @property
    def watcher(self) -> Watcher | None:
        """Draws sheets of sample pictures, where networks make pictures."""
        if not self.config.kind.shows:
            return None
        return Watcher(self.run, self.task, self.data.val, self.network.build, self.config.sheet_every)


def find(config: RetrainConfig) -> Network:
    """The network; raises UserError for what is wrong with it, with the engine or with given weights."""
    kind, classes = config.kind, config.kind.num_classes(config.data, config.data_root)
    network = find_network(config.arch, classes, kind.size(config.data), config.input_size, config.runs, config.task)
    network.cost()  # runs it: raises where the images are too small
    runnable = (quant.ORACLE, *quant.available())
    if config.engine not in runnable:
        raise UserError(f"engine: {config.engine!r} does not run on this machine; choose from {', '.join(runnable)}")
    if config.from_float:
        load_float(network.build(), config.from_float, config.runs)
        before = float_settings(config.from_float, config.runs).get("direction", config.direction)
        if before != config.direction:
            raise UserError(f"direction: {config.from_float} was trained for {before!r}; add --direction {before}")
    if config.backbone:
        load_backbone(network, network.build(), config.backbone, config.runs)
    return network


def folder(config: RetrainConfig, network: Network) -> Path:
    return Path(config.runs) / (config.name or f"{network.folder_name}_{ENDINGS[config.method]}")


def prepare(config: RetrainConfig, network: Network, command: str) -> Job:
    """The run's folder and its data, on every rank."""
    run = distributed.from_main(lambda: claim(config, network, command))
    data = load_data(config, network)
    if distributed.is_main():
        save_network(run, network, about(data, config.engine))
    job = Job(config, network, run, data, make_task(config, network, data))
    if config.kind.shows:
        job.task.check(data.held_out)
    return job


def finish(job: Job, model: nn.Module, fitted: Fitted) -> Path:
    """Convert, measure and report."""
    config, network, run = job.config, job.network, job.run
    params, macs = network.cost()
    metrics = (
        {"arch": network.name, "params": params, "macs": macs} | describe(job, fitted) | measure(job, model, fitted)
    )
    run.write_json("metrics.json", metrics)
    report = write_report(run.path)
    show(metrics)
    print(f"{run.path / 'metrics.json'}\n{report}")
    if config.method != "float" and metrics["parity"]["refused"]:
        raise UserError(metrics["parity"]["refused"])
    return run.path


def make_task(config: RetrainConfig, network: Network, data: Any) -> Any:
    found = judge(config.judge, config.runs, config.palette) if config.judge else None
    choices = Choices(config.label_smoothing, config.discriminator, found, config.seed)
    return config.kind.task(network.name, network.input_size, data.classes, data.train, choices)


def load_data(config: RetrainConfig, network: Network) -> Any:
    """The pictures; normalised as those that the given weights were trained on."""
    request = Request(
        config.data,
        config.data_root,
        network.input_size,
        config.seed,
        config.train_images,
        config.download,
        config.workers,
        config.bad_data,
        config.direction,
    )
    data = made_once(lambda: config.kind.load(request))
    if config.backbone:
        return normalise(data, *load_backbone(network, network.build(), config.backbone, config.runs))
    known = load_float(network.build(), config.from_float, config.runs) if config.from_float else None
    return normalise(data, *known) if known else data


def claim(config: RetrainConfig, network: Network, command: str) -> Run:
    """The run's folder, made or found again. Raises UserError where it holds anything else than this very run."""
    run = Run(folder(config, network))
    quantizers = dataclasses.asdict(config.quantizers())
    run.claim(
        {"program": "retrain", "command": command, **dataclasses.asdict(config), "quantizers": quantizers},
        config.restart,
        FREE,
    )
    if run.has(CHECKPOINT) and run.has(NETWORK):
        before, known = load_network(run)
        if before != network:
            raise UserError(
                f"arch: {config.arch} has changed since {run.path} was "
                "begun with it; choose another --name, or add --restart"
            )
        if known["weight_qmax"] != quant.weight_qmax(config.engine):
            raise UserError(
                f"engine: {run.path} was begun on a CPU where {config.engine} takes weights of another range; "
                "go on there, or add --restart"
            )
    return run


def train(job: Job) -> tuple[nn.Module, Fitted]:
    """The float model and the trained one, both on the CPU; after quantized training they share their weights."""
    config, network = job.config, job.network
    device = distributed.device()
    torch.manual_seed(config.seed)
    model, job = network.build(), dataclasses.replace(job, data=job.data.to(device))
    if config.from_float:
        load_float(model, config.from_float, config.runs)
        if not config.trains_nothing:
            load_rival(job.task, config.from_float, config.runs)
    elif config.zero_residuals:
        for part in parts.parts_of(model).values():
            silence_residuals(part)
    if config.backbone:
        load_backbone(network, model, config.backbone, config.runs)
    model.to(device, memory_format=torch.channels_last)
    before = job.evaluate(model) if config.from_float else None
    check_settings(job, model)
    if config.trains_nothing:
        fitted = Fitted(model, before, before, 0.0)
    else:
        stream = config.kind.stream(job.data.train, config.batch_size, config.seed)
        if stream.batch_size < LOWEST["batch_size"] * distributed.world_size():
            raise UserError(
                f"data_root: {len(job.data.train)} training pictures are too few for batches of two; add some"
            )
        if stream.batch_size < config.batch_size and distributed.is_main():
            print(f"batches of {stream.batch_size} and not {config.batch_size}: there are no more training pictures")
        fitted = fit(
            model,
            job.task,
            stream,
            job.data.held_out,
            config.recipe(),
            job.run,
            network.example().to(device),
            job.watcher,
        )
    if config.trains_nothing and distributed.is_main():
        job.run.save_checkpoint({"attached": False, "model": model.state_dict()})
    if config.method == "ptq":
        fitted = calibrated(job, model, fitted)
    fitted.model.cpu()
    return model.cpu(), dataclasses.replace(fitted, float_metrics=before or fitted.float_metrics)


def check_settings(job: Job, model: nn.Module) -> None:
    """Raise what is wrong with the quantizers' settings now, not after the float phase."""
    config, example = job.config, job.network.example()
    images = torch.randn(example.shape, generator=generator(0)).to(next(model.parameters()).device)
    if config.method == "qat":
        parts.plan(model, images, config.quantizers())
    if config.method == "ptq":
        parts.calibrate(model, [images], config.quantizers(), config.calibrate, job.task.predict)


def calibrated(job: Job, model: nn.Module, fitted: Fitted) -> Fitted:
    """The trained float model with ranges from training pictures, saved as calibrated.pt, and evaluated."""
    config = job.config
    some = config.kind.some(job.data.train, config.calibration_images or CALIBRATION_IMAGES, config.seed)
    batches = (images for images, *_ in config.kind.in_order(some, config.batch_size))
    graph = parts.calibrate(model, batches, config.quantizers(), config.calibrate, job.task.predict)
    if distributed.is_main():
        job.run.save_checkpoint({"attached": True, "model": graph.state_dict()}, CALIBRATED)
    return dataclasses.replace(fitted, model=graph, metrics=job.evaluate(graph))


def measure(job: Job, model: nn.Module, fitted: Fitted) -> dict:
    """Convert, ship and compare the networks: {"networks": rows of accuracy and latency, "parity": .., ..}."""
    config, run, score = job.config, job.run, job.task.score
    image = next(iter(config.kind.in_order(job.data.val, 1)))[0]
    accuracy, found = {"float": fitted.float_metrics}, {}
    inputs = parts.inputs_of(model.eval(), image, job.task.predict)
    with torch_threads(config.threads):  # a session keeps the number that it was made with
        frozen = {"float": parts.freeze_float(model, image, config.engine, inputs)}
    if config.method != "float":
        converted = parts.convert(fitted.model, config.engine)
        found = {"float_ops": parts.float_ops(converted), "parity": compare(fitted.model, converted, job.checked)}
        with quant.use_engine(config.engine):
            accuracy |= {"fake_quant": fitted.metrics, "int8": job.evaluate(converted)}
        if not quant.ENGINES[config.engine].oracle:
            with torch_threads(config.threads):
                frozen["int8"] = parts.freeze(converted, image, inputs)
        network = (job.network.name, job.network.input_size)
        trained = Trained(
            fitted.model, config.quantizers(), *network, **about(job.data, config.engine), task=config.task
        )
        found |= ship(trained, frozen.get("int8"), run.path, job.checked, found["parity"]["refused"])
        found["warnings"] = doubts(found, accuracy, score, config.kind.likeness)
    if job.watcher:
        draw_contact_sheet(job, model, None if config.method == "float" else converted)
    timings = time_networks(frozen, image, engine=config.engine, threads=config.threads)
    rows = [row(name, metrics, timings.get(name), job.task.reported) for name, metrics in accuracy.items()]
    sizes = {"float state dict": state_bytes(model)} | {
        name: (run.path / name).stat().st_size for name in shipped(run.path)
    }
    runtime = quant.ENGINES[config.engine].runtime
    return {"float_runtime": runtime, "timed_on": list(image.shape), "networks": rows, "file_bytes": sizes, **found}


def draw_contact_sheet(job: Job, model: nn.Module, converted: nn.Module | None) -> None:
    """What the float network makes of some pictures, and what the INT8 network makes of them."""
    config, models = job.config, {}
    if config.from_float and config.method == "qat":
        model = job.network.build()
        load_float(model, config.from_float, config.runs)
    if config.from_float or config.method != "qat":
        models["float"] = model.eval()
    if converted is not None:
        models["INT8"] = converted
    with quant.use_engine(config.engine):
        job.watcher.compare(models)


def row(name: str, metrics: dict | None, timing: Timing | None, reported: tuple[str, ...] = ("top1",)) -> dict:
    """One network in numbers; None where there is none (accuracy of a float phase that did not take place)."""
    accuracy = {f"{metric}_{split}": values[metric] for split, values in (metrics or {}).items() for metric in reported}
    ms, spread, stable = (timing.ms, round(timing.rel_spread, 4), timing.stable) if timing else (None, None, None)
    return {"network": name, **accuracy, "latency_ms": ms, "latency_spread": spread, "latency_stable": stable}


def describe(job: Job, fitted: Fitted) -> dict:
    """On what it was trained, how, and for how long."""
    config, data, schedule = job.config, job.data, job.config.schedule()
    epochs = {"epochs": schedule.epochs, "float_epochs": schedule.float_epochs}
    images = {f"{name}_images": len(part) for name, part in ({"train": data.train} | data.held_out).items()}
    skipped = {
        name: len(part.skipped)
        for name, part in ({"train": data.train} | data.held_out).items()
        if getattr(part, "skipped", None)
    }
    left_out = {"skipped_images": skipped, "bad_annotations": len(data.problems)}
    style = (
        {
            "judge": (job.task.judge or random_features()).name,
            "palette": config.palette,
            "discriminator": config.discriminator,
            "direction": config.direction,
        }
        if config.kind.shows
        else {}
    )
    if config.palette:
        style["judge_on_real_photos"] = {name: job.task.found_in_photos(part) for name, part in data.held_out.items()}
    return {
        "task": config.task,
        **style,
        "score": job.task.score,
        "data": config.data,
        "input_size": job.network.input_size,
        **images,
        **{name: value for name, value in left_out.items() if value},
        "reported": list(data.held_out)[-1],
        "method": config.method,
        "calibrate": config.calibrate,
        **(dict.fromkeys(epochs, 0) if config.trains_nothing else epochs),
        "boost": config.recipe().boost,
        "seed": config.seed,
        "train_seconds": round(fitted.seconds, 1),
        "engine": config.engine,
        "latency_threads": config.threads,
        "latency_clock": "thread CPU time" if config.threads == 1 else "wall time",
    }


def show(metrics: dict) -> None:
    """The table that ends a run."""
    ranges = f", ranges by {metrics['calibrate']}" if metrics["calibrate"] else ""
    print(
        f"\n{metrics['arch']}, {metrics['input_size']} px: {metrics['params']:,} parameters, {metrics['macs']:,} "
        f"MACs; trained {metrics['epochs']} epochs ({metrics['float_epochs']} float) on {metrics['train_images']:,} "
        f"pictures of {metrics['data']} in {metrics['train_seconds'] / 60:.1f} minutes{ranges}"
    )
    rows = pandas.DataFrame(metrics["networks"])
    rows["latency_stable"] = rows["latency_stable"].map({True: "yes", False: "no"})
    print(rows.to_string(index=False, float_format="{:.4f}".format, na_rep="-"))
    likeness = KINDS[metrics["task"]].likeness
    if "parity" in metrics:
        print(f"parity on {metrics['engine']}: {parity_words(metrics['parity'], metrics['float_ops'], likeness)}")
    if "onnx" in metrics:
        print(f"int8.onnx: {onnx_words(metrics['onnx'], likeness)}")
    unstable = [row["network"] for row in metrics["networks"] if row["latency_stable"] is False]
    if unstable:
        print(
            f"warning: the latency of {', '.join(unstable)} is unstable: its best rounds lie further "
            f"apart than {TOLERANCE:.0%}; give the same command again while the machine is idle"
        )
    for words in metrics.get("warnings", []):
        print(f"warning: {words}")


def cli() -> None:
    """The console script: what `main` returns is no exit code."""
    main()


if __name__ == "__main__":
    main()
