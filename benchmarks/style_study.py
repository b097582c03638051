"""Style transfer on real pictures: float, naive QAT, StatAssist, StatAssist and GradBoost, all judged as INT8
generators.

    PYTHONPATH=. python benchmarks/style_study.py --pairs-root FOLDER --unpaired-root FOLDER --judge RUN --palette
    FILE.json
    PYTHONPATH=. python benchmarks/style_study.py --smoke      # a few pictures of scenes, to see that it runs

The cells are those of benchmarks/statassist_study.py, whose --runs it may share. Writes docs/results/style.{json,md}
and contact sheets, and brings them up to date after each cell. The same command goes on where it was stopped.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import quant
from benchmarks import statassist_study as study
from benchmarks.statassist_columns import COLUMNS, Cell, StudyConfig, planned, seeds_of
from benchmarks.statassist_words import explained
from common.cli import guard, option, parse
from common.files import read_json, write_bytes, write_json
from common.runs import Run
from latency_lut.machine import cpu_model
from tasks import parts
from tasks.judge import FcnScore
from tasks.sheets import contact_sheet
from tasks.trained import load_network
from tasks.translation import batches

SHOWN = {"pix2pix": ("float", "naive", "sa_10", "both"), "cyclegan": ("float", "both")}  # columns on a sheet
ROWS = 4  # test pictures on it
WORDS = {"l1": "L1", "psnr": "PSNR, dB", "ssim": "SSIM", "distance": "feature distance", "fcn_miou": "FCN mIoU, %",
         "fcn_pixel_accuracy": "FCN pixels, %", "distance_a": "distance to photos", "distance_b": "distance to labels",
         "cycle_l1": "cycle L1"}  # fmt: skip
PERCENT = ("fcn_miou", "fcn_pixel_accuracy")
# the share of pixels whose class a palette knows: of the label pictures alone, the same in all rows
COUNTED = "fcn_counted"
BY_JUDGE = ("distance", "fcn")  # how the names of those begin that a judge gives


@dataclass(frozen=True)
class StyleConfig(StudyConfig):
    arms: tuple[str, ...] = option(tuple(SHOWN), "arms")
    columns: tuple[str, ...] = option(("float", "naive", "sa_10", "both"), "columns")
    runs: str = option("runs/style_study", "folder of all runs of the study")


@guard(errors=(quant.QuantError,))
def main(argv=None) -> Path:
    """Run the study, or go on with it; returns the JSON's path."""
    return study.run_study(parse(StyleConfig, argv, "style_study.py", __doc__), write)


# ---- what is looked at -------------------------------------------------------------------------------------


def network(config: StyleConfig, cell: Cell) -> nn.Module:
    """A trained cell: the float model, or its graph with quantizers."""
    float_model = study.network_of(config, cell.arm).build().to(memory_format=torch.channels_last)
    state = study.state_of(config, cell)["model"]
    if cell.column == "float":
        float_model.load_state_dict(state)
        return float_model.eval()
    graph = parts.attach(float_model, study.network_of(config, cell.arm).example(), config.quantizers(cell.seed))
    graph.load_state_dict(state)
    return graph.eval()


def look(config: StyleConfig, arm: str, seed: int) -> dict:
    """Draw the sheet of an arm's columns that are done with a seed; by column the PSNR between its fake-quant and its
    INT8 pictures.

    Done once for these columns and this judge.
    """
    cells = [c for c in planned(config) if (c.arm, c.seed) == (arm, seed) and COLUMNS[c.column].steps == 100]
    cells = [c for c in cells if (found := study.result_of(config, c)) and found["scores"]]
    path, key = (
        Path(config.runs) / f"{arm}_{seed}_seen.json",
        {"seed": seed, "columns": [c.column for c in cells], **config.eyes(arm)},
    )
    if path.is_file() and sheet(config, arm).is_file() and key.items() <= (before := read_json(path)).items():
        return before
    task, test = study.task_of(config, cells[0]), study.load(config, arm).test
    models, agreement = {}, {}
    with quant.use_engine(config.engine):
        for cell in cells:
            model = network(config, cell)
            if cell.column != "float":
                graph, model = model, parts.convert(model, config.engine)
                agreement[cell.column] = task.agreement(graph, model, test)
            if cell.column in SHOWN[arm]:
                models[f"{cell.column}{', INT8' * (cell.column != 'float')}"] = model
        some = test.select(torch.linspace(0, len(test) - 1, ROWS + 2)[1:-1].round().long())
        contact_sheet(task.rows(models, some), sheet(config, arm))
    found = key | {"agreement": agreement, "ceiling": ceiling(config, arm)}
    write_json(path, found)
    return found


def ceiling(config: StyleConfig, arm: str) -> dict:
    """What the judge sees in the real photos; {} without one that reads labels."""
    judge = study.judge_of(config)
    if arm != "pix2pix" or judge is None or judge.palette is None:
        return {}
    score = FcnScore(judge)
    for label, photo in batches(study.load(config, arm).test):
        score.update(photo, label)
    return score.compute()


def sheet(config: StyleConfig, arm: str) -> Path:
    return Path(config.output) / f"style_{arm}.png"


# ---- the page ----------------------------------------------------------------------------------------------


