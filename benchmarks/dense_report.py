"""The page of the studies of detection and segmentation: tables, what they say for better or worse, learning curves,
pictures.
"""

import math
import statistics
from pathlib import Path

from benchmarks.dense_pictures import curves, sheet_path
from benchmarks.low_bit import percent, spread
from common.files import write_bytes, write_json
from nas.report.style import save as save_figure

LEARNED = 0.03  # score below which a network has not learned enough to be compared
EQUAL = 0.1  # latencies that differ by no more than this share are called equal
SURE = 2.0  # standard errors from which on a difference is one
METRICS = {"ap": "AP", "ap50": "AP50", "voc_ap": "VOC AP", "miou": "mIoU", "pixel_accuracy": "pixel accuracy"}
COLUMNS = {
    "float": "float training, then its last epochs at a smaller learning rate, in float: the baseline, judged as a float network",
    "straight": "float from scratch in one go, by the very schedule of *both*: what *both* would be without quantizers",
    "ptq": "that float network, its ranges calibrated (mse), not trained further",
    "finetune": "the same float training, then the last epochs as QAT, without GradBoost",
    "naive": "QAT from the first step on, without StatAssist and GradBoost",
    "statassist": "StatAssist: a float phase, then QAT, without GradBoost",
    "both": "StatAssist and GradBoost",
}
EFFECTS = {
    "PTQ, against float": ("ptq", "float"),
    "fine-tuning, against float": ("finetune", "float"),
    "StatAssist, against naive": ("statassist", "naive"),
    "GradBoost, on top of StatAssist": ("both", "statassist"),
    "both, against naive": ("both", "naive"),
    "both, against float": ("both", "float"),
    "both, against straight float": ("both", "straight"),
    "both, against fine-tuning": ("both", "finetune"),
}
BOTH, NOISE = "StatAssist with GradBoost from scratch", "makes no difference that could be told from noise"
# of each effect the subject, and what is said of it by its verdict: 0, 1, -1
SENTENCES = {
    "both, against float": (BOTH, ("reaches the float baseline within the noise", "is above the float baseline",
                                   "falls short of the float baseline")),
    "both, against straight float": (BOTH, ("reaches float of the same schedule within the noise", "is above float of the same schedule",
                                            "falls short of float of the same schedule")),
    "both, against naive": (BOTH, ("cannot be told from naive QAT", "beats naive QAT", "is below naive QAT")),
    "StatAssist, against naive": ("StatAssist", (NOISE, "gains over naive QAT", "loses against naive QAT")),
    "GradBoost, on top of StatAssist": ("GradBoost", (NOISE, "gains over StatAssist alone", "loses against StatAssist alone")),
    "both, against fine-tuning": (BOTH, ("cannot be told from fine-tuning", "is above fine-tuning", "is below fine-tuning")),
    "fine-tuning, against float": ("Fine-tuning", ("reaches float within the noise", "is above float", "is below float")),
    "PTQ, against float": ("PTQ", ("reaches float within the noise", "is above float", "is below float")),
}  # fmt: skip


def write(output: str, result: dict) -> Path:
    """Write TASK.{json,md} and TASK_curves.png; returns the JSON's path."""
    folder, task = Path(output), result["task"]
    result = {
        **result,
        "metric": METRICS[result["score"]],
        "effects": {name: effects(result, name) for name in result["networks"]},
    }
    write_json(folder / f"{task}.json", result)
    if any(cell["curve"] for cell in result["cells"]):
        save_figure(curves(result), folder / f"{task}_curves.png")
    write_bytes(folder / f"{task}.md", page(folder, result).encode())
    return folder / f"{task}.json"


# ---- numbers -----------------------------------------------------------------------------------------------


def cells_of(result: dict, network: str, column: str) -> list[dict]:
    return [c for c in result["cells"] if (c["network"], c["column"]) == (network, column)]


def judged(result: dict, network: str, column: str) -> dict[int, dict]:
    """By seed the cells that did not diverge."""
    return {c["seed"]: c for c in cells_of(result, network, column) if c["scores"] is not None}


def difference(result: dict, one: tuple[str, str], other: tuple[str, str]) -> dict | None:
    """The score of one (network, column) less that of another, mean over the seeds that both have, and its standard
    error.

    The error is made of the spread over seeds, where there are several, and of that over groups of test pictures,
    paired: both networks were shown the same ones. Groups without anything to be found (None) are left out.
    """
    a, b = judged(result, *one), judged(result, *other)
    score, seeds = result["score"], sorted(a.keys() & b.keys())
    if not seeds:
        return None
    gaps = [a[s]["scores"][score] - b[s]["scores"][score] for s in seeds]
    # of a group of pictures, by seed
    scored = [zip(*(a[s]["groups"] for s in seeds)), zip(*(b[s]["groups"] for s in seeds))]
    groups = [statistics.mean(xs) - statistics.mean(ys) for xs, ys in zip(*scored) if None not in (*xs, *ys)]
    by_pictures = statistics.stdev(groups) / math.sqrt(len(groups)) if len(groups) > 1 else 0.0
    by_seeds = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return {"mean": statistics.mean(gaps), "error": math.hypot(by_pictures, by_seeds), "seeds": len(seeds)}


