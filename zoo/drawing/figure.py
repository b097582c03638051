"""The figure: both graphs in pairs of columns on the same rows, under a title and a legend.

Long networks are cut into columns where few tensors cross.
"""

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import fx

from zoo.drawing.flow import cut, network, section
from zoo.drawing.layout import Layout, cuts, layout, rows_of
from zoo.drawing.panel import Panel
from zoo.drawing.style import COLOURS, DIM, INK, LEGEND_SIZE, SKIP, text_width

LEGEND = {
    "convolution": "conv",
    "linear": "linear",
    "norm": "batch_norm",
    "ReLU": "relu",
    "add, mul, cat": "add",
    "pooling": "pool",
    "weight": "weight",
    "quantizer, method:bits": "quantizer",
    "skip connection": "skip",
}

# inches: title and legend; above a line of columns; inside and between pairs
TOP, HEADING, INNER, OUTER = 0.75, 0.35, 0.4, 0.5
PAIRS = 3  # of columns side by side


def graph_figure(
    before: fx.GraphModule, after: fx.GraphModule, title: str, start: str | None = None, count: int | None = None
) -> Figure:
    """`before` on the left and `after` on the right, in pairs of columns.

    Args:
        before: A traced model.
        after: The same with quantizers attached; nodes of the same name are the same operation.
        title: Above the legend.
        start: The first node of `before` to draw: its id, name or place in the model.
        count: How many nodes of `before` to draw.

    Raises:
        QuantError: `start` names no node.
    """
    sizes = {n.name for n in after.graph.nodes if n.meta.get("is_float") is False}
    float_flow, quant_flow = section(_clean(before, sizes), _clean(after, sizes), start, count)
    quant_rows = rows_of(quant_flow, {})
    float_rows = rows_of(float_flow, quant_rows)
    edges = cuts(quant_flow, quant_rows)
    edges[-1] = max(edges[-1], *(row + 1 for row in float_rows.values()))
    pair = ((float_flow, float_rows), (quant_flow, quant_rows))
    return draw([[_column(*graph, top, bottom) for graph in pair] for top, bottom in zip(edges, edges[1:])], title)


def _clean(graph: fx.GraphModule, sizes: set[str]) -> nx.DiGraph:
    """The network without the nodes `sizes`, which hold no float tensors, and without those that hand input on."""
    flow = network(graph)
    flow.remove_nodes_from(sizes)
    for n in [n for n, at in flow.nodes(data=True) if at["title"] == "identity"]:
        flow.add_edges_from((source, reader) for source in flow.pred[n] for reader in flow.succ[n])
        flow.remove_node(n)
    return flow


def _column(flow: nx.DiGraph, rows: dict[str, int], top: int, bottom: int) -> Layout:
    """The nodes on the rows top..bottom-1, what lies elsewhere above and below them."""
    part = cut(flow, {n for n in flow if top <= rows[n] < bottom})
    first = max(top - 1, 0)
    ends = {"from": 0, "to": bottom - first}
    return layout(part, {n: rows[n] - first if n in rows else ends[at["title"]] for n, at in part.nodes(data=True)})


def draw(pairs: list[list[Layout]], title: str) -> Figure:
    """Pairs of columns from left to right, as many as go side by side, then the next line."""
    panels = [[Panel(plan) for plan in pair] for pair in pairs]
    lines = [panels[i : i + PAIRS] for i in range(0, len(panels), PAIRS)]
    heights = [max(p.height for pair in line for p in pair) + HEADING for line in lines]
    widths = [sum(p.width + INNER for pair in line for p in pair) + (OUTER - INNER) * len(line) for line in lines]
    width = max(sum(map(_legend_width, LEGEND)), *widths) + OUTER
    figure = Figure(figsize=(width, TOP + sum(heights)))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(TOP + sum(heights), 0))
    ax.axis("off")
    ax.text(OUTER, 0.2, title, fontsize=11, weight="bold", color=INK, va="center")
    _legend(ax, OUTER, 0.46)
    y = TOP
    for line, height in zip(lines, heights):
        _draw_line(ax, line, y, height)
        y += height
    return figure


def _draw_line(ax: Axes, line: list[list[Panel]], y: float, height: float) -> None:
    x = OUTER
    for i, pair in enumerate(line):
        if i:
            ax.plot([x - OUTER / 2] * 2, [y, y + height - HEADING], color="#d5dae0", lw=0.8)
        for panel, name in zip(pair, ("before", "after")):
            ax.text(x, y + 0.08, name, fontsize=9, weight="bold", color=DIM, va="center")
            panel.draw(ax, x, y + HEADING)
            x += panel.width + INNER
        x += OUTER - INNER


def _legend_width(text: str) -> float:
    return text_width(text, LEGEND_SIZE) + 0.4


def _legend(ax: Axes, x: float, y: float) -> None:
    for text, kind in LEGEND.items():
        if kind == "skip":
            ax.plot([x, x + 0.18], [y, y], color=SKIP, lw=1.1)
        else:
            ax.add_patch(Rectangle((x, y - 0.06), 0.18, 0.12, fc=COLOURS[kind], ec=INK, lw=0.5))
        ax.text(x + 0.23, y, text, fontsize=LEGEND_SIZE, color=INK, va="center_baseline")
        x += _legend_width(text)
