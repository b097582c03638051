"""The questions of the study of StatAssist and GradBoost, answered by sentences that follow from the numbers."""

from benchmarks.statassist_numbers import METRICS, cells_of, difference, diverged, fall, metric_of, together, verdict
from benchmarks.statassist_shares import recommended, shares
from benchmarks.statassist_twins import twins
from benchmarks.statassist_words import SAYS, amount, effect, effect_in, plainly, seeds_words

INGREDIENTS = {
    "PTQ, against float": ("ptq", "float"),
    "Fine-tuning, against float": ("finetune", "float"),
    "Naive QAT, against float": ("naive", "float"),
    "StatAssist (10 %), against naive": ("sa_10", "naive"),
    "GradBoost (`paper`) alone, against naive": ("gb_paper", "naive"),
    "GradBoost (`released`) alone, against naive": ("gb_released", "naive"),
    "GradBoost (`paper`) on top of StatAssist": ("both", "sa_10"),
    "GradBoost (`released`) on top of StatAssist": ("both_released", "sa_10"),
    "Both (`paper`), against naive": ("both", "naive"),
    "Both (`paper`), against float": ("both", "float"),
    "Both (`paper`), against fine-tuning": ("both", "finetune"),
}


def answers(result: dict, arms: list[str]) -> list[str]:
    """Sections of lines: ingredients, naive QAT's failures, what the recipe has to do with them, float shares, and what
    follows.
    """
    return [
        "### What does each ingredient give?",
        "",
        *ingredients(result, arms),
        "",
        "### Where does naive QAT fail?",
        "",
        *failures(result, arms),
        "",
        "### What do clipped gradients and silent residual branches have to do with it?",
        "",
        *twins(result, arms),
        "",
        "### Which float share is best?",
        "",
        *shares(result, arms),
        "",
        "### Which defaults follow?",
        "",
        *recommended(result, arms),
    ]


def usual(result: dict, arms: list[str]) -> list[str]:
    return [arm for arm in arms if result["arms"][arm]["usual"]]


# ---- ingredients -------------------------------------------------------------------------------------------


def ingredients(result: dict, arms: list[str]) -> list[str]:
    """A table, a row an ingredient: the mean over the arms of the usual recipe, then each arm; and what that mean says."""
    rows, said = [], {0: [], 1: [], -1: []}
    for words, (one, other) in INGREDIENTS.items():
        each = [effect_in(result, arm, one, other) for arm in arms]
        mean = together(result, usual(result, arms), one, other)
        if any(cell != "-" for cell in each):
            rows.append(f"| {words} | {' | '.join([mean_cell(result, arms, mean), *each])} |")
        if mean is not None:
            said[verdict(mean)].append(f"{words} ({plainly(mean)})")
    if not rows:
        return ["- Nothing yet."]
    heads = ["ingredient", "mean of the usual recipe", *(f"{arm}, {metric_of(result, arm).unit}" for arm in arms)]
    return [
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        *rows,
        "",
        f"The mean is over {', '.join(usual_in_percent(result, arms)) or 'no arm yet'}, in points (over fewer where a cell "
        f"says so).{lost_words(result, arms)}",
        "",
        *(f"- {SAYS[sign].capitalize()} in that mean: {'; '.join(said[sign])}." for sign in (1, -1, 0) if said[sign]),
    ]


def mean_cell(result: dict, arms: list[str], mean: dict | None) -> str:
    """The mean over the usual arms, and over how many where some lack it."""
    all_ = len(usual_in_percent(result, arms))
    return effect(mean, METRICS["top1"]) + (
        f" ({len(mean['arms'])} of {all_} arms)" if mean and len(mean["arms"]) < all_ else ""
    )


def lost_words(result: dict, arms: list[str]) -> str:
    """Which cells are in no difference, because they diverged: a column that does is worse than its differences say."""
    columns = dict.fromkeys(c["column"] for c in result["cells"])
    lost = [
        f"{arm} *{column}* ({seeds_words(seeds)})"
        for arm in arms
        for column in columns
        if (seeds := diverged(result, arm, column))
    ]
    return (
        f" What diverged is in no difference and counts against its column all the same: {', '.join(lost)}."
        if lost
        else ""
    )


def usual_in_percent(result: dict, arms: list[str]) -> list[str]:
    """The arms that a mean is over."""
    return [arm for arm in usual(result, arms) if metric_of(result, arm).scale == 100]


# ---- naive QAT ---------------------------------------------------------------------------------------------


def failures(result: dict, arms: list[str]) -> list[str]:
    """Where naive QAT ends below float, where any column lost on the way what it had learned, and what diverged."""
    found = {arm: value for arm in arms if (value := difference(result, arm, "naive", "float")) is not None}
    open_ = [arm for arm, value in found.items() if value["error"] is None]
    said = {
        sign: [arm for arm, value in found.items() if verdict(value) == sign and arm not in open_]
        for sign in (-1, 0, 1)
    }
    lines = [
        f"- In {arm} it ends below float: {amount(found[arm], result, arm)}{cured(result, arm)}." for arm in said[-1]
    ]
    kept = {
        words: [arm for arm in said[sign] if not diverged(result, arm, "naive")]
        for sign, words in ((0, "cannot be told from"), (1, "is above"))
    }
    lines += [f"- In {', '.join(names)} it {words} float." for words, names in kept.items() if names]
    lines += [f"- In {', '.join(open_)} nothing says yet what another seed would do."] if open_ else []
    return [*lines, *(line for arm in arms for line in accidents(result, arm))] or ["- Nothing yet."]


def cured(result: dict, arm: str) -> str:
    """What StatAssist and GradBoost make of it."""
    found = {
        words: difference(result, arm, column, "naive") for words, column in (("StatAssist", "sa_10"), ("both", "both"))
    }
    said = [f"{words} gives {amount(value, result, arm)}" for words, value in found.items() if value is not None]
    return f" ({'; '.join(said)})" if said else ""


def accidents(result: dict, arm: str) -> list[str]:
    """Columns of an arm that lost on the way more than half of a score that was above half of the arm's best, or
    diverged.
    """
    metric, cells, fallen = metric_of(result, arm), [c for c in result["cells"] if c["arm"] == arm], {}
    top = max((score for cell in cells for _, score in cell["curve"]), default=0.0)
    for cell in cells:
        if cell["scores"] is not None and metric.scale == 100 and (lost := fall(cell)) and lost[0] > top / 2:
            best, left = (f"{metric.scale * score:.{metric.digits}f}" for score in lost)
            fallen.setdefault(cell["column"], []).append(f"from {best} to {left}")
    lines = [
        f"- {arm}, *{column}*: the learning curve fell {', '.join(all_)} on the way ({metric.words}; {len(all_)} of "
        f"{len(cells_of(result, arm, column))} seed(s))."
        for column, all_ in fallen.items()
    ]
    columns = dict.fromkeys(cell["column"] for cell in cells)
    lost = {column: seeds for column in columns if (seeds := diverged(result, arm, column))}
    return lines + [f"- {arm}, *{column}* diverged with {seeds_words(seeds)}." for column, seeds in lost.items()]
