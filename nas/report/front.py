"""The Pareto front of a search, the networks tried on it, and how well their latency was predicted.

`data` is front.json: "points" [{latency_ms, score}], "networks" [{name, kind, latency_ms, and where known score,
accuracy, measured_ms}], "target_ms" and "chosen" (a network's name). Kinds are drawn apart: "derived", "random",
others.
"""

from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas.report.style import ACCENT, GRID, LINES, SOFT, Draw, finish, is_number, panels, word

MOST_POINTS = 600  # drawn of a front, which may have 20,000
BAND = 0.05  # of the measured latency: where predictions should lie


def front_figure(data: dict) -> Figure:
    """The front by score and, where networks were judged, their accuracy."""
    return panels(list(front_panels(data).values()), 2, (5.4, 3.8))


def front_panels(data: dict) -> dict[str, Draw]:
    """What the panel shows -> what draws it."""
    networks = data.get("networks", [])
    judged = [n for n in networks if is_number(n.get("accuracy"))]
    found = {
        "the front, by score": partial(_front, networks=[n for n in networks if is_number(n.get("score"))], data=data)
    }
    if judged:
        found["networks tried, by accuracy"] = partial(_judged, networks=judged, data=data)
    return found


def _front(ax: Axes, networks: list[dict], data: dict) -> None:
    points = data.get("points", [])
    keep = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST_POINTS)).round().astype(int))
    drawn = [points[i] for i in keep]
    ax.plot(
        [p["latency_ms"] for p in drawn],
        [p["score"] for p in drawn],
        color=LINES[0],
        lw=1.6,
        drawstyle="steps-post",
        label=f"front, {len(points):,} networks",
    )
    _scatter(ax, networks, "score", "latency_ms", data)
    _target(ax, data)
    finish(ax, x="predicted latency (ms)", y="score")


def _judged(ax: Axes, networks: list[dict], data: dict) -> None:
    measured = all(is_number(n.get("measured_ms")) for n in networks)
    _scatter(ax, networks, "accuracy", "measured_ms" if measured else "latency_ms", data)
    _target(ax, data)
    finish(ax, x=f"{'measured' if measured else 'predicted'} latency (ms)", y="top-1 after a short training of its own")


def _scatter(ax: Axes, networks: list[dict], height: str, along: str, data: dict) -> None:
    looks = {"derived": ("o", LINES[1]), "random": ("x", SOFT)}
    kinds = list(dict.fromkeys(n.get("kind", "network") for n in networks))
    for i, kind in enumerate(kinds):
        group = [n for n in networks if n.get("kind", "network") == kind]
        marker, colour = looks.get(kind, ("s", LINES[(2 + i) % len(LINES)]))
        ax.scatter(
            [n[along] for n in group],
            [n[height] for n in group],
            s=30,
            c=colour,
            marker=marker,
            zorder=3,
            label=word(kind),
        )
    for n in networks:
        if "name" in n and n["name"] == data.get("chosen"):
            ax.scatter(n[along], n[height], s=170, c=ACCENT, marker="*", zorder=4, label=word(f"chosen: {n['name']}"))


def _target(ax: Axes, data: dict) -> None:
    if is_number(data.get("target_ms")):
        ax.axvline(data["target_ms"], color=ACCENT, ls="--", lw=1.1, label=f"target {data['target_ms']:.3g} ms")


# ---- predicted against measured ----------------------------------------------------------------------------


def measured_networks(data: dict) -> list[dict]:
    """The networks of front.json whose latency was measured."""
    return [n for n in data.get("networks", []) if is_number(n.get("measured_ms")) and n["measured_ms"] > 0]


def prediction_errors(data: dict) -> np.ndarray:
    """(predicted - measured) / measured of every measured network."""
    return np.array([n["latency_ms"] / n["measured_ms"] - 1.0 for n in measured_networks(data)])


def prediction_figure(data: dict) -> Figure | None:
    """Predicted over measured latency, with the diagonal and the band of 5 %; None where nothing was measured."""
    return panels([partial(_predicted, data=data)], 1, (4.6, 4.3)) if measured_networks(data) else None


def _predicted(ax: Axes, data: dict) -> None:
    networks = measured_networks(data)
    every = [n[key] for n in networks for key in ("latency_ms", "measured_ms")]
    margin = 0.1 * (max(every) - min(every)) + 0.03 * max(every)
    ends = np.array([max(0.0, min(every) - margin), max(every) + margin])
    ax.fill_between(ends, ends * (1 - BAND), ends * (1 + BAND), color=GRID, lw=0, zorder=0, label="±5 %")
    ax.plot(ends, ends, color=SOFT, lw=1.0, zorder=1)
    _scatter(ax, networks, "latency_ms", "measured_ms", data)
    ax.set(xlim=ends, ylim=ends, aspect="equal")
    finish(ax, x="measured latency (ms)", y="predicted latency (ms)")
