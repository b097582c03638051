"""What clipped gradients and silent residual branches do for quantized training: an arm without them beside the same
one with them.
"""

import math
import statistics

from benchmarks.statassist_columns import COLUMNS, TWINS
from benchmarks.statassist_numbers import difference, diverged, metric_of, values, verdict
from benchmarks.statassist_words import amount, effect, effect_in, seeds_words

OF_INTEREST = [name for name, column in COLUMNS.items() if column.after is None and name != "float"]


def twins(result: dict, arms: list[str]) -> list[str]:
    """A table and sentences for each pair of arms; nothing where float is missing in one of them."""
    pairs = [(bare, usual) for bare, usual in TWINS.items() if bare in arms and usual in arms]
    return [
        line for pair in pairs if all(values(result, arm, "float") for arm in pair) for line in beside(result, *pair)
    ] or ["- Nothing yet."]


def beside(result: dict, bare: str, usual: str) -> list[str]:
    metric = metric_of(result, usual)
    shown = [
        column
        for column in OF_INTEREST
        if any(c["column"] == column and c["arm"] in (bare, usual) for c in result["cells"])
    ]
    rows = [
        f"| {column} | {effect_in(result, bare, column, 'float')} | {effect_in(result, usual, column, 'float')} | "
        f"{effect(_apart(result, bare, usual, column), metric)} |"
        for column in shown
    ]
    level = {arm: statistics.mean(values(result, arm, "float").values()) for arm in (bare, usual)}
    return [
        f"{usual} has gradients clipped to {result['arms'][usual]['clip_norm']:g} and residual branches that begin silent; {bare} has "
        f"neither. Its float network ends at {level[bare]:.{metric.digits}f}, the other one's at {level[usual]:.{metric.digits}f} "
        f"({metric.words}).",
        "",
        f"| against float, {metric.unit} | without them | with them | what they give, beyond what they give float |",
        "|---" * 4 + "|",
        *rows,
        "",
        *naive_words(result, bare, usual),
        *losses(result, bare, "Without them", shown),
        *losses(result, usual, "With them", shown),
        *mended(result, bare, shown),
    ]


def _apart(result: dict, bare: str, usual: str, column: str) -> dict | None:
    """How much less a column loses against float in one arm than in the other; their errors are independent."""
    a, b = (difference(result, arm, column, "float") for arm in (usual, bare))
    if a is None or b is None:
        return None
    error = None if None in (a["error"], b["error"]) else math.hypot(a["error"], b["error"])
    return {"mean": a["mean"] - b["mean"], "error": error}


def naive_words(result: dict, bare: str, usual: str) -> list[str]:
    said = [
        f"{words} {amount(value, result, arm)}"
        for words, arm in (("without them", bare), ("with them", usual))
        if (value := difference(result, arm, "naive", "float")) is not None
    ]
    return [f"- Naive QAT against float: {'; '.join(said)}."] if said else []


def losses(result: dict, arm: str, words: str, columns: list[str]) -> list[str]:
    """Which columns end below float in an arm."""
    found = {column: value for column in columns if (value := difference(result, arm, column, "float")) is not None}
    below = [column for column, value in found.items() if verdict(value) < 0]
    rest = [column for column in found if column not in below]
    lost = [f"{column} with {seeds_words(seeds)}" for column in columns if (seeds := diverged(result, arm, column))]
    said = [
        f"{what} {', '.join(names)}"
        for what, names in (
            ("below float by more than the noise:", below),
            ("not told from float, or above it:", rest),
            ("diverged:", lost),
        )
        if names
    ]
    return [f"- {words} {'; '.join(said)}."] if said else []


def mended(result: dict, bare: str, columns: list[str]) -> list[str]:
    """What gives most to naive QAT where it has neither, and what still is missing."""
    if not values(result, bare, "naive"):
        return []
    found = {column: difference(result, bare, column, "naive") for column in columns if column != "naive"}
    found = {
        column: value for column, value in found.items() if value is not None and not diverged(result, bare, column)
    }
    if not found:
        return []
    best = max(found, key=lambda column: found[column]["mean"])
    left = difference(result, bare, best, "float")
    against = f"; against float {amount(left, result, bare)}" if left is not None else ""
    return [
        f"- What gives naive QAT most there is *{best}*, the best of {len(found)} that did not diverge: "
        f"{amount(found[best], result, bare)}{against}."
    ]
