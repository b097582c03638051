"""Train an architecture from scratch and turn it into an INT8 network of known accuracy and latency.

    python retrain.py --arch frostnet_a                              # from search.py; also a path, a shipped or a published name
    python retrain.py --arch frostnet_small --data imagefolder --data-root pictures --input-size 32

Float phase, then quantized training with StatAssist and GradBoost (arXiv:2006.09679), then conversion. Writes to runs/NAME: the
checkpoint, log.jsonl, metrics.json, int8.pt (the frozen network) and report.html. The same command goes on after a stop.
"""

import dataclasses
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas
import torch

import quant
from frostnet import FrostNet, find
from latency_lut import Timing, time_networks
from nas import Architecture, Run, UserError, cost
from nas.arch import find_file
from nas.cli import guard, option, parse
from nas.report import write_report
from nas.runs import CHECKPOINT
from quant.settings import load_settings
from tasks import (
    DATA,
    OPTIMIZERS,
    Classification,
    ClassificationData,
    Fitted,
    Pictures,
    Recipe,
    Stream,
    classification,
    fit,
    in_order,
    num_classes,
    subset,
)

PARITY_PIXELS = 64 * 32 * 32  # size of the batch that is compared layer by layer
AGREEMENT_IMAGES = 1000  # pictures on which fake-quant and INT8 are compared end to end
FREE = ("command", "runs", "restart", "download", "checkpoint_seconds", "threads")  # settings that do not change what is trained


