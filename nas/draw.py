"""Pictures of a run: the architecture, the curves of its log, the Pareto front. Figures own no global state."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from nas.arch import Architecture, BlockSpec, HeadSpec
from nas.cost import Row, cost
from nas.files import write_bytes

FROST, MB, ENDS, INK, FAINT, ACCENT = "#8fbce6", "#d9d3c7", "#c3cbd3", "#22303c", "#f3f6f9", "#d1495b"
LINES = ("#2f6fb3", "#e08a1e", "#3b8f5a", "#8b5fb0", "#7a6a58", "#d1495b")
_BAR_AT, _BAR_WIDTH = 6.0, 4.0  # inches


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", pad_inches=0.12, facecolor="white")
    write_bytes(path, buffer.getvalue())


# ---- architecture --------------------------------------------------------------------------------------------


def architecture_figure(arch: Architecture, parts_ms: dict[str, float] | None = None) -> Figure:
    """One row a part, its box as long as its latency `parts_ms` ("stem", "blocks.0", .., "head"), else its MACs."""
    total = cost(arch)
    if parts_ms:
        values, form = [parts_ms[row.name] for row in total.rows], "{:.3f} ms"
        label = f"latency, {sum(values):.2f} ms in all"
    else:
        values, form = [row.macs / 1e6 for row in total.rows], "{:.1f} M"
        label = f"multiply-accumulates, {sum(values):.1f} M in all"
    figure, ax = _canvas(len(total.rows))
    title = f"{arch.name}   {total.params / 1e6:.2f} M parameters, {arch.input_size} px, {arch.head.num_classes} classes"
    ax.text(0, -1.55, title, fontsize=12, weight="bold", color=INK)
    _heading(ax, label)
    _bands(ax, total.rows)
    for y, (row, value) in enumerate(zip(total.rows, values)):
        _part(ax, y, row, value, form, _BAR_WIDTH / max(values))
    return figure


def _canvas(rows: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(11, 0.29 * (rows + 2.2)))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 11), ylim=(rows - 0.4, -1.9))
    ax.axis("off")
    return figure, ax


_COLUMNS = (
    (0.05, "input"),
    (0.85, "block"),
    (2.0, "channels"),
    (3.0, "hidden"),
    (3.95, "squeeze"),
    (4.95, "stride, skip"),
)


def _heading(ax: Axes, label: str) -> None:
    for x, name in (*_COLUMNS, (_BAR_AT, label)):
        ax.text(x, -0.72, name, fontsize=9, color="#6b7785", va="center")


def _bands(ax: Axes, rows: Sequence[Row]) -> None:
    """Shade every other resolution and write each once."""
    sizes = [row.size for row in rows]
    shaded = False
    for y, size in enumerate(sizes):
        if y == 0 or size != sizes[y - 1]:
            shaded = not shaded
            ax.text(_COLUMNS[0][0], y, f"{size} px", fontsize=9, color=INK, va="center")
        if shaded:
            ax.axhspan(y - 0.5, y + 0.5, color=FAINT, lw=0, zorder=0)


def _part(ax: Axes, y: int, row: Row, value: float, form: str, inches: float) -> None:
    for (x, _), text in zip(_COLUMNS[1:], _words(row.spec)):
        ax.text(x, y, text, fontsize=9, color=INK, va="center")
    colour = {"frost": FROST, "mb": MB}.get(getattr(row.spec, "op", ""), ENDS)
    width = max(0.02, value * inches)
    box = FancyBboxPatch(
        (_BAR_AT, y - 0.36), width, 0.72, boxstyle=f"round,pad=0,rounding_size={min(0.05, width / 2)}",
        fc=colour, ec=INK, lw=0.6, mutation_aspect=1 / 0.29,
    )  # fmt: skip
    ax.add_patch(box)
    ax.text(_BAR_AT + width + 0.07, y, form.format(value), fontsize=8.5, color=INK, va="center")


def _words(spec) -> tuple[str, ...]:
    """block, channels, hidden, squeeze, stride of one row."""
    if isinstance(spec, HeadSpec):
        return "head 1×1", f"{spec.in_channels} → {spec.num_classes}", str(spec.channels), "", ""
    if not isinstance(spec, BlockSpec):
        k = spec.kernel_size
        return f"stem {k}×{k}", f"{spec.in_channels} → {spec.out_channels}", "", "", _stride(spec.stride)
    k = spec.kernel_size
    hidden = f"{spec.hidden_channels}  (e{spec.expand_ratio})"
    squeeze = f"+{spec.squeeze_channels}  (r{spec.squeeze_factor})" if spec.op == "frost" else ""
    stride = "residual" if spec.residual else _stride(spec.stride)
    return f"{spec.op} {k}×{k}", f"{spec.in_channels} → {spec.out_channels}", hidden, squeeze, stride


def _stride(stride: int) -> str:
    return f"↓ {stride}" if stride > 1 else ""


# ---- curves --------------------------------------------------------------------------------------------------

_PANELS = (
    ("loss", lambda key: "loss" in key),
    ("accuracy", lambda key: any(word in key for word in ("top1", "top5", "acc", "miou", "map"))),
    ("latency (ms)", lambda key: key.endswith("_ms")),
    ("mu", lambda key: key == "mu"),
    ("temperature", lambda key: key in ("temperature", "tau")),
    ("entropy", lambda key: "entropy" in key),
    ("learning rate", lambda key: key in ("lr", "learning_rate")),
)


def curves_figure(rows: Sequence[dict]) -> Figure | None:
    """The log's numbers over "step" (or "epoch"), one panel a kind, phases shaded; None where there are none."""
    axis = next((key for key in ("step", "epoch") if any(key in row for row in rows)), None)
    series = _series(rows, axis) if axis else {}
    panels = [(name, [k for k in series if belongs(k)]) for name, belongs in _PANELS]
    panels = [(name, keys) for name, keys in panels if keys]
    if not panels:
        return None
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.9 * columns, 2.9 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    phases = _phases(rows, axis)
    for ax, (name, keys) in zip(axes, panels):
        _panel(ax, name, axis, {key: series[key] for key in keys}, phases)
    for ax in axes[len(panels) :]:
        ax.axis("off")
    return figure