def effects(result: dict, network: str) -> dict[str, dict]:
    """What each ingredient does to a network's score."""
    found = {words: difference(result, (network, one), (network, other)) for words, (one, other) in EFFECTS.items()}
    return {words: value for words, value in found.items() if value is not None}


def verdict(value: dict) -> int:
    """1 where a difference is above the noise, -1 where it is below, 0 where nothing can be said."""
    return 0 if abs(value["mean"]) <= SURE * value["error"] else 1 if value["mean"] > 0 else -1


# ---- the page ----------------------------------------------------------------------------------------------


def page(folder: Path, result: dict) -> str:
    s, task = result["settings"], result["task"]
    partial = (
        ""
        if len(result["cells"]) == result["planned"]
        else f"**{len(result['cells'])} of {result['planned']} cells so far.** "
    )
    seeds, pictures = (
        sorted({c["seed"] for c in result["cells"]}),
        max((c.get("pictures", 0) for c in result["cells"]), default=0),
    )
    lines = [
        f"# {result['title']}",
        "",
        f"{partial}Written by `{result['command']}` (the same command goes on where it was stopped); the numbers are in "
        f"[{task}.json]({task}.json). In percent, on {pictures} test pictures that chose nothing; mean ± standard deviation over seeds "
        f"({', '.join(map(str, seeds)) or 'none yet'}). All columns but *float* and *straight* are **integer networks** on the engine "
        f"{s['engine']}.",
        "",
        f"Every column has seen the same {s['epochs']} epochs of pictures ({s['input_size']} px, batches of {s['batch_size']}) in the same "
        f"order: SGD, peak learning rate {s['lr']:g}, warm-up over {100 * s['warmup']:g} % of the steps, then {s['decay']}, gradients "
        f"clipped to a norm of {s['clip_norm']:g}, weight decay {s['weight_decay']:g}, residual branches silent at the start, "
        f"no pretrained weights. *float* and *finetune* train the last {s['tune_epochs']} epochs at a peak of {s['tune_lr']:g}; the float "
        f"phase of StatAssist takes the first {result['float_epochs']} epochs; *ptq* looked at {s['calibration_images']} training "
        "pictures. These are short trainings on few pictures: they compare columns with each other, not with published figures.",
        "",
        *(f"- *{name}*: {words}." for name, words in COLUMNS.items()),
        "",
        *(line for name in result["networks"] for line in section(folder, result, name)),
        *latencies(result),
        *curve_lines(result),
        *closing(result),
    ]
    return "\n".join([*lines, ""])


def section(folder: Path, result: dict, network: str) -> list[str]:
    """One network: its table, its ingredients, what they say, its pictures."""
    if not any(c["network"] == network for c in result["cells"]):
        return []
    lines = [f"## {network}", "", *table(result, network), ""]
    found = effects(result, network)
    if found:
        lines += [
            f"| ingredient | points of {METRICS[result['score']]} | standard error |",
            "|---|---|---|",
            *(f"| {words} | {100 * v['mean']:+.1f} | {100 * v['error']:.1f} |" for words, v in found.items()),
            "",
        ]
    if found and len({c["seed"] for c in result["cells"] if c["network"] == network}) == 1:
        lines += [
            "One seed: the errors are those of the test pictures alone. Another training of the same column would differ by more, so "
            "the verdicts are of these very trainings, not of the methods.",
            "",
        ]
    lines += [*reading(result, network), ""]
    for path in sorted(folder.glob(sheet_path(folder, result["task"], network, "*").name)):
        lines += [f"![truth, float and INT8]({path.name})", ""]
    return lines


