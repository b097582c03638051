"""What the studies of detection and segmentation share: how cells (benchmarks/dense_columns.py) are made and judged, in
what order.

Each cell is a run folder that ends in a result.json; what is done already is not done again.
"""

import functools
import json
import shlex
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import quant
from benchmarks import dense_pictures, dense_report
from benchmarks.dense_columns import (
    COLUMNS,
    FLOAT,
    FREE,
    SMOKE,
    STAGES,
    WHERE,
    Cell,
    DenseConfig,
    Window,
    planned,
    recipe,
)
from benchmarks.low_bit import RESULT, claim, in_parallel, percent, workers
from common.errors import UserError
from common.files import read_bytes, read_json, write_bytes
from common.runs import Run
from latency_lut import time_networks
from latency_lut.machine import cpu_model
from tasks import Diverged, fit, parts
from tasks.detection import Detection
from tasks.kinds import KINDS, Choices, Request
from tasks.residuals import silence_residuals
from tasks.samples import Data, Samples, Stream
from tasks.segmentation import Segmentation
from tasks.trained import Network, find_network

TASKS = {"detection": Detection, "segmentation": Segmentation}
LATENCY, SHEET = "latency.json", "sheet.png"
SHOWN = 4  # test pictures on a sheet
GROUPS = 8  # of test pictures, for the standard error by pictures


class Study(NamedTuple):
    """What a task adds: `paint(task, model or None for the truth, picture, images, target) -> picture (3, H, W) uint8`
    with what is found drawn into it; `chosen`, in words, why the settings are as they are."""

    title: str
    paint: Callable
    chosen: tuple[str, ...]


def run_study(config: DenseConfig, study: Study) -> Path:
    """Run the study, or go on with it; returns the JSON's path."""
    if config.smoke:
        config = replace(config, **SMOKE, runs=f"{config.runs}_smoke", output=f"{config.runs}_smoke")
    claim(config, FREE)
    started = time.monotonic()
    with workers(config) as pool:
        for stage in stages(config, study):
            for text in in_parallel(pool, stage, config.processes, until=started + 60 * config.minutes):
                print(f"{(time.monotonic() - started) / 60:5.1f} min  {text}", flush=True)
                write(config, study)
    path = write(config, study)
    done = [c for c in planned(config) if result_of(config, c) is not None]
    minutes = round((time.monotonic() - started) / 60, 1)
    print(json.dumps({"results": str(path), "cells": len(done), "planned": len(planned(config)), "minutes": minutes}))
    return path


def stages(config: DenseConfig, study: Study) -> list[list]:
    """The jobs, in stages of which each needs the one before: the latencies; then seed by seed the columns, the most
    telling first, and the pictures of `float` and `both` as soon as there are both."""
    staged: list[list] = [[functools.partial(measure_latencies, config)]]
    for seed in config.seeds:
        for columns in STAGES:
            cells = [c for column in columns for c in planned(config) if (c.seed, c.column) == (seed, column)]
            staged.append([functools.partial(run_cell, config, cell) for cell in cells])
        staged.insert(-1, [functools.partial(draw_sheet, config, study.paint, name, seed) for name in config.networks])
    return staged


# ---- one job, in a worker process --------------------------------------------------------------------------


@functools.cache
def load(config: DenseConfig) -> Data:
    """The pictures; the same ones for every seed."""
    kind = KINDS[config.task]
    data = kind.load(
        Request(config.data, config.data_root, config.input_size, 0, config.train_images, bad_data=config.bad_data)
    )
    few = {name: kind.some(part, config.held_out_images, 0) for name, part in data.held_out.items()}
    return replace(data, **few)


def network_of(config: DenseConfig, name: str) -> Network:
    return find_network(name, len(load(config).classes), config.input_size, config.input_size, task=config.task)


def task_of(config: DenseConfig, name: str) -> Any:
    data = load(config)
    return KINDS[config.task].task(
        network_of(config, name).name, config.input_size, data.classes, data.train, Choices()
    )


def test_of(config: DenseConfig) -> Samples:
    """The pictures that are reported on: they choose nothing."""
    return list(load(config).held_out.values())[-1]


def run_of(config: DenseConfig, cell: Cell) -> Run:
    return Run(Path(config.runs) / cell.name)


def result_of(config: DenseConfig, cell: Cell) -> dict | None:
    path = Path(config.runs) / cell.name / RESULT
    return read_json(path) if path.is_file() else None


