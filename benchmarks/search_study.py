"""What the search is worth on CIFAR-10 pictures: found networks against hand-made and random ones of the same measured
INT8 latency.

    PYTHONPATH=. python benchmarks/search_study.py --data-root FOLDER          # FOLDER/{train,val,test}/<class>/*.png,
    32 px
    PYTHONPATH=. python benchmarks/search_study.py --data-root FOLDER --smoke  # a few pictures and steps, to see that
    it runs

For each of several latencies: the network that search.py finds, FrostNet-Small and -Base, MobileNet V2 and V3 (h-swish,
and ReLU alone) at the largest width that is as fast as measured, and random networks of the search space. All are
trained from scratch by one recipe (benchmarks/alone.py) and judged as integer networks on pictures that no training and
no search has seen; latencies are measured at the end, whole networks in interleaved rounds. The same trainings say how
well the search's own scores rank networks. Writes docs/results/search.{json,md,png} and brings them up to date after
each training. The same command goes on where it was stopped.
"""

import functools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

import quant
from benchmarks.alone import SIZE, Cell, Training, build, digest, run_cell
from benchmarks.low_bit import RESULT, claim, in_parallel, workers
from benchmarks.search_report import write
from benchmarks.searching import measure_table, run_search
from common.cli import guard, option, parse
from common.errors import UserError
from common.files import read_json, write_json
from common.runs import Run
from frostnet import architecture
from latency_lut import LatencyTable, prepare, time_networks
from nas import Architecture, count

FROSTNETS = {f"frostnet_{size}": size for size in ("small", "base")}
MOBILENETS = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_small_relu")
FAMILIES = (*FROSTNETS, *MOBILENETS)
WIDTHS = (0.25, 0.35, 0.4, 0.5, 0.6, 0.65, 0.75, 0.85, 1.0, 1.15, 1.25, 1.5)
NEAR = 1.02  # of a latency: a rival may be so much slower
SMOKE = {
    "train_images": 256,
    "held_out_images": 100,
    "epochs": 2,
    "seeds": (0,),
    "preset": "smoke",
    "randoms": 2,
    "targets": (0.47,),
}


@dataclass(frozen=True)
class StudyConfig:
    data_root: str = option(help="folder with train, val and test, one folder a class in each")
    targets: tuple[float, ...] = option((0.47, 0.6), "latencies in ms")
    width: float = option(0.75, "width multiplier of the search space")
    preset: str = option("small", "preset of the search")
    seeds: tuple[int, ...] = option((0, 1, 2), "seeds of the trainings")
    randoms: int = option(8, "random networks for each latency, trained with the first seed")
    train_images: int = option(16_000, "pictures to train on")
    held_out_images: int | None = option(
        None, "report on so many of the held-out pictures (default: all of val and test)"
    )
    epochs: int = option(3, "epochs of each training, the first in float")
    lr: float = option(0.05, "peak learning rate of each training")
    engine: Literal[tuple(quant.ENGINES)] = option("fbgemm", "engine")
    processes: int = option(2, "trainings at a time, one thread each")
    minutes: float = option(math.inf, "begin no further training after so many minutes")
    stage: Literal["rivals", "all"] = option("all", "rivals: only the hand-made networks, which need no search")
    smoke: bool = option(False, "a few pictures and steps, to see that it runs; into folders of their own")
    runs: str = option("runs/search_study", "folder of all runs of the study")
    output: str = option("docs/results", "folder of the results")

    def training(self) -> Training:
        return Training(
            self.data_root, self.train_images, self.held_out_images, self.epochs, 1, self.lr, self.engine, self.runs
        )


# change no training's result
FREE = ("data_root", "seeds", "randoms", "processes", "minutes", "stage", "runs", "output", "smoke")


