"""Find an INT8 network for a measured CPU: latency table in, architecture out.

    python -m latency_lut --engine fbgemm --output fbgemm.json
    python search.py --latency-lut fbgemm.json --target-ms 0.6
    python search.py --latency-lut fbgemm.json --space bottleneck --name block     # first find the block:
    runs/block/bottleneck.json,
    python search.py --latency-lut fbgemm.json --bottleneck runs/block/bottleneck.json     # then the network that it
    makes

Trains a supernet under fake-quant (supernet.loop), derives the best networks for the target from one run by an exact
knapsack (nas.derive), re-scores the best few each with statistics and a short training of its own, measures them whole
beside random networks of equal latency, and writes the winner to runs/NAME/arch.json with curves, the Pareto front and
a report; all networks that were judged are in runs/NAME/tried, and those of --pareto N, the best for N targets, in
runs/NAME/pareto. A search that was stopped goes on when the same command is given again. With several processes or
machines (docs/scaling.md): torchrun --nproc-per-node 2 search.py ...
"""

import dataclasses
import functools
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import frostnet
import quant
import supernet
from common import distributed
from common.cli import check_folder_name, guard, option, parse
from common.errors import UserError
from common.runs import ALPHAS, CHECKPOINT, Run
from latency_lut import LatencyTable, prepare, time_interleaved, torch_threads
from latency_lut.machine import revision
from nas import Architecture, Bottleneck, SearchSpace, find_space
from nas.derive import Point, check_target, front, latency_range
from nas.report.page import write_report
from supernet.finalists import Finalist
from supernet.judge import Judge, along_the_front, choose
from supernet.results import describe, row, save_networks, save_numbers, save_pareto
from tasks.data import DATA, num_classes, training_pictures
from tasks.pictures import Pictures, Stream, balanced, generator, labelled

# on two cores: smoke a minute, demo six at width 0.5, small fifteen at 0.75, cifar hours; imagenet is for several GPUs
PRESETS = {
    "smoke": {
        "base_steps": 8,
        "float_steps": 8,
        "quant_steps": 8,
        "joint_steps": 8,
        "train_images": 640,
        "rescored": 2,
        "controls": 2,
        "score_images": 64,
        "tune_steps": 2,
    },
    "demo": {
        "base_steps": 160,
        "float_steps": 200,
        "quant_steps": 80,
        "joint_steps": 320,
        "train_images": 8000,
        "rescored": 4,
        "controls": 4,
        "score_images": 192,
        "tune_steps": 40,
    },
    "small": {
        "base_steps": 250,
        "float_steps": 500,
        "quant_steps": 150,
        "joint_steps": 600,
        "train_images": None,
        "rescored": 10,
        "controls": 6,
        "score_images": 256,
        "tune_steps": 120,
    },
    "cifar": {
        "base_steps": 1200,
        "float_steps": 3000,
        "quant_steps": 800,
        "joint_steps": 5000,
        "train_images": None,
        "rescored": 12,
        "controls": 8,
        "score_images": 1000,
        "tune_steps": 400,
        "batch_size": 64,
        "lr": 0.05,
    },
    "imagenet": {
        "base_steps": 5000,
        "float_steps": 20_000,
        "quant_steps": 5000,
        "joint_steps": 30_000,
        "train_images": None,
        "rescored": 12,
        "controls": 8,
        "score_images": 2000,
        "tune_steps": 500,
        "batch_size": 128,
        "lr": 0.1,
        "input_size": 224,
    },
}
OTHERWISE = {"batch_size": 32, "lr": 0.04, "input_size": 32}  # where neither the command nor the preset says
RECALIBRATION_BATCHES = 16
BATCH_PIXELS = 256 * 32**2  # of the batches that networks are judged by
MOST_JUDGED = 10_000
HELD_OUT = 0.1  # share of the training pictures that moves alphas, and as much again that judges networks
ALPHA_ROWS = 100  # about that many rows in alphas.jsonl

