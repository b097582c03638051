"""Float shares in the study of StatAssist and GradBoost, and which defaults of retraining its numbers speak for.

A default is given up for what is better than it by more than the error, and for nothing less.
"""

import statistics
from typing import NamedTuple

from benchmarks.statassist_numbers import cells_of, difference, diverged, judged, metric_of, together, values, verdict
from benchmarks.statassist_words import SAYS, amount, plainly, seeds_words

SHARES = {"none": "naive", "0.5 %": "sa_0.5", "1 %": "sa_1", "2 %": "sa_2", "10 %": "sa_10", "33 %": "sa_33"}
BOOSTS = {"off": "sa_10", "`paper`": "both", "`released`": "both_released"}  # all behind 10 % of float
# those of retrain.py
DEFAULT_SHARE, DEFAULT_BOOST = "33 %", "`paper`"


class Contest(NamedTuple):
    """Columns of an arm that can be compared: the running ones by name, the seeds that all of them have, and the seeds
    with which others diverged."""

    running: dict[str, str]
    seeds: set[int]
    lost: dict[str, list[int]]


def contest(result: dict, arm: str, columns: dict[str, str]) -> Contest:
    """What has no cell yet is not in it; what diverged with some seed cannot win it."""
    lost = {words: seeds for words, column in columns.items() if (seeds := diverged(result, arm, column))}
    running = {words: column for words, column in columns.items() if words not in lost and judged(result, arm, column)}
    have = [set(judged(result, arm, column)) for column in running.values()]
    return Contest(running, set.intersection(*have) if have else set(), lost)


# ---- each arm ----------------------------------------------------------------------------------------------


def shares(result: dict, arms: list[str]) -> list[str]:
    """A line an arm: the best share, and which others cannot be told from it."""
    lines = [line for arm in arms for line in best_line(result, arm)]
    if not lines:
        return ["- Nothing yet."]
    return [
        *lines,
        "- The best of several is picked by the very numbers that it is then compared by: its lead is flattered.",
    ]


def best_line(result: dict, arm: str) -> list[str]:
    found = contest(result, arm, SHARES)
    lost = "".join(
        f"; {words} diverged with {seeds_words(seeds)}, so it cannot be the best" for words, seeds in found.lost.items()
    )
    if len(found.running) < 2 or not found.seeds:
        return [f"- {arm}: no two shares to compare{lost}."] if lost else []
    sign = metric_of(result, arm).sign
    level = {
        w: statistics.mean(sign * values(result, arm, c)[seed] for seed in found.seeds)
        for w, c in found.running.items()
    }
    best = max(level, key=level.__getitem__)
    against = {
        words: difference(result, arm, SHARES[best], column, found.seeds)
        for words, column in found.running.items()
        if words != best
    }
    gain = f" (against none {amount(against['none'], result, arm)})" if "none" in against else ""
    picked = f"best of {len(found.running)}, {seeds_words(sorted(found.seeds))}"
    return [f"- {arm}, {picked}: {best}{gain}; {alike(against)}{lost}."]


def alike(against: dict[str, dict | None]) -> str:
    """Which others the best one is not told apart from, by what it is better; those that cannot be compared are named."""
    known = {words: value for words, value in against.items() if value is not None and value["error"] is not None}
    unknown = [words for words in against if words not in known]
    same = [words for words, value in known.items() if verdict(value) <= 0]
    said = (
        [f"within the noise of it: {', '.join(same)}"]
        if same
        else ["all others are worse by more than the noise"]
        if known
        else []
    )
    return "; ".join(said + ([f"not known how far from it: {', '.join(unknown)}"] if unknown else []))


# ---- what follows ------------------------------------------------------------------------------------------


def recommended(result: dict, arms: list[str]) -> list[str]:
    """What the arms of the usual recipe that are judged on val speak for; beside it those that are judged on test."""
    arms = [arm for arm in arms if result["arms"][arm]["usual"] and metric_of(result, arm).scale == 100]
    return [
        *follows(result, arms, "Float share", SHARES, DEFAULT_SHARE, "a third of the epochs"),
        *follows(result, arms, "GradBoost behind 10 % of float", BOOSTS, DEFAULT_BOOST, DEFAULT_BOOST),
    ]


def follows(
    result: dict, arms: list[str], question: str, columns: dict[str, str], default: str, default_words: str
) -> list[str]:
    """A line with all gains against the default, and whether one is a reason to give it up; then one of the arms judged
    on test.
    """
    done = [arm for arm in arms if all(cells_of(result, arm, column) for column in columns.values())]
    chosen, others = ([arm for arm in done if result["arms"][arm]["judged"] == part] for part in ("val", "test"))
    if not chosen:
        return [
            f"- {question}: no arm judged on val has all columns yet; the default stays what it is, {default_words}."
        ]
    gains, out = gains_of(result, chosen, columns, default)
    if default in out or not gains:
        return [
            f"- {question}: {out_words(out) or 'no seed in common'}; these numbers cannot say whether another default is better."
        ]
    best = max(gains, key=lambda words: gains[words]["mean"])
    told = ", ".join(f"{words} {plainly(value)}" for words, value in gains.items())
    lines = [
        f"- {question}, points against the default ({default_words}), mean over {', '.join(chosen)}, judged on val: {told}"
        f"{'; ' if out else ''}{out_words(out)}. "
        + (
            f"**Recommended: {best}**, the best of {len(gains)}, {SAYS[1]}."
            if verdict(gains[best]) > 0
            else f"**None is told from the default as better, so it stays what it is: {default_words}.**"
        )
    ]
    checks, lost = gains_of(result, others, columns, default)
    if best in checks:
        lines.append(
            f"- {question}, {best} against the default in the arms judged on test, which had no part in this "
            f"({', '.join(checks[best]['arms'])}): {plainly(checks[best])} points, {SAYS[verdict(checks[best])]}."
        )
    elif lost:
        lines.append(f"- {question}, in the arms judged on test: {out_words(lost)}.")
    return lines


def gains_of(
    result: dict, arms: list[str], columns: dict[str, str], default: str
) -> tuple[dict[str, dict], dict[str, list[str]]]:
    """By name what each column gives against the default, with each arm's common seeds; and the arms in which others
    diverged.
    """
    out = {
        words: lost
        for words, column in columns.items()
        if (lost := [arm for arm in arms if diverged(result, arm, column)])
    }
    running = {words: column for words, column in columns.items() if words not in out}
    seeds = {arm: contest(result, arm, running).seeds for arm in arms}
    if default in out or not all(seeds.values()):
        return {}, out
    gains = {
        words: together(result, arms, column, columns[default], seeds)
        for words, column in running.items()
        if words != default
    }
    return {words: value for words, value in gains.items() if value is not None}, out


def out_words(out: dict[str, list[str]]) -> str:
    return "; ".join(f"{words} is out, it diverged in {', '.join(arms)}" for words, arms in out.items())
