"""Find an INT8 network for a measured CPU: latency table in, architecture out.

    python -m latency_lut --engine fbgemm --output fbgemm.json
    python search.py --latency-lut fbgemm.json --target-ms 0.6

    # or first find the block, runs/block/bottleneck.json, then the network that it makes
    python search.py --latency-lut fbgemm.json --space bottleneck --name block
    python search.py --latency-lut fbgemm.json --bottleneck runs/block/bottleneck.json

Trains a supernet under fake-quant (supernet.loop), derives the best networks for the target by an exact knapsack
(nas.derive), trains and evaluates the best few for some steps each, measures them whole beside random networks of equal
latency (supernet.selection), and writes the winner to runs/NAME/arch.json with curves, the Pareto front and a report.
All evaluated networks are in runs/NAME/tried, and those of --pareto N, the best for N targets, in runs/NAME/pareto. A
search that was stopped goes on when the same command is given again. With several processes or machines
(docs/scaling.md): torchrun --nproc-per-node 2 search.py ...
"""

import dataclasses
import hashlib
import json
import math
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas
import torch
import torch.nn.functional as F
from tqdm import tqdm

import frostnet
import quant
import supernet
from common import distributed
from common.checks import check_fields, check_number
from common.cli import check_folder_name, guard, option, parse
from common.errors import UserError
from common.launch import process_count, ranks
from common.runs import Run
from common.shared import made_once
from latency_lut import LatencyTable, SpaceLatency, prepare, time_interleaved, torch_threads
from latency_lut.machine import revision
from nas import Architecture, Bottleneck, SearchSpace, find_space
from nas.derive import Point, check_target, front, latency_range
from nas.report.page import write_report
from supernet.finalists import Finalist
from supernet.results import describe, row, save_networks, save_numbers, save_pareto
from supernet.selection import Evaluator, pareto_networks, select
from supernet.training import train
from tasks.data import DATA, num_classes, training_pictures
from tasks.holdout import Split, even_batches, split
from tasks.pictures import Stream, balanced

# on two cores: smoke a minute, demo six at width 0.5, small fifteen at 0.75, cifar hours; imagenet is for several GPUs
PRESETS = {
    "smoke": {"base_steps": 8, "float_steps": 8, "quant_steps": 8, "joint_steps": 8, "train_images": 640,
              "rescored": 2, "controls": 2, "score_images": 64, "tune_steps": 2},
    "demo": {"base_steps": 160, "float_steps": 200, "quant_steps": 80, "joint_steps": 320, "train_images": 8000,
             "rescored": 4, "controls": 4, "score_images": 192, "tune_steps": 40},
    "small": {"base_steps": 250, "float_steps": 500, "quant_steps": 150, "joint_steps": 600, "train_images": None,
              "rescored": 10, "controls": 6, "score_images": 256, "tune_steps": 120},
    "cifar": {"base_steps": 1200, "float_steps": 3000, "quant_steps": 800, "joint_steps": 5000, "train_images": None,
              "rescored": 12, "controls": 8, "score_images": 1000, "tune_steps": 400, "batch_size": 64, "lr": 0.05},
    "imagenet": {"base_steps": 5000, "float_steps": 20_000, "quant_steps": 5000, "joint_steps": 30_000,
                 "train_images": None, "rescored": 12, "controls": 8, "score_images": 2000, "tune_steps": 500,
                 "batch_size": 1024, "lr": 0.1, "input_size": 224},
}  # fmt: skip
DEFAULTS = {"batch_size": 32, "lr": 0.04, "input_size": 32}  # where neither the command line nor the preset has a value
RECALIBRATION_BATCHES = 16
SMALLEST_SHARE = 32  # images of a rank in a step: with fewer the many small operations of a path take all the time

# Fields of SearchConfig that may differ when a search is resumed, because they do not change its result. The last two
# are file names: what the files hold is compared by its hash, see `hashes`.
RESUMABLE = ("command", "runs", "restart", "checkpoint_seconds", "download", "processes", "allow_other_cpu", "pareto",
             "latency_lut", "bottleneck")  # fmt: skip
