"""The page of benchmarks/search_study.py: tables, a picture, and what they say."""

import math
import statistics
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common.files import write_bytes, write_json
from latency_lut.fitting import spearman
from nas.report.style import save

LOOKS = {"found": ("*", "#d1495b", 170), "hand-made": ("o", "#2f6fb3", 42), "random": ("x", "#8793a0", 36)}
PREDICTORS = {
    "supernet_top1": "supernet, each network tuned alone for a few steps",
    "inherited_top1": "supernet, weights as inherited",
    "score": "score of the knapsack (alphas and perturbations)",
    "int8_ms": "measured latency",
    "macs": "multiply-accumulates",
    "params": "parameters",
}
SHUFFLES = 2000  # random scores, for what chance alone would give
FEWEST = 4  # networks that a correlation is computed of


def write(output: str, result: dict) -> Path:
    """Write search.{json,md,png}; returns the JSON's path."""
    folder = Path(output)
    path = folder / "search.json"
    result = {**result, "ranking": ranking(result["networks"], result["seeds"][0])}
    write_json(path, result)
    write_bytes(folder / "search.md", page(result).encode())
    save(figure(result), folder / "search.png")
    return path


# ---- numbers -----------------------------------------------------------------------------------------------


def top1s(network: dict) -> list[float]:
    """INT8 accuracy of every seed that is done; one that diverged counts as chance would."""
    return [cell["int8"] if cell["int8"] is not None else 0.1 for cell in network["cells"]]


def mean_of(network: dict) -> float:
    return statistics.mean(top1s(network))


def at(result: dict, target: float, kind: str) -> list[dict]:
    """The trained networks of a kind at a latency."""
    return [n for n in result["networks"] if n["target_ms"] == target and n["kind"] == kind and n["cells"]]


def ranking(networks: list[dict], seed: int) -> dict:
    """How well each predictor ranks the networks that a supernet judged and that were trained alone: Spearman's
    correlation with the accuracy of `seed`, among the networks of one search (scores of two searches do not compare),
    as a mean over the searches."""
    judged = [n for n in networks if n["kind"] != "hand-made" and top1_of(n, seed) is not None]
    groups = [[n for n in judged if n["target_ms"] == t] for t in sorted({n["target_ms"] for n in judged})]
    rows = {}
    for key in PREDICTORS:
        known = [group for group in groups if len(group) >= FEWEST and all(n.get(key) is not None for n in group)]
        found = [spearman([n[key] for n in group], [top1_of(n, seed) for n in group]) for group in known]
        rows[key] = {"networks": sum(map(len, known)), "spearman": statistics.mean(found) if found else None}
    sizes = [len(group) for group in groups if len(group) >= FEWEST]
    return {"predictors": rows, "chance": chance(sizes) if sizes else None, "networks": sum(sizes)}


def top1_of(network: dict, seed: int) -> float | None:
    """INT8 accuracy of one seed, None where it was not trained."""
    return next(
        (value for cell, value in zip(network["cells"], top1s(network), strict=True) if cell["seed"] == seed), None
    )


def chance(sizes: list[int]) -> float:
    """The mean correlation over groups of such sizes that random scores exceed, by its absolute value, in 5 % of all
    cases.
    """
    random = np.random.default_rng(0)
    found = [statistics.mean(spearman(random.random(size), np.arange(size)) for size in sizes) for _ in range(SHUFFLES)]
    return float(np.quantile(np.abs(found), 0.95))


# ---- the page ----------------------------------------------------------------------------------------------


def page(result: dict) -> str:
    s, table = result["settings"], result["table"]
    targets = sorted({n["target_ms"] for n in result["networks"]})
    lines = [
        "# Found networks against hand-made and random ones",
        "",
        "Written by `PYTHONPATH=. python benchmarks/search_study.py --data-root FOLDER`. "
        f"CPU: {result['cpu']}, torch {result['torch']}, engine {s['engine']}, one thread, one picture of 32 px.",
        "",
        f"Each network was trained from scratch on {s['train_images']:,} CIFAR-10 pictures for {s['epochs']} epochs (the first in float, "
        f"then quantized with GradBoost; SGD, peak learning rate {s['lr']}, batches of 64) and judged as an integer network on "
        f"{_pictures(result):,} pictures that neither a training nor a search has seen. That is a short training: the accuracies say which "
        "network learns fast at a latency, not what it reaches in the end. Random networks and their best are of one seed.",
        "",
        f"The searches (`--preset {s['preset']}`, width {s['width']}) used the same training pictures, by the latency table "
        f"`{result['table_hash'][:12]}` (held-out MAPE {100 * table['mape']:.1f} %, Spearman {table['spearman']:.3f}).",
        "",
        "![accuracy against latency](search.png)",
        "",
    ]
    for target in targets:
        lines += [f"## At {target:g} ms", "", *_table(result, target), "", *reading(result, target), ""]
    return "\n".join([*lines, *_ranking_words(result), ""])