def run_cell(config: DenseConfig, cell: Cell) -> str:
    """Train one cell and judge it; the text says how it went. What is done already is not done again."""
    run = run_of(config, cell)
    if not run.has(RESULT):
        try:
            result = judge(config, cell, *make(config, cell, run))
        except Diverged as error:  # a result too, as a full disk is not
            result = {"scores": None, "refused": str(error)}
        run.write_json(RESULT, cell._asdict() | {"curve": curve(config, cell, run)} | result)
    result = run.read_json(RESULT)
    found = (
        result["refused"] or ", ".join(f"{k} {percent(v)}" for k, v in (result["scores"] or {}).items()) or "trained"
    )
    return f"{cell.network}, seed {cell.seed}, {cell.column}: {found} in {result.get('seconds', 0):.0f} s"


def make(config: DenseConfig, cell: Cell, run: Run) -> tuple[nn.Module, float]:
    """(the cell's float model, or its graph with quantizers, seconds that it took)."""
    column, data, network = COLUMNS[cell.column], load(config), network_of(config, cell.network)
    task, started = task_of(config, cell.network), time.monotonic()
    torch.manual_seed(cell.seed)
    model = network.build().to(memory_format=torch.channels_last)
    if column.after:
        model.load_state_dict(weights_of(config, cell._replace(column=column.after)))
    else:
        for part in parts.parts_of(model).values():
            silence_residuals(part)
    if cell.column == "ptq":
        kind = KINDS[config.task]
        some = kind.some(data.train, config.calibration_images, cell.seed)
        batches = (images for images, *_ in kind.in_order(some, config.batch_size))
        graph = parts.calibrate(model, batches, config.quantizers(cell.seed), "mse", task.predict)
        return graph, time.monotonic() - started
    stream = Window(Stream(data.train, config.batch_size, cell.seed), config.span(cell.column)[0], config.every)
    fitted = fit(model, task, stream, {"val": data.val}, recipe(config, cell), run, network.example())
    return fitted.model, fitted.seconds


def weights_of(config: DenseConfig, cell: Cell) -> dict:
    """What a cell has trained. Raises Diverged where it has not."""
    if (found := result_of(config, cell)) and found["refused"]:
        raise Diverged(f"{cell.column} diverged")
    return run_of(config, cell).load_checkpoint()["model"]


def curve(config: DenseConfig, cell: Cell, run: Run) -> list[tuple[int, float]]:
    """(epochs of pictures seen, score on the validation part) after each look at it."""
    first, score = config.span(cell.column)[0], f"val_{task_of(config, cell.network).score}"
    return [(first + row["epoch"] * config.every, row[score]) for row in run.read_log()]


# ---- judging -----------------------------------------------------------------------------------------------


def judge(config: DenseConfig, cell: Cell, model: nn.Module, seconds: float) -> dict:
    """The test scores of a float model, or of a graph's integer network and beside it of the graph itself."""
    found = {"scores": None, "refused": None, "seconds": round(seconds, 1)}
    if cell.column == "base":
        return found
    task, test = task_of(config, cell.network), test_of(config)
    if cell.column in FLOAT:
        return found | scores(task, model, test)
    integer = parts.convert(model, config.engine)
    with quant.use_engine(config.engine):
        found |= scores(task, integer, test)
        found["agreement"] = task.agreement(model, integer, test)
    simulated = task.evaluate(model, test)
    return found | {
        "fake_quant": {name: simulated[name] for name in task.reported},
        "float_ops": parts.float_ops(integer),
    }


