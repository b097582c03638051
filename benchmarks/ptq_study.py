"""What quantization-aware training gains over post-training quantization: five networks, 8, 6 and 4 bits, as integer
networks.

    PYTHONPATH=. python benchmarks/ptq_study.py --data-root FOLDER          # FOLDER/{train,val,test}/<class>/*.png, 32
    px
    PYTHONPATH=. python benchmarks/ptq_study.py --data-root FOLDER --smoke  # a few pictures, to see that it runs

Every column has trained on the same number of pictures. From one float training a network and seed, the last epochs are
trained once in float, and calibrated (minmax, percentile, mse), and once as QAT; `scratch` is QAT with StatAssist and
GradBoost from the first epochs on. Writes docs/results/ptq.{json,md} and brings them up to date after each cell. The
same command goes on where it was stopped. Cells run side by side in processes of one thread each. Accuracy is that of
the INT8 engine, fake-quant's stands beside it.
"""

import functools
import math
import platform
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

import quant
import zoo
from benchmarks.alone import predictions, share
from benchmarks.low_bit import EIGHT, RESULT, ShortEpochs, claim, held_out, in_parallel, percent, spread, workers
from common.cli import guard, option, parse
from common.errors import UserError
from common.files import read_json, write_bytes, write_json
from common.runs import Run
from quant import Override, QuantConfig, Schedule
from quant.calibrate import METHODS as PTQ
from quant.calibrate import calibrate
from tasks import (
    Classification,
    ClassificationData,
    Diverged,
    Pictures,
    Recipe,
    Stream,
    classification,
    fit,
    in_order,
    subset,
)