def _pictures(result: dict) -> int:
    return max(cell.get("pictures", 0) for n in result["networks"] for cell in n["cells"])


def _table(result: dict, target: float) -> list[str]:
    heads = ("network", "kind", "parameters", "MACs", "INT8 ms", "float ms", "INT8 top-1", "fake-quant top-1", "seeds")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    group = [n for kind in LOOKS for n in sorted(at(result, target, kind), key=mean_of, reverse=True)]
    for n in group:
        simulated = [cell["fake_quant"] for cell in n["cells"] if cell["fake_quant"] is not None]
        size = f"{n['params'] / 1e6:.2f} M | {n['macs'] / 1e6:.1f} M | {n['int8_ms']:.3f} | {n['float_ms']:.3f}"
        lines.append(
            f"| {n['name']} | {n['kind']} | {size} | {spread(top1s(n))} | {spread(simulated)} | {len(n['cells'])} |"
        )
    return lines


def spread(values: list[float]) -> str:
    """Mean and standard deviation in percent."""
    if not values:
        return "diverged"
    more = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{more}"


def reading(result: dict, target: float) -> list[str]:
    """The found network beside its rivals, in sentences, for better or worse."""
    found, rivals, randoms = (at(result, target, kind) for kind in LOOKS)
    if not (found and rivals):
        return []
    mine, best = found[0], max(rivals, key=mean_of)
    gain, error = 100 * (mean_of(mine) - mean_of(best)), standard_error(mine, best, _pictures(result))
    lines = [
        f"- The found network ({mine['int8_ms']:.3f} ms, {100 * mean_of(mine):.1f} %) is {gain:+.1f} points from the best hand-made one, "
        f"{best['name']} ({best['int8_ms']:.3f} ms, {100 * mean_of(best):.1f} %); the standard error of that difference, by seeds and "
        f"pictures, is about {error:.1f} (as if each network had been shown pictures of its own)."
    ]
    if randoms:
        values, mine_first = [top1s(n)[0] for n in randoms], top1_of(mine, result["seeds"][0])
        lines.append(
            f"- {len(values)} random networks of the space (one seed): median {100 * statistics.median(values):.1f} %, best "
            f"{100 * max(values):.1f} %. With the same seed the found one reached {100 * mine_first:.1f} %; "
            f"{sum(value > mine_first for value in values)} are above it."
        )
    return lines


def standard_error(a: dict, b: dict, pictures: int) -> float:
    """Of the difference of two mean accuracies, in points: the seeds' spread where there are several, and the
    pictures'.
    """
    variance = 0.0
    for network in (a, b):
        values, p = top1s(network), mean_of(network)
        variance += (statistics.variance(values) / len(values) if len(values) > 1 else 0.0) + p * (1 - p) / pictures
    return 100 * math.sqrt(variance)


def _ranking_words(result: dict) -> list[str]:
    found = result["ranking"]
    if found["chance"] is None:
        return []
    lines = [
        "## Does the search rank networks?",
        "",
        f"Spearman's correlation of {found['networks']} networks (the found and the random ones) between what is known before training and "
        "the INT8 accuracy after training alone (first seed), among networks of one latency, the mean over the latencies. Random scores "
        f"stay within ±{found['chance']:.2f} in 95 % of all cases.",
        "",
        "| predictor | networks | Spearman |",
        "|---|---|---|",
    ]
    rows = [(PREDICTORS[key], row) for key, row in found["predictors"].items() if row["spearman"] is not None]
    return [*lines, *(f"| {words} | {row['networks']} | {row['spearman']:+.2f} |" for words, row in rows)]


def figure(result: dict) -> Figure:
    """INT8 accuracy against measured latency, seeds as bars."""
    drawing = Figure(figsize=(8.4, 4.6), layout="constrained")
    ax = drawing.subplots()
    for kind, (marker, colour, area) in LOOKS.items():
        group = [n for n in result["networks"] if n["kind"] == kind and n["cells"]]
        if not group:
            continue
        x, y = [n["int8_ms"] for n in group], [100 * mean_of(n) for n in group]
        bars = [100 * statistics.stdev(top1s(n)) if len(n["cells"]) > 1 else 0.0 for n in group]
        ax.errorbar(x, y, bars, fmt="none", ecolor=colour, lw=1, alpha=0.6)
        ax.scatter(x, y, s=area, c=colour, marker=marker, label=kind, zorder=4 if kind == "found" else 3)
        if kind == "hand-made":
            for n, a, b in zip(group, x, y, strict=True):
                ax.annotate(n["name"], (a, b), (4, 3), textcoords="offset points", fontsize=6.5, color="#22303c")
    for target in sorted({n["target_ms"] for n in result["networks"]}):
        ax.axvline(target, color="#d1495b", ls="--", lw=0.8)
    ax.set(xlabel="INT8 latency, measured (ms)", ylabel="INT8 top-1 (%)")
    ax.grid(color="#dde3e9", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return drawing
