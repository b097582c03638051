"""Low-bit study on real pictures: every quantization method at 4, 3 and 2 bits on ResNet-20, in float first, then
fine-tuned.

    PYTHONPATH=. python benchmarks/low_bit.py --data-root FOLDER            # FOLDER/{train,val,test}/<class>/*.png, 32
    px

Writes docs/results/low_bit.{json,md,png} and brings them up to date after each cell. The same command goes on where it
was stopped. Cells run side by side in processes of one thread each. The first convolution and the last linear layer are
at 8 bits, and so is every tensor that no layer reads, so the whole network is integer; its accuracy is that of the INT8
engine.
"""

import concurrent.futures as futures
import functools
import math
import multiprocessing
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import quant
import zoo
from common.cli import guard, option, parse
from common.errors import UserError
from common.files import plain, read_json, write_bytes, write_json
from common.runs import Run
from nas.report.style import LINES
from nas.report.style import save as save_figure
from quant import Override, QuantConfig, Schedule
from quant.quantizers import FLOAT
from tasks import Classification, ClassificationData, Diverged, Pictures, Recipe, Stream, classification, fit, subset

# bits of weights and activations, the most telling first
ROWS = {"2": (2, 2), "4": (4, 4), "3": (3, 3), "w3a4": (3, 4)}
SHOWN = ("4", "w3a4", "3", "2")
PARTS = 12  # epochs that a fine-tuning is cut into, so that progressive bits divide it evenly
BATCH = 64
RESULT = "result.json"


class Method(NamedTuple):
    """A column: weight and activation specs without their bits."""

    weight: str
    activation: str
    progressive: bool = False  # 5, 4, 3, 2 bits, down to the row's, in equal shares of the fine-tuning
    freeze_bn: bool = False
    note: str = ""


METHODS = {
    "pact": Method(FLOAT, "pact", note="float weights, which run as float layers: activations alone"),
    "int8": Method("int8", "int8"),
    "gdrq+pact": Method("gdrq", "pact"),
    "int8+pact": Method("int8", "pact"),
    "dorefa+pact": Method("dorefa", "pact", note="the pair of the PACT paper"),
    "lsq": Method("lsq", "lsq"),
    "qil progressive": Method("qil", "qil", progressive=True),
    "fqn": Method(
        "fqn",
        "fqn",
        freeze_bn=True,
        note="batch norm frozen, as in its paper, which fine-tunes at far smaller learning rates",
    ),
    "fqn, free BN": Method("fqn", "fqn", note="fqn with batch norms that go on learning"),
}
EIGHT = "int8:8"
BODY = ("stage*.conv?", "stage*.shortcut.0")
ENDS = tuple(Override(match=name, weight=EIGHT, activation=EIGHT) for name in ("conv", "fc"))

# The README of MXNet_Quantization: CIFAR-10, ResNet-20, long trainings on all 50,000 pictures.
ANCESTOR = {
    "fp32": {"pact (paper)": 0.916, "pact": 0.920, "google": 0.920, "gdrq+pact": 0.920, "google+pact": 0.920},
    "4": {"pact (paper)": 0.913, "pact": 0.918, "google": 0.914, "gdrq+pact": 0.917, "google+pact": 0.919},
    "w3a4": {"pact (paper)": None, "pact": 0.918, "google": 0.911, "gdrq+pact": 0.914, "google+pact": 0.917},
    "3": {"pact (paper)": 0.911, "pact": 0.917, "google": 0.891, "gdrq+pact": 0.918, "google+pact": 0.916},
    "2": {"pact (paper)": 0.897, "pact": 0.897, "google": 0.67, "gdrq+pact": 0.903, "google+pact": 0.893},
}