# The smallest value of a field that is accepted.
MINIMUM = {
    "base_steps": 0, "float_steps": 0, "quant_steps": 0, "joint_steps": 1, "train_images": 20, "rescored": 1,
    "controls": 0, "score_images": 2, "batch_size": 2, "input_size": 8, "train_size": 8, "seed": 0,
    "checkpoint_seconds": 0, "tune_steps": 0, "pareto": 0,
}  # fmt: skip


@dataclass(frozen=True)
class SearchConfig:
    """One search. Fields left at None come from the preset."""

    latency_lut: str = option(help="latency table of this CPU, made by python -m latency_lut")
    target_ms: float | None = option(
        None, "latency that the network should take (default: that of FrostNet-Small at this input)"
    )
    name: str = option("frostnet_a", "name of the network and of its folder in --runs")
    data: Literal[DATA] = option("scenes", "images to search on")
    data_root: str | None = option(None, "folder of the images")
    download: bool = option(False, "fetch the data set into --data-root if it is not there")
    space: str = option(
        "frostnet", "search space: frostnet, bottleneck, or module:function of your own (docs/search.md)"
    )
    bottleneck: str | None = option(None, "bottleneck.json of a search of the space bottleneck: place that block")
    width: float = option(1.0, "width multiplier of all channels")
    input_size: int | None = option(
        None, "pixels at which the network will run: the latency is looked up for this size (default: 32)"
    )
    train_size: int | None = option(None, "pixels of the training images (default: the input size)")
    preset: Literal[tuple(PRESETS)] = option("small", "how much to train")
    base_steps: int | None = option(None, "weight steps of the largest candidates, which the others then start from")
    float_steps: int | None = option(None, "weight steps in float, all candidates in turn")
    quant_steps: int | None = option(None, "weight steps under fake-quant before alphas move")
    joint_steps: int | None = option(None, "weight steps while alphas move")
    train_images: int | None = option(None, "images used of the training part")
    rescored: int | None = option(None, "derived networks that are re-scored and measured")
    controls: int | None = option(None, "random networks of equal latency that are scored and measured beside them")
    score_images: int | None = option(None, "held-out images for each of the scores of ops and depths")
    tune_steps: int | None = option(None, "steps that each of these networks trains alone before it is evaluated")
    pareto: int = option(0, "also write the best networks for so many targets, from the fastest to the slowest")
    batch_size: int | None = option(None, "images in a step of all processes together (default: 32)")
    lr: float | None = option(None, "peak learning rate of the weights (default: 0.04)")
    sampler: Literal[tuple(supernet.SAMPLERS)] = option(
        "proxyless",
        "candidates of a slot in a step of the alphas: all (darts), one (gumbel) or two (proxyless)",
    )
    alpha_lr: float = option(0.015, "learning rate of the alphas")
    boost: Literal["paper", "released", "off"] = option("paper", "GradBoost on the weights")
    seed: int = option(0, "seed of everything random")
    processes: int | None = option(
        None, "processes that train together, of one thread each (default: one for each CPU that may be used)"
    )
    runs: str = option("runs", "folder of all runs")
    checkpoint_seconds: float = option(60.0, "seconds between two checkpoints")
    restart: bool = option(False, "start over where the folder holds an earlier search")
    allow_other_cpu: bool = option(False, "use a table that was measured on another CPU")

    def __post_init__(self):
        check_folder_name("name", self.name)
        check_fields(self, {field: (low, math.inf) for field, low in MINIMUM.items()})
        for field in ("lr", "alpha_lr", "width"):
            if getattr(self, field) is not None:
                check_number(field, getattr(self, field), above=0)
        if self.bottleneck and self.space != "frostnet":
            raise UserError(f"bottleneck: is placed by the space frostnet, not by {self.space!r}; leave --space out")

    def filled(self) -> "SearchConfig":
        """The same with the preset's numbers where none were given."""
        numbers = DEFAULTS | PRESETS[self.preset]
        return replace(self, **{k: v for k, v in numbers.items() if getattr(self, k) is None})

    def find_space(self):
        """The function that makes the space."""
        return find_space(Bottleneck.load(self.bottleneck).space if self.bottleneck else self.space)