FREE = (
    "command",
    "runs",
    "restart",
    "checkpoint_seconds",
    "download",
    "allow_other_cpu",
    "pareto",
    # settings that do not change the search; files go by what they say, see `hashes`  # fmt: skip
    "latency_lut",
    "bottleneck",
)
LOWEST = {
    "base_steps": 0,
    "float_steps": 0,
    "quant_steps": 0,
    "joint_steps": 1,
    "train_images": 20,
    "rescored": 1,
    "controls": 0,
    "score_images": 2,
    "batch_size": 2,
    "input_size": 8,
    "train_size": 8,
    "seed": 0,
    "checkpoint_seconds": 0,
    "tune_steps": 0,
    "pareto": 0,
}


@dataclass(frozen=True)
class SearchConfig:
    """One search. Fields left at None come from the preset."""

    latency_lut: str = option(help="latency table of this CPU, made by python -m latency_lut")
    target_ms: float | None = option(
        None, "latency that the network should take (default: that of FrostNet-Small at this input)"
    )
    name: str = option("frostnet_a", "name of the network and of its folder in --runs")
    data: Literal[DATA] = option("scenes", "pictures to search on")
    data_root: str | None = option(None, "folder of the pictures")
    download: bool = option(False, "fetch the data set into --data-root if it is not there")
    space: str = option(
        "frostnet", "search space: frostnet, bottleneck, or module:function of your own (docs/search.md)"
    )
    bottleneck: str | None = option(None, "bottleneck.json of a search of the space bottleneck: place that block")
    width: float = option(1.0, "width multiplier of all channels")
    input_size: int | None = option(
        None, "pixels at which the network will run: the latency is looked up for this size (default: 32)"
    )
    train_size: int | None = option(None, "pixels of the training pictures (default: the input size)")
    preset: Literal[tuple(PRESETS)] = option("small", "how much to train")
    base_steps: int | None = option(None, "weight steps of the largest candidates, which the others then start from")
    float_steps: int | None = option(None, "weight steps in float, all candidates in turn")
    quant_steps: int | None = option(None, "weight steps under fake-quant before alphas move")
    joint_steps: int | None = option(None, "weight steps while alphas move")
    train_images: int | None = option(None, "pictures used of the training part")
    rescored: int | None = option(None, "derived networks that are re-scored and measured")
    controls: int | None = option(None, "random networks of equal latency that are scored and measured beside them")
    score_images: int | None = option(None, "held-out pictures for each of the scores of ops and depths")
    tune_steps: int | None = option(None, "steps that each of these networks trains alone before it is judged")
    pareto: int = option(0, "also write the best networks for so many targets, from the fastest to the slowest")
    batch_size: int | None = option(None, "pictures in a step, of each process under torchrun (default: 32)")
    lr: float | None = option(None, "peak learning rate of the weights (default: 0.04)")
    sampler: Literal[tuple(supernet.SAMPLERS)] = option(
        "proxyless",
        "how the alphas' gradient is found: all candidates of a slot (darts), "
        "one (gumbel) or two (proxyless) in a step",
    )
    alpha_lr: float = option(0.015, "learning rate of the alphas")
    boost: Literal["paper", "released", "off"] = option("paper", "GradBoost on the weights")
    seed: int = option(0, "seed of everything random")
    runs: str = option("runs", "folder of all runs")
    checkpoint_seconds: float = option(60.0, "seconds between two checkpoints")
    restart: bool = option(False, "start over where the folder holds an earlier search")
    allow_other_cpu: bool = option(False, "use a table that was measured on another CPU")

    def __post_init__(self):
        check_folder_name("name", self.name)
        for field, low in LOWEST.items():
            value = getattr(self, field)
            if value is not None and value < low:
                raise UserError(f"{field}: {value}, must be at least {low}")
        for field in ("lr", "alpha_lr", "width"):
            if getattr(self, field) is not None and getattr(self, field) <= 0:
                raise UserError(f"{field}: {getattr(self, field)}, must be above 0")
        if self.bottleneck and self.space != "frostnet":
            raise UserError(f"bottleneck: is placed by the space frostnet, not by {self.space!r}; leave --space out")

    def filled(self) -> "SearchConfig":
        """The same with the preset's numbers where none were given."""
        numbers = OTHERWISE | PRESETS[self.preset]
        return replace(self, **{k: v for k, v in numbers.items() if getattr(self, k) is None})

    def find_space(self):
        """The function that makes the space."""
        return find_space(Bottleneck.load(self.bottleneck).space if self.bottleneck else self.space)