@dataclass(frozen=True)
class LowBitConfig:
    data_root: str = option(help="folder with train, val and test, one folder a class in each")
    columns: tuple[str, ...] = option(tuple(METHODS), "methods")
    rows: tuple[str, ...] = option(tuple(ROWS), "bits: total bits of weights and activations")
    seeds: tuple[int, ...] = option((0, 1), "seeds")
    train_images: int = option(20_000, "pictures to train on")
    held_out_images: int | None = option(
        None, "report on so many of the held-out pictures (default: all of val and test)"
    )
    float_epochs: int = option(12, "epochs of the float training")
    float_lr: float = option(0.1, "its peak learning rate")
    tune_steps: int = option(384, f"steps of each fine-tuning, {BATCH} pictures each")
    tune_lr: float = option(0.02, "its peak learning rate")
    weight_decay: float = option(1e-4, "weight decay, of weights only")
    engine: Literal[tuple(quant.ENGINES)] = option("fbgemm", "engine of the integer networks")
    processes: int = option(2, "cells at a time, one thread each")
    minutes: float = option(math.inf, "begin no further cell after so many minutes")
    runs: str = option("runs/low_bit", "folder of all runs of the study")
    output: str = option("docs/results", "folder of the results")

    def __post_init__(self):
        for field, known in (("columns", METHODS), ("rows", ROWS)):
            for name in getattr(self, field):
                if name not in known:
                    raise UserError(f"{field}: {name!r} is not one of {', '.join(known)}")
        if self.tune_steps < 1 or self.tune_steps % PARTS:
            raise UserError(f"tune_steps: {self.tune_steps}, must be a multiple of {PARTS}")


# settings that change no cell's result
FREE = ("data_root", "columns", "rows", "seeds", "processes", "minutes", "runs", "output")


class Cell(NamedTuple):
    seed: int
    row: str
    column: str

    @property
    def name(self) -> str:
        return f"{self.column}_{self.row}_{self.seed}".replace(" ", "_").replace(",", "")


@guard(errors=(quant.QuantError,))
def main(argv=None) -> Path:
    """Run the study, or go on with it; returns the JSON's path."""
    config = parse(LowBitConfig, argv, "low_bit.py", __doc__)
    claim(config)
    started = time.monotonic()
    floats = [functools.partial(train_float, config, seed) for seed in config.seeds]
    cells = [functools.partial(fine_tune, config, cell) for cell in planned(config)]
    with workers(config) as pool:
        for stage in (floats, cells):
            for text in in_parallel(pool, stage, config.processes, until=started + 60 * config.minutes):
                print(f"{(time.monotonic() - started) / 60:5.1f} min  {text}", flush=True)
                write(config)
    return write(config)


def claim(config: Any, free: tuple[str, ...] = FREE) -> None:
    """Make the folder of a study's runs;

    UserError where it holds cells made with other settings than `config`'s, those in `free` apart.
    """
    settings = plain({name: value for name, value in asdict(config).items() if name not in free})
    run = Run(config.runs)
    if run.has("settings.json") and (before := run.read_json("settings.json")) != settings:
        words = ", ".join(f"{k}: {before.get(k)} then, {v} now" for k, v in settings.items() if before.get(k) != v)
        raise UserError(
            f"runs: {config.runs} holds a study with other settings ({words}); repeat them or choose another --runs"
        )
    run.write_json("settings.json", settings)


def planned(config: LowBitConfig) -> list[Cell]:
    """Every cell, seed by seed, row by row. Float weights make w3a4 the same cell as 4."""
    cells = [Cell(seed, row, column) for seed in config.seeds for row in ROWS for column in METHODS]
    cells = [c for c in cells if c.row in config.rows and c.column in config.columns]
    return [c for c in cells if not (c.row == "w3a4" and METHODS[c.column].weight == FLOAT)]


def workers(config: LowBitConfig) -> futures.ProcessPoolExecutor:
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}  # read by the new processes as they start
    return futures.ProcessPoolExecutor(
        config.processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)
    )


