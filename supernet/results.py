"""What a search leaves in its folder: the networks with their provenance, and the figures of its report."""

import dataclasses
import shutil
import statistics
from dataclasses import replace

from nas.arch import Architecture, BlockSpec, block_label
from nas.derive import Point
from nas.space import SearchSpace
from nas.spaces import Bottleneck
from supernet.finalists import Finalist
from supernet.health import health
from supernet.selection import Evaluator


def describe(space: SearchSpace) -> dict:
    """A space for space.json, with the labels of its candidates, [stage][slot]."""
    stages = [
        {"min_depth": s.min_depth, "slots": [[block_label(c) for c in slot.candidates] for slot in s.slots]}
        for s in space.stages
    ]
    return {"name": space.name, "tied": space.tied, "stages": stages}


# ---- architectures -----------------------------------------------------------------------------------------


def save_networks(evaluator: Evaluator, networks: list[Finalist], provenance: dict) -> Architecture:
    """Write the architectures of a selection.

    Args:
        evaluator: Of the search.
        networks: The evaluated finalists, the chosen one first.
        provenance: Of the search, stored with each architecture.

    Returns:
        The chosen network, which is in arch.json, and in a tied space its block in bottleneck.json. All are in tried/.
    """
    path, space = evaluator.run.path, evaluator.space
    for network in networks:
        architecture(space, network, network.name, provenance).save(path / "tried" / f"{network.name}.json")
    chosen = architecture(space, networks[0], path.name, provenance)
    chosen.save(path / "arch.json")
    if space.tied:
        block = shared_block(space, networks[0])
        Bottleneck(block.op, block.activation).save(
            path / "bottleneck.json", {**provenance, "found": dataclasses.asdict(block)}
        )
    return chosen


def save_pareto(evaluator: Evaluator, networks: list[Finalist], wanted: int, provenance: dict) -> None:
    """Write the best networks for `wanted` targets into pareto/, in place of earlier ones, and into front.json."""
    run, name = evaluator.run, evaluator.run.path.name
    shutil.rmtree(run.path / "pareto", ignore_errors=True)
    for i, network in enumerate(networks, 1):
        architecture(evaluator.space, network, f"{name}_{i}", provenance).save(run.path / "pareto" / f"{name}_{i}.json")
    front = run.read_json("front.json")
    others = [n for n in front["networks"] if n["kind"] != "pareto"]
    run.write_json("front.json", {**front, "networks": [*others, *(row(evaluator.space, n) for n in networks)]})
    run.write_json("metrics.json", {**run.read_json("metrics.json"), "pareto": wanted})


def architecture(space: SearchSpace, network: Finalist, name: str, provenance: dict) -> Architecture:
    """An evaluated network with its provenance and figures."""
    figures = {
        "predicted_ms": network.latency_ms,
        "measured_ms": network.measured_ms,
        "score": network.score,
        "inherited_top1": network.inherited,
        "supernet_top1": network.accuracy,
    }
    return replace(space.architecture(network.choice, name), provenance={**provenance, **figures})


def shared_block(space: SearchSpace, network: Finalist) -> BlockSpec:
    """The block of a tied network, as it is in the widest slot: narrow ones may have no room for its squeeze."""
    slots = [slot for stage in space.stages for slot in stage.slots if len(slot.candidates) > 1]
    widest = max(slots, key=lambda slot: slot.candidates[0].in_channels)
    return widest.candidates[space.tied_candidate(network.choice)]


# ---- figures -----------------------------------------------------------------------------------------------


def save_numbers(
    evaluator: Evaluator, networks: list[Finalist], points: list[Point], parts_ms: dict[str, float]
) -> dict:
    """Write latency.json, front.json and, last, metrics.json, which exists only after a network was chosen.

    Args:
        evaluator: Of the search.
        networks: The evaluated finalists, the chosen one first.
        points: The front of latency against score.
        parts_ms: Predicted milliseconds of the chosen network by component.

    Returns:
        The metrics.
    """
    run = evaluator.run
    target_ms = evaluator.search.constraint.target_ms
    chosen = networks[0]
    numbers = {"predicted_ms": chosen.latency_ms, "measured_ms": chosen.measured_ms, "target_ms": target_ms}
    run.write_json("latency.json", {"parts": parts_ms, **numbers})
    run.write_json(
        "front.json",
        {
            "target_ms": target_ms,
            "chosen": chosen.name,
            "networks": [row(evaluator.space, n) for n in networks],
            "points": [{"latency_ms": p.latency_ms, "score": p.score} for p in points],
        },
    )
    metrics = summary(evaluator, networks)
    run.write_json("metrics.json", metrics)
    return metrics


def row(space: SearchSpace, network: Finalist) -> dict:
    """A network in the table of those evaluated; in a tied space with its block."""
    figures = {k: v for k, v in dataclasses.asdict(network).items() if k != "choice"}
    return figures | {"block": block_label(shared_block(space, network))} if space.tied else figures


def summary(evaluator: Evaluator, networks: list[Finalist]) -> dict:
    """The search in a few numbers: the chosen network beside its random baselines, and the search's health."""
    search, chosen = evaluator.search, networks[0]
    baselines = [n.accuracy for n in networks if n.kind == "random"]
    expected = search.alphas.expected_latency(search.latency, search.plan.temperature[1])
    return {
        "target_ms": search.constraint.target_ms,
        "measured_ms": chosen.measured_ms,
        "predicted_ms": chosen.latency_ms,
        "supernet_top1": chosen.accuracy,
        "random_top1_median": statistics.median(baselines) if baselines else None,
        "random_top1_best": max(baselines) if baselines else None,
        "expected_ms": expected.item(),
        "mu": search.constraint.mu,
        "health": health(search, chosen.choice, evaluator.held_out),
    }
