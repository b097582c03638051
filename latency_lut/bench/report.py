"""A benchmark's results as tables, CSV and a figure."""

import statistics

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.files import write_bytes
from latency_lut.bench.contenders import EAGER, FLOATS
from latency_lut.bench.results import KEY, Results, latency_ms
from latency_lut.timing import Timing
from nas.report.style import INK, LINES
from nas.report.style import save as save_figure

WIDE_RANGE = 15  # from there on bars are drawn on a logarithmic axis
GREYS = ("#cdd5dc", "#a4afb9", "#77838f")
# columns: latency as a share of each baseline's
OVER = {name: f"of float {row.short or row.runtime}" for name, row in FLOATS.items() if name != EAGER}
OVER[EAGER] = "of eager"
_FORMS = {
    "latency ms": "{:.3f}",
    "median ms": "{:.3f}",
    "spread %": "{:.1f}",
    "images/s": "{:.1f}",
    **dict.fromkeys(OVER.values(), "{:.2f}"),
    "cut %": "{:.0f}",
    "float ops": "{:.0f}",
    "float convs": "{:.0f}",
    "file MB": "{:.2f}",
}


def frame(result: dict) -> pandas.DataFrame:
    """One line a contender: latency, spread, throughput, its share of each float baseline's latency, the cut against
    the best of them.
    """
    ms = {row["name"]: latency_ms(row) for row in result["rows"]}
    floats = [ms[name] for name in FLOATS if ms.get(name)]
    lines = [_line(row, result["batch"], ms, min(floats, default=None)) for row in result["rows"]]
    return pandas.DataFrame(lines, columns=["engine", *_FORMS, "note"])


def _line(row: dict, batch: int, ms: dict[str, float | None], best_float: float | None) -> dict:
    line = {"engine": row["name"]}
    if row.get("reason"):
        return {**line, "note": row["reason"]}
    timing = Timing(tuple(row["rounds_ms"]))
    line |= {
        "latency ms": timing.ms,
        "median ms": statistics.median(timing.rounds),
        "spread %": 100 * timing.rel_spread,
    }
    line |= {"images/s": 1000 * batch / timing.ms}
    line |= {column: timing.ms / ms[name] for name, column in OVER.items() if ms.get(name)}
    if row["name"] not in FLOATS:
        line |= {"cut %": 100 * (1 - timing.ms / best_float)} if best_float else {}
        line |= {"float ops": len(row["float_ops"]), "float convs": row["float_convs"]}
    return {**line, "file MB": row["file_bytes"] / 1e6, "note": "" if timing.stable else "unstable"}


def text(result: dict) -> str:
    """The result's table, and its profiles, to print."""
    seen, steal = result["seen"], result["seen"]["steal"]
    head = (
        f"{result['arch']}: {result['params'] / 1e6:.2f} M parameters, "
        f"{result['macs'] / 1e6:.1f} M MACs, {result['input_size']} px, "
    )
    head += (
        f"batch {result['batch']}, {_threads(result)}; load {seen['load']}, steal "
        f"{'unknown' if steal is None else f'{steal:.1%}'}"
    )
    columns = frame(result)
    shown = {
        column: ["" if pandas.isna(value) else form.format(value) for value in columns[column]]
        for column, form in _FORMS.items()
    }
    lines = [head, columns.assign(**shown).to_string(index=False)]
    lines.append(
        "cut: against the fastest float form. float eager is unfolded, as papers often time it, and not what one "
        "deploys."
    )
    for name, rows in result["profile"].items():
        lines += [
            f"\n{name}, by operation (the profiler costs time itself: read the shares)",
            pandas.DataFrame(rows).to_string(index=False),
        ]
    return "\n".join(lines)


def save(results: Results) -> None:
    """Write all files of a benchmark, each atomically; the JSON last, since it is what says that a network is done."""
    about = [*KEY, "params", "macs"]
    parts = [frame(r).assign(**{field: r[field] for field in about}) for r in results.results]
    whole = pandas.concat(parts, ignore_index=True)
    whole = whole[[*about, *(column for column in whole.columns if column not in about)]]
    write_bytes(f"{results.prefix}.csv", whole.to_csv(index=False, float_format="%.6g").encode())
    save_figure(figure(results.results), f"{results.prefix}.png")
    results.save()


# ---- figure ------------------------------------------------------------------------------------------------


def figure(results: list[dict]) -> Figure:
    """Latencies as grouped bars: a panel for each condition, a group for each network, a bar for each contender."""
    panels = list(dict.fromkeys((r["threads"], r["batch"], r["input_size"], r["classes"]) for r in results))
    names = list(dict.fromkeys(row["name"] for r in results for row in r["rows"]))
    groups = [
        [r for r in results if (r["threads"], r["batch"], r["input_size"], r["classes"]) == panel] for panel in panels
    ]
    width = 2.4 + max(len(group) for group in groups) * (0.3 + 0.26 * len(names))
    chart = Figure(figsize=(max(6.0, width), 3.3 * len(panels)), layout="constrained")
    for ax, group in zip(chart.subplots(len(panels), squeeze=False)[:, 0], groups):
        _panel(ax, group, names)
    handles, labels = chart.axes[0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return chart


def _panel(ax: Axes, group: list[dict], names: list[str]) -> None:
    known = [{row["name"]: latency_ms(row) for row in result["rows"]} for result in group]
    thickness = 0.86 / len(names)
    for number, name in enumerate(names):
        at = [i + (number - (len(names) - 1) / 2) * thickness for i in range(len(group))]
        bars = ax.bar(
            at,
            [ms.get(name) or float("nan") for ms in known],
            thickness,
            label=name,
            color=_colour(number, names),
            lw=0,
        )
        ax.bar_label(
            bars,
            [f"{ms[name]:.3g}" if ms.get(name) else "" for ms in known],
            fontsize=6,
            rotation=90,
            padding=2,
            color=INK,
        )
    values, unit = [value for ms in known for value in ms.values() if value], "ms"
    if max(values, default=1) > WIDE_RANGE * min(values, default=1):
        ax.set_yscale("log")
        unit = "ms, logarithmic"
    ax.margins(y=0.15)
    ax.set_xticks(range(len(group)), [r["arch"] for r in group], fontsize=8)
    ax.set_title(
        f"batch {group[0]['batch']}, {_threads(group[0])}, {group[0]['input_size']} px",
        fontsize=10,
        color=INK,
        loc="left",
    )
    ax.set_ylabel(unit, fontsize=9, color=INK)
    ax.tick_params(labelsize=8, colors=INK)
    ax.spines[["top", "right"]].set_visible(False)


def _colour(number: int, names: list[str]) -> str:
    """Greys for float, colours for INT8."""
    floats = [name for name in names if name in FLOATS]
    if names[number] in FLOATS:
        return GREYS[floats.index(names[number]) % len(GREYS)]
    return LINES[(number - len(floats)) % len(LINES)]


def _threads(result: dict) -> str:
    return f"{result['threads']} thread" + "s" * (result["threads"] > 1)