NETWORKS = ("resnet20", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_small_relu", "frostnet_small_0_5")
COLUMNS = (*PTQ, "qat", "scratch")
BITS = (8, 4, 6)  # of weights and activations, in the order in which cells are computed
SCRATCH_BITS = 8
PARTS = 10  # that the last epochs are cut into
BATCH = 64
SMOKE = {
    "train_images": 256,
    "held_out_images": 100,
    "calibration_images": 64,
    "float_epochs": 1,
    "tune_epochs": 1,
    "seeds": (0,),
}


@dataclass(frozen=True)
class PtqConfig:
    data_root: str = option(help="folder of the data")
    data: Literal["imagefolder", "cifar10", "cifar100"] = option(
        "imagefolder", "its layout: train, val and test folders, or torchvision's"
    )
    networks: tuple[str, ...] = option(NETWORKS, "networks")
    bits: tuple[int, ...] = option(BITS, "bits")
    columns: tuple[str, ...] = option(COLUMNS, "columns")
    seeds: tuple[int, ...] = option((0, 1), "seeds")
    train_images: int = option(20_000, "pictures to train on")
    held_out_images: int | None = option(
        None, "report on so many of the held-out pictures (default: all of val and test)"
    )
    calibration_images: int = option(512, "training pictures to calibrate on")
    percentile: float = option(99.99, "of the column percentile")
    float_epochs: int = option(8, "epochs of the float training")
    tune_epochs: int = option(2, "epochs after it, in float and as QAT")
    lr: float = option(0.05, "peak learning rate of trainings from scratch")
    tune_lr: float = option(0.01, "peak learning rate of the last epochs")
    weight_decay: float = option(1e-4, "weight decay, of weights only")
    engine: Literal[tuple(quant.ENGINES)] = option("fbgemm", "engine of the integer networks")
    processes: int = option(2, "cells at a time, one thread each")
    minutes: float = option(math.inf, "begin no further cell after so many minutes")
    smoke: bool = option(False, "a few pictures and steps, to see that it runs; into folders of their own")
    runs: str = option("runs/ptq", "folder of all runs of the study")
    output: str = option("docs/results", "folder of the results")

    def __post_init__(self):
        for field, known in (("columns", COLUMNS), ("bits", tuple(range(2, 9)))):
            for value in getattr(self, field):
                if value not in known:
                    raise UserError(f"{field}: {value!r} is not one of {', '.join(map(str, known))}")
        for name in self.networks:
            zoo.build(name, 10, 32)


# change no cell's result
FREE = ("data_root", "networks", "bits", "columns", "seeds", "processes", "minutes", "runs", "output", "smoke")


class Cell(NamedTuple):
    seed: int
    network: str
    bits: int
    column: str

    @property
    def name(self) -> str:
        return f"{self.network}_{self.seed}_{self.column}_{self.bits}"


@guard(errors=(quant.QuantError,))
def main(argv=None) -> Path:
    """Run the study, or go on with it; returns the JSON's path."""
    config = parse(PtqConfig, argv, "ptq_study.py", __doc__)
    if config.smoke:
        config = replace(config, **SMOKE, runs=f"{config.runs}_smoke", output=f"{config.runs}_smoke")
    claim(config, FREE)
    started = time.monotonic()
    with workers(config) as pool:
        for stage in stages(config):
            for text in in_parallel(pool, stage, config.processes, until=started + 60 * config.minutes):
                print(f"{(time.monotonic() - started) / 60:5.1f} min  {text}", flush=True)
                write(config)
    return write(config)


def planned(config: PtqConfig) -> list[Cell]:
    """Every cell, seed by seed, network by network, width by width."""
    cells = [
        Cell(*c)
        for c in (
            (s, n, b, c) for s in config.seeds for n in config.networks for b in config.bits for c in config.columns
        )
    ]
    return [c for c in cells if c.column != "scratch" or c.bits == SCRATCH_BITS]


def stages(config: PtqConfig) -> list[list]:
    """The jobs, in stages of which each needs the one before: seed by seed the float trainings, then what starts from
    them; at the end the trainings from scratch, which are the longest."""
    cells = planned(config)
    staged = []
    for seed in config.seeds:
        staged.append([functools.partial(train_float, config, seed, network) for network in config.networks])
        staged.append(
            [functools.partial(run_cell, config, c) for c in cells if c.seed == seed and c.column != "scratch"]
        )
    return [*staged, [functools.partial(run_cell, config, c) for c in cells if c.column == "scratch"]]


# ---- one job, in a worker process --------------------------------------------------------------------------


@functools.cache
def data_of(data: str, data_root: str, train_images: int) -> ClassificationData:
    return classification(data, data_root, 32, train_images=train_images)


def load(config: PtqConfig) -> ClassificationData:
    return data_of(config.data, config.data_root, config.train_images)


def train_float(config: PtqConfig, seed: int, name: str) -> str:
    """Train a network in float, then on as its QAT cells will be: what is calibrated, and the baseline.

    The text says how it went.
    """
    run = float_run(config, seed, name)
    if not run.has(RESULT):
        data = load(config)
        torch.manual_seed(seed)
        model = network(name, data)
        recipe = Recipe(
            Schedule(config.float_epochs, config.float_epochs),
            lr=config.lr,
            weight_decay=config.weight_decay,
            boost="off",
            seed=seed,
        )
        first = fit(model, task(data), Stream(data.train, BATCH, seed), {}, recipe, run, example())
        judged = held_out(config, data)
        untuned = top1(predictions(model, judged), judged)
        recipe = replace(recipe, schedule=Schedule(PARTS, PARTS), lr=config.tune_lr)
        last = fit(model, task(data), tuning_stream(config, data, seed), {}, recipe, Run(run.path / "tuned"), example())
        found = predictions(last.model, judged)
        run.write_json(
            RESULT,
            {
                "seed": seed,
                "network": name,
                "untuned": untuned,
                "top1": top1(found, judged),
                "pictures": len(judged),
                "seconds": round(first.seconds + last.seconds, 1),
                "predictions": found.tolist(),
            },
        )
    result = run.read_json(RESULT)
    return f"{name}, seed {seed}: float {percent(result['top1'])} in {result['seconds']:.0f} s"


def run_cell(config: PtqConfig, cell: Cell) -> str:
    """Make one cell's graph, convert it and judge both; the text says how it went."""
    run = Run(Path(config.runs) / cell.name)
    if not run.has(RESULT):
        try:
            result = judge(config, cell, make(config, cell, run))
        except Diverged as error:  # a result too, as a full disk is not
            result = {"int8": None, "fake_quant": None, "refused": str(error)}
        run.write_json(RESULT, cell._asdict() | result)
    result = run.read_json(RESULT)
    fate = (
        f"INT8 {percent(result['int8'])}, fake-quant {percent(result['fake_quant'])}"
        if not result["refused"]
        else result["refused"]
    )
    return f"{cell.network}, seed {cell.seed}, {cell.bits} bits, {cell.column}: {fate}"


def make(config: PtqConfig, cell: Cell, run: Run) -> tuple[nn.Module, float]:
    """(the cell's attached graph, seconds that it took)."""
    data = load(config)
    torch.manual_seed(cell.seed)
    model = network(cell.network, data)
    wanted = quant_config(model, cell.bits, config.engine)
    if cell.column in PTQ:
        model.load_state_dict(Run(float_run(config, cell.seed, cell.network).path / "tuned").load_checkpoint()["model"])
        pictures = in_order(subset(data.train, config.calibration_images, cell.seed), BATCH)
        started = time.monotonic()
        return calibrate(model, pictures, wanted, cell.column, config.percentile), time.monotonic() - started
    # as in float: nothing stands still before the end
    schedule = Schedule(PARTS, 0, observer_freeze=1.0, bn_freeze=1.0)
    recipe = Recipe(
        schedule, lr=config.tune_lr, weight_decay=config.weight_decay, boost="off", quant=wanted, seed=cell.seed
    )
    stream = tuning_stream(config, data, cell.seed)
    if cell.column == "qat":
        model.load_state_dict(float_run(config, cell.seed, cell.network).load_checkpoint()["model"])
    else:
        epochs = config.float_epochs + config.tune_epochs
        recipe = replace(recipe, schedule=Schedule(epochs, 1), lr=config.lr, boost="paper")
        stream = Stream(data.train, BATCH, cell.seed)
    fitted = fit(model, task(data), stream, {}, recipe, run, example())
    return fitted.model, fitted.seconds


def judge(config: PtqConfig, cell: Cell, made: tuple[nn.Module, float]) -> dict:
    """Accuracy of the graph and of its integer network, and how often they name the same class."""
    graph, seconds = made
    judged = held_out(config, load(config))
    executor = quant.convert(graph, config.engine)
    with quant.use_engine(config.engine):
        integer = predictions(executor, judged)
    simulated = predictions(graph, judged)
    in_float = torch.tensor(float_run(config, cell.seed, cell.network).read_json(RESULT)["predictions"])
    engines = every_engine(graph, simulated, judged) if cell.column not in PTQ and cell.bits == 8 else {}
    return {
        "int8": top1(integer, judged),
        "fake_quant": top1(simulated, judged),
        "agreement": share(integer == simulated),
        "agreement_float": share(integer == in_float),
        "float_ops": len(executor.float_ops),
        "refused": None,
        "engines": engines,
        "seconds": round(seconds, 1),
    }


def every_engine(graph: nn.Module, simulated: Tensor, judged: Pictures) -> dict[str, dict]:
    """By engine: the INT8 accuracy of one trained network, and how often it names fake-quant's class."""
    found = {}
    for engine in quant.available():
        executor = quant.convert(graph, engine)
        with quant.use_engine(engine):
            integer = predictions(executor, judged)
        found[engine] = {"int8": top1(integer, judged), "agreement": share(integer == simulated)}
    return found


def quant_config(model: nn.Module, bits: int, engine: str) -> QuantConfig:
    """`bits` for weights and for activations as layers read them;

    8 for the first and the last layer and all that no layer reads.
    """
    layers = [row.name for row in quant.plan(model, example()) if row.op in ("conv", "linear")]
    ends = tuple(Override(match=name, weight=EIGHT, activation=EIGHT) for name in (layers[0], layers[-1]))
    return QuantConfig(engine=engine, weight=f"int8:{bits}", activation=f"int8:{bits}", overrides=ends)


def top1(predicted: Tensor, pictures: Pictures) -> float:
    return share(predicted == pictures.labels)


def float_run(config: PtqConfig, seed: int, name: str) -> Run:
    return Run(Path(config.runs) / f"{name}_{seed}_float")


def tuning_stream(config: PtqConfig, data: ClassificationData, seed: int) -> ShortEpochs:
    stream = Stream(data.train, BATCH, seed)
    return ShortEpochs(stream, max(1, round(config.tune_epochs * stream.steps_per_epoch / PARTS)))


def network(name: str, data: ClassificationData) -> nn.Module:
    return zoo.build(name, len(data.classes), 32).to(memory_format=torch.channels_last)


def task(data: ClassificationData) -> Classification:
    return Classification(len(data.classes))


def example() -> Tensor:
    return torch.zeros(2, 3, 32, 32)


# ---- results -----------------------------------------------------------------------------------------------


def write(config: PtqConfig) -> Path:
    """ptq.json and .md from the cells there are."""
    runs, output = Path(config.runs), Path(config.output)
    floats = [float_run(config, seed, name).path / RESULT for seed in config.seeds for name in config.networks]
    floats = [{k: v for k, v in read_json(path).items() if k != "predictions"} for path in floats if path.is_file()]
    cells = [read_json(path) for cell in planned(config) if (path := runs / cell.name / RESULT).is_file()]
    result = {
        "command": f"PYTHONPATH=. python benchmarks/ptq_study.py --data-root FOLDER --seeds {' '.join(map(str, config.seeds))}",
        "settings": read_json(runs / "settings.json"),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "planned": len(planned(config)),
        "float": floats,
        "cells": cells,
    }
    write_json(output / "ptq.json", result)
    write_bytes(output / "ptq.md", page(result).encode())
    return output / "ptq.json"


def page(result: dict) -> str:
    """The results as a page."""
    settings, cells, floats = result["settings"], result["cells"], result["float"]
    partial = "" if len(cells) == result["planned"] else f"**{len(cells)} of {result['planned']} cells so far.** "
    epochs, seeds = settings["float_epochs"] + settings["tune_epochs"], len({f["seed"] for f in floats})
    pictures = floats[0]["pictures"] if floats else 0
    limit = quant.weight_qmax(settings["engine"])
    lines = [
        "# Post-training quantization against quantization-aware training",
        "",
        f"{partial}Written by `{result['command']}`; the numbers are in [ptq.json](ptq.json). Top-1 in percent of the **integer network** "
        f"on the engine {settings['engine']}, fake-quant's in brackets, on {pictures:,} held-out pictures that chose nothing; mean ± "
        f"standard deviation over {seeds} seed(s). Every column has trained for {epochs} epochs of {settings['train_images']:,} CIFAR-10 "
        "pictures, so these short trainings compare columns with each other, not with published accuracies.",
        "",
        f"- *float*: {settings['float_epochs']} epochs, then {settings['tune_epochs']} more at a peak learning rate of "
        f"{settings['tune_lr']:g}.",
        f"- *minmax*, *percentile* ({settings['percentile']:g}), *mse*: that float network, its ranges calibrated on "
        f"{settings['calibration_images']} training pictures.",
        f"- *qat*: the same {settings['float_epochs']} float epochs, then {settings['tune_epochs']} as QAT in place of float, with the "
        "same recipe: batch norm and ranges go on to the end.",
        f"- *scratch*: QAT from the second epoch on, with StatAssist and GradBoost, peak learning rate {settings['lr']:g}.",
        "",
        f"Weights and the activations that layers read have the bits of the table, sign included; the first and the last layer, and every "
        f"tensor that no layer reads, have 8. On {settings['engine']} 8-bit weights have the codes -{limit} to {limit}. All use plain int8 "
        "ranges. No setting was tuned, for any column.",
        "",
    ]
    for bits in sorted({cell["bits"] for cell in cells}, reverse=True):
        lines += [f"## {bits} bits", "", *table(cells, floats, bits), "", *reading(cells, floats, bits), ""]
    return "\n".join([*lines, *closing(cells, floats, pictures)])


def table(cells: list[dict], floats: list[dict], bits: int) -> list[str]:
    """Networks by columns, of one width."""
    columns = [c for c in COLUMNS if any(cell["column"] == c and cell["bits"] == bits for cell in cells)]
    lines = [f"| network | float | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for name in dict.fromkeys(f["network"] for f in floats):
        row = [shown([f["top1"] for f in floats if f["network"] == name])]
        for column in columns:
            some = [c for c in cells if (c["network"], c["bits"], c["column"]) == (name, bits, column)]
            good = [c for c in some if not c["refused"]]
            row.append(
                shown([c["int8"] for c in good], [c["fake_quant"] for c in good])
                if good
                else "diverged"
                if some
                else "-"
            )
        lines.append(f"| {name} | {' | '.join(row)} |")
    return lines


def shown(int8: list[float], fake_quant: list[float] = ()) -> str:
    """81.2 ± 0.4 (81.3)"""
    value = spread(int8)
    plus = f" ± {100 * value['std']:.1f}" if value["std"] is not None else ""
    return percent(value["mean"]) + plus + (f" ({percent(statistics.mean(fake_quant))})" if fake_quant else "")


def reading(cells: list[dict], floats: list[dict], bits: int) -> list[str]:
    """What each column loses against float, and QAT gains over each calibration, paired by network and seed."""
    accuracy = {
        (c["network"], c["seed"], c["column"]): c["int8"] for c in cells if c["bits"] == bits and not c["refused"]
    }
    accuracy |= {(f["network"], f["seed"], "float"): f["top1"] for f in floats}
    losses = [f"{column} {text}" for column in COLUMNS if (text := difference(accuracy, column, "float"))]
    gains = [f"over {column} {text}" for column in PTQ if (text := difference(accuracy, "qat", column))]
    lines = [f"- Against float, in points, mean over networks and seeds: {'; '.join(losses)}."] if losses else []
    return lines + ([f"- QAT gains, in points: {'; '.join(gains)}."] if gains else [])


def by_engine(cells: list[dict]) -> list[str]:
    """How far every engine is from fake-quant, on the networks that trained with it."""
    lines = []
    for engine in dict.fromkeys(name for c in cells for name in c["engines"]):
        found = [
            (c["engines"][engine]["agreement"], abs(c["engines"][engine]["int8"] - c["fake_quant"]))
            for c in cells
            if engine in c["engines"]
        ]
        least, gap = min(same for same, _ in found), max(gap for _, gap in found)
        lines.append(
            f"- On {engine} the 8-bit networks trained with quantizers name fake-quant's class for {100 * least:.2f} % of the "
            f"pictures or more (mean {100 * statistics.mean(same for same, _ in found):.2f} %, {len(found)} networks), and their "
            f"accuracy is at most {100 * gap:.2f} points from fake-quant's."
        )
    return lines


def difference(accuracy: dict, one: str, other: str) -> str:
    """Mean and range of the paired differences between two columns, "" where there are none."""
    keys = [key[:2] for key in accuracy if key[2] == one and (*key[:2], other) in accuracy]
    gaps = [100 * (accuracy[*key, one] - accuracy[*key, other]) for key in keys]
    return f"{statistics.mean(gaps):+.2f} ({min(gaps):+.2f} to {max(gaps):+.2f}, {len(gaps)} pairs)" if gaps else ""


def closing(cells: list[dict], floats: list[dict], pictures: int) -> list[str]:
    """How far the integer networks are from fake-quant and from float, and how sure the numbers are."""
    lines = []
    good = [c for c in cells if not c["refused"]]
    if good:
        gap = max(abs(c["int8"] - c["fake_quant"]) for c in good)
        least, floating = min(good, key=lambda c: c["agreement"]), max(c["float_ops"] for c in good)
        lines += [
            "## The integer networks",
            "",
            f"- INT8 is at most {100 * gap:.2f} points from fake-quant; they name the same class for {100 * least['agreement']:.1f} % or "
            f"more of the pictures (least: {least['network']}, {least['bits']} bits, {least['column']}).",
            f"- Operations that run in float between integer ones: at most {floating} in a network.",
        ]
        for bits in sorted({c["bits"] for c in good}, reverse=True):
            words = [
                f"{column} {100 * statistics.mean(some):.1f}"
                for column in (*PTQ, "qat")
                if (some := [c["agreement_float"] for c in good if (c["bits"], c["column"]) == (bits, column)])
            ]
            lines.append(f"- The same class as float at {bits} bits, in percent of the pictures: {', '.join(words)}.")
    lines += by_engine([c for c in good if c["engines"]])
    if pictures:
        lines.append(
            f"- At 80 % the pictures alone give each number of one seed a standard error of {100 * math.sqrt(0.16 / pictures):.1f} points."
        )
    refused = [
        f"- {c['network']}, seed {c['seed']}, {c['bits']} bits, {c['column']}: {c['refused']}"
        for c in cells
        if c["refused"]
    ]
    return [*lines, *refused, ""]


if __name__ == "__main__":
    main()