@guard(errors=(quant.QuantError,))
def main(argv=None) -> Path:
    """Run a search, or go on with one; returns its folder."""
    with distributed.joined():
        config = parse(SearchConfig, argv, "search.py", __doc__).filled()
        given = sys.argv[1:] if argv is None else argv
        command = shlex.join([*distributed.launcher(), "search.py", *given])
        path = Path(config.runs) / config.name
        count = process_count(config.processes, config.batch_size, None if config.restart else path, SMALLEST_SHARE)
        goal = find_goal(config)
        with ranks(main, argv, count):
            searched = run_search(replace(config, processes=count), goal, command)
        print(write_report(path) if searched else f"{path}: this search has ended; --restart searches again")
        return path


@dataclass(frozen=True)
class Goal:
    """What is searched, and for which latency."""

    table: LatencyTable
    space: SearchSpace
    latency: SpaceLatency
    target_ms: float


def find_goal(config: SearchConfig) -> Goal:
    """Raises UserError for a table, a space or a target that cannot be used."""
    table = LatencyTable.load(config.latency_lut)
    if distributed.is_main():
        table.check(allow_other_cpu=config.allow_other_cpu)
    space = config.find_space()(config.width, config.input_size, num_classes(config.data, config.data_root))
    latency = table.for_space(space)
    return Goal(table, space, latency, find_target(config, table, space, latency))


def run_search(config: SearchConfig, goal: Goal, command: str) -> bool:
    """From the table to the networks, on every rank; rank 0 measures and writes. False where the search had ended."""
    table, space, latency = goal.table, goal.space, goal.latency
    given = {**dataclasses.asdict(config), "target_ms": goal.target_ms}
    settings = {"command": command, **given, **hashes(space, latency)}
    run, ended = distributed.from_main(lambda: claim(config, settings, space))
    if ended:
        return False
    search, parts = build(config, space, latency, goal.target_ms, table.meta["engine"])
    train(search, run, config.checkpoint_seconds)
    held_out = parts.alphas.select(balanced(parts.alphas.labels.cpu(), config.score_images, config.seed))
    scores = supernet.score_candidates(search, even_batches(held_out))
    evaluator = make_evaluator(search, space, parts, config, run, table.meta["threads"])
    source = provenance(space, table, settings)
    if not distributed.from_main(lambda: run.has("metrics.json")):
        networks = select(evaluator, scores, config.rescored, baselines=config.controls)
        if distributed.is_main():
            finish(evaluator, networks, front(space, scores, latency), table, source)
    if config.pareto:
        networks = pareto_networks(evaluator, scores, config.pareto)
        if distributed.is_main():
            save_pareto(evaluator, networks, config.pareto, source)
    return True


# ---- settings ----------------------------------------------------------------------------------------------


def find_target(config: SearchConfig, table: LatencyTable, space: SearchSpace, latency: SpaceLatency) -> float:
    """The target in ms, checked against what the space can reach; prints both."""
    fastest, slowest = latency_range(space, latency)
    target = config.target_ms
    if target is None:
        small = frostnet.architecture("small", config.width, space.head.num_classes, config.input_size)
        try:
            target = table.predict(small).latency_ms
        except UserError as error:
            raise UserError(
                "target_ms: missing, and this table does not know FrostNet-Small, whose latency is the default; give "
                f"one from {fastest:.4g} to {slowest:.4g} ms"
            ) from error
    check_target(target, fastest, slowest)
    reach = f"networks of this space take {fastest:.3f} to {slowest:.3f} ms on {table.meta['engine']}"
    print(f"target {target:.3f} ms; {reach}")
    if target > slowest:
        print("every network is faster than the target: latency will not steer this search")
    return target


def hashes(space: SearchSpace, latency: SpaceLatency) -> dict[str, str]:
    """Of the content of files: a search is not resumed with another space or other latencies."""
    text = json.dumps(dataclasses.asdict(latency), sort_keys=True)
    return {"space_hash": space.hash(), "latency_hash": hashlib.sha256(text.encode()).hexdigest()}