def scores(task: Any, model: nn.Module, test: Samples) -> dict:
    """The reported metrics over all test pictures, and the score of each of a few groups of neighbouring ones.

    None stands for a group that has nothing to be found: the same ones for every model, as it depends on the pictures
    alone.
    """
    found = task.evaluate(model, test)
    groups = torch.arange(len(test)).chunk(min(GROUPS, len(test) // 2))
    return {
        "scores": {name: found[name] for name in task.reported},
        "pictures": len(test),
        "groups": [score_of(task, model, test.select(group)) for group in groups],
    }


def score_of(task: Any, model: nn.Module, group: Samples) -> float | None:
    """The score of a part of pictures that could be judged as a whole;

    None where this part has no objects, or no pixel with a class.
    """
    try:
        return task.evaluate(model, group)[task.score]
    except UserError:
        return None


def measure_latencies(config: DenseConfig) -> str:
    """Time the frozen networks, all interleaved, unless that is done; untrained ones, whose latency is the same."""
    run, kind = Run(config.runs), KINDS[config.task]
    if not run.has(LATENCY) or set(run.read_json(LATENCY)["networks"]) != set(config.networks):
        images = next(iter(kind.in_order(load(config).val, 2)))[0]
        frozen, rows = {}, {}
        for name in config.networks:
            network = network_of(config, name)
            rows[name] = dict(zip(("params", "macs"), network.cost(), strict=True))
            for form, model in frozen_forms(config, network, images, task_of(config, name).predict).items():
                frozen[f"{name} {form}"] = model
        timings = time_networks(frozen, images[:1], engine=config.engine, threads=1)
        for name, row in rows.items():
            for form in ("int8", "float"):
                timing = timings[f"{name} {form}"]
                row |= {f"{form}_ms": round(timing.ms, 4), f"{form}_spread": round(timing.rel_spread, 4)}
        run.write_json(LATENCY, {"networks": rows, "timed_on": list(images[:1].shape)})
    rows = run.read_json(LATENCY)["networks"]
    return "INT8 latency: " + ", ".join(f"{name} {row['int8_ms']:.2f} ms" for name, row in rows.items())


def frozen_forms(config: DenseConfig, network: Network, images: torch.Tensor, predict: Callable) -> dict[str, Callable]:
    """A network as it is deployed, in float and as INT8; its batch norms and ranges are those of two pictures."""
    torch.manual_seed(0)
    model = network.build().to(memory_format=torch.channels_last)
    for name, example in parts.examples_of(model, images).items():
        quant.recalibrate(parts.parts_of(model)[name].eval(), [example])
    graph = parts.calibrate(model, [images], config.quantizers(0), "minmax", predict)
    image = images[:1].contiguous(memory_format=torch.channels_last)
    converted = parts.convert(graph, config.engine)
    return {"int8": parts.freeze(converted, image), "float": parts.freeze_float(model, image, config.engine)}


# ---- results -----------------------------------------------------------------------------------------------


def draw_sheet(config: DenseConfig, paint: Callable, name: str, seed: int) -> str:
    """Some test pictures with the truth, with what `float` and with what `both` finds as INT8: a PNG in the output
    folder.
    """
    cells = [Cell(name, seed, column) for column in ("float", "both")]
    if any((found := result_of(config, cell)) is None or found["refused"] for cell in cells):
        return f"{name}, seed {seed}: no pictures, as float or both has no network"
    drawn, path = (
        run_of(config, cells[-1]).path / SHEET,
        dense_pictures.sheet_path(config.output, config.task, name, seed),
    )
    if not drawn.is_file():
        rows = painted(config, paint, [None, *(rebuilt(config, cell) for cell in cells)], task_of(config, name))
        dense_pictures.write_sheet(drawn, rows, load(config).classes)
    write_bytes(path, read_bytes(drawn))
    return f"{path}: written"


def painted(config: DenseConfig, paint: Callable, models: list, task: Any) -> list[list[torch.Tensor]]:
    """Some test pictures, each as every model sees it."""
    test = test_of(config)
    chosen = test.select(torch.linspace(0, len(test) - 1, SHOWN + 2)[1:-1].long())
    rows = []
    for index, (images, (target,)) in zip(chosen.indices.tolist(), KINDS[config.task].in_order(chosen, 1), strict=True):
        picture = torch.as_tensor(chosen.source.read(index)[0])
        with torch.inference_mode(), quant.use_engine(config.engine):
            rows.append([paint(task, model, picture, images, target) for model in models])
    return rows


def rebuilt(config: DenseConfig, cell: Cell) -> nn.Module:
    """A trained cell as it is judged: float, or INT8."""
    network = network_of(config, cell.network)
    model = network.build().to(memory_format=torch.channels_last)
    if COLUMNS[cell.column].quantized:
        model = parts.attach(model, network.example(), config.quantizers(cell.seed))
    model.load_state_dict(weights_of(config, cell))
    model.eval()
    return parts.convert(model, config.engine) if COLUMNS[cell.column].quantized else model


def write(config: DenseConfig, study: Study) -> Path:
    """The JSON, the page and the learning curves from the cells there are."""
    runs = Path(config.runs)
    cells = [found for cell in planned(config) if (found := result_of(config, cell)) is not None]
    result = {
        "command": command(config),
        "task": config.task,
        "title": study.title,
        "score": TASKS[config.task].score,
        "reported": list(TASKS[config.task].reported),
        "settings": read_json(runs / "settings.json"),
        "float_epochs": config.every * recipe(config, Cell("", 0, "both")).schedule.float_epochs,
        "machine": cpu_model(),
        "torch": torch.__version__,
        "chosen": list(study.chosen),
        "networks": list(config.networks),
        "planned": len(planned(config)),
        "cells": cells,
        "latency": read_json(runs / LATENCY) if (runs / LATENCY).is_file() else None,
    }
    return dense_report.write(config.output, result)


def command(config: DenseConfig) -> str:
    """What makes these results: the program with all flags that differ from its own."""
    unlike = {
        f.name: value for f in fields(config) if (value := getattr(config, f.name)) != f.default and f.name not in WHERE
    }
    flags = [word for name, value in unlike.items() for word in ("--" + name.replace("_", "-"), *_words(value))]
    return shlex.join(["PYTHONPATH=.", "python", f"benchmarks/{config.task}_study.py", "--data-root", "FOLDER", *flags])


def _words(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, tuple) else [str(value)]
