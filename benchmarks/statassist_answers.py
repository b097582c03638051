"""The questions of the study of StatAssist and GradBoost, answered by sentences that follow from the numbers."""

from benchmarks.statassist_numbers import METRICS, Metric, cells_of, difference, fall, metric_of, together, verdict

SHARES = {"none": "naive", "0.5 %": "sa_0.5", "1 %": "sa_1", "2 %": "sa_2", "10 %": "sa_10", "33 %": "sa_33"}
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
SAYS = ("not told from noise", "a gain", "a loss")  # by verdict: 0, 1, -1


def answers(result: dict, arms: list[str]) -> list[str]:
    """Three sections of lines: ingredients, naive QAT's failures, float shares with what follows from all of it."""
    return ["### What does each ingredient give?", "", *ingredients(result, arms), "",
            "### Where does naive QAT fail?", "", *failures(result, arms), "",
            "### Which float share is best, and what follows?", "", *shares(result, arms), *recommended(result, arms)]  # fmt: skip


def usual(result: dict, arms: list[str]) -> list[str]:
    return [arm for arm in arms if result["arms"][arm]["usual"]]


# ---- ingredients ---------------------------------------------------------------------------------------------


def ingredients(result: dict, arms: list[str]) -> list[str]:
    """A table, a row an ingredient: the mean over the arms of the usual recipe, then each arm; and what that mean says."""
    rows, said = [], {0: [], 1: [], -1: []}
    for words, (one, other) in INGREDIENTS.items():
        each = [difference(result, arm, one, other) for arm in arms]
        mean = together(result, usual(result, arms), one, other)
        cells = [effect(mean, METRICS["top1"]), *(effect(value, metric_of(result, arm)) for arm, value in zip(arms, each))]
        if any(each):
            rows.append(f"| {words} | {' | '.join(cells)} |")
        if mean is not None:
            said[verdict(mean)].append(f"{words} ({mean['mean']:+.1f} ± {mean['error']:.1f})")
    if not rows:
        return ["- Nothing yet."]
    heads = ["ingredient", "mean of the usual recipe", *(f"{arm}, {metric_of(result, arm).unit}" for arm in arms)]
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows, "",
            f"The mean is over {', '.join(usual_in_percent(result, arms)) or 'no arm yet'}, in points.", "",
            *(f"- {SAYS[sign].capitalize()} in that mean: {'; '.join(said[sign])}." for sign in (1, -1, 0) if said[sign])]  # fmt: skip


def effect(value: dict | None, metric: Metric) -> str:
    """**+1.2** ± 0.5, bold where it is told from noise"""
    if value is None:
        return "-"
    text = f"{value['mean']:+.{metric.digits}f}"
    return f"{f'**{text}**' if verdict(value) else text} ± {value['error']:.{metric.digits}f}"


def usual_in_percent(result: dict, arms: list[str]) -> list[str]:
    """The arms that a mean is over."""
    return [arm for arm in usual(result, arms) if metric_of(result, arm).scale == 100]


def amount(value: dict, result: dict, arm: str) -> str:
    """+1.2 ± 0.5 points, a gain"""
    metric = metric_of(result, arm)
    return f"{value['mean']:+.{metric.digits}f} ± {value['error']:.{metric.digits}f} {metric.unit}, {SAYS[verdict(value)]}"


def of_mean(mean: dict) -> str:
    """+1.2 ± 0.5 points over 4 arms"""
    count, metric = len(mean["arms"]), METRICS["top1"]
    over = f"the mean of {count} arms of the usual recipe" if count > 1 else f"{mean['arms'][0]}, the one arm of the usual recipe"
    return f"{mean['mean']:+.{metric.digits}f} ± {mean['error']:.{metric.digits}f} {metric.unit} in {over}"


# ---- naive QAT -----------------------------------------------------------------------------------------------


def failures(result: dict, arms: list[str]) -> list[str]:
    """Where naive QAT ends below float, where any column lost on the way what it had learned, and what diverged."""
    found = {arm: value for arm in arms if (value := difference(result, arm, "naive", "float")) is not None}
    below = {arm: value for arm, value in found.items() if verdict(value) < 0}
    lines = [f"- In {arm} it ends below float: {amount(value, result, arm)}{cured(result, arm)}." for arm, value in below.items()]
    if others := [arm for arm in found if arm not in below]:
        lines.append(f"- In {', '.join(others)} it cannot be told from float, or is above it.")
    return [*lines, *(line for arm in arms for line in accidents(result, arm))] or ["- Nothing yet."]


