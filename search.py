"""Find an INT8 network for a measured CPU: latency table in, architecture out.

    python -m latency_lut --engine fbgemm --output fbgemm.json
    python search.py --latency-lut fbgemm.json --target-ms 3

Trains a supernet under fake-quant (supernet.loop), derives the best networks for the target from one run by an exact knapsack
(nas.derive), re-scores the best few with statistics of their own, measures them whole beside random networks of equal latency, and
writes the winner to runs/NAME/arch.json with a picture, curves, the Pareto front and a report.
"""

import dataclasses
import math
import shlex
import sys
import time
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
from latency_lut import LatencyTable, time_networks
from nas import SPACES, Run, SearchSpace, UserError
from nas.cli import check_folder_name, guard, option, parse
from nas.derive import Point, check_target, front, latency_range
from nas.report import write_report
from supernet.finalists import Finalist, finalists
from tasks.data import DATA, num_classes, training_pictures
from tasks.pictures import Pictures, Stream, balanced, in_order

PRESETS = {  # on two cores at width 0.5: smoke a minute, demo six, small ten
    "smoke": {"base_steps": 8, "float_steps": 8, "quant_steps": 8, "joint_steps": 8,
              "train_images": 640, "rescored": 2, "controls": 2, "score_images": 64},
    "demo": {"base_steps": 160, "float_steps": 200, "quant_steps": 80, "joint_steps": 320,
             "train_images": 8000, "rescored": 4, "controls": 4, "score_images": 192},
    "small": {"base_steps": 250, "float_steps": 300, "quant_steps": 100, "joint_steps": 500,
              "train_images": None, "rescored": 6, "controls": 6, "score_images": 256},
}  # fmt: skip
RECALIBRATION_BATCHES = 16
HELD_OUT = 0.1  # share of the training pictures that moves alphas, and as much again that judges networks
TRIES = 3  # derivations with a corrected target, where measured networks miss it
SLACK = 1.05  # of the target, for what is accepted in the last try


LOWEST = {"base_steps": 0, "float_steps": 0, "quant_steps": 0, "joint_steps": 1, "train_images": 20, "rescored": 1, "controls": 0,
          "score_images": 2, "batch_size": 2, "input_size": 8, "train_size": 8, "seed": 0, "checkpoint_seconds": 0}  # fmt: skip


@dataclass(frozen=True)
class SearchConfig:
    """One search. Fields left at None come from the preset."""

    latency_lut: str = option(help="latency table of this CPU, made by python -m latency_lut")
    target_ms: float | None = option(None, "latency that the network should take (default: that of FrostNet-Small at this input)")
    name: str = option("frostnet_a", "name of the network and of its folder in --runs")
    data: Literal[DATA] = option("scenes", "pictures to search on")
    data_root: str | None = option(None, "folder of the pictures")
    download: bool = option(False, "fetch the data set into --data-root if it is not there")
    space: Literal[tuple(SPACES)] = option("frostnet", "search space")
    width: float = option(1.0, "width multiplier of all channels")
    input_size: int = option(32, "pixels at which the network will run: the latency is looked up for this size")
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
    batch_size: int = option(32, "pictures in a step")
    lr: float = option(0.015, "peak learning rate of the weights")
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
            if getattr(self, field) <= 0:
                raise UserError(f"{field}: {getattr(self, field)}, must be above 0")

    def filled(self) -> "SearchConfig":
        """The same with the preset's numbers where none were given."""
        return replace(self, **{k: v for k, v in PRESETS[self.preset].items() if getattr(self, k) is None})


@guard(errors=(quant.QuantError,))
def main(argv=None) -> Path:
    """Run a search, or go on with one; returns its folder."""
    config = parse(SearchConfig, argv, "search.py", __doc__.splitlines()[0]).filled()
    table = LatencyTable.load(config.latency_lut)
    table.check(allow_other_cpu=config.allow_other_cpu)
    space = SPACES[config.space](config.width, config.input_size, num_classes(config.data, config.data_root))
    latency = table.for_space(space)
    target_ms = find_target(config, table, space, latency)
    run = Run(Path(config.runs) / config.name)
    command = shlex.join(["python", "search.py", *(sys.argv[1:] if argv is None else argv)])
    settings = {**dataclasses.asdict(config), "target_ms": target_ms, "table_hash": table.hash}
    resumes = run.claim(
        {"program": "search", "command": command, **settings}, config.restart, ("command", "runs", "restart", "checkpoint_seconds")
    )
    if resumes and run.has("metrics.json"):
        print(f"{run.path}: this search has ended; --restart searches again")
        return run.path
    search, parts = build(config, space, latency, target_ms, table.meta["engine"])
    train(search, run, resumes, config.checkpoint_seconds)
    scores = score(search, parts.alphas, config)
    points = front(space, *scores, latency)
    networks = choose(search, space, points, scores, parts, config, table.meta["threads"])
    save(run, space, networks, points, search, table, {"command": command, **settings})
    return run.path