@guard(errors=(quant.QuantError,))
def main(argv=None) -> Path:
    """Run a search, or go on with one; returns its folder."""
    with distributed.joined():
        config = parse(SearchConfig, argv, "search.py", __doc__.splitlines()[0]).filled()
        return find(
            config, shlex.join([*distributed.launcher(), "search.py", *(sys.argv[1:] if argv is None else argv)])
        )


def find(config: SearchConfig, command: str) -> Path:
    """From the table to the network. All ranks train the supernet; rank 0 alone judges, measures and writes."""
    table = LatencyTable.load(config.latency_lut)
    if distributed.is_main():
        table.check(allow_other_cpu=config.allow_other_cpu)
    space = config.find_space()(config.width, config.input_size, num_classes(config.data, config.data_root))
    latency = table.for_space(space)
    target_ms = find_target(config, table, space, latency)
    settings = {"command": command, **dataclasses.asdict(config), "target_ms": target_ms, **hashes(space, latency)}
    run, ended = distributed.from_main(lambda: claim(config, settings, space))
    if ended:
        print(f"{run.path}: this search has ended; --restart searches again")
        return run.path
    search, parts = build(config, space, latency, target_ms, table.meta["engine"])
    train(search, run, config.checkpoint_seconds)
    distributed.only_main()
    scores = score(search, parts.alphas, config)
    judge = make_judge(search, space, parts, config, run, table.meta["threads"])
    if not run.has("metrics.json"):
        finish(
            judge,
            choose(judge, scores, config.rescored, config.controls),
            front(space, *scores, latency),
            table,
            settings,
        )
    if config.pareto:
        save_pareto(
            judge, along_the_front(judge, scores, config.pareto), config.pareto, provenance(judge, table, settings)
        )
    print(write_report(run.path))
    return run.path


def hashes(space: SearchSpace, latency) -> dict[str, str]:
    """Of what files say: a search does not go on with another space or other latencies."""
    text = json.dumps(dataclasses.asdict(latency), sort_keys=True)
    return {"space_hash": space.hash(), "latency_hash": hashlib.sha256(text.encode()).hexdigest()}


def claim(config: SearchConfig, settings: dict, space: SearchSpace) -> tuple[Run, bool]:
    """The search's folder, made or found again, and whether it holds a search that has ended."""
    run = Run(Path(config.runs) / config.name)
    resumes = run.claim({"program": "search", **settings}, config.restart, FREE)
    run.write_json("space.json", describe(space))
    whole = resumes and run.has("metrics.json") and run.has("report.html")
    return run, whole and config.pareto in (0, run.read_json("metrics.json").get("pareto"))


def find_target(config: SearchConfig, table: LatencyTable, space: SearchSpace, latency) -> float:
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
                "one "
                f"from {fastest:.4g} to {slowest:.4g} ms"
            ) from error
    check_target(target, fastest, slowest)
    print(
        f"target {target:.3f} ms; networks of this space take {fastest:.3f} to {slowest:.3f} ms on "
        f"{table.meta['engine']}"
    )
    if target > slowest:
        print("every network is faster than the target: latency will not steer this search")
    return target


