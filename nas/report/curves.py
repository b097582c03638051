"""The curves of a run's log: one panel a kind of number."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas.report.style import ACCENT, FAINT, LINES, SOFT, Draw, finish, is_number, panels, word

MOST_POINTS = 500  # drawn of a curve

KINDS: dict[str, Callable[[str], bool]] = {
    "loss": lambda key: "loss" in key,
    "adversaries": lambda key: key == "fooled" or key.startswith("discriminator"),
    "PSNR (dB)": lambda key: "psnr" in key,
    "SSIM": lambda key: "ssim" in key,
    "L1": lambda key: "l1" in key or key in ("cycle", "identity"),
    "feature distance": lambda key: "distance" in key,
    "accuracy": lambda key: any(metric in key for metric in ("top1", "top5", "acc", "miou", "_ap", "map")),
    "latency (ms)": lambda key: key.endswith("_ms"),
    "price of latency (mu)": lambda key: key == "mu",
    "entropy of the alphas": lambda key: "entropy" in key,
    "share of the cheapest candidates": lambda key: key == "cheapest_share",
    "temperature": lambda key: key in ("temperature", "tau"),
    "learning rate": lambda key: key in ("lr", "learning_rate"),
}


def curves_figure(rows: Sequence[dict]) -> Figure | None:
    """All panels of the log in one figure; None where it has no numbers."""
    found = curve_panels(rows)
    return panels(list(found.values())) if found else None


def curve_panels(rows: Sequence[dict]) -> dict[str, Draw]:
    """Kind -> what draws the log's numbers of it over "step" (or "epoch"), phases shaded; kinds that the log has."""
    axis = next((key for key in ("step", "epoch") if any(is_number(row.get(key)) for row in rows)), None)
    series = _series(rows, axis) if axis else {}
    found = {}
    for kind, belongs in KINDS.items():
        own = {key: line for key, line in series.items() if belongs(key)}
        if own:
            found[kind] = partial(_panel, title=kind, axis=axis, series=own, phases=_phases(rows, axis))
    return found


def _series(rows: Sequence[dict], axis: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """key -> (positions, values) over the rows in which both are numbers."""
    found: dict[str, list] = {}
    for row in rows:
        if is_number(row.get(axis)):
            for key, value in row.items():
                if key != axis and is_number(value):
                    found.setdefault(key, []).append((row[axis], value))
    return {key: tuple(np.array(pairs, float).T) for key, pairs in found.items()}


def _panel(ax: Axes, title: str, axis: str, series: dict, phases: list[tuple[str, float, float]]) -> None:
    plain = [key for key in series if "target" not in key]
    for key, (x, y) in series.items():
        if "target" in key:
            ax.plot(*_thinned(x, y), "--", color=ACCENT, lw=1.3, label=word(key))
        else:
            _curve(ax, x, y, LINES[plain.index(key) % len(LINES)], key)
    _shade(ax, phases, min(x[0] for x, _ in series.values()))
    finish(ax, title, axis, above=16 if phases else 6)


def _curve(ax: Axes, x: np.ndarray, y: np.ndarray, colour: str, key: str) -> None:
    if len(x) > 150 and "loss" in key:  # the loss of a step is noise; the running mean is the curve
        ax.plot(*_thinned(x, y), color=colour, lw=0.5, alpha=0.3)
        window = len(x) // 20
        y = np.convolve(y, np.ones(window) / window, "valid")
        x = x[window // 2 :][: len(y)]
    ax.plot(*_thinned(x, y), color=colour, lw=1.6, label=word(key), marker="." if len(x) < 30 else None)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int))
    return x[keep], y[keep]


def _phases(rows: Sequence[dict], axis: str) -> list[tuple[str, float, float]]:
    """(phase, first position, last position) of each run of rows with the same "phase"."""
    spans: list[list] = []
    for row in rows:
        if "phase" in row and is_number(row.get(axis)):
            if spans and spans[-1][0] == word(row["phase"]):
                spans[-1][2] = row[axis]
            else:
                if spans:
                    spans[-1][2] = row[axis]
                spans.append([word(row["phase"]), row[axis], row[axis]])
    return [tuple(span) for span in spans]


def _shade(ax: Axes, phases: list[tuple[str, float, float]], first: float) -> None:
    """Shade every other phase and name those with room for it; the panel's curves begin at `first`."""
    shown = [(name, max(start, first), end) for name, start, end in phases if end > first]
    for i, (name, start, end) in enumerate(shown if len(shown) > 1 else []):
        if i % 2:
            ax.axvspan(start, end, color=FAINT, lw=0, zorder=0)
        if end - start > 0.12 * (shown[-1][2] - shown[0][1]):
            ax.text(
                (start + end) / 2, 1.02, name, transform=ax.get_xaxis_transform(), ha="center", fontsize=7.5, color=SOFT
            )