def table(result: dict, network: str) -> list[str]:
    """Columns of the study as rows."""
    names = [METRICS[name] for name in result["reported"]]
    heads = ["column", *names, f"{METRICS[result['score']]} of fake-quant", "same answer", "minutes"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for column in COLUMNS:
        cells, good = cells_of(result, network, column), list(judged(result, network, column).values())
        if not cells:
            continue
        row = [shown([c["scores"][name] for c in good]) for name in result["reported"]]
        simulated, same = (
            [c["fake_quant"][result["score"]] for c in good if "fake_quant" in c],
            [c["agreement"] for c in good if "agreement" in c],
        )
        row += [shown(simulated) if simulated else "-", f"{100 * min(same):.1f} %" if same else "-"]
        lost = f" ({len(cells) - len(good)} of {len(cells)} diverged)" if len(good) < len(cells) else ""
        row.append(f"{minutes(result, network, column):.1f}" if good else "-")
        lines.append(f"| {column}{lost} | {' | '.join(row)} |")
    return lines


def minutes(result: dict, network: str, column: str) -> float:
    """Of one seed's training, with the float training that it goes on from."""
    chain = {"float": ("base", "float"), "finetune": ("base", "finetune"), "ptq": ("base", "float", "ptq")}.get(
        column, (column,)
    )
    return (
        sum(
            statistics.mean([c["seconds"] for c in cells_of(result, network, name) if "seconds" in c] or [0])
            for name in chain
        )
        / 60
    )


def shown(values: list[float]) -> str:
    """31.2 ± 0.4"""
    if not values:
        return "diverged"
    value = spread(values)
    return percent(value["mean"]) + (f" ± {100 * value['std']:.1f}" if value["std"] is not None else "")


def reading(result: dict, network: str) -> list[str]:
    """The aim and what became of it, in sentences, for better or worse."""
    found, metric = effects(result, network), METRICS[result["score"]]
    best = max(
        (c["scores"][result["score"]] for c in result["cells"] if c["network"] == network and c["scores"]), default=0.0
    )
    if best < LEARNED:
        return [f"- No column reaches {100 * LEARNED:g} % {metric}: these trainings are too short to compare anything."]
    lines = [
        f"- {subject} {says[verdict(found[words])]}: {points(found[words])} of {metric}."
        for words, (subject, says) in SENTENCES.items()
        if words in found
    ]
    for column in COLUMNS:
        cells = cells_of(result, network, column)
        lost = [c for c in cells if c["scores"] is None]
        if lost:
            lines.append(
                f"- *{column}* diverged in {len(lost)} of {len(cells)} seed(s): {lost[0]['refused'].split('; ')[0]}."
            )
    return lines


def points(value: dict) -> str:
    """+1.2 points (standard error 0.5, 2 seeds)"""
    seeds = f"{value['seeds']} seeds" if value["seeds"] > 1 else "one seed, the error is that of the pictures alone"
    return f"{100 * value['mean']:+.1f} points (standard error {100 * value['error']:.1f}, {seeds})"


def latencies(result: dict) -> list[str]:
    """Size and speed of the networks, and the networks against each other."""
    if result["latency"] is None:
        return []
    rows, size = result["latency"]["networks"], "x".join(map(str, result["latency"]["timed_on"]))
    rows = {name: rows[name] for name in result["networks"] if name in rows}
    lines = [
        "## Latency",
        "",
        f"One thread (its CPU time), frozen, {size}, interleaved; INT8 on {result['settings']['engine']}, CPU "
        f"{result['machine']}, torch {result['torch']}; without what is float around the network.",
        "",
        "| network | parameters | MACs | INT8 ms | float ms | float / INT8 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['params'] / 1e6:.2f} M | {row['macs'] / 1e6:.0f} M | {row['int8_ms']:.2f} | {row['float_ms']:.2f} | "
        f"{row['float_ms'] / row['int8_ms']:.1f} |"
        for name, row in rows.items()
    ]
    apart = max(row[f"{form}_spread"] for row in rows.values() for form in ("int8", "float"))
    lines += [
        "",
        f"The best rounds of a network lie up to {100 * apart:.0f} % apart: what differs by no more is the same.",
    ]
    first, *others = rows
    lines += ["", *(line for other in others for line in beside(result, first, other))]
    return [*lines, ""]


def beside(result: dict, one: str, other: str) -> list[str]:
    """Two networks at their latencies."""
    rows = result["latency"]["networks"]
    slower = rows[one]["int8_ms"] / rows[other]["int8_ms"] - 1
    equal = (
        "about the same INT8 latency as"
        if abs(slower) <= EQUAL
        else "more INT8 latency than"
        if slower > 0
        else "less INT8 latency than"
    )
    lines = [f"- {one} has {equal} {other} ({100 * slower:+.0f} %)."]
    for column in ("both", "float"):
        value = difference(result, (one, column), (other, column))
        if value is not None:
            says = ("cannot be told from", "is better than", "is worse than")[verdict(value)]
            lines.append(
                f"- In the column *{column}* {one} {says} {other}: {points(value)} of {METRICS[result['score']]}."
            )
    return lines


def curve_lines(result: dict) -> list[str]:
    if not any(c["curve"] for c in result["cells"]):
        return []
    return [
        "## Learning curves",
        "",
        f"{METRICS[result['score']]} on the validation part, in training: of float, or of fake-quant where "
        "the network trains quantized. *float* and *finetune* begin where their common float training ends.",
        "",
        f"![learning curves]({result['task']}_curves.png)",
        "",
    ]


def closing(result: dict) -> list[str]:
    """The integer networks, the noise, what was chosen and what was cut."""
    good = [c for c in result["cells"] if c["scores"] is not None and "agreement" in c]
    lines = ["## How sure this is", ""]
    if good:
        gap = max(abs(c["scores"][result["score"]] - c["fake_quant"][result["score"]]) for c in good)
        ops = sorted({op for c in good for op in c["float_ops"]})
        lines += [
            f"- INT8 is at most {100 * gap:.2f} points of {METRICS[result['score']]} from fake-quant; the least share of same "
            f"answers is {100 * min(c['agreement'] for c in good):.1f} %.",
            f"- In float inside the integer networks: {', '.join(ops) if ops else 'nothing'}.",
        ]
    lines.append(
        "- The standard error of a difference comes from the spread over seeds, where there are several, and from groups of "
        "neighbouring test pictures, each judged alone; a difference below two of it is called noise."
    )
    return [*lines, *(f"- {words}" for words in result["chosen"])]