@dataclass(frozen=True)
class Parts:
    """The training pictures in three: what weights learn from, what moves and scores alphas, and what judges finished
    networks.
    """

    weights: Pictures
    alphas: Pictures
    judge: Pictures


def split(pictures: Pictures, seed: int) -> Parts:
    """HELD_OUT of the pictures for alphas and as many, up to MOST_JUDGED, for judging, balanced over the classes; the
    rest for weights.
    """
    labels = pictures.labels.cpu()
    held = balanced(labels, 2 * round(len(pictures) * HELD_OUT), seed)
    alphas = held[balanced(labels[held], len(held) // 2, seed)]
    rest, judge = torch.ones(len(pictures), dtype=torch.bool), torch.zeros(len(pictures), dtype=torch.bool)
    rest[held], judge[held] = False, True
    judge[alphas] = False
    judge = judge.nonzero()[:, 0]
    judge = judge[balanced(labels[judge], MOST_JUDGED, seed)]
    parts = Parts(pictures.select(rest.nonzero()[:, 0]), pictures.select(alphas), pictures.select(judge))
    if min(len(part) for part in (parts.weights, parts.alphas, parts.judge)) < 2:
        raise UserError(
            f"train_images: {len(pictures)} pictures are too few to hold some out; give at least {round(4 / HELD_OUT)}"
        )
    return parts


def build(
    config: SearchConfig, space: SearchSpace, latency, target_ms: float, engine: str
) -> tuple[supernet.Search, Parts]:
    """The search and the pictures that it uses."""
    device, size = distributed.device(), config.train_size or config.input_size

    def made():
        return training_pictures(config.data, config.data_root, size, config.seed, config.train_images, config.download)

    pictures = (distributed.first_on_machine(made) if config.download else made()).to(device)
    parts = split(pictures, config.seed)
    torch.manual_seed(config.seed)
    network = supernet.Supernet(config.find_space()(config.width, size, space.head.num_classes))
    search = supernet.Search(
        network.to(device, memory_format=torch.channels_last),
        supernet.Plan(
            config.base_steps,
            config.float_steps,
            config.quant_steps,
            config.joint_steps,
            lr=config.lr,
            alpha_lr=config.alpha_lr,
            sampler=config.sampler,
        ),
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


def train(search: supernet.Search, run: Run, checkpoint_seconds: float) -> None:
    """Run the search's steps, with a bar, a log and checkpoints; goes on from the last checkpoint. Rank 0 writes."""
    state = distributed.from_main(lambda: run.load_checkpoint() if run.has(CHECKPOINT) else None)
    if state is not None:
        search.load_state_dict(state)
        if distributed.is_main():
            run.rewind_log(search.step_index - 1)
        print(f"going on at step {search.step_index} of {search.plan.steps}")
    search.assert_same()
    saved = time.monotonic()
    with tqdm(total=search.plan.steps, initial=search.step_index, desc="search", unit="step") as bar:
        while not search.finished:
            row = search.step()
            if distributed.is_main():
                log(run, search, row)
            bar.set_postfix(
                {"phase": row["phase"]} | {k: f"{row[k]:.3g}" for k in ("loss", "expected_ms", "mu") if k in row},
                refresh=False,
            )
            bar.update()
            if search.finished:
                search.assert_same()
            if distributed.is_main() and (time.monotonic() - saved > checkpoint_seconds or search.finished):
                search.refuse_broken()
                run.save_checkpoint(search.state_dict())
                saved = time.monotonic()


def log(run: Run, search: supernet.Search, row: dict) -> None:
    """A step's line in log.jsonl and, now and then, the probabilities in alphas.jsonl."""
    run.append_log(row)
    plan = search.plan
    every = max(1, plan.joint_steps // (plan.alpha_every * ALPHA_ROWS))
    number, last = (row["step"] - plan.joint_from) // plan.alpha_every, row["step"] + plan.alpha_every >= plan.steps
    if "mu" in row and (number % every == 0 or last):
        run.append_log({"step": row["step"], **probabilities(search)}, ALPHAS)


def probabilities(search: supernet.Search) -> dict:
    """What the alphas say: "ops" [stage][slot][candidate] and "depths" [stage][depth]."""
    ops, depths = search.alphas.probabilities(search.plan.temperature_at(search.step_index - 1))
    return {"ops": [[p.tolist() for p in stage] for stage in ops], "depths": [p.tolist() for p in depths]}


def score(search: supernet.Search, pictures: Pictures, config: SearchConfig) -> supernet.Scores:
    """Scores of all ops and depths: alphas and perturbed losses, blended."""
    batches = even_batches(pictures.select(balanced(pictures.labels.cpu(), config.score_images, config.seed)))
    base = supernet.favourite(search.alphas)
    with tqdm(
        total=len(batches) * supernet.evaluations(search.supernet.space), desc="scoring ops and depths", unit="path"
    ) as bar:
        losses = [
            supernet.perturbation_scores(search.supernet, base, *batch(), search.loss, bar.update) for batch in batches
        ]
    return supernet.blended_scores(search.alphas, supernet.mean_scores(losses))


def even_batches(pictures: Pictures) -> list[Callable[[], tuple[Tensor, Tensor]]]:
    """All pictures once, each batch made when it is called for; nearly equal in size, since batch norm goes by the
    batch.
    """
    most = max(32, BATCH_PIXELS // pictures.input_size**2)
    order = torch.randperm(
        len(pictures), generator=generator(0, 0)
    )  # they are sorted by class, and a batch of one class has other statistics
    parts = order.tensor_split(-(-len(pictures) // most))
    return [functools.partial(labelled, pictures, part) for part in parts]


# ---- judging networks --------------------------------------------------------------------------------------


def make_judge(
    search: supernet.Search, space: SearchSpace, parts: Parts, config: SearchConfig, run: Run, threads: int
) -> Judge:
    """What finds accuracy and latency of single networks of this search."""
    plain = Stream(parts.weights, config.batch_size, config.seed + 2, augment=False)
    return Judge(
        search,
        space,
        run,
        recalibration=[plain.batch(i)[0] for i in range(RECALIBRATION_BATCHES)],
        train=Stream(parts.weights, config.batch_size, config.seed + 3).batch,
        judged=lambda: (batch() for batch in even_batches(parts.judge)),
        pictures=len(parts.judge),
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


# ---- results -----------------------------------------------------------------------------------------------


def finish(judge: Judge, networks: list[Finalist], points: list[Point], table: LatencyTable, settings: dict) -> None:
    """Write everything down and say how it went; the chosen network is the first."""
    run, chosen, target = judge.run, networks[0], judge.search.target_ms
    arch = save_networks(judge, networks, provenance(judge, table, settings))
    metrics = save_numbers(judge, networks, points, table.predict(arch, space=judge.space).rows)
    print(
        pandas.DataFrame([row(judge.space, n) for n in networks]).to_string(index=False, float_format="{:.4f}".format)
    )
    for warning in metrics["health"]["warnings"]:
        print(f"warning: {warning}")
    print(
        f"chosen {chosen.name}: {chosen.measured_ms:.3f} ms measured, {chosen.latency_ms:.3f} predicted, target "
        f"{target:.3f}"
    )
    print(run.path / "arch.json")


def provenance(judge: Judge, table: LatencyTable, settings: dict) -> dict:
    """Where a network comes from."""
    known = {k: settings[k] for k in ("command", "seed", "data", "width", "preset", "target_ms")}
    known |= {
        "space": judge.space.name,
        "table_hash": table.hash,
        "engine": table.meta["engine"],
        "cpu": table.meta["cpu"],
    }
    return {**known, "commit": revision(), "torch": torch.__version__}


def cli() -> None:
    """The console script: what `main` returns is no exit code."""
    main()


if __name__ == "__main__":
    main()
