"""Which bottleneck wins under fake-quant and measured latency: squeeze-and-concat, squeeze-and-add, SE or nothing, ReLU
or hard-swish.

    PYTHONPATH=. python benchmarks/bottleneck_study.py --data-root FOLDER          #
    FOLDER/{train,val,test}/<class>/*.png, 32 px
    PYTHONPATH=. python benchmarks/bottleneck_study.py --data-root FOLDER --smoke  # a few pictures and steps, to see
    that it runs

Searches the space `bottleneck` with several seeds at one latency. In each, every block makes the network whose depths
are best within that latency; its accuracy in the supernet is compared. Then, for each inside (nothing, SE,
squeeze-and-add, squeeze-and-concat), the network of its best block is trained alone from scratch, as
benchmarks/search_study.py trains, and judged as an integer network. Writes docs/results/bottleneck.{json,md} and brings
them up to date after each step. The same command goes on where it was stopped.
"""

import functools
import math
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import quant
from benchmarks.alone import Cell, Training, run_cell
from benchmarks.low_bit import RESULT, claim, in_parallel, workers
from benchmarks.search_report import spread
from benchmarks.searching import measure_table, run_search
from common.cli import guard, option, parse
from common.files import read_json, write_bytes, write_json
from common.runs import Run
from latency_lut import LatencyTable

INSIDES = {"mb": "nothing", "se r4": "SE", "add r4": "squeeze-and-add", "frost r2": "squeeze-and-concat, r 2",
           "frost r4": "squeeze-and-concat, r 4"}  # fmt: skip
SMOKE = {"train_images": 640, "held_out_images": 100, "epochs": 2, "seeds": (0,), "preset": "smoke"}


@dataclass(frozen=True)
class StudyConfig:
    data_root: str = option(help="folder with train, val and test, one folder a class in each")
    target_ms: float = option(0.5, "latency in ms that every block's network has to meet")
    width: float = option(0.5, "width multiplier of the space")
    preset: str = option("demo", "preset of the searches")
    seeds: tuple[int, ...] = option((0, 1, 2), "seeds of the searches, and of the trainings")
    train_images: int = option(16_000, "pictures to train on")
    held_out_images: int | None = option(
        None, "report on so many of the held-out pictures (default: all of val and test)"
    )
    epochs: int = option(3, "epochs of each training alone, the first in float")
    lr: float = option(0.05, "peak learning rate of each training alone")
    engine: Literal[tuple(quant.ENGINES)] = option("fbgemm", "engine")
    processes: int = option(2, "searches and trainings at a time, one thread each")
    minutes: float = option(math.inf, "begin no further training after so many minutes")
    smoke: bool = option(False, "a few pictures and steps, to see that it runs; into folders of their own")
    runs: str = option("runs/bottleneck_study", "folder of all runs of the study")
    output: str = option("docs/results", "folder of the results")


# change no result of a search or training
FREE = ("data_root", "seeds", "processes", "minutes", "runs", "output", "smoke")


@guard(errors=(quant.QuantError,))
def main(argv=None) -> Path:
    """Run the study, or go on with it; returns the JSON's path."""
    config = parse(StudyConfig, argv, "bottleneck_study.py", __doc__)
    if config.smoke:
        config = replace(config, **SMOKE, runs=f"{config.runs}_smoke", output=f"{config.runs}_smoke")
    claim(config, FREE)
    until = time.monotonic() + 60 * config.minutes
    measure_table(table_path(config), config.engine, config.width, "bottleneck")
    with ThreadPoolExecutor(config.processes) as pool:
        list(pool.map(functools.partial(search, config), config.seeds))
    write(config)
    training = Training(
        config.data_root,
        config.train_images,
        config.held_out_images,
        config.epochs,
        1,
        config.lr,
        config.engine,
        config.runs,
    )
    cells = [Cell(name, source, seed) for seed in config.seeds for name, source in candidates(config).items()]
    with workers(config) as pool:
        for text in in_parallel(
            pool, [functools.partial(run_cell, training, cell) for cell in cells], config.processes, until
        ):
            print(text, flush=True)
            write(config)
    return write(config)


def table_path(config: StudyConfig) -> Path:
    return Path(config.runs) / "table.json"


def search(config: StudyConfig, seed: int) -> None:
    run_search(
        config.runs,
        f"search_{seed}",
        latency_lut=table_path(config).resolve(),
        space="bottleneck",
        width=config.width,
        data="imagefolder",
        data_root=Path(config.data_root).resolve(),
        preset=config.preset,
        target_ms=config.target_ms,
        controls=0,
        seed=seed,
        train_images=config.train_images,
    )


# ---- results -----------------------------------------------------------------------------------------------


def tried(config: StudyConfig) -> dict[str, list[dict]]:
    """block ("frost k3 e3 r2") -> its network's row in each search."""
    rows: dict[str, list[dict]] = {}
    for seed in config.seeds:
        folder = Path(config.runs) / f"search_{seed}"
        for row in read_json(folder / "front.json")["networks"]:
            source = str(folder / "tried" / f"{row['name']}.json")
            rows.setdefault(row["block"], []).append({**row, "seed": seed, "source": source})
    return rows


def inside(block: str) -> str:
    """What is inside a block: "frost r2" of "frost k3 e3 r2 hard_swish"."""
    op, *rest = block.split()
    return " ".join([op, *(word for word in rest if re.fullmatch(r"r\d+", word))])