def write(config: StyleConfig) -> Path:
    """The JSON, the page and the sheets from the cells there are."""
    cells = planned(config)
    done = [
        found | {"judge": judge_then(config, cell)}
        for cell in cells
        if (found := study.result_of(config, cell)) is not None
    ]
    arms = [arm for arm in config.arms if any(c["arm"] == arm and c["scores"] for c in done)]
    result = {
        "command": study.command(config, "style_study.py"),
        "settings": read_json(Path(config.runs) / "settings.json"),
        "machine": cpu_model(),
        "torch": torch.__version__,
        "planned": len(cells),
        "eyes": eyes_words(config),
        "arms": {name: study.row_of(config, name) for name in arms},
        "cells": done,
        "seen": {arm: look(config, arm, first_seed(config, arm, done)) for arm in arms},
    }
    write_json(Path(config.output) / "style.json", result)
    write_bytes(Path(config.output) / "style.md", page(result).encode())
    return Path(config.output) / "style.json"


def first_seed(config: StyleConfig, arm: str, done: list[dict]) -> int:
    """The first of an arm's seeds that has a judged cell of full length."""
    have = {c["seed"] for c in done if c["arm"] == arm and c["scores"] and COLUMNS[c["column"]].steps == 100}
    return next(seed for seed in seeds_of(config, arm) if seed in have)


def judge_then(config: StyleConfig, cell: Cell) -> str | None:
    """The judge that a cell was judged by."""
    return read_json(Path(config.runs) / cell.name / study.ROW).get("judge")


def eyes_words(config: StyleConfig) -> str:
    """The network whose features are compared."""
    if config.judge is None:
        return "random features"
    return f"the run *{Path(config.judge).name}* of {load_network(Run(study.judge_path(config)))[0].name}"


def page(result: dict) -> str:
    partial = (
        ""
        if len(result["cells"]) == result["planned"]
        else f"**{len(result['cells'])} of {result['planned']} cells so far.** "
    )
    lines = [
        "# Style transfer in INT8",
        "",
        f"{partial}Written by `{result['command']}` (the same command goes on where it was stopped); the numbers are in "
        f"[style.json](style.json). All columns but *float* are **integer generators** on {result['settings']['engine']}; discriminators "
        "are float. All columns of an arm and seed that begin untrained begin with the same weights, against the same discriminators, and "
        f"see the same pictures in the same order. Measured on {result['machine']}, torch {result['torch']}.",
        "",
        f"Feature distances are by the FID formula in the features of {result['eyes']}; they are biased by how many pictures there are, "
        "and so compare rows of one table alone. Rows of one seed have no error: what is between two of them may be chance. Judged are "
        "test pictures, once, after the last step.",
        "",
        *explained(list(dict.fromkeys(c["column"] for c in result["cells"])), result["arms"]),
        "",
        *(line for arm in result["arms"] for line in section(result, arm)),
    ]
    return "\n".join([*lines, ""])


def section(result: dict, arm: str) -> list[str]:
    """One arm: its recipe, a row a cell, its sheet."""
    row, seen = result["arms"][arm], result["seen"][arm]
    cells = [c for c in result["cells"] if c["arm"] == arm and c["scores"]]
    metrics = list(dict.fromkeys(metric for cell in cells for metric in cell["scores"] if metric != COUNTED))
    lines = [
        f"## {arm}",
        "",
        f"{row['network']}, {row['pictures']}, {row['input_size']} px, {row['steps']} steps of {row['batch_size']}, "
        f"{row['optimizer']}, peak learning rate {row['lr']:g}, {cells[0]['pictures']} test pictures. {few(row)}",
        "",
        f"| column | seed | {' | '.join(WORDS[m] for m in metrics)} | INT8 to fake-quant, dB |",
        "|---" * (len(metrics) + 3) + "|",
    ]
    for cell in cells:
        numbers = [number(m, score_of(cell, m, row["judge"])) for m in metrics]
        alike = seen["agreement"].get(cell["column"]) if cell["seed"] == seen["seed"] else None
        lines.append(
            f"| {cell['column']} | {cell['seed']} | {' | '.join(numbers)} | {'-' if alike is None else f'{alike:.1f}'} |"
        )
    if seen["ceiling"]:
        lines.append(f"| the real photos | - | {' | '.join(number(m, seen['ceiling'].get(m)) for m in metrics)} | - |")
    return [*lines, "", *notes(cells, row["judge"], seen), f"![{arm}](style_{arm}.png)", ""]


def score_of(cell: dict, metric: str, judge: str | None) -> float | None:
    """A score of a cell; None where another judge than the page's gave it, or none did."""
    return None if metric.startswith(BY_JUDGE) and cell["judge"] != judge else cell["scores"].get(metric)


def notes(cells: list[dict], judge: str | None, seen: dict) -> list[str]:
    """What the table leaves out, and why."""
    found = (
        [f"INT8 to fake-quant and the pictures below are of seed {seen['seed']}."]
        if len({c["seed"] for c in cells}) > 1
        else []
    )
    if COUNTED in seen["ceiling"]:
        found.append(
            f"FCN scores are over the {100 * seen['ceiling'][COUNTED]:.0f} % of the pixels that have a class in the label pictures."
        )
    if any(c["judge"] != judge for c in cells):
        found.append("Feature distances and FCN scores by another judge are left out.")
    return [" ".join(found), ""] if found else []


def few(arm: dict) -> str:
    """How much training this is."""
    return f"That is {arm['steps'] * arm['batch_size']:,} training pictures, where the papers train for 200 epochs: pictures are coarse."


def number(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    if metric in PERCENT:
        return f"{100 * value:.1f}"
    return f"{value:.2f}" if metric == "psnr" or metric.startswith("distance") else f"{value:.4f}"


if __name__ == "__main__":
    main()
