"""StatAssist and GradBoost in all tasks: what each ingredient gives, where naive QAT fails, which float share is best;
judged as INT8.

    PYTHONPATH=. python benchmarks/statassist_study.py --cifar10-root FOLDER --bccd-root FOLDER --camvid-root FOLDER
    --pairs-root FOLDER
    PYTHONPATH=. python benchmarks/statassist_study.py --smoke      # a few pictures of scenes, to see that it runs

An arm without its folder is left out. Writes docs/results/statassist.{json,md,png} and brings them up to date after
each cell. The same command goes on where it was stopped; cells run side by side in processes of one thread each.
"""

import functools
import json
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import quant
from benchmarks import statassist_report
from benchmarks.dense_study import scores
from benchmarks.low_bit import RESULT, claim, in_parallel, workers
from benchmarks.statassist_columns import (
    COLUMNS,
    FREE,
    LOOK_EVERY,
    PARTS,
    SMOKE_STUDY,
    STAGES,
    Cell,
    StudyConfig,
    left_out,
    planned,
    recipe,
    stretch,
)
from benchmarks.statassist_numbers import metric_named
from common.cli import guard, parse
from common.errors import UserError
from common.files import plain, read_json
from common.runs import Run
from latency_lut.machine import cpu_model
from tasks import Diverged, fit, parts
from tasks.judge import Judge
from tasks.judge import judge as find_judge
from tasks.kinds import KINDS, Choices, Request
from tasks.pictures import generator
from tasks.residuals import silence_residuals
from tasks.trained import Network, find_network

ROW = "arm.json"


@guard(errors=(quant.QuantError,))
def main(argv=None) -> Path:
    """Run the study, or go on with it; returns the JSON's path."""
    return run_study(parse(StudyConfig, argv, "statassist_study.py", __doc__), write)


def run_study(config: StudyConfig, write: Callable[[StudyConfig], Path]) -> Path:
    """Compute the cells that are missing, and have the page written after each."""
    if config.smoke:
        config = replace(config, **SMOKE_STUDY, runs=f"{config.runs}_smoke", output=f"{config.runs}_smoke")
    claim(config, FREE)
    for name, why in left_out(config).items():
        print(f"{name} is left out: {why}")
    started = time.monotonic()
    with workers(config) as pool:
        for stage in stages(config):
            for text in in_parallel(pool, stage, config.processes, until=started + 60 * config.minutes):
                print(f"{(time.monotonic() - started) / 60:5.1f} min  {text}", flush=True)
                write(config)
    path = write(config)
    minutes, cells = round((time.monotonic() - started) / 60, 1), planned(config)
    done = sum(result_of(config, cell) is not None for cell in cells)
    print(json.dumps({"results": str(path), "cells": done, "planned": len(cells), "minutes": minutes}))
    return path


def stages(config: StudyConfig) -> list[list]:
    """The jobs, seed by seed, in stages of which each needs the one before."""
    cells, seeds = planned(config), dict.fromkeys((*config.seeds, *config.other_seeds))
    return [
        [functools.partial(run_cell, config, cell) for cell in cells if cell.seed == seed and cell.column in stage]
        for seed in seeds
        for stage in STAGES
    ]


# ---- one cell, in a worker process -------------------------------------------------------------------------


def run_cell(config: StudyConfig, cell: Cell) -> str:
    """Train one cell and judge it; the text says how it went. What is done already is not done again."""
    run = run_of(config, cell)
    if not run.has(RESULT):
        started = time.monotonic()
        try:
            result = judge(config, cell, *make(config, cell, run))
        except Diverged as error:  # a result too, as a full disk is not
            result = {"scores": None, "refused": str(error)}
        result |= {"curve": curve(config, cell, run), "cell_seconds": round(time.monotonic() - started, 1)}
        run.write_json(RESULT, cell._asdict() | result)
    result = run.read_json(RESULT)
    found = result["refused"] or ", ".join(f"{name} {value:.4g}" for name, value in result["scores"].items())
    return f"{cell.arm}, seed {cell.seed}, {cell.column}: {found} in {result['cell_seconds']:.0f} s"


