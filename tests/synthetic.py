"""A run's folder as a search leaves it, made up: what reports and their pages are tested with."""

import math

import torch

from common.runs import Run
from nas import frostnet_space
from nas.cost import cost

STEPS, TARGET = (80, 100, 40, 200), 1.5
PHASES = ("base", "float", "quant", "joint")


def label(block) -> str:
    squeeze = f" r{block.squeeze_factor}" if block.squeeze_factor else ""
    return f"{block.op} k{block.kernel_size} e{block.expand_ratio}{squeeze}"


def search_run(path, points: int = 3000, seed: int = 0, every: int = 5) -> Run:
    """A search with every file that a report reads; alphas `every` so many steps."""
    generator, run = torch.Generator().manual_seed(seed), Run(path)
    space = frostnet_space(0.5, 32, 10)
    arch = space.architecture(space.random(generator), run.path.name)
    arch.save(run.path / "arch.json")
    command = "python search.py --latency-lut fbgemm.json --width 0.5 --preset small --data scenes --name frostnet_a"
    run.write_json(
        "config.json", {"program": "search", "command": command, "seed": seed, "width": 0.5, "target_ms": TARGET}
    )
    parts = {row.name: 0.02 + row.macs / 2.5e6 * (1 + 0.1 * _noise(generator)) for row in cost(arch).rows}
    total = sum(parts.values())
    run.write_json(
        "latency.json",
        {
            "parts": {k: v * TARGET / total for k, v in parts.items()},
            "predicted_ms": 1.487,
            "measured_ms": 1.496,
            "target_ms": TARGET,
        },
    )
    _log(run, generator)
    _alphas(run, space, generator, every)
    _front(run, points, generator)
    run.write_json(
        "metrics.json",
        {
            "target_ms": TARGET,
            "measured_ms": 1.496,
            "predicted_ms": 1.487,
            "supernet_top1": 0.6328,
            "random_top1_median": 0.5703,
            "random_top1_best": 0.6016,
            "entropy": 0.612,
            "mu": 0.341,
            "health": {
                "entropy": 0.612,
                "cheapest_share": 0.14,
                "mixed_top1": 0.6602,
                "derived_top1": 0.6328,
                "warnings": [
                    "the alphas are still close to uniform (entropy 0.61): a longer joint phase would tell candidates "
                    "apart"
                ],
            },
        },
    )
    return run


def _noise(generator) -> float:
    return float(torch.randn((), generator=generator))


def _log(run: Run, generator) -> None:
    rows = []
    for phase, count in zip(PHASES, STEPS):
        for i in range(count):
            step, share = len(rows), i / count
            row = {"step": step, "phase": phase, "loss": 0.9 + 1.5 * math.exp(-step / 120) + 0.08 * _noise(generator)}
            if phase == "joint":
                row |= {
                    "val_loss": row["loss"] + 0.1,
                    "expected_ms": TARGET + 0.9 * math.exp(-3 * share) + 0.02 * _noise(generator),
                    "target_ms": TARGET,
                    "mu": 0.34 * (1 - math.exp(-4 * share)),
                    "entropy": 1.0 - 0.39 * share,
                    "temperature": 5.0 * 0.2**share,
                    "cheapest_share": 0.125 + 0.02 * share,
                }
            rows.append(row)
    for row in rows:
        run.append_log(row)


def _alphas(run: Run, space, generator, every: int) -> None:
    stages = [
        {"min_depth": s.min_depth, "slots": [[label(c) for c in slot.candidates] for slot in s.slots]}
        for s in space.stages
    ]
    run.write_json("space.json", {"name": space.name, "tied": False, "stages": stages})
    ends = [[torch.randn(len(slot), generator=generator) * 1.6 for slot in s["slots"]] for s in stages]
    depth_ends = [torch.randn(len(s["slots"]) - s["min_depth"] + 1, generator=generator) * 1.5 for s in stages]
    first = sum(STEPS[:3])
    for step in range(first, first + STEPS[3], every):
        share = (step - first) / STEPS[3]
        ops, depths = [[_at(share, e) for e in row] for row in ends], [_at(share, e) for e in depth_ends]
        run.append_log({"step": step, "ops": ops, "depths": depths}, "alphas.jsonl")


def _at(share: float, end: torch.Tensor) -> list[float]:
    """Probabilities of alphas that have gone a share of their way from 0 to their end."""
    return [round(p, 4) for p in (end * share).softmax(0).tolist()]


def _front(run: Run, points: int, generator) -> None:
    def curve(ms):
        return -12.0 * math.exp(-1.6 * (ms - 0.6))

    networks = []
    for i in range(1, 13):
        kind = "derived" if i <= 6 else "random"
        ms = TARGET - 0.012 * i if kind == "derived" else TARGET - 0.02 * (i - 6)
        score = curve(ms) - (0.05 * i if kind == "derived" else 2.5 + abs(_noise(generator)))
        accuracy = round((0.62 if kind == "derived" else 0.57) + 0.012 * _noise(generator), 4)
        measured = ms * (1 + 0.015 * _noise(generator))
        networks.append(
            {
                "name": f"{kind}_{(i - 1) % 6 + 1}",
                "kind": kind,
                "latency_ms": ms,
                "score": score,
                "accuracy": accuracy,
                "measured_ms": measured,
            }
        )
    line = [0.6 + 2.4 * i / points for i in range(points)]
    run.write_json(
        "front.json",
        {
            "target_ms": TARGET,
            "chosen": "derived_2",
            "networks": networks,
            "points": [{"latency_ms": ms, "score": curve(ms)} for ms in line],
        },
    )