def in_parallel(pool: futures.Executor, jobs: list, at_once: int, until: float):
    """Yield each job's result as it comes; none is begun after `until` (seconds of time.monotonic)."""
    jobs, running = iter(jobs), set()
    while True:
        while len(running) < at_once and time.monotonic() < until and (job := next(jobs, None)) is not None:
            running.add(pool.submit(job))
        if not running:
            return
        done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
        yield from (future.result() for future in done)


# ---- one training, in a worker process ---------------------------------------------------------------------


@functools.cache
def data_of(data_root: str, train_images: int) -> ClassificationData:
    return classification("imagefolder", data_root, 32, train_images=train_images)


def held_out(config: LowBitConfig, data: ClassificationData) -> Pictures:
    """All held-out parts as one: nothing is chosen by any of them."""
    parts = data.held_out.values()
    joined = replace(data.val, images=torch.cat([p.images for p in parts]), labels=torch.cat([p.labels for p in parts]))
    return subset(joined, config.held_out_images, 0)


def train_float(config: LowBitConfig, seed: int) -> str:
    """Train ResNet-20 in float, and then on as every cell will be: the baseline of them all.

    The text says how it went.
    """
    run = Run(Path(config.runs) / f"float_{seed}")
    if not run.has(RESULT):
        data = data_of(config.data_root, config.train_images)
        task, judged = Classification(len(data.classes)), held_out(config, data)
        torch.manual_seed(seed)
        model, schedule = network(data), Schedule(config.float_epochs, config.float_epochs)
        recipe = Recipe(schedule, lr=config.float_lr, weight_decay=config.weight_decay, boost="off", seed=seed)
        fitted = fit(model, task, Stream(data.train, BATCH, seed), {}, recipe, run, example())
        top1 = task.evaluate(fitted.model, judged)["top1"]
        recipe = replace(recipe, schedule=Schedule(PARTS, PARTS), lr=config.tune_lr)
        tuned = fit(model, task, tuning_stream(config, data, seed), {}, recipe, Run(run.path / "tuned"), example())
        run.write_json(
            RESULT,
            {
                "seed": seed,
                "top1": top1,
                "tuned": task.evaluate(tuned.model, judged)["top1"],
                "pictures": len(judged),
                "seconds": round(fitted.seconds + tuned.seconds, 1),
            },
        )
    result = run.read_json(RESULT)
    return f"float, seed {seed}: {percent(result['top1'])}, fine-tuned {percent(result['tuned'])} in {result['seconds']:.0f} s"


def fine_tune(config: LowBitConfig, cell: Cell) -> str:
    """Fine-tune one cell from its seed's float weights and convert it; the text says how it went."""
    run = Run(Path(config.runs) / cell.name)
    if not run.has(RESULT):
        try:
            result = tuned(config, cell, run)
        except Diverged as error:  # a result too, as a full disk is not
            result = {"fake_quant": None, "int8": None, "float_layers": None, "refused": str(error), "seconds": None}
        run.write_json(RESULT, cell._asdict() | result)
    result = run.read_json(RESULT)
    fate = f"INT8 {percent(result['int8'])}" if result["int8"] is not None else f"no INT8 ({result['refused']})"
    return f"{cell.column} at {cell.row} bits, seed {cell.seed}: fake-quant {percent(result['fake_quant'])}, {fate}"


def tuned(config: LowBitConfig, cell: Cell, run: Run) -> dict:
    data = data_of(config.data_root, config.train_images)
    task, model = Classification(len(data.classes)), network(data)
    model.load_state_dict(Run(Path(config.runs) / f"float_{cell.seed}").load_checkpoint()["model"])
    fitted = fit(model, task, tuning_stream(config, data, cell.seed), {}, recipe(config, cell), run, example())
    judged = held_out(config, data)
    result = {
        "fake_quant": task.evaluate(fitted.model, judged)["top1"],
        "int8": None,
        "float_layers": None,
        "refused": None,
    }
    try:
        executor = quant.convert(fitted.model, config.engine)
        result["float_layers"] = sum(op.kind == "float" for op in executor.graph.ops)
        with quant.use_engine(config.engine):
            result["int8"] = task.evaluate(executor, judged)["top1"]
    except quant.QuantError as error:
        result["refused"] = str(error)
    return result | {"seconds": round(fitted.seconds, 1), "losses": [round(row["loss"], 4) for row in run.read_log()]}