def find_target(config: SearchConfig, table: LatencyTable, space: SearchSpace, latency) -> float:
    """The target in ms, checked against what the space can reach; prints both."""
    fastest, slowest = latency_range(space, latency)
    target = config.target_ms
    if target is None:
        target = table.predict(frostnet.architecture("small", config.width, space.head.num_classes, config.input_size)).latency_ms
    check_target(target, fastest, slowest)
    print(f"target {target:.3f} ms; networks of this space take {fastest:.3f} to {slowest:.3f} ms on {table.meta['engine']}")
    if target > slowest:
        print("every network is faster than the target: latency will not steer this search")
    return target


@dataclass(frozen=True)
class Parts:
    """The training pictures in three: what weights learn from, what moves and scores alphas, and what judges finished networks."""

    weights: Pictures
    alphas: Pictures
    judge: Pictures


def split(pictures: Pictures, seed: int) -> Parts:
    """HELD_OUT of the pictures for alphas and as many for judging, balanced over the classes; the rest for weights."""
    labels = pictures.labels.cpu()
    held = balanced(labels, 2 * round(len(pictures) * HELD_OUT), seed)
    alphas = held[balanced(labels[held], len(held) // 2, seed)]
    rest, judge = torch.ones(len(pictures), dtype=torch.bool), torch.zeros(len(pictures), dtype=torch.bool)
    rest[held], judge[held] = False, True
    judge[alphas] = False
    parts = Parts(pictures.select(rest.nonzero()[:, 0]), pictures.select(alphas), pictures.select(judge.nonzero()[:, 0]))
    if min(len(part) for part in (parts.weights, parts.alphas, parts.judge)) < 2:
        raise UserError(f"train_images: {len(pictures)} pictures are too few to hold some out; give at least {round(4 / HELD_OUT)}")
    return parts


def build(config: SearchConfig, space: SearchSpace, latency, target_ms: float, engine: str) -> tuple[supernet.Search, Parts]:
    """The search and the pictures that it uses."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = config.train_size or config.input_size
    pictures = training_pictures(config.data, config.data_root, size, config.seed, config.train_images, config.download).to(device)
    parts = split(pictures, config.seed)
    torch.manual_seed(config.seed)
    network = supernet.Supernet(SPACES[config.space](config.width, size, space.head.num_classes))
    search = supernet.Search(
        network.to(device, memory_format=torch.channels_last),
        supernet.Plan(config.base_steps, config.float_steps, config.quant_steps, config.joint_steps, lr=config.lr,
                      alpha_lr=config.alpha_lr),
        latency, target_ms, F.cross_entropy,
        Stream(parts.weights, config.batch_size, config.seed).batch,
        Stream(parts.alphas, config.batch_size, config.seed + 1).batch,
        quant.QuantConfig(engine=engine), config.boost, config.seed,
    )  # fmt: skip
    return search, parts


def train(search: supernet.Search, run: Run, resumes: bool, checkpoint_seconds: float) -> None:
    """Run the search's steps, with a bar, a log and checkpoints; goes on from the last checkpoint."""
    if resumes:
        search.load_state_dict(run.load_checkpoint())
        run.rewind_log(search.step_index - 1)
        print(f"going on at step {search.step_index} of {search.plan.steps}")
    saved = time.monotonic()
    with tqdm(total=search.plan.steps, initial=search.step_index, desc="search", unit="step") as bar:
        while not search.finished:
            row = search.step()
            run.append_log(row)
            bar.set_postfix(
                {"phase": row["phase"]} | {k: f"{row[k]:.3g}" for k in ("loss", "expected_ms", "mu") if k in row}, refresh=False
            )
            bar.update()
            if time.monotonic() - saved > checkpoint_seconds or search.finished:
                search.refuse_broken()
                run.save_checkpoint(search.state_dict())
                saved = time.monotonic()


def score(search: supernet.Search, pictures: Pictures, config: SearchConfig) -> supernet.Scores:
    """Scores of all ops and depths: alphas and perturbed losses, blended."""
    some = pictures.select(balanced(pictures.labels.cpu(), config.score_images, config.seed))
    images, targets = next(iter(in_order(some, config.score_images)))
    stages = search.supernet.space.stages
    paths = 1 + sum(len(slot.candidates) - 1 for s in stages for slot in s.slots) + sum(len(s.slots) - s.min_depth for s in stages)
    with tqdm(total=paths, desc="scoring ops and depths", unit="path") as bar:
        losses = supernet.perturbation_scores(search.supernet, supernet.favourite(search.alphas), images, targets, search.loss, bar.update)
    return supernet.blended_scores(search.alphas, losses)


def choose(search: supernet.Search, space: SearchSpace, points: list[Point], scores: supernet.Scores, parts: Parts,
           config: SearchConfig, threads: int) -> list[Finalist]:  # fmt: skip
    """Re-score and measure finalists until one meets the target as measured; the chosen one comes first.

    Among those within a standard error of the most accurate the slowest is chosen: inherited weights flatter small networks, and
    what the target leaves costs nothing.
    """
    aim, target = search.target_ms, search.target_ms
    batches = Stream(parts.weights, config.batch_size, config.seed + 2, augment=False)
    recalibration = [batches.batch(i)[0] for i in range(RECALIBRATION_BATCHES)]
    for attempt in range(TRIES):
        networks = finalists(space, points, scores, search.latency, aim, config.rescored, config.controls, config.seed)
        judge(search, space, networks, recalibration, list(in_order(parts.judge, 256)), threads)
        derived = [n for n in networks if n.kind == "derived"]
        met = [n for n in derived if n.measured_ms <= target * (1.0 if attempt < TRIES - 1 else SLACK)]
        if met:
            best = slowest_of_the_best(met, len(parts.judge))
            return [best, *(n for n in networks if n is not best)]
        slowdown = min(n.measured_ms / n.latency_ms for n in derived)
        aim = max(target / slowdown, points[0].latency_ms)
        print(f"no derived network met {target:.3f} ms as measured; deriving again for {aim:.3f} ms predicted")
    raise UserError(
        f"target_ms: {target:.4g}, but measured networks take {slowdown:.2f} times their prediction and miss it; is something else "
        "running? Give the same command again to go on, measure the table anew, or raise the target"
    )


def slowest_of_the_best(networks: list[Finalist], pictures: int) -> Finalist:
    """The slowest of those whose accuracy on `pictures` is within one standard error of the best's."""
    best = max(n.accuracy for n in networks)
    error = math.sqrt(best * (1.0 - best) / pictures)
    return max((n for n in networks if n.accuracy >= best - error), key=lambda n: n.measured_ms)


def judge(search: supernet.Search, space: SearchSpace, networks: list[Finalist], recalibration: list, judged: list, threads: int) -> None:
    """Accuracy with recalibrated statistics, and latency measured in interleaved rounds, of every network."""
    image, frozen = torch.zeros(1, space.stem.in_channels, space.input_size, space.input_size), {}
    for network in tqdm(networks, desc="re-scoring networks", unit="net"):
        graph = supernet.inherited(search.supernet, network.choice, search.config, recalibration)
        network.accuracy = supernet.top1(graph, judged)
        deployed = quant.attach(frostnet.FrostNet(space.architecture(network.choice)), image, search.config)
        deployed.load_state_dict(graph.state_dict())  # the same network, at the size at which it will run
        frozen[network.name] = quant.freeze(quant.convert(deployed, search.config.engine), image)
    timings = time_networks(frozen, image, engine=search.config.engine, threads=threads)
    for network in networks:
        network.measured_ms = timings[network.name].ms


def save(run: Run, space: SearchSpace, networks: list[Finalist], points: list[Point], search: supernet.Search,
         table: LatencyTable, settings: dict) -> None:  # fmt: skip
    """Write arch.json, front.json, latency.json, metrics.json and the report of the chosen network, the first."""
    chosen = networks[0]
    arch = space.architecture(chosen.choice, run.path.name)
    provenance = {k: settings[k] for k in ("command", "seed", "data", "table_hash", "target_ms")}
    arch = replace(
        arch,
        provenance={**provenance, "engine": search.config.engine, "predicted_ms": chosen.latency_ms, "measured_ms": chosen.measured_ms},
    )
    arch.save(run.path / "arch.json")
    parts = table.predict(arch).rows
    run.write_json(
        "latency.json",
        {"parts": parts, "predicted_ms": chosen.latency_ms, "measured_ms": chosen.measured_ms, "target_ms": search.target_ms},
    )
    rows = [{k: v for k, v in dataclasses.asdict(n).items() if k != "choice"} for n in networks]
    run.write_json("front.json", {
        "target_ms": search.target_ms, "chosen": chosen.name, "networks": rows,
        "points": [{"latency_ms": p.latency_ms, "score": p.score} for p in points],
    })  # fmt: skip
    run.write_json("metrics.json", summary(search, networks))
    report = write_report(run.path)
    print(pandas.DataFrame(rows).to_string(index=False, float_format="{:.4f}".format))
    print(f"chosen {chosen.name}: {chosen.measured_ms:.3f} ms measured, {chosen.latency_ms:.3f} predicted, target {search.target_ms:.3f}")
    print(f"{run.path / 'arch.json'}\n{report}")


def summary(search: supernet.Search, networks: list[Finalist]) -> dict:
    """The search in a few numbers, the winner beside its random controls."""
    chosen, controls = networks[0], sorted(n.accuracy for n in networks if n.kind == "random")
    return {
        "target_ms": search.target_ms, "measured_ms": chosen.measured_ms, "predicted_ms": chosen.latency_ms,
        "supernet_top1": chosen.accuracy, "random_top1_median": controls[len(controls) // 2] if controls else None,
        "random_top1_best": controls[-1] if controls else None, "expected_ms": search.alphas.expected_latency(search.latency).item(),
        "entropy": search.alphas.entropy().item(), "mu": search.mu,
    }  # fmt: skip


def cli() -> None:
    """The console script: what `main` returns is no exit code."""
    main()


if __name__ == "__main__":
    main()