class SeldomSaved(Run):
    """A run that keeps a checkpoint every `every` steps alone: parts are short, and each would be written to disk."""

    every = 1

    def save_checkpoint(self, state: dict) -> None:
        if state["step"] % self.every == 0:
            super().save_checkpoint(state)


def run_of(config: StudyConfig, cell: Cell) -> Run:
    """The cell's folder; UserError where it holds one of another recipe."""
    arm = config.arm(cell.arm)
    run, row = SeldomSaved(Path(config.runs) / cell.name), row_of(config, cell.arm)
    run.every = LOOK_EVERY * arm.steps // PARTS
    before = run.read_json(ROW) if run.has(ROW) else row
    if unlike := [f"{k}: {before.get(k)} then, {v} now" for k, v in row.items() if before.get(k) != v]:
        raise UserError(
            f"runs: {run.path} holds a cell with other settings ({', '.join(unlike)}); remove it or choose another --runs"
        )
    run.write_json(ROW, row)
    return run


def row_of(config: StudyConfig, name: str) -> dict:
    """An arm as it is kept with its cells: its settings, and what its pictures are looked at with."""
    return plain(asdict(config.arm(name))) | config.eyes(name)


def result_of(config: StudyConfig, cell: Cell) -> dict | None:
    path = Path(config.runs) / cell.name / RESULT
    return read_json(path) if path.is_file() else None


@functools.cache
def load(config: StudyConfig, name: str) -> Any:
    """An arm's data, the same for every seed: train, val (the watched pictures) and test (the judged ones, where these
    are classified in random order, so that neighbours are of all classes)."""
    arm, kind = config.arm(name), KINDS[config.arm(name).task]
    data = kind.load(Request(arm.data, config.root(name), arm.input_size, 0, arm.train_images))
    judged, watched = (data.val, data.test) if arm.judged == "val" else (data.test, data.val)
    if config.smoke:
        judged = kind.some(judged, 2 * arm.watched, 0)
    if arm.task == "classification":
        judged = judged.select(torch.randperm(len(judged), generator=generator(0)))
    return replace(data, val=kind.some(watched, arm.watched, 0), test=judged)


def network_of(config: StudyConfig, name: str) -> Network:
    arm = config.arm(name)
    return find_network(arm.network, len(load(config, name).classes), arm.input_size, arm.input_size, task=arm.task)


def task_of(config: StudyConfig, cell: Cell) -> Any:
    arm, data = config.arm(cell.arm), load(config, cell.arm)
    kind = KINDS[arm.task]
    choices = Choices(
        discriminator=kind.defaults.get("discriminator"), judge=judge_of(config) if kind.shows else None, seed=cell.seed
    )
    return kind.task(network_of(config, cell.arm).name, arm.input_size, data.classes, data.train, choices)


@functools.cache
def judge_of(config: StudyConfig) -> Judge | None:
    return find_judge(judge_path(config), palette=config.palette) if config.judge else None


def judge_path(config: StudyConfig) -> Path:
    """The judge's folder, which may be named by its name in runs/."""
    return path if ((path := Path(config.judge)) / "config.json").is_file() else Path("runs") / config.judge


def make(config: StudyConfig, cell: Cell, run: Run) -> tuple[Any, nn.Module, float]:
    """(task, the cell's float model or its graph with quantizers, seconds that it took)."""
    arm, column, data, network = (
        config.arm(cell.arm),
        COLUMNS[cell.column],
        load(config, cell.arm),
        network_of(config, cell.arm),
    )
    kind, started = KINDS[arm.task], time.monotonic()
    if kind.shows:
        judge_of(config)  # once in a process, and before the seed: building a network draws numbers
    torch.manual_seed(cell.seed)
    model = network.build().to(memory_format=torch.channels_last)
    task = task_of(config, cell)
    if column.after:
        state = state_of(config, cell._replace(column=column.after))
        model.load_state_dict(state["model"])
        if "rival" in state:
            task.rival.load_state_dict(state["rival"])
    elif arm.silent:
        for part in parts.parts_of(model).values():
            silence_residuals(part)
    if not column.steps:
        some = kind.some(data.train, arm.calibration_images, cell.seed)
        batches = (images for images, *_ in kind.in_order(some, arm.batch_size))
        graph = parts.calibrate(model, batches, config.quantizers(cell.seed), "mse", task.predict)
        return task, graph, time.monotonic() - started
    stream = stretch(config, cell, kind.stream(data.train, arm.batch_size, cell.seed))
    fitted = fit(model, task, stream, {"val": data.val}, recipe(config, cell), run, network.example())
    return task, fitted.model, fitted.seconds