def recipe(config: LowBitConfig, cell: Cell) -> Recipe:
    """Ranges and batch norm adapt to the end: the last bits of a progressive run come in the last part."""
    weight_bits, activation_bits = ROWS[cell.row]
    method = METHODS[cell.column]
    bits = tuple(range(5, weight_bits - 1, -1)) if method.progressive else ()
    schedule = Schedule(PARTS, 0, observer_freeze=1.0, bn_freeze=1.0, bits=bits)
    return Recipe(
        schedule,
        lr=config.tune_lr,
        weight_decay=config.weight_decay,
        boost="off",
        seed=cell.seed,
        quant=quant_config(method, weight_bits, activation_bits, config.engine),
    )


def quant_config(method: Method, weight_bits: int, activation_bits: int, engine: str) -> QuantConfig:
    weight = method.weight if method.weight == FLOAT else f"{method.weight}:{weight_bits}"
    activation = f"{method.activation}:{activation_bits}"
    # progressive bits move the defaults, weights and activations alike: by name, activations of another width stay
    # where they are
    named = (
        tuple(Override(match=name, activation=activation) for name in BODY) if weight_bits != activation_bits else ()
    )
    return QuantConfig(
        engine=engine,
        weight=weight,
        activation=FLOAT if named else activation,
        residual=EIGHT,
        overrides=named + ENDS,
        freeze_bn=method.freeze_bn,
    )