@guard(errors=(quant.QuantError,))
def main(argv=None) -> Path:
    """Run the study, or go on with it; returns the JSON's path."""
    config = parse(StudyConfig, argv, "search_study.py", __doc__)
    if config.smoke:
        config = replace(config, **SMOKE, runs=f"{config.runs}_smoke", output=f"{config.runs}_smoke")
    claim(config, FREE)
    started = time.monotonic()
    networks = rivals(config)
    if config.stage == "all":
        measure_table(table_path(config), config.engine, config.width)
        search_all(config)
        networks = [*found(config), *networks, *randoms(config)]
    train_all(config, networks, started + 60 * config.minutes)
    if config.stage == "rivals":
        return Path(config.runs)
    return write(config.output, results(config, networks))


@dataclass(frozen=True)
class Entry:
    """A network of the study. kind: "found", "hand-made" or "random"; source: a zoo name or an architecture's file."""

    name: str
    kind: str
    family: str
    target_ms: float
    source: str


# ---- hand-made networks ------------------------------------------------------------------------------------


def rivals(config: StudyConfig) -> list[Entry]:
    """Of each family the widest network that is as fast as each latency, as measured once for all widths together."""
    file = Path(config.runs) / "widths.json"
    if not file.is_file():
        write_json(file, measure_widths(config))
    measured, entries = read_json(file), []
    for target in config.targets:
        for family in FAMILIES:
            rows = {w: ms for w, ms in measured[family].items() if ms <= NEAR * target}
            if not rows:
                raise UserError(
                    f"targets: no {family} of the widths {', '.join(map(str, WIDTHS))} is as fast as {target} ms"
                )
            width = max(rows, key=float)  # latency does not rise evenly with the width: of those fast enough the widest
            entries.append(
                Entry(
                    f"{family}_x{width}".replace(".", "_"), "hand-made", family, target, source(config, family, width)
                )
            )
    return entries


def measure_widths(config: StudyConfig) -> dict[str, dict[str, float]]:
    """family -> width -> milliseconds."""
    image, frozen = torch.zeros(1, 3, SIZE, SIZE), {}
    for family in FAMILIES:
        for width in map(str, WIDTHS):
            frozen[f"{family} {width}"] = freeze(build(source(config, family, width), 10), config.engine)
    timings = {name: timing.ms for name, timing in time_networks(frozen, image, engine=config.engine).items()}
    return {family: {str(w): timings[f"{family} {w}"] for w in WIDTHS} for family in FAMILIES}


def source(config: StudyConfig, family: str, width: str) -> str:
    """Where a network of a family comes from; FrostNets are written down as architectures."""
    name = f"{family}_x{width}".replace(".", "_")
    if family not in FROSTNETS:
        return name
    path = Path(config.runs) / "archs" / f"{name}.json"
    architecture(FROSTNETS[family], float(width), 10, SIZE).with_name(name).save(path)
    return str(path)


def freeze(model: torch.nn.Module, engine: str):
    """An untrained network as it is deployed."""
    quant.recalibrate(model.eval(), [torch.rand(prepare.IMAGES, 3, SIZE, SIZE)])
    return quant.freeze(prepare.observed(model, torch.rand(1, 3, SIZE, SIZE), engine), torch.zeros(1, 3, SIZE, SIZE))


# ---- table, searches, random networks ----------------------------------------------------------------------


def table_path(config: StudyConfig) -> Path:
    return Path(config.runs) / "table.json"


def search_all(config: StudyConfig) -> None:
    """A search for each latency, as many at a time as there are processes."""
    with ThreadPoolExecutor(config.processes) as pool:
        list(pool.map(functools.partial(search, config), config.targets))


def search(config: StudyConfig, target: float) -> None:
    run_search(
        config.runs,
        run_name(target),
        latency_lut=table_path(config).resolve(),
        width=config.width,
        data="imagefolder",
        data_root=Path(config.data_root).resolve(),
        preset=config.preset,
        target_ms=target,
        train_images=config.train_images,
        controls=config.randoms,
    )


def run_name(target: float) -> str:
    return f"found_{target:g}ms"