def candidates(config: StudyConfig) -> dict[str, str]:
    """For each inside the network of its best block by the mean accuracy over the searches: name -> file (of the first
    search).
    """
    best: dict[str, tuple[float, str, str]] = {}
    for block, rows in tried(config).items():
        mean = statistics.mean(row["accuracy"] for row in rows)
        best[inside(block)] = max(best.get(inside(block), (-1.0, "", "")), (mean, block, rows[0]["source"]))
    return {block.replace(" ", "_"): source for _, block, source in best.values()}


def write(config: StudyConfig) -> Path:
    """Write bottleneck.{json,md} from what is there so far; returns the JSON's path."""
    blocks = {
        block: {
            "inside": INSIDES[inside(block)],
            "networks": [{k: row[k] for k in ("seed", "inherited", "accuracy", "measured_ms")} for row in rows],
        }
        for block, rows in tried(config).items()
    }
    alone = {}
    for name, source in candidates(config).items():
        runs = [Run(Path(config.runs) / Cell(name, source, seed).name) for seed in config.seeds]
        alone[name.replace("_", " ").replace("hard swish", "hard_swish")] = [
            run.read_json(RESULT) for run in runs if run.has(RESULT)
        ]
    chosen = [read_json(Path(config.runs) / f"search_{seed}" / "bottleneck.json") for seed in config.seeds]
    table = LatencyTable.load(table_path(config))
    result = {
        "settings": {k: v for k, v in asdict(config).items() if k not in FREE},
        "seeds": list(config.seeds),
        "cpu": table.meta["cpu"],
        "torch": table.meta["torch"],
        "table_hash": table.hash,
        "blocks": blocks,
        "alone": alone,
        "chosen": [c["provenance"]["found"] for c in chosen],
    }
    path = Path(config.output) / "bottleneck.json"
    write_json(path, result)
    write_bytes(path.with_suffix(".md"), page(result).encode())
    return path


def page(result: dict) -> str:
    s = result["settings"]
    lines = [
        "# Which bottleneck wins",
        "",
        "Written by `PYTHONPATH=. python benchmarks/bottleneck_study.py --data-root FOLDER`. "
        f"CPU: {result['cpu']}, torch {result['torch']}, engine {s['engine']}, one thread, one picture of 32 px.",
        "",
        f"The space `bottleneck` at width {s['width']} was searched with seeds {', '.join(map(str, result['seeds']))} (`--preset "
        f"{s['preset']}`, CIFAR-10 pictures, under fake-quant, gradients of the alphas by two paths). Every block appears with the depths "
        f"that its search thought best within {s['target_ms']:g} ms by the measured table: a cheaper block affords a deeper network. "
        "Accuracy is that of the supernet's weights after a few steps of each network's own, on pictures held out of training. Every kind "
        "has weights of its own, trained in a twentieth of the steps: these figures are far from a trained network's, and their standard "
        "errors are of the size of the differences.",
        "",
        "| block | inside | accuracy in the supernet | as inherited | measured ms |",
        "|---|---|---|---|---|",
    ]
    ranked = sorted(
        result["blocks"].items(), key=lambda item: -statistics.mean(n["accuracy"] for n in item[1]["networks"])
    )
    for block, row in ranked:
        columns = [[n[k] for n in row["networks"]] for k in ("accuracy", "inherited")]
        ms = statistics.mean(n["measured_ms"] for n in row["networks"])
        lines.append(f"| {block} | {row['inside']} | {' | '.join(map(spread, columns))} | {ms:.3f} |")
    chosen = ", ".join(
        f"{c['op']} k{c['kernel_size']} r{c['squeeze_factor']} {c['activation']}" for c in result["chosen"]
    )
    return "\n".join(
        [*lines, "", f"Chosen by the searches, seed by seed: {chosen}.", "", *_means(result), "", *_alone(result), ""]
    )


def _means(result: dict) -> list[str]:
    """The effect of each ingredient, averaged over the others."""
    lines = ["| ingredient | mean accuracy in the supernet |", "|---|---|"]
    groups: dict[str, list[float]] = {}
    for block, row in result["blocks"].items():
        kernel, activation = block.split()[1], "hard_swish" if "hard_swish" in block else "relu"
        for word in (row["inside"], f"kernel {kernel[1:]}", activation):
            groups.setdefault(word, []).extend(n["accuracy"] for n in row["networks"])
    return [*lines, *(f"| {word} | {100 * statistics.mean(values):.1f} |" for word, values in groups.items())]


def _alone(result: dict) -> list[str]:
    if not any(result["alone"].values()):
        return []
    s = result["settings"]
    lines = [
        "## Trained alone",
        "",
        f"The best block of each inside, its network of the first search trained from scratch on {s['train_images']:,} pictures for "
        f"{s['epochs']} epochs and judged as an integer network on pictures that neither a training nor a search has seen.",
        "",
        "| block | INT8 top-1 | seeds |",
        "|---|---|---|",
    ]
    pictures = max(c.get("pictures", 0) for cells in result["alone"].values() for c in cells)
    error = 100 * math.sqrt(2 * 0.25 / pictures)
    after = f"The pictures alone give a difference of two rows a standard error of about {error:.1f} points; the seeds add to it."
    rows = {
        block: [c["int8"] for c in cells if c["int8"] is not None] for block, cells in result["alone"].items() if cells
    }
    for block, values in sorted(rows.items(), key=lambda item: -statistics.mean(item[1] or [0.0])):
        lines.append(f"| {block} | {spread(values)} | {len(values)} |")
    return [*lines, "", after]


if __name__ == "__main__":
    main()