def _series(rows: Sequence[dict], axis: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """key -> (positions, values) over the rows in which both are numbers."""
    found: dict[str, list] = {}
    for row in rows:
        if _is_number(row.get(axis)):
            for key, value in row.items():
                if key != axis and _is_number(value):
                    found.setdefault(key, []).append((row[axis], value))
    return {key: tuple(np.array(pairs, float).T) for key, pairs in found.items()}


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _panel(ax: Axes, name: str, axis: str, series: dict, phases: list[tuple[str, float, float]]) -> None:
    for i, (key, (x, y)) in enumerate(series.items()):
        colour = ACCENT if "target" in key else LINES[i % len(LINES)]
        dash = "--" if "target" in key else "-"
        if len(x) > 200:  # per-step values are noise; the running mean is the curve
            ax.plot(x, y, color=colour, lw=0.5, alpha=0.25)
            window = len(x) // 50
            x, y = x[window - 1 :], np.convolve(y, np.ones(window) / window, "valid")
        ax.plot(x, y, dash, color=colour, lw=1.6, label=key, marker="." if len(x) < 30 else None)
    ax.set_title(name, fontsize=10, color=INK, loc="left", pad=14 if phases else 6)
    ax.set_xlabel(axis, fontsize=8, color=INK)
    for i, (phase, start, end) in enumerate(phases):
        ax.axvspan(start, end, color="#e9eef4" if i % 2 else "white", lw=0, zorder=0)
        if end - start > 0.08 * (phases[-1][2] - phases[0][1]):  # no room for the name of a shorter one
            ax.text((start + end) / 2, 1.015, phase, transform=ax.get_xaxis_transform(), ha="center", fontsize=7)
    _finish(ax)


def _phases(rows: Sequence[dict], axis: str | None) -> list[tuple[str, float, float]]:
    """(phase, first position, last position) of each run of rows with the same "phase"."""
    spans: list[list] = []
    for row in rows:
        if "phase" in row and _is_number(row.get(axis)):
            if spans and spans[-1][0] == str(row["phase"]):
                spans[-1][2] = row[axis]
            else:
                if spans:
                    spans[-1][2] = row[axis]
                spans.append([str(row["phase"]), row[axis], row[axis]])
    return [tuple(span) for span in spans]


def _finish(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, colors=INK)
    ax.grid(color="#dde3e9", lw=0.6)
    ax.set_axisbelow(True)
    if len(ax.get_legend_handles_labels()[1]) > 1:
        ax.legend(fontsize=7.5, frameon=False)


# ---- front ---------------------------------------------------------------------------------------------------


def front_figure(data: dict) -> Figure:
    """The Pareto front and the networks tried on it.

    `data`: "points" [{latency_ms, score}], "networks" [{name, kind, latency_ms, and where known score, accuracy,
    measured_ms}], "target_ms" and "chosen" (a network's name). Kinds are drawn apart: "derived", "random", others.
    """
    networks = data.get("networks", [])
    judged = [n for n in networks if _is_number(n.get("accuracy"))]
    figure = Figure(figsize=(5.6 * (1 + bool(judged)), 3.8), layout="constrained")
    axes = figure.subplots(1, 1 + bool(judged), squeeze=False)[0]
    points = data.get("points", [])
    axes[0].plot(
        [p["latency_ms"] for p in points], [p["score"] for p in points], color=LINES[0], lw=1.6,
        drawstyle="steps-post", label=f"front, {len(points):,} networks",
    )  # fmt: skip
    _scatter(axes[0], [n for n in networks if _is_number(n.get("score"))], "score", "latency_ms", data)
    axes[0].set_xlabel("predicted latency (ms)", fontsize=9)
    axes[0].set_ylabel("score", fontsize=9)
    if judged:
        measured = all(_is_number(n.get("measured_ms")) for n in judged)
        _scatter(axes[1], judged, "accuracy", "measured_ms" if measured else "latency_ms", data)
        axes[1].set_xlabel(f"{'measured' if measured else 'predicted'} latency (ms)", fontsize=9)
        axes[1].set_ylabel("accuracy with inherited weights", fontsize=9)
    for ax in axes:
        _finish(ax)
    return figure


def _scatter(ax: Axes, networks: list[dict], height: str, along: str, data: dict) -> None:
    looks = {"derived": ("o", LINES[1]), "random": ("x", "#8793a0")}
    for kind in dict.fromkeys(n.get("kind", "network") for n in networks):
        group = [n for n in networks if n.get("kind", "network") == kind]
        marker, colour = looks.get(kind, ("s", LINES[2]))
        ax.scatter([n[along] for n in group], [n[height] for n in group], s=30, c=colour, marker=marker, zorder=3, label=kind)
    for n in networks:
        if n.get("name") == data.get("chosen"):
            ax.scatter(n[along], n[height], s=170, c=ACCENT, marker="*", zorder=4, label=f"chosen: {n['name']}")
    if _is_number(data.get("target_ms")):
        ax.axvline(data["target_ms"], color=ACCENT, ls="--", lw=1.1, label=f"target {data['target_ms']:.3g} ms")
