"""The page of the study of StatAssist and GradBoost: tables, learning curves, and answers made of the numbers alone."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.statassist_answers import answers
from benchmarks.statassist_columns import COLUMNS, PARTS
from benchmarks.statassist_numbers import cells_of, difference, judged, metric_of, score_of, seed_noise, told_by, values
from benchmarks.statassist_words import effect_in, explained
from common.files import write_bytes, write_json
from nas.report.style import ACCENT, INK, LINES, finish, panels
from nas.report.style import save as save_figure

AGAINST = ("naive", "float")
BLUES = ("#bcd7f0", "#8fbce6", "#5d97cf", "#2f6fb3", "#173f6d")  # of the float shares
STYLES = {
    "float": (INK, "-"),
    "finetune": (INK, ":"),
    "naive": (ACCENT, "-"),
    **{name: (colour, "-") for name, colour in zip(("sa_0.5", "sa_1", "sa_2", "sa_10", "sa_33"), BLUES)},
    "gb_paper": (LINES[1], "-"),
    "gb_released": (LINES[1], "--"),
    "both": (LINES[2], "-"),
    "both_released": (LINES[2], "--"),
}


def write(output: str, result: dict) -> Path:
    """Write statassist.{json,md,png}; returns the JSON's path."""
    folder = Path(output)
    arms = present(result)
    result = result | {
        "effects": {
            arm: {
                other: {
                    column: value for column in COLUMNS if (value := difference(result, arm, column, other)) is not None
                }
                for other in AGAINST
            }
            for arm in arms
        },
        "seed_noise": {arm: seed_noise(result, arm) for arm in arms},
    }
    write_json(folder / "statassist.json", result)
    if drawn := [arm for arm in arms if any(cell["curve"] for cell in result["cells"] if cell["arm"] == arm)]:
        save_figure(figure(result, drawn), folder / "statassist.png")
    write_bytes(folder / "statassist.md", page(result).encode())
    return folder / "statassist.json"


def present(result: dict) -> list[str]:
    """The arms that have a judged cell."""
    return [arm for arm in result["arms"] if score_of(result, arm)]


def page(result: dict) -> str:
    columns = [column for column in COLUMNS if any(c["column"] == column for c in result["cells"])]
    partial = (
        ""
        if len(result["cells"]) == result["planned"]
        else f"**{len(result['cells'])} of {result['planned']} cells so far.** "
    )
    lines = [
        "# StatAssist and GradBoost in all tasks",
        "",
        f"{partial}Written by `{result['command']}` (the same command goes on where it was stopped); the numbers are in "
        f"[statassist.json](statassist.json). All columns but *float* are **integer networks** on the engine "
        f"{result['settings']['engine']}. All columns of an arm and seed that begin untrained begin with the same weights and see the "
        "same pictures in the same order, in as many steps. These are short trainings: they compare columns with each other, not with "
        "published figures.",
        "",
        splits_words(result),
        "",
        *explained(columns, result["arms"]),
        "",
        "## Scores",
        "",
        *scores_table(result, columns),
        "",
        "Mean ± standard deviation over seeds; fewer seeds than in the second column in brackets.",
        "",
        *(line for other in AGAINST for line in effects_table(result, columns, other)),
        "## What it shows",
        "",
        *answers(result, present(result)),
        "",
        *curve_lines(result),
        *settings_lines(result),
        *closing(result),
    ]
    return "\n".join([*lines, ""])


def splits_words(result: dict) -> str:
    """Which pictures are judged, and what was chosen by them."""
    by = {part: [name for name, arm in result["arms"].items() if arm["judged"] == part] for part in ("val", "test")}
    said = [f"{', '.join(names)} on {part}" for part, names in by.items() if names]
    return (
        f"Judged are {'; '.join(said)}. No cell chose anything by these pictures: each is judged once, after its last step. But what is "
        "said below of several cells picks the better of them, by the same pictures: a default that is recommended was looked at on those "
        "of the arms judged on val, and those judged on test stand beside it as a check; who takes another choice from the tables has "
        "looked at all of them."
    )


# ---- tables ------------------------------------------------------------------------------------------------


