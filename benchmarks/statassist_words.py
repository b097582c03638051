"""Numbers of the study of StatAssist and GradBoost as words."""

from benchmarks.statassist_columns import COLUMNS
from benchmarks.statassist_numbers import METRICS, Metric, difference, diverged, metric_of, verdict
from tasks.kinds import KINDS
from tasks.rival import LR

SAYS = ("not told from noise", "a gain", "a loss")  # by verdict: 0, 1, -1


def effect(value: dict | None, metric: Metric) -> str:
    """**+1.2** ± 0.5, bold where it is told from noise"""
    if value is None:
        return "-"
    text = f"{value['mean']:+.{metric.digits}f}"
    return f"{f'**{text}**' if verdict(value) else text} ± {error_of(value, metric)}"


def error_of(value: dict, metric: Metric) -> str:
    return "?" if value["error"] is None else f"{value['error']:.{metric.digits}f}"


def effect_in(result: dict, arm: str, one: str, other: str) -> str:
    """The effect of a column against another one in an arm, and how many seeds of either diverged, which are not in it."""
    value, lost = difference(result, arm, one, other), len({*diverged(result, arm, one), *diverged(result, arm, other)})
    if value is None:
        return "diverged" if lost else "-"
    return effect(value, metric_of(result, arm)) + (f" ({lost} diverged)" if lost else "")


def plainly(value: dict, metric: Metric = METRICS["top1"]) -> str:
    """+1.2 ± 0.5"""
    return f"{value['mean']:+.{metric.digits}f} ± {error_of(value, metric)}"


def amount(value: dict, result: dict, arm: str) -> str:
    """+1.2 ± 0.5 points, a gain"""
    metric = metric_of(result, arm)
    return f"{plainly(value, metric)} {metric.unit}, {SAYS[verdict(value)]}"


def seeds_words(seeds: list[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def tuning(arms: dict[str, dict]) -> list[str]:
    """How *finetune* trains against discriminators, by the rows of the arms; nothing where no arm does."""
    shown = {name: arm["tune_lr"] for name, arm in arms.items() if arm["task"] in KINDS and KINDS[arm["task"]].shows}
    if not shown:
        return []
    rates = ", ".join(sorted({f"{rate:g}" for rate in shown.values()}))
    return [
        f"- In {' and '.join(shown)} *finetune* trains the generator at a smaller peak learning rate, {rates}, against the "
        f"discriminators of its float network, which go on at {LR:g}: the two are no longer in the balance that they were trained in, "
        "and the figures hold that, too."
    ]


def explained(columns: list[str], arms: dict[str, dict]) -> list[str]:
    """A line a column, and what has to be added for those arms."""
    return [
        *(f"- *{name}*: {COLUMNS[name].words}." for name in columns),
        *(tuning(arms) if "finetune" in columns else ()),
    ]