@dataclass(frozen=True)
class RetrainConfig:
    """One training run."""

    arch: str = option(help="architecture: a name in --runs, a path, a shipped or a published name")
    name: str | None = option(None, "name of the run's folder in --runs (default: the architecture's name and _int8 or _float)")
    data: Literal[DATA] = option("scenes", "pictures to train on")
    data_root: str | None = option(None, "folder of the pictures")
    download: bool = option(False, "fetch the data set into --data-root if it is not there")
    input_size: int | None = option(None, "pixels (default: the architecture's; 32 for a published name on scenes or CIFAR)")
    train_images: int | None = option(None, "train on so many pictures, balanced over the classes (default: all)")
    engine: Literal[quant.ENGINES] = option("fbgemm", "engine that the INT8 network is for")
    settings: str | None = option(None, "JSON file of quantizers: methods, bits, exceptions (default: INT8 everywhere)")
    bits: tuple[int, ...] = option((), "widths that follow one another in the quantized epochs, as in 5 4 3 2 (default: the settings' own)")
    epochs: int = option(12, "epochs in all, float and quantized together")
    float_epochs: int | None = option(None, "epochs before the quantizers are attached (default: a third of all)")
    batch_size: int = option(64, "pictures in a step")
    optimizer: Literal[tuple(OPTIMIZERS)] = option("sgd", "optimizer")
    lr: float | None = option(None, "peak learning rate (default: the optimizer's)")
    weight_decay: float = option(4e-5, "weight decay, of weights only")
    warmup: float = option(0.05, "share of the steps in which the learning rate rises")
    label_smoothing: float = option(0.0, "label smoothing")
    statassist: bool = option(True, "float epochs first; --no-statassist trains quantized from the first step")
    gradboost: bool = option(True, "noise on the gradients early in the quantized phase")
    boost_mode: Literal["paper", "released"] = option("paper", "GradBoost as the paper means it or as its code was released")
    float_only: bool = option(False, "train in float to the end, convert nothing")
    from_float: str | None = option(None, "begin quantized from the weights of a float run: its name in --runs or its checkpoint.pt")
    seed: int = option(0, "seed of everything random")
    runs: str = option("runs", "folder of all runs")
    threads: int = option(1, "threads while the latency is measured")
    checkpoint_seconds: float = option(60.0, "seconds between two checkpoints")
    restart: bool = option(False, "start over where the folder holds an earlier run")

    def __post_init__(self):
        for field, low in (("epochs", 1), ("batch_size", 2), ("threads", 1), ("checkpoint_seconds", 0), ("weight_decay", 0)):
            if getattr(self, field) < low:
                raise UserError(f"{field}: {getattr(self, field)}, must be at least {low}")
        for field in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"{field}: {getattr(self, field)}, must be at least 0 and below 1")
        if self.lr is not None and self.lr <= 0:
            raise UserError(f"lr: {self.lr}, must be above 0")
        if self.float_only and (self.from_float or not self.statassist):
            raise UserError("float_only: excludes --from-float and --no-statassist, which are about quantized training")
        if self.bits and self.float_only:
            raise UserError("bits: are widths of quantized epochs, which --float-only has none of; leave one out")
        if self.float_epochs is not None and (self.float_only or self.from_float or not self.statassist):
            raise UserError("float_epochs: --float-only, --from-float and --no-statassist decide it; leave it out")
        if self.float_epochs is not None and not 1 <= self.float_epochs < self.epochs:
            raise UserError(f"float_epochs: {self.float_epochs}, must be at least 1 and below epochs ({self.epochs})")

    def schedule(self) -> quant.Schedule:
        """The phases that the switches mean. A single epoch has no room for a float phase."""
        if self.float_only:
            return quant.Schedule(self.epochs, self.epochs)
        if self.from_float or not self.statassist:
            return quant.Schedule(self.epochs, 0, bits=self.bits)
        third = min(max(1, round(self.epochs / 3)), self.epochs - 1)
        return quant.Schedule(self.epochs, third if self.float_epochs is None else self.float_epochs, bits=self.bits)

    def recipe(self) -> Recipe:
        lr = OPTIMIZERS[self.optimizer].lr if self.lr is None else self.lr
        boost = self.boost_mode if self.gradboost and not self.float_only else "off"
        return Recipe(self.schedule(), self.optimizer, lr, self.weight_decay, self.warmup, boost, self.quantizers(), self.seed,
                      self.checkpoint_seconds)  # fmt: skip

    def quantizers(self) -> quant.QuantConfig:
        """What the settings file says, for --engine."""
        given = {"engine": self.engine, "seed": self.seed}
        chosen = load_settings(self.settings, **given) if self.settings else quant.QuantConfig(**given)
        if chosen.engine != self.engine:
            raise UserError(f"settings: {self.settings} is for {chosen.engine}, --engine is {self.engine}; name one engine in both")
        widths = {name: first_width(getattr(chosen, name), self.bits) for name in ("weight", "activation")}
        if self.bits and widths["activation"] == chosen.residual:
            raise UserError(f"bits: begin at {self.bits[0]}, as `residual` ({chosen.residual}) does, so that they could not fall apart; "
                            "begin lower")  # fmt: skip
        return dataclasses.replace(chosen, **widths)


def first_width(spec: str, bits: tuple[int, ...]) -> str:
    """`spec` at the first of progressive widths."""
    return str(dataclasses.replace(quant.parse_spec(spec), bits=bits[0])) if bits and spec != quant.FLOAT else spec


@guard
def main(argv=None) -> Path:
    """Train, convert, measure, or go on with a run that was stopped; returns its folder."""
    config = parse(RetrainConfig, argv, "retrain.py", __doc__.splitlines()[0])
    command = shlex.join(["python", "retrain.py", *(sys.argv[1:] if argv is None else argv)])
    try:
        return retrain(config, command)
    except quant.QuantError as error:
        raise UserError(str(error)) from error


def retrain(config: RetrainConfig, command: str) -> Path:
    arch = architecture(config)
    if config.engine not in ("reference", *quant.available()):
        raise UserError(f"engine: {config.engine!r} does not run on this machine; choose from reference, {', '.join(quant.available())}")
    run = claim(config, arch, command)
    data = classification(config.data, config.data_root, arch.input_size, config.seed, config.train_images, config.download)
    task = Classification(len(data.classes), config.label_smoothing)
    model, fitted = train(config, arch, data, task, run)
    metrics = describe(config, arch, data, fitted) | measure(config, model, fitted, data, task, run)
    run.write_json("metrics.json", metrics)
    report = write_report(run.path)
    show(metrics)
    print(f"{run.path / 'metrics.json'}\n{report}")
    if not config.float_only and metrics["parity"]["refused"]:
        raise UserError(metrics["parity"]["refused"])
    return run.path