def scores_table(result: dict, columns: list[str]) -> list[str]:
    lines = [f"| arm | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for arm in present(result):
        seeds = len({c["seed"] for c in result["cells"] if c["arm"] == arm})
        row = [score_cell(result, arm, column, seeds) for column in columns]
        lines.append(f"| {arm}, {metric_of(result, arm).words} | {seeds} | {' | '.join(row)} |")
    return lines


def score_cell(result: dict, arm: str, column: str, seeds: int) -> str:
    """61.2 ± 0.4, with what diverged, and how many seeds there are where others have more"""
    cells, found, digits = (
        cells_of(result, arm, column),
        list(values(result, arm, column).values()),
        metric_of(result, arm).digits,
    )
    if not found:
        return "diverged" if cells else "-"
    spread = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    lost = f", {len(cells) - len(found)} diverged" if len(found) < len(cells) else ""
    some = f" ({len(found)}{lost})" if lost or len(found) < seeds else ""
    return f"{statistics.mean(found):.{digits}f}{spread}{some}"


def effects_table(result: dict, columns: list[str], other: str) -> list[str]:
    """Rows of arms: how much better each column is than another one."""
    shown = [column for column in columns if column != other]
    rows = []
    for arm in present(result):
        found = [effect_in(result, arm, column, other) for column in shown]
        if any(cell != "-" for cell in found):
            rows.append(f"| {arm}, {metric_of(result, arm).unit} | {' | '.join(found)} |")
    if not rows:
        return []
    return [
        f"## Against {other}",
        "",
        f"| arm | {' | '.join(shown)} |",
        "|---" * (len(shown) + 1) + "|",
        *rows,
        "",
        f"How much better each column is than *{other}*, paired over seeds, ± its standard error; in bold where it is more than two of "
        "them, ± ? where nothing says yet what another seed would do.",
        "",
    ]


# ---- learning curves ---------------------------------------------------------------------------------------


def figure(result: dict, arms: list[str]) -> Figure:
    """A panel an arm: the score on the watched pictures against the share of the steps, a line a column, the mean over
    seeds.
    """
    drawn = panels([lambda ax, arm=arm: _curves(ax, result, arm) for arm in arms], columns=2, size=(5.6, 3.7))
    names = {}
    for ax in drawn.axes:
        names |= dict(zip(*reversed(ax.get_legend_handles_labels())))
        if ax.get_legend():
            ax.get_legend().remove()
    names = {name: names[name] for name in STYLES if name in names}
    drawn.legend(names.values(), names, loc="outside right upper", fontsize=9, frameon=False)
    return drawn


def _curves(ax, result: dict, arm: str) -> None:
    metric = metric_of(result, arm)
    for column, (colour, style) in STYLES.items():
        if points := mean_curve(result, arm, column):
            x, y = zip(*points)
            ax.plot(
                [100 * v for v in x],
                [metric.scale * v for v in y],
                color=colour,
                ls=style,
                lw=1.4,
                marker=".",
                ms=3,
                label=column,
            )
    finish(ax, arm, "% of the steps", metric.words)


def mean_curve(result: dict, arm: str, column: str) -> list[tuple[float, float]]:
    """The mean over seeds at each look that all of them have; *finetune* begins where its float network ends."""
    curves = [dict(map(tuple, cell["curve"])) for cell in cells_of(result, arm, column) if cell["curve"]]
    if not curves:
        return []
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    before = mean_curve(result, arm, COLUMNS[column].after)[-1:] if COLUMNS[column].after else []
    return before + [(x, statistics.mean(curve[x] for curve in curves)) for x in common]


def curve_lines(result: dict) -> list[str]:
    if not any(c["curve"] for c in result["cells"]):
        return []
    return [
        "## Learning curves",
        "",
        "On a few held-out pictures that are not those of the tables, mean over seeds: of float, or of "
        "fake-quant where the network trains quantized. *finetune* begins where *float* ends.",
        "",
        "![learning curves](statassist.png)",
        "",
    ]


# ---- settings, and how sure this is ------------------------------------------------------------------------


def settings_lines(result: dict) -> list[str]:
    lines = [
        "## Settings",
        "",
        "| arm | network | pictures | judged on | input | batch | steps | optimizer | peak learning rate | "
        "clipped to | silent residuals | minutes a cell |",
        "|---" * 12 + "|",
    ]
    for name, arm in result["arms"].items():
        trained = [
            c["cell_seconds"] for c in result["cells"] if c["arm"] == name and c["column"] not in ("ptq", "finetune")
        ]
        minutes = f"{statistics.mean(trained) / 60:.1f}" if trained else "-"
        lines.append(
            f"| {name} | {arm['network']} | {arm['pictures']} | {arm['judged']} | {arm['input_size']} px | {arm['batch_size']} | "
            f"{arm['steps']} | {arm['optimizer']}, {arm['decay']} | {arm['lr']:g}, fine-tuning {arm['tune_lr']:g} | "
            f"{arm['clip_norm'] or '-'} | {'yes' if arm['silent'] else 'no'} | {minutes} |"
        )
    return [
        *lines,
        "",
        *(f"- {name} is left out: {why}." for name, why in result["left_out"].items()),
        f"- Phases change at the ends of {PARTS} equal parts of the steps. Share of them in which the learning rate rises: "
        f"{warmups(result)}. No pretrained weights.",
        "- Cut for time, on two slow cores: small networks and pictures, few steps, few seeds.",
        *unclipped(result),
        "",
    ]


def warmups(result: dict) -> str:
    by = {}
    for name, arm in result["arms"].items():
        by.setdefault(arm["warmup"], []).append(name)
    return "; ".join(f"{100 * share:g} % in {', '.join(names)}" for share, names in by.items())


def unclipped(result: dict) -> list[str]:
    """Which arms train without clipped gradients and silent residual branches, and why."""
    found = {
        usual: [
            name
            for name, arm in result["arms"].items()
            if not arm["clip_norm"] and not arm["silent"] and arm["usual"] == usual
        ]
        for usual in (False, True)
    }
    why = {
        False: "to show what these do, as the code published with StatAssist and GradBoost has neither",
        True: "as their published recipe has neither, and retraining follows it",
    }
    said = [f"{', '.join(names)}, {why[usual]}" for usual, names in found.items() if names]
    return [f"- Without clipped gradients and silent residual branches train {'; '.join(said)}."] if said else []


def closing(result: dict) -> list[str]:
    lines = ["## How sure this is", ""]
    for arm in present(result):
        metric, noise = metric_of(result, arm), seed_noise(result, arm)
        good = [c for c in result["cells"] if c["arm"] == arm and "fake_quant" in c]
        gap = max(
            (metric.scale * abs(c["scores"][c["score"]] - c["fake_quant"][c["score"]]) for c in good), default=None
        )
        moves = (
            "; nothing says yet what another seed does"
            if noise is None
            else f"; {seed_words(told_by(result, arm)[0], noise, metric)}"
        )
        integer = (
            "" if gap is None else f"; INT8 is at most {gap:.3f} {metric.unit} from fake-quant; {float_words(good)}"
        )
        pictures = next(c["pictures"] for column in COLUMNS for c in judged(result, arm, column).values())
        lines.append(f"- {arm}: {pictures} judged pictures{moves}{integer}.")
    return [
        *lines,
        "- A standard error is made of the spread over seeds, paired, and of that over groups of judged pictures, paired (not for "
        "feature distances, which are biased on few pictures). Few seeds say little about a spread: where the one that all columns of "
        "an arm have in common is larger, it counts. With one seed it is guessed from how far the columns lie apart, which holds what "
        "the ingredients do, too. That of a mean over arms is no smaller than how far these lie apart says.",
        "- Within two standard errors a difference is called noise. That is no test at one in twenty: an error that comes from two "
        "seeds is itself so uncertain that chance alone exceeds it twofold in nearly one case of three, one from eight groups in one "
        "of twelve. And many differences are looked at, so that some of the bold ones will be chance. What only one arm shows is a "
        "hint; what several show with the same sign is more.",
        f"- CPU {result['machine']}, torch {result['torch']}.",
    ]


def float_words(cells: list[dict]) -> str:
    """What the integer networks compute in float."""
    ops = sorted({op for c in cells for op in c["float_ops"]})
    more = f" and {len(ops) - 3} more" if len(ops) > 3 else ""
    return f"in float inside the integer networks: {', '.join(f'`{op}`' for op in ops[:3]) or 'nothing'}{more}"


def seed_words(seeds: list[int], noise: float, metric) -> str:
    """What another seed does to a score, or what is taken for it."""
    text = f"{noise:.{max(2, metric.digits)}f} {metric.unit}"
    if len(seeds) == 1:
        return f"the columns lie {text} around their middle one, which is taken for what another seed would do"
    return f"another seed moves a score by {text}, beyond what it does to all columns ({len(seeds)} seeds)"
