"""What a search leaves in its folder: the networks, where they come from, numbers for its report."""

import dataclasses
import shutil
import statistics
from dataclasses import replace

from nas.arch import Architecture, BlockSpec
from nas.derive import Point
from nas.space import SearchSpace
from nas.spaces import Bottleneck
from supernet.finalists import Finalist
from supernet.health import health
from supernet.judge import Judge


def describe(space: SearchSpace) -> dict:
    """A space in words: its candidates, [stage][slot]."""
    stages = [
        {"min_depth": s.min_depth, "slots": [[words(c) for c in slot.candidates] for slot in s.slots]}
        for s in space.stages
    ]
    return {"name": space.name, "tied": space.tied, "stages": stages}


def words(spec: BlockSpec) -> str:
    """A block in short.

    >>> words(BlockSpec("se", 3, 40, 40, 1, 6, 4, "hard_swish"))
    'se k3 e6 r4 hard_swish'
    """
    squeeze = f" r{spec.squeeze_factor}" if spec.squeeze_factor else ""
    activation = f" {spec.activation}" if spec.activation != "relu" else ""
    return f"{spec.op} k{spec.kernel_size} e{spec.expand_ratio}{squeeze}{activation}"


def save_networks(judge: Judge, networks: list[Finalist], provenance: dict) -> Architecture:
    """Write arch.json of the chosen network, the first, and all that were judged into tried/; of a tied space also
    bottleneck.json. Returns the chosen one."""
    path, space = judge.run.path, judge.space
    for network in networks:
        architecture(space, network, network.name, provenance).save(path / "tried" / f"{network.name}.json")
    chosen = architecture(space, networks[0], path.name, provenance)
    chosen.save(path / "arch.json")
    if space.tied:
        found = kind(space, networks[0])
        Bottleneck(found.op, found.activation).save(
            path / "bottleneck.json", {**provenance, "found": dataclasses.asdict(found)}
        )
    return chosen


def save_pareto(judge: Judge, networks: list[Finalist], wanted: int, provenance: dict) -> None:
    """Write the best networks for `wanted` targets into pareto/, in the place of earlier ones, and add them to
    front.json.
    """
    run, name = judge.run, judge.run.path.name
    shutil.rmtree(run.path / "pareto", ignore_errors=True)
    for i, network in enumerate(networks, 1):
        architecture(judge.space, network, f"{name}_{i}", provenance).save(run.path / "pareto" / f"{name}_{i}.json")
    found = run.read_json("front.json")
    others = [n for n in found["networks"] if n["kind"] != "pareto"]
    run.write_json("front.json", {**found, "networks": [*others, *(row(judge.space, n) for n in networks)]})
    run.write_json("metrics.json", {**run.read_json("metrics.json"), "pareto": wanted})


def architecture(space: SearchSpace, network: Finalist, name: str, provenance: dict) -> Architecture:
    """A judged network, with where it comes from and what was found of it."""
    found = {
        "predicted_ms": network.latency_ms,
        "measured_ms": network.measured_ms,
        "score": network.score,
        "inherited_top1": network.inherited,
        "supernet_top1": network.accuracy,
    }
    return replace(space.architecture(network.choice, name), provenance={**provenance, **found})


def save_numbers(judge: Judge, networks: list[Finalist], points: list[Point], parts_ms: dict[str, float]) -> dict:
    """Write latency.json, front.json and, last, metrics.json, with which a network is chosen; returns the metrics."""
    run, search, chosen = judge.run, judge.search, networks[0]
    numbers = {"predicted_ms": chosen.latency_ms, "measured_ms": chosen.measured_ms, "target_ms": search.target_ms}
    run.write_json("latency.json", {"parts": parts_ms, **numbers})
    run.write_json(
        "front.json",
        {
            "target_ms": search.target_ms,
            "chosen": chosen.name,
            "networks": [row(judge.space, n) for n in networks],
            "points": [{"latency_ms": p.latency_ms, "score": p.score} for p in points],
        },
    )
    metrics = summary(judge, networks)
    run.write_json("metrics.json", metrics)
    return metrics


def row(space: SearchSpace, network: Finalist) -> dict:
    """A network in the table of those judged; in a tied space with its block."""
    found = {k: v for k, v in dataclasses.asdict(network).items() if k != "choice"}
    return found | {"block": words(kind(space, network))} if space.tied else found


def kind(space: SearchSpace, network: Finalist) -> BlockSpec:
    """The block that a network of a tied space repeats, as it is in the widest slot: narrow ones may have no room for
    its squeeze.
    """
    pairs = [(slot, op) for stage, ops in zip(space.stages, network.choice.ops) for slot, op in zip(stage.slots, ops)]
    candidate = next(op for slot, op in pairs if len(slot.candidates) > 1)
    widest = max(
        (slot for slot, _ in pairs if len(slot.candidates) > 1), key=lambda slot: slot.candidates[0].in_channels
    )
    return widest.candidates[candidate]


def summary(judge: Judge, networks: list[Finalist]) -> dict:
    """The search in a few numbers, the winner beside its random controls, and its health."""
    search, chosen = judge.search, networks[0]
    controls = [n.accuracy for n in networks if n.kind == "random"]
    expected = search.alphas.expected_latency(search.latency, search.plan.temperature[1])
    return {
        "target_ms": search.target_ms,
        "measured_ms": chosen.measured_ms,
        "predicted_ms": chosen.latency_ms,
        "supernet_top1": chosen.accuracy,
        "random_top1_median": statistics.median(controls) if controls else None,
        "random_top1_best": max(controls) if controls else None,
        "expected_ms": expected.item(),
        "mu": search.mu,
        "health": health(search, chosen.choice, judge.judged),
    }