def tuning_stream(config: LowBitConfig, data: ClassificationData, seed: int) -> "ShortEpochs":
    return ShortEpochs(Stream(data.train, BATCH, seed), config.tune_steps // PARTS)


class ShortEpochs:
    """The same batches in epochs of `steps_per_epoch` steps: phases of the schedule change at the ends of epochs."""

    def __init__(self, stream: Stream, steps_per_epoch: int):
        self.batch, self.batch_size, self.steps_per_epoch = stream.batch, stream.batch_size, steps_per_epoch


def network(data: ClassificationData) -> nn.Module:
    return zoo.build("resnet20", len(data.classes), 32).to(memory_format=torch.channels_last)


def example() -> Tensor:
    return torch.zeros(2, 3, 32, 32)


# ---- results -----------------------------------------------------------------------------------------------


def write(config: LowBitConfig) -> Path:
    """low_bit.json, .md and .png from the cells there are."""
    runs, output = Path(config.runs), Path(config.output)
    floats = [read_json(path) for seed in config.seeds if (path := runs / f"float_{seed}" / RESULT).is_file()]
    cells = [read_json(path) for cell in planned(config) if (path := runs / cell.name / RESULT).is_file()]
    result = {
        "command": f"PYTHONPATH=. python benchmarks/low_bit.py --data-root FOLDER --seeds {' '.join(map(str, config.seeds))}",
        "settings": read_json(runs / "settings.json"),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "planned": len(planned(config)),
        "float": floats,
        "cells": cells,
        "ancestor": ANCESTOR,
    }
    write_json(output / "low_bit.json", result)
    write_bytes(output / "low_bit.md", page(config, result).encode())
    save_figure(figure(result), output / "low_bit.png")
    return output / "low_bit.json"


def table(cells: list[dict]) -> dict[str, dict[str, dict]]:
    """{row: {column: {"mean", "std", "seeds", "integer"}}}: accuracy on the engine, or of fake-quant where it has no
    place there.
    """
    found = {}
    for row in SHOWN:
        for column, method in METHODS.items():
            source = "4" if row == "w3a4" and method.weight == FLOAT else row  # see `planned`
            some = [c for c in cells if c["row"] == source and c["column"] == column and c["fake_quant"] is not None]
            if some:
                form = "int8" if all(c["int8"] is not None for c in some) else "fake_quant"
                integer = all(c["float_layers"] == 0 for c in some)
                found.setdefault(row, {})[column] = spread([c[form] for c in some]) | {"integer": integer}
    return found


def spread(values: list[float]) -> dict:
    return {
        "mean": statistics.mean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
    }


def page(config: LowBitConfig, result: dict) -> str:
    """The results as a page."""
    settings, cells = result["settings"], result["cells"]
    ours, columns = table(cells), [c for c in METHODS if any(cell["column"] == c for cell in cells)]
    pictures = result["float"][0]["pictures"] if result["float"] else 0
    partial = "" if len(cells) == result["planned"] else f"**{len(cells)} of {result['planned']} cells so far.** "
    floats = spread([f["tuned"] for f in result["float"]]) if result["float"] else None
    seeds = len(result["float"])
    untuned = f" ({shown(spread([f['top1'] for f in result['float']]))} before it)" if floats else ""
    lines = [
        "# Low-bit methods on CIFAR-10 pictures: ResNet-20",
        "",
        f"{partial}Written by `{result['command']}`; the numbers are in [low_bit.json](low_bit.json). Float training once a seed "
        f"({settings['float_epochs']} epochs of {settings['train_images']:,} pictures), then each cell is fine-tuned from those weights "
        f"on {settings['tune_steps'] * BATCH:,} pictures with one recipe: SGD, momentum 0.9, batch {BATCH}, peak learning rate "
        f"{settings['tune_lr']:g}, warm-up and cosine, no GradBoost. The float row was fine-tuned so too, without quantizers{untuned}. The "
        "learning rate was chosen on training pictures held out from a trial, as was the start of qil's intervals; it is a compromise: "
        "there plain int8 and int8+pact at 2 bits were 3 to 5 points better at 0.05, lsq at 4 bits and frozen fqn worse. "
        f"Top-1 in percent on {pictures:,} held-out pictures that chose nothing, mean ± standard deviation over {seeds} seed(s). "
        "These short trainings on fewer pictures compare methods with each other; they are not comparable with published CIFAR-10 "
        "accuracies.",
        "",
        "Bits are **total** bits, sign included: 2-bit signed weights have at most 4 codes. `w3a4` is 3-bit weights, 4-bit activations. "
        "The first convolution, its input and the last linear layer are int8 at 8 bits, as is every tensor that no layer reads (the sums "
        "and the skip connections); all other weights, and all activations as the layers read them, have the row's bits.",
        "",
        "![accuracy against bits](low_bit.png)",
        "",
        f"| bits | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
        *([f"| float, fine-tuned alike | {' | '.join([shown(floats)] * len(columns))} |"] if floats else []),
        *(f"| {row} | {' | '.join(shown(ours[row].get(c)) for c in columns)} |" for row in SHOWN if row in ours),
        "",
        *forms(cells, settings["engine"]),
        "",
        "## What it shows",
        "",
        *reading(ours, floats, cells, pictures),
        "",
        "## The ancestor's table",
        "",
        "From the README of MXNet_Quantization, CIFAR-10, ResNet-20, as published: long trainings on all 50,000 pictures. Its *google* and "
        "*gdrq* quantizers count the bits of the magnitude, so these columns may have one bit more than they say; it does not say what "
        "weights stood behind *pact*.",
        "",
        f"| bits | {' | '.join(ANCESTOR['4'])} |",
        "|---" * (len(ANCESTOR["4"]) + 1) + "|",
        *(f"| {row} | {' | '.join(percent(v) for v in values.values())} |" for row, values in ANCESTOR.items()),
        "",
    ]
    return "\n".join(lines)


def forms(cells: list[dict], engine: str) -> list[str]:
    """Notes on the columns, and which cells have no integer network, with the reason."""
    lines = [f"- *{column}*: {method.note}." for column, method in METHODS.items() if method.note]
    refused = {}
    for cell in cells:
        if cell["refused"]:
            lacks = "integer network" if cell["fake_quant"] is not None else "result"
            refused.setdefault((cell["column"], lacks, cell["refused"].split(";")[0]), []).append(cell["row"])
    lines += [
        f"- *{column}* ({', '.join(dict.fromkeys(rows))} bits) has no {lacks}: {why}."
        for (column, lacks, why), rows in refused.items()
    ]
    return [
        f"Without a star: the integer network on the engine {engine}. With one: layers run in float on it, or it is fake-quant; see "
        "below.",
        "",
        *lines,
    ]


def reading(ours: dict, floats: dict | None, cells: list[dict], pictures: int) -> list[str]:
    """The results in sentences, for better or worse."""
    lines = []
    for row in SHOWN:
        ranked = sorted(ours.get(row, {}).items(), key=lambda item: -item[1]["mean"])
        if ranked and floats:
            words = ", ".join(f"{column} {percent(value['mean'])}" for column, value in ranked)
            lines.append(f"- {row} bits: {words}; float {percent(floats['mean'])}.")
    if "int8" in ours.get("2", {}) and "4" in ours:
        two, four = ours["2"]["int8"]["mean"], ours["4"].get("int8", {}).get("mean")
        if four is not None:
            lines.append(
                f"- Plain int8, whose range follows the largest weight, loses {100 * (four - two):.1f} points from 4 to 2 bits."
            )
    gaps = [abs(c["int8"] - c["fake_quant"]) for c in cells if c["int8"] is not None]
    if gaps:
        lines.append(
            f"- INT8 is at most {100 * max(gaps):.1f} points from fake-quant ({statistics.mean(gaps) * 100:.2f} on average)."
        )
    if pictures:
        error = 100 * math.sqrt(0.8 * 0.2 / pictures)
        lines.append(
            f"- At 80 % the pictures alone give each number of one seed a standard error of {error:.1f} points."
        )
    return lines


def figure(result: dict) -> Figure:
    """Top-1 against bits, one line a method, float dashed, bars of one standard deviation."""
    ours = table(result["cells"])
    drawn = Figure(figsize=(8, 5))
    ax = drawn.add_subplot()
    for i, column in enumerate(METHODS):
        points = [(x, ours[row][column]) for x, row in enumerate(SHOWN) if column in ours.get(row, {})]
        if points:
            # side by side, so that bars do not hide each other
            x = [x + 0.02 * (i - len(METHODS) / 2) for x, _ in points]
            y, bars = [100 * v["mean"] for _, v in points], [100 * (v["std"] or 0) for _, v in points]
            ax.errorbar(
                x,
                y,
                bars,
                label=column,
                color=[*LINES, "#22303c", "#d977b8", "#a9b4c0"][i],
                marker="o",
                ms=4,
                capsize=3,
                lw=1.4,
            )
    if result["float"]:
        ax.axhline(
            100 * statistics.mean(f["tuned"] for f in result["float"]), color="#6b7785", ls="--", lw=1, label="float"
        )
    ax.set_xticks(range(len(SHOWN)), SHOWN)
    ax.set(xlabel="bits", ylabel="top-1, %", title="ResNet-20 on CIFAR-10 pictures, short fine-tuning")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e6eaee")
    if result["float"]:
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


def shown(value: dict | None) -> str:
    """One cell of the table: 71.2 ± 0.5, a star where it is not of an integer network."""
    if value is None:
        return "-"
    plus = f" ± {100 * value['std']:.1f}" if value["std"] is not None else ""
    return percent(value["mean"]) + plus + ("" if value.get("integer", True) else "*")


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