def claim(config: SearchConfig, settings: dict, space: SearchSpace) -> tuple[Run, bool]:
    """The search's folder, new or found again, and whether it holds a search that has ended."""
    run = Run(Path(config.runs) / config.name)
    resumes = run.claim({"program": "search", **settings}, config.restart, RESUMABLE)
    run.write_json("space.json", describe(space))
    whole = resumes and run.has("metrics.json") and run.has("report.html")
    return run, whole and config.pareto in (0, run.read_json("metrics.json").get("pareto"))


def provenance(space: SearchSpace, table: LatencyTable, settings: dict) -> dict:
    """Where the networks of this search come from."""
    return {
        **{k: settings[k] for k in ("command", "seed", "data", "width", "preset", "target_ms")},
        "space": space.name,
        "table_hash": table.hash,
        "engine": table.meta["engine"],
        "cpu": table.meta["cpu"],
        "commit": revision(),
        "torch": torch.__version__,
    }


# ---- phases ------------------------------------------------------------------------------------------------


def build(
    config: SearchConfig, space: SearchSpace, latency: SpaceLatency, target_ms: float, engine: str
) -> tuple[supernet.Search, Split]:
    """The search and the images that it uses."""
    device, size = distributed.device(), config.train_size or config.input_size

    def made():
        return training_pictures(config.data, config.data_root, size, config.seed, config.train_images, config.download)

    pictures = made_once(made).to(device)
    parts = split(pictures, config.seed)
    torch.manual_seed(config.seed)
    network = supernet.Supernet(config.find_space()(config.width, size, space.head.num_classes))
    shared = ("base_steps", "float_steps", "quant_steps", "joint_steps", "lr", "alpha_lr", "sampler")
    search = supernet.Search(
        network.to(device, memory_format=torch.channels_last),
        supernet.Plan(**{field: getattr(config, field) for field in shared}),
        latency,
        target_ms,
        F.cross_entropy,
        Stream(parts.weights, config.batch_size, config.seed).batch,
        Stream(parts.alphas, config.batch_size, config.seed + 1).batch,
        quant.QuantConfig(engine=engine),
        config.boost,
        config.seed,
    )
    return search, parts


def make_evaluator(
    search: supernet.Search, space: SearchSpace, parts: Split, config: SearchConfig, run: Run, threads: int
) -> Evaluator:
    """What finds accuracy and latency of single networks of this search."""
    plain = Stream(parts.weights, config.batch_size, config.seed + 2, augment=False, shared=False)
    return Evaluator(
        search,
        space,
        run,
        recalibration=[plain.batch(i)[0] for i in range(RECALIBRATION_BATCHES)],
        train=Stream(parts.weights, config.batch_size, config.seed + 3, shared=False).batch,
        held_out=lambda: (batch() for batch in even_batches(parts.evaluation)),
        image_count=len(parts.evaluation),
        tune_steps=config.tune_steps,
        measure=lambda archs: measure(archs, search.config.engine, threads),
    )


def measure(archs: dict[str, Architecture], engine: str, threads: int) -> dict[str, float]:
    """Milliseconds of whole networks on the engine, in interleaved rounds. Weights do not matter to a latency."""
    with torch_threads(threads), quant.use_engine(engine):
        frozen = {
            n: prepare.network(arch, engine) for n, arch in tqdm(archs.items(), desc="converting networks", unit="net")
        }
        return {name: timing.ms for name, timing in time_interleaved(frozen).items()}


def finish(
    evaluator: Evaluator, networks: list[Finalist], points: list[Point], table: LatencyTable, source: dict
) -> None:
    """Write the results and print them; the chosen network is the first."""
    space, chosen = evaluator.space, networks[0]
    arch = save_networks(evaluator, networks, source)
    metrics = save_numbers(evaluator, networks, points, table.predict(arch, space=space).rows)
    rows = pandas.DataFrame([row(space, n) for n in networks])
    print(rows.to_string(index=False, float_format="{:.4f}".format))
    for warning in metrics["health"]["warnings"]:
        print(f"warning: {warning}")
    print(
        f"chosen {chosen.name}: {chosen.measured_ms:.3f} ms measured, {chosen.latency_ms:.3f} predicted, target "
        f"{metrics['target_ms']:.3f}"
    )
    print(evaluator.run.path / "arch.json")


def cli() -> None:
    """The console script: what `main` returns is no exit code."""
    main()


if __name__ == "__main__":
    main()