def state_of(config: StudyConfig, cell: Cell) -> dict:
    """What a cell has trained: "model", and where it trained against one "rival". Raises Diverged where it has not."""
    if (found := result_of(config, cell)) and found["refused"]:
        raise Diverged(f"{cell.column} diverged")
    return run_of(config, cell).load_checkpoint()


def curve(config: StudyConfig, cell: Cell, run: Run) -> list[tuple[float, float]]:
    """(share of the arm's steps that its weights have seen, score on the watched pictures) after each look at them."""
    first, score = 1.0 if COLUMNS[cell.column].after else 0.0, f"val_{task_of(config, cell).score}"
    return [(first + row["epoch"] / PARTS, row[score]) for row in run.read_log() if score in row]


def judge(config: StudyConfig, cell: Cell, task: Any, model: nn.Module, seconds: float) -> dict:
    """The scores on the judged pictures of a float model, or of a graph's integer network and beside it of the graph
    itself.
    """
    found, judged = {"score": task.score, "refused": None, "seconds": round(seconds, 1)}, load(config, cell.arm).test
    if cell.column == "float":
        return found | scored(task, model, judged)
    integer = parts.convert(model, config.engine)
    with quant.use_engine(config.engine):
        found |= scored(task, integer, judged)
    simulated = task.evaluate(model, judged)
    return found | {
        "fake_quant": {name: simulated[name] for name in task.reported},
        "float_ops": parts.float_ops(integer),
    }


def scored(task: Any, model: nn.Module, judged: Any) -> dict:
    """The scores on all judged pictures, and on groups of them where a few can be judged."""
    if metric_named(task.score).grouped:
        return scores(task, model, judged)
    found = task.evaluate(model, judged)
    return {"scores": {name: found[name] for name in task.reported}, "pictures": len(judged), "groups": []}


# ---- results -----------------------------------------------------------------------------------------------


def write(config: StudyConfig) -> Path:
    """The JSON, the page and the learning curves from the cells there are."""
    cells = planned(config)
    result = {
        "command": command(config),
        "settings": read_json(Path(config.runs) / "settings.json"),
        "machine": cpu_model(),
        "torch": torch.__version__,
        "planned": len(cells),
        "left_out": left_out(config),
        "arms": {name: row_of(config, name) for name in config.arms},
        "cells": [found for cell in cells if (found := result_of(config, cell)) is not None],
    }
    return statassist_report.write(config.output, result)


def command(config: StudyConfig, program: str = "statassist_study.py") -> str:
    """What makes these results: the program with all flags that differ from its own."""
    roots = [
        word
        for f in fields(config)
        if f.name.endswith("_root") and getattr(config, f.name)
        for word in (_flag(f.name), "FOLDER")
    ]
    judge = [
        word
        for name, word in (("judge", "RUN"), ("palette", "FILE"))
        if getattr(config, name)
        for word in (_flag(name), word)
    ]
    chosen = {name: getattr(config, name) for name in ("arms", "columns", "seeds", "other_seeds", "engine")}
    unlike = {f.name: chosen[f.name] for f in fields(config) if f.name in chosen and chosen[f.name] != f.default}
    flags = [
        word
        for name, value in unlike.items()
        for word in (_flag(name), *(map(str, value) if isinstance(value, tuple) else [value]))
    ]
    return shlex.join(["PYTHONPATH=.", "python", f"benchmarks/{program}", *roots, *judge, *flags])


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    main()