def cured(result: dict, arm: str) -> str:
    """What StatAssist and GradBoost make of it."""
    found = {words: difference(result, arm, column, "naive") for words, column in (("StatAssist", "sa_10"), ("both", "both"))}
    said = [f"{words} gives {amount(value, result, arm)}" for words, value in found.items() if value is not None]
    return f" ({'; '.join(said)})" if said else ""


def accidents(result: dict, arm: str) -> list[str]:
    """Columns of an arm that lost more than half of their score on the way, or diverged."""
    metric, fallen, diverged = metric_of(result, arm), {}, {}
    for cell in (c for c in result["cells"] if c["arm"] == arm):
        if cell["scores"] is None:
            diverged.setdefault(cell["column"], []).append(cell["seed"])
        elif metric.scale == 100 and (lost := fall(cell)):
            best, left = (f"{metric.scale * score:.{metric.digits}f}" for score in lost)
            fallen.setdefault(cell["column"], []).append(f"from {best} to {left}")
    lines = [f"- {arm}, *{column}*: the learning curve fell {', '.join(all_)} on the way ({metric.words}; {len(all_)} of "
             f"{len(cells_of(result, arm, column))} seed(s))." for column, all_ in fallen.items()]  # fmt: skip
    return lines + [f"- {arm}, *{column}* diverged with seed {', '.join(map(str, seeds))}." for column, seeds in diverged.items()]


# ---- float shares, and what follows --------------------------------------------------------------------------


def shares(result: dict, arms: list[str]) -> list[str]:
    """A line an arm, and one of the usual arms together: the best share, and which others cannot be told from it."""
    lines = []
    for arm in arms:
        gains = {words: {"mean": 0.0, "error": 0.0} if words == "none" else difference(result, arm, column, "naive")
                 for words, column in SHARES.items()}  # fmt: skip
        gains = {words: value for words, value in gains.items() if value is not None}
        if len(gains) > 1:
            best = max(gains, key=lambda words: gains[words]["mean"])
            rivals = {words: difference(result, arm, SHARES[best], SHARES[words]) for words in gains if words != best}
            gain = "" if best == "none" else f" ({amount(gains[best], result, arm)} against none)"
            lines.append(f"- {arm}: best {best}{gain}; {alike(rivals)}.")
    return lines or ["- Nothing yet."]


def alike(rivals: dict[str, dict | None]) -> str:
    """Which shares the best one is not told apart from."""
    same = [words for words, value in rivals.items() if value is not None and not verdict(value)]
    return f"within the noise of it: {', '.join(same)}" if same else "all others are worse by more than the noise"


def best_share(result: dict, arms: list[str]) -> tuple[str, dict[str, dict]] | None:
    """The share with the largest mean gain over the arms, and the gains of all; None where no arm has them all."""
    common = [arm for arm in arms if all(difference(result, arm, column, "naive") for column in SHARES.values())]
    gains = {words: value for words, column in SHARES.items() if (value := together(result, common, column, "naive")) is not None}
    return (max(gains, key=lambda words: gains[words]["mean"]), gains) if gains else None


def recommended(result: dict, arms: list[str]) -> list[str]:
    """What the arms of the usual recipe recommend together."""
    arms = usual(result, arms)
    lines = []
    if (found := best_share(result, arms)) is not None:
        best, gains = found
        told = ", ".join(f"{words} {value['mean']:+.1f} ± {value['error']:.1f}" for words, value in gains.items() if words != "none")
        count = len(gains[best]["arms"])
        rivals = {words: together(result, gains[best]["arms"], SHARES[best], SHARES[words]) for words in gains if words != best}
        sure = "none at all" if best == "none" else best
        lines.append(f"- Mean over {count} arm(s) of the usual recipe, points against no float phase: {told}. **Recommended float share: "
                     f"{sure}** ({alike(rivals)}).")  # fmt: skip
    boosts = {mode: value for mode, column in (("paper", "both"), ("released", "both_released"))
              if (value := together(result, arms, column, "sa_10")) is not None}  # fmt: skip
    if boosts:
        told = "; ".join(f"`{mode}` {of_mean(value)}, {SAYS[verdict(value)]}" for mode, value in boosts.items())
        gained = [mode for mode, value in boosts.items() if verdict(value) > 0]
        best = max(gained, key=lambda mode: boosts[mode]["mean"]) if gained else None
        follows = f"recommended: `{best}`" if best else "these numbers are no reason to switch it on"
        lines.append(f"- GradBoost on top of StatAssist: {told}. **GradBoost: {follows}.**")
    return lines