def found(config: StudyConfig) -> list[Entry]:
    return [
        Entry(run_name(t), "found", "found", t, str(Path(config.runs) / run_name(t) / "arch.json"))
        for t in config.targets
    ]


def randoms(config: StudyConfig) -> list[Entry]:
    """The random networks that each search judged as its controls."""
    entries = []
    for target in config.targets:
        folder = Path(config.runs) / run_name(target)
        names = [row["name"] for row in read_json(folder / "front.json")["networks"] if row["kind"] == "random"]
        for name in names[: config.randoms]:
            source = folder / "tried" / f"{name}.json"
            entries.append(Entry(f"{name}_{target:g}ms".replace(".", "_"), "random", "random", target, str(source)))
    return entries


# ---- trainings ---------------------------------------------------------------------------------------------


def train_all(config: StudyConfig, networks: list[Entry], until: float) -> None:
    """Every network with every seed, the random ones with the first; seed by seed, so that a study cut short is level."""
    cells = [
        Cell(e.name, e.source, seed)
        for seed in config.seeds
        for e in networks
        if e.kind != "random" or seed == config.seeds[0]
    ]
    unique = list(dict.fromkeys(cells))  # one network may be the nearest to two latencies
    started = time.monotonic()
    with workers(config) as pool:
        for text in in_parallel(
            pool, [functools.partial(run_cell, config.training(), c) for c in unique], config.processes, until
        ):
            print(f"{(time.monotonic() - started) / 60:5.1f} min  {text}", flush=True)


def results(config: StudyConfig, networks: list[Entry]) -> dict:
    """Everything that is known of each network."""
    latencies = measured(config, networks)
    rows = []
    for entry in networks:
        done = [Run(Path(config.runs) / Cell(entry.name, entry.source, seed).name) for seed in config.seeds]
        cells = [run.read_json(RESULT) for run in done if run.has(RESULT)]
        rows.append(
            {
                **asdict(entry),
                "source": Path(entry.source).name,
                **latencies[digest(entry.source)],
                "cells": cells,
                **scores(entry),
            }
        )
    table = LatencyTable.load(table_path(config))
    return {
        "settings": {k: v for k, v in asdict(config).items() if k not in FREE},
        "seeds": list(config.seeds),
        "cpu": table.meta["cpu"],
        "torch": torch.__version__,
        "table": next(iter(table.sections.values())).validation,
        "table_hash": table.hash,
        "networks": rows,
        "searches": {f"{t:g}": read_json(Path(config.runs) / run_name(t) / "metrics.json") for t in config.targets},
    }


def scores(entry: Entry) -> dict:
    """What the search thought of a network of its own."""
    known = Architecture.load(entry.source).provenance if entry.kind != "hand-made" else {}
    return {k: known.get(k) for k in ("score", "inherited_top1", "supernet_top1", "predicted_ms")}


def measured(config: StudyConfig, networks: list[Entry]) -> dict[str, dict]:
    """Parameters, MACs, INT8 and float milliseconds of every network by its digest, all in the same rounds; measured
    once.
    """
    file, sources = Path(config.runs) / "latencies.json", {digest(e.source): e.source for e in networks}
    known = read_json(file) if file.is_file() else {}
    if set(sources) - set(known):
        forms, image = {}, torch.zeros(1, 3, SIZE, SIZE)
        for key, source in sources.items():
            forms[f"{key} int8_ms"] = freeze(build(source, 10), config.engine)
            forms[f"{key} float_ms"] = quant.freeze_float(build(source, 10).eval(), image)
        timings = time_networks(forms, image, engine=config.engine)
        known = {
            n: {k: timings[f"{n} {k}"].ms for k in ("int8_ms", "float_ms")} | size(source)
            for n, source in sources.items()
        }
        write_json(file, known)
    return known


def size(path: str) -> dict:
    params, macs = count(build(path, 10), torch.zeros(1, 3, SIZE, SIZE))
    return {"params": params, "macs": macs}


if __name__ == "__main__":
    main()
