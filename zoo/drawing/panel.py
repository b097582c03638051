"""One column of one graph, drawn: boxes, weights and quantizers beside them, and the lines between."""

from typing import final

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.path import Path

from zoo.drawing.layout import Layout
from zoo.drawing.style import BOLD, DIM, INK, LINE, PLAIN, SKIP, SMALL, colour, text_width

# inches, y downwards
PITCH, HEIGHT = 0.31, 0.19  # of the rows; of a box
GAP, PAD = 0.16, 0.06  # between lanes; inside boxes
ASIDE = 0.035  # lines arrive above the middle of a box's side and leave below it
STRAIGHT = 0.04  # length of an arrow head, which must not stand on the bend before it: it points where the line runs
LONGEST = 26  # characters of a place
# how many points -> how the line runs through all but the first
CURVE = {1: [], 3: [Path.CURVE3] * 2, 4: [Path.CURVE4] * 3}
ARROW = {"arrowstyle": "-|>,head_length=2.6,head_width=1.3", "mutation_scale": 1, "shrinkA": 0, "shrinkB": 0}


@final
class Panel:
    """One column of one graph, drawn with its left edge at x and its first row at y."""

    def __init__(self, plan: Layout):
        self.plan = plan
        nodes = plan.flow.nodes
        data = [at for _, at in nodes(data=True)]
        self.box = (
            max(text_width(at["title"], BOLD, True) + text_width(_shown(at), PLAIN) for at in data) + 2 * PAD + 0.12
        )
        self.weight = max(text_width(at.get("weight", ""), SMALL) for at in data) + 2 * PAD
        specs = [at["title"] if at["kind"] == "quantizer" else at.get("weight_quantizer", "") for at in data]
        self.quantizer = max(text_width(spec, PLAIN, True) for spec in specs) + 2 * PAD
        self.half = {n: (self.quantizer if nodes[n]["kind"] == "quantizer" else self.box) / 2 for n in nodes}
        self.centres, self.lefts, self.width = self._lanes()
        self.height = (max(plan.rows.values()) + 1) * PITCH

    def _lanes(self) -> tuple[list[float], list[float], float]:
        """x of each lane's boxes and of the lines that only pass through it, and the width of all."""
        plan = self.plan
        centres = []
        lefts = []
        x = 0.0
        for lane in range(1 + max([*plan.lanes.values(), *plan.via.values()])):
            inside = [n for n in plan.flow if plan.lanes[n] == lane]
            half = max([self.half[n] for n in inside], default=0.03)
            lefts.append(x + min(half, 0.1))
            x += half + (
                self.weight + self.quantizer + GAP if any("weight" in plan.flow.nodes[n] for n in inside) else 0.0
            )
            centres.append(x)
            x += half + GAP
        return centres, lefts, x - GAP

    def draw(self, ax: Axes, x: float, y: float) -> None:
        plan = self.plan
        self.at = {n: (x + self.centres[plan.lanes[n]], y + plan.rows[n] * PITCH) for n in plan.flow}
        for a, b in plan.flow.edges:
            self._edge(ax, a, b, x)
        for n, at in plan.flow.nodes(data=True):
            self._node(ax, *self.at[n], at)

    def _edge(self, ax: Axes, a: str, b: str, left: float) -> None:
        """A line from a into the lane of the edge, down there, and into b."""
        via = self.plan.via[a, b]
        skips = via not in (self.plan.lanes[a], self.plan.lanes[b])
        x = left + (self.lefts if skips else self.centres)[via]
        out, into = self._turn(a, via, x, 1), self._turn(b, via, x, -1)[::-1]
        path = Path(out + into, [Path.MOVETO, *CURVE[len(out)], Path.LINETO, *CURVE[len(into)]])
        ax.add_patch(FancyArrowPatch(path=path, color=SKIP if skips else LINE, lw=1.1 if skips else 0.8, **ARROW))

    def _turn(self, n: str, via: int, x: float, down: int) -> list[tuple[float, float]]:
        """The points of a line from n's box to x in the lane `via`.

        The line goes straight down, out of the box's side where no box is in the way, else through the gap between the
        rows. `down` is 1, or -1 for the same upwards: a line that arrives, backwards.
        """
        middle, y = self.at[n]
        end, half_way = y + down * HEIGHT / 2, y + down * PITCH / 2
        if via == self.plan.lanes[n]:
            return [(middle, end)]
        if self.plan.clear(n, via):
            beside = y + down * ASIDE
            return [(middle + self.half[n], beside), (x, beside), (x, half_way)]
        return [(middle, end), (middle, half_way), (x, half_way), (x, y + down * (PITCH - HEIGHT / 2 - STRAIGHT))]

    def _node(self, ax: Axes, x: float, y: float, at: dict[str, str]) -> None:
        if at["kind"] == "quantizer":
            _chip(ax, x - self.quantizer / 2, y, self.quantizer, at["title"], "quantizer")
            return
        left = x - self.box / 2
        _box(ax, left, y, self.box, at["kind"])
        ink = DIM if at["kind"] == "elsewhere" else INK
        ax.text(left + PAD, y, at["title"], fontsize=BOLD, weight="bold", color=ink, va="center_baseline")
        ax.text(left + self.box - PAD, y, _shown(at), fontsize=PLAIN, color=DIM, va="center_baseline", ha="right")
        if "weight" in at:
            start = left - GAP - self.quantizer
            _chip(ax, start - self.weight, y, self.weight, at["weight"], "weight")
            _chip(ax, start, y, self.quantizer, at["weight_quantizer"], "quantizer")
            ax.add_patch(FancyArrowPatch((left - GAP, y), (left, y), color=LINE, lw=0.8, **ARROW))


def _shown(at: dict[str, str]) -> str:
    """Where a node stands, less what its title has already, the outermost modules left out where it is long."""
    place = at["name"].removesuffix(at["title"]).removesuffix(".")
    while len(place) > LONGEST and "." in place:
        place = f"…{place.partition('.')[2]}"
    return place


def _box(ax: Axes, x: float, y: float, width: float, kind: str) -> None:
    edge, style = (DIM, "--") if kind == "elsewhere" else (INK, "-")
    ax.add_patch(Rectangle((x, y - HEIGHT / 2), width, HEIGHT, fc=colour(kind), ec=edge, lw=0.5, ls=style))


def _chip(ax: Axes, x: float, y: float, width: float, text: str, kind: str) -> None:
    """A small box with a text in its middle: a weight or a quantizer."""
    _box(ax, x, y, width, kind)
    size, weight, colour = (PLAIN, "bold", "white") if kind == "quantizer" else (SMALL, "normal", INK)
    ax.text(x + width / 2, y, text, fontsize=size, weight=weight, color=colour, ha="center", va="center_baseline")