def architecture(config: RetrainConfig) -> Architecture:
    """The architecture asked for, at the input size and with the classes of the data."""
    arch = find(config.arch, config.runs)
    published = find_file(config.arch, config.runs) is None  # a table for ImageNet; a file says what it was searched for
    size = config.input_size or (32 if published and config.data != "imagefolder" else arch.input_size)
    return arch.for_input(size).with_classes(num_classes(config.data, config.data_root))


def claim(config: RetrainConfig, arch: Architecture, command: str) -> Run:
    """The run's folder, made or found again. Raises UserError where it holds anything else than this very run."""
    run = Run(Path(config.runs) / (config.name or f"{arch.name}_{'float' if config.float_only else 'int8'}"))
    quantizers = dataclasses.asdict(config.quantizers())
    run.claim({"program": "retrain", "command": command, **dataclasses.asdict(config), "quantizers": quantizers}, config.restart, FREE)
    if run.has(CHECKPOINT) and run.has("arch.json") and Architecture.load(run.path / "arch.json") != arch:
        raise UserError(f"arch: {config.arch} has changed since {run.path} was begun with it; choose another --name, or add --restart")
    arch.save(run.path / "arch.json")
    return run


def train(config: RetrainConfig, arch: Architecture, data: ClassificationData, task: Classification, run: Run) -> tuple[FrostNet, Fitted]:
    """The float model and what training made of it (they share their weights), both back on the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    model, data = FrostNet(arch), data.to(device)
    if config.from_float:
        load_float(model, config)
    model.to(device, memory_format=torch.channels_last)
    before = {name: task.evaluate(model, part) for name, part in data.held_out.items()} if config.from_float else None
    example = torch.zeros(2, arch.stem.in_channels, arch.input_size, arch.input_size, device=device)
    if not config.float_only:
        quant.plan(model, example, config.quantizers())  # what is wrong with the settings shows now, not after the float phase
    fitted = fit(model, task, Stream(data.train, config.batch_size, config.seed), data.held_out, config.recipe(), run, example)
    fitted.model.cpu()
    return model.cpu(), dataclasses.replace(fitted, float_metrics=before or fitted.float_metrics)


def load_float(model: FrostNet, config: RetrainConfig) -> None:
    """Give `model` the weights of a float run."""
    path = Path(config.from_float)
    path = path if path.is_file() else Path(config.runs) / config.from_float / CHECKPOINT
    if not path.is_file():
        raise UserError(f"from_float: {config.from_float!r} is neither a checkpoint nor a run with one in {config.runs}")
    state = Run(path.parent).load_checkpoint(path.name)
    if state.get("attached", True):
        raise UserError(f"from_float: {path} does not hold a float model; make one with --float-only")
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"from_float: {path} holds another architecture than {config.arch} ({first})") from error


def measure(config: RetrainConfig, model: FrostNet, fitted: Fitted, data: ClassificationData, task: Classification, run: Run) -> dict:
    """Convert, and compare the networks on the way: {"networks": rows, "parity": ..}, written as rows of accuracy and latency."""
    image = next(in_order(data.val, 1))[0]
    frozen = {"float": quant.freeze_float(model, image)}
    accuracy = {"float": fitted.float_metrics}
    results = {}
    if not config.float_only:
        executor = quant.convert(fitted.model, config.engine)
        results["parity"] = compare(fitted, executor, data)
        accuracy["fake_quant"] = fitted.metrics
        with quant.use_engine(config.engine):
            accuracy["int8"] = {name: task.evaluate(executor, part) for name, part in data.held_out.items()}
        if config.engine != "reference":
            frozen["int8"] = quant.freeze(executor, image)
            if results["parity"]["refused"] is None:  # what does not compute what was trained is not shipped
                save_frozen(frozen["int8"], run.path / "int8.pt")
    timings = time_networks(frozen, image, engine=config.engine, threads=config.threads)
    return {"networks": [row(name, metrics, timings.get(name)) for name, metrics in accuracy.items()], **results}


def compare(fitted: Fitted, executor: torch.nn.Module, data: ClassificationData) -> dict:
    """Does INT8 compute what was trained? Layer by layer on a batch, end to end on more pictures of the validation part."""
    batch = max(8, PARITY_PIXELS // data.val.input_size**2)
    report = quant.parity(fitted.model, executor, next(in_order(data.val, batch))[0])
    refused = None
    try:
        report.check()
    except quant.QuantError as error:
        refused = str(error)
    some = subset(data.val, AGREEMENT_IMAGES, 0)
    return {"layer_steps": report.layer_steps, "worst_layer": report.worst.name, "output_steps": round(report.output_steps, 3),
            "agreement": agreement(fitted.model, executor, some), "pictures": len(some), "refused": refused}  # fmt: skip


@torch.inference_mode()
def agreement(graph: torch.nn.Module, executor: torch.nn.Module, pictures: Pictures) -> float:
    """Share of pictures to which fake-quant and INT8 give the same class."""
    graph.eval()
    with quant.use_engine(executor.engine):
        same = [graph(x).argmax(1) == executor(x).argmax(1) for x, _ in in_order(pictures, 250)]
    return round(torch.cat(same).double().mean().item(), 6)


def save_frozen(frozen: quant.Frozen, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        frozen.save(temporary)
        os.replace(temporary, path)
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be written ({str(error).splitlines()[0]}); is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


def row(name: str, metrics: dict | None, timing: Timing | None) -> dict:
    """One network in numbers; None where there is none (accuracy of a float phase that did not take place)."""
    accuracy = {f"top1_{split}": values["top1"] for split, values in (metrics or {}).items()}
    ms, spread = (timing.ms, round(timing.rel_spread, 4)) if timing else (None, None)
    return {"network": name, **accuracy, "latency_ms": ms, "latency_spread": spread}


def describe(config: RetrainConfig, arch: Architecture, data: ClassificationData, fitted: Fitted) -> dict:
    """What was trained, on what, for how long."""
    schedule, total = config.schedule(), cost(arch)
    return {"arch": arch.name, "params": total.params, "macs": total.macs, "data": config.data, "input_size": arch.input_size,
            "train_images": len(data.train), **{f"{name}_images": len(part) for name, part in data.held_out.items()},
            "reported": list(data.held_out)[-1], "epochs": schedule.epochs, "float_epochs": schedule.float_epochs,
            "boost": config.recipe().boost, "seed": config.seed, "train_seconds": round(fitted.seconds, 1), "engine": config.engine,
            "latency_threads": config.threads,
            "latency_clock": "thread CPU time" if config.threads == 1 else "wall time"}  # fmt: skip


def show(metrics: dict) -> None:
    """The table that ends a run."""
    print(f"\n{metrics['arch']}, {metrics['input_size']} px: {metrics['params']:,} parameters, {metrics['macs']:,} MACs; trained "
          f"{metrics['epochs']} epochs ({metrics['float_epochs']} float) on {metrics['train_images']:,} pictures of {metrics['data']} "
          f"in {metrics['train_seconds'] / 60:.1f} minutes")  # fmt: skip
    print(pandas.DataFrame(metrics["networks"]).to_string(index=False, float_format="{:.4f}".format, na_rep="-"))
    if "parity" in metrics:
        p = metrics["parity"]
        print(f"parity on {metrics['engine']}: layers within {p['layer_steps']:g} steps (worst {p['worst_layer']}), output within "
              f"{p['output_steps']:.1f} steps, the same class for {p['agreement']:.2%} of {p['pictures']} pictures")  # fmt: skip


def cli() -> None:
    """The console script: what `main` returns is no exit code."""
    main()


if __name__ == "__main__":
    main()
