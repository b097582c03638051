"""Pictures of traced models: a float graph beside the same graph with quantizers attached; DOT text and JSON of a
graph.

A picture runs from top to bottom, one row a step of the longest path, both graphs on the same rows. The longest path
goes straight down the first lane; every other branch and every skip connection gets a lane of its own beside it, so no
line runs behind a box. Long networks are cut into columns where few tensors cross. All measures are inches, y
downwards.
"""

import itertools
import json
import math
from dataclasses import dataclass
from functools import cache

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from torch import fx, nn

from quant.attach import ops
from quant.attach.groups import node_names
from quant.errors import QuantError
from quant.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, Quantizer, SameGrid

INK, LINE, SKIP, DIM = "#1d2733", "#5c6875", "#c2452d", "#4d5966"
COLOURS = {
    "conv": "#9cc4ea",
    "deconv": "#9cc4ea",
    "linear": "#6fa8dc",
    "batch_norm": "#bfe0b4",
    "instance_norm": "#bfe0b4",
    "relu": "#f2b3a6",
    "add": "#f6d98a",
    "mul": "#f6d98a",
    "cat": "#f6d98a",
    "pool": "#d3bfe8",
    "quantizer": "#101418",
    "weight": "#c6cbd1",
    "input": "#ffffff",
    "output": "#ffffff",
    "elsewhere": "#ffffff",
    "skip": SKIP,
}
OTHER = "#e6e9ed"
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

PITCH, HEIGHT = 0.31, 0.19  # of the rows; of a box
GAP, PAD = 0.16, 0.06  # between lanes; inside boxes
ASIDE = 0.035  # lines arrive above the middle of a box's side and leave below it
STRAIGHT = 0.04  # length of an arrow head, which must not stand on the bend before it: it points where the line runs
TOP, HEADING, INNER, OUTER = 0.75, 0.35, 0.4, 0.5  # title and legend; above a line of columns; inside and between pairs
LONGEST = 26  # characters of a place
ROWS = 46  # of one column, about
PAIRS = 3  # of columns side by side
BOLD, PLAIN, SMALL, LEGEND_SIZE = 6.8, 6.2, 5.6, 7.5  # points
# how many points -> how the line runs through all but the first
CURVE = {1: [], 3: [Path.CURVE3] * 2, 4: [Path.CURVE4] * 3}
ARROW = {"arrowstyle": "-|>,head_length=2.6,head_width=1.3", "mutation_scale": 1, "shrinkA": 0, "shrinkB": 0}


# ---- a graph as networkx -----------------------------------------------------------------------------------


def network(graph: fx.GraphModule) -> nx.DiGraph:
    """The nodes and edges of a traced model, in its order.

    Attributes of a node: `kind` (an operation, "input", "output" or "quantizer"), `title` (what a reader calls it),
    `name` (where it stands in the model), and for layers with a weight quantizer `weight` (the shape) and
    `weight_quantizer` (method:bits).
    """
    flow = nx.DiGraph()
    names = node_names(graph, [n for n in graph.graph.nodes if n.op.startswith("call")])
    for node in graph.graph.nodes:
        flow.add_node(node.name, **_attributes(graph, node, names.get(node, node.name)))
        flow.add_edges_from((source.name, node.name) for source in node.all_input_nodes)
    return flow


def _attributes(graph: fx.GraphModule, node: fx.Node, name: str) -> dict[str, str]:
    module = graph.get_submodule(node.target) if node.op == "call_module" else None
    if isinstance(module, Quantizer):
        return {"kind": "quantizer", "title": spec(module), "name": name}
    if not node.op.startswith("call"):
        kind = "input" if node.op == "placeholder" else node.op
        return {"kind": kind, "title": kind, "name": "" if kind == name else name}
    found = {"kind": ops.op_type(graph, node), "title": _title(graph, node, module), "name": name}
    if hasattr(module, "weight_quant"):
        found |= {"weight": "×".join(map(str, module.weight.shape)), "weight_quantizer": spec(module.weight_quant)}
    return found


def spec(quantizer: Quantizer) -> str:
    """method:bits of a quantizer; "same grid" of one that rounds to another's."""
    if isinstance(quantizer, SameGrid):
        return "same grid"
    methods = [*WEIGHT_QUANTIZERS.items(), *ACTIVATION_QUANTIZERS.items()]
    name = next((name for name, cls in methods if cls is type(quantizer)), type(quantizer).__name__)
    return f"{name}:{quantizer.bits}"


def _title(graph: fx.GraphModule, node: fx.Node, module: nn.Module | None) -> str:
    kind = ops.op_type(graph, node)
    if kind in ("conv", "deconv") and module is not None:
        size, stride = "×".join(map(str, module.kernel_size)), max(module.stride)
        depthwise = module.groups == module.in_channels > 1
        return f"{'dw' if depthwise else kind} {size}" + (f" /{stride}" if stride > 1 else "")
    if kind == "pool":
        return "max pool" if ops.target(graph, node) in ops.MAXIMA else "avg pool"
    if kind in ("move", "function", "dropout", "relu"):
        return type(module).__name__.lower() if module is not None else ops.label(node)
    return kind.replace("_", " ")


def as_json(graph: fx.GraphModule) -> dict:
    """{"nodes": [{"id", "kind", "title", "name", ..}], "edges": [[from, to]],
    "quantizers": [{"name", "quantizer", "kind" (weight or activation), "of", "read_by"}]}."""
    flow = network(graph)
    whole, quantizers = _with_weights(flow), []
    for n, at in whole.nodes(data=True):
        if at["kind"] == "quantizer":
            (source,) = whole.pred[n]
            kind = "weight" if whole.nodes[source]["kind"] == "weight" else "activation"
            about = {"name": at["name"], "quantizer": at["title"], "kind": kind}
            quantizers.append(about | {"of": source, "read_by": list(whole.succ[n])})
    nodes = [{"id": n, **at} for n, at in flow.nodes(data=True)]
    return {"nodes": nodes, "edges": [list(edge) for edge in flow.edges], "quantizers": quantizers}


def as_dot(graph: fx.GraphModule) -> str:
    """The graph in Graphviz's language; weights with quantizers are nodes of their own."""
    flow = _with_weights(network(graph))
    lines = ["digraph model {", "  node [shape=box, style=filled, fontname=Helvetica, fontsize=10];"]
    for n, at in flow.nodes(data=True):
        label = at["title"] if at["kind"] in ("weight", "quantizer") else f"{at['title']}\n{at['name']}"
        font = "white" if at["kind"] == "quantizer" else "black"
        lines.append(f'  {_quoted(n)} [label={_quoted(label)}, fillcolor="{_colour(at["kind"])}", fontcolor={font}];')
    lines += [f"  {_quoted(a)} -> {_quoted(b)};" for a, b in flow.edges]
    return "\n".join([*lines, "}"]) + "\n"


def _with_weights(flow: nx.DiGraph) -> nx.DiGraph:
    """The graph with quantized weights, and their quantizers, as nodes of their own."""
    whole = nx.DiGraph()
    for n, at in flow.nodes(data=True):
        if "weight" in at:
            weight, quantizer = f"{at['name']}.weight", f"{at['name']}.weight_quant"
            whole.add_node(weight, kind="weight", title=at["weight"], name=weight)
            whole.add_node(quantizer, kind="quantizer", title=at["weight_quantizer"], name=quantizer)
            nx.add_path(whole, [weight, quantizer, n])
        whole.add_node(n, **at)
    whole.add_edges_from(flow.edges)
    return whole


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _colour(kind: str) -> str:
    return COLOURS.get(kind, OTHER)


# ---- which part, on which rows -----------------------------------------------------------------------------


def section(
    before: nx.DiGraph, after: nx.DiGraph, start: str | None, count: int | None
) -> tuple[nx.DiGraph, nx.DiGraph]:
    """Both graphs from the node `start` on (its id, name or place in the model), `count` nodes of the float graph long.

    Raises QuantError where no node has that name.
    """
    order = list(before)
    at = 0 if start is None else next((i for i, n in enumerate(order) if start in (n, before.nodes[n]["name"])), None)
    if at is None:
        raise QuantError(f"from: no node is called {start!r}; the table's first column has the names")
    members = set(order[at : None if count is None else at + count])
    kept = set()
    for n in after:  # what was inserted stands where its source does
        if n in members or (n not in before and any(source in kept for source in after.pred[n])):
            kept.add(n)
    return _cut(before, members), _cut(after, kept)


def _cut(flow: nx.DiGraph, members: set[str]) -> nx.DiGraph:
    """The members of a graph; what they read from outside, and who outside reads them, become nodes of the kind
    "elsewhere".
    """
    part = nx.DiGraph()
    part.add_nodes_from((n, flow.nodes[n]) for n in flow if n in members)
    for a, b in flow.edges:
        if a in members and b in members:
            part.add_edge(a, b)
        elif b in members:
            part.add_node(f"from {a}", kind="elsewhere", title="from", name=_called(flow, a))
            part.add_edge(f"from {a}", b)
        elif a in members:
            part.add_node(f"to {a}", kind="elsewhere", title="to", name=_called(flow, b))
            part.add_edge(a, f"to {a}")
    return part


def _called(flow: nx.DiGraph, n: str) -> str:
    return flow.nodes[n]["name"] or flow.nodes[n]["title"]


def rows_of(flow: nx.DiGraph, at_least: dict[str, int]) -> dict[str, int]:
    """A row for each node: below all that it reads, and no higher than `at_least` says."""
    rows = {}
    for n in nx.topological_sort(flow):
        rows[n] = max([rows[p] + 1 for p in flow.pred[n]] + [at_least.get(n, 0)])
    for n in flow:  # constants stand just above their first reader
        if flow.nodes[n]["kind"] == "get_attr" and flow.succ[n]:
            rows[n] = min(rows[s] for s in flow.succ[n]) - 1
    return rows


def cuts(flow: nx.DiGraph, rows: dict[str, int], most: int = ROWS) -> list[int]:
    """First rows of the columns, and the end: as few columns as possible, cut near equal lengths where the fewest
    tensors cross.
    """
    end = max(rows.values()) + 1
    columns = math.ceil(end / most)
    length = end / columns
    found = [0]
    for i in range(1, columns):
        near = range(max(found[-1] + 1, round((i - 0.2) * length)), min(end, round((i + 0.2) * length) + 1))
        found.append(min(near, key=lambda row: (*_crossing(flow, rows, row), abs(row - i * length))))
    return [*found, end]


def _crossing(flow: nx.DiGraph, rows: dict[str, int], row: int) -> tuple[int, int]:
    """How many tensors made above `row` are read from there on, and how many of them by a quantizer, which had better
    stay with them.
    """
    edges = [(a, b) for a, b in flow.edges if rows[a] < row <= rows[b]]
    return len({a for a, _ in edges}), sum(flow.nodes[b]["kind"] == "quantizer" for _, b in edges)


# ---- lanes -------------------------------------------------------------------------------------------------


@dataclass
class Layout:
    """Where everything stands: a row and a lane for each node, and for each edge the lane in which it runs down."""

    flow: nx.DiGraph
    rows: dict[str, int]
    lanes: dict[str, int]
    via: dict[tuple[str, str], int]

    def clear(self, n: str, via: int) -> bool:
        """Whether the lane `via` is right of n with no box in n's row up to there."""
        return self.lanes[n] < via and not any(
            self.rows[n] == self.rows[m] and self.lanes[n] < self.lanes[m] <= via for m in self.flow
        )


def layout(flow: nx.DiGraph, rows: dict[str, int]) -> Layout:
    lanes = _place_nodes(flow, rows)
    return Layout(flow, rows, lanes, _route_edges(flow, rows, lanes))


def _place_nodes(flow: nx.DiGraph, rows: dict[str, int]) -> dict[str, int]:
    """The longest path in lane 0, then the longest of what remains in the first lane that is free beside it, and
    so on.
    """
    rest, lanes, taken = flow.copy(), {}, set()
    while rest:
        path = nx.dag_longest_path(rest)
        above = [rows[p] + 1 for p in flow.pred[path[0]]]
        below = [rows[s] for s in flow.succ[path[-1]]]
        span = range(min([*above, rows[path[0]]]), max([*below, rows[path[-1]] + 1]))
        lane = next(k for k in itertools.count() if not any((k, row) in taken for row in span))
        taken |= {(lane, row) for row in span}
        lanes |= dict.fromkeys(path, lane)
        rest.remove_nodes_from(path)
    return lanes


def _route_edges(flow: nx.DiGraph, rows: dict[str, int], lanes: dict[str, int]) -> dict[tuple[str, str], int]:
    """Short edges first.

    One runs down its reader's lane or its source's if no box is in the way, else in the next free lane.
    """
    # (lane, row) -> whose box or line is there; lines from one source may share
    taken = {(lanes[n], rows[n]): n for n in flow}
    via = {}
    for a, b in sorted(flow.edges, key=lambda edge: rows[edge[1]] - rows[edge[0]]):
        between = range(rows[a] + 1, rows[b])
        nearest = sorted((lanes[a], lanes[b]), reverse=True)
        via[a, b] = next(
            k
            for k in itertools.chain(nearest, itertools.count(1))
            if all(taken.get((k, row), a) == a for row in between)
        )
        taken |= {(via[a, b], row): a for row in between}
    return via


# ---- drawing -----------------------------------------------------------------------------------------------


def graph_figure(
    before: fx.GraphModule, after: fx.GraphModule, title: str, start: str | None = None, count: int | None = None
) -> Figure:
    """`before` on the left and `after` on the right, in pairs of columns.

    before, after   one model traced, without and with quantizers; nodes of the same name are the same operation
    start, count    picture only `count` nodes of `before`, from the one called `start` on
    Raises QuantError where `start` names no node.
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
    """The network of a graph without the nodes `sizes`, which hold no float tensors, and without those that hand their
    input on.
    """
    flow = network(graph)
    flow.remove_nodes_from(sizes)
    for n in [n for n, at in flow.nodes(data=True) if at["title"] == "identity"]:
        flow.add_edges_from((source, reader) for source in flow.pred[n] for reader in flow.succ[n])
        flow.remove_node(n)
    return flow


def _column(flow: nx.DiGraph, rows: dict[str, int], top: int, bottom: int) -> Layout:
    """The nodes on the rows top..bottom-1, what lies elsewhere above and below them."""
    part = _cut(flow, {n for n in flow if top <= rows[n] < bottom})
    first = max(top - 1, 0)
    ends = {"from": 0, "to": bottom - first}
    return layout(part, {n: rows[n] - first if n in rows else ends[at["title"]] for n, at in part.nodes(data=True)})


class _Panel:
    """One column of one graph, drawn with its left edge at x and its first row at y."""

    def __init__(self, plan: Layout):
        self.plan = plan
        nodes = plan.flow.nodes
        data = [at for _, at in nodes(data=True)]
        self.box = max(_wide(at["title"], BOLD, True) + _wide(_shown(at), PLAIN) for at in data) + 2 * PAD + 0.12
        self.weight = max(_wide(at.get("weight", ""), SMALL) for at in data) + 2 * PAD
        specs = [at["title"] if at["kind"] == "quantizer" else at.get("weight_quantizer", "") for at in data]
        self.quantizer = max(_wide(spec, PLAIN, True) for spec in specs) + 2 * PAD
        self.half = {n: (self.quantizer if nodes[n]["kind"] == "quantizer" else self.box) / 2 for n in nodes}
        self.centres, self.lefts, self.width = self._lanes()
        self.height = (max(plan.rows.values()) + 1) * PITCH

    def _lanes(self) -> tuple[list[float], list[float], float]:
        """x of each lane's boxes and of the lines that only pass through it, and the width of all."""
        plan, centres, lefts, x = self.plan, [], [], 0.0
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
        """The points of a line from n's box to x in the lane `via`: straight down, out of its side where no box is in
        the way, else through the gap between the rows. `down` is 1, or -1 for the same upwards: a line that arrives,
        backwards."""
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
    """Where a node stands, less what its title says already, the outermost modules left out where it is long."""
    place = at["name"].removesuffix(at["title"]).removesuffix(".")
    while len(place) > LONGEST and "." in place:
        place = f"…{place.partition('.')[2]}"
    return place


def _box(ax: Axes, x: float, y: float, width: float, kind: str) -> None:
    edge, style = (DIM, "--") if kind == "elsewhere" else (INK, "-")
    ax.add_patch(Rectangle((x, y - HEIGHT / 2), width, HEIGHT, fc=_colour(kind), ec=edge, lw=0.5, ls=style))


def _chip(ax: Axes, x: float, y: float, width: float, text: str, kind: str) -> None:
    """A small box with a text in its middle: a weight or a quantizer."""
    _box(ax, x, y, width, kind)
    size, weight, colour = (PLAIN, "bold", "white") if kind == "quantizer" else (SMALL, "normal", INK)
    ax.text(x + width / 2, y, text, fontsize=size, weight=weight, color=colour, ha="center", va="center_baseline")


@cache
def _wide(text: str, size: float, bold: bool = False) -> float:
    """The width of a text in inches."""
    if not text:
        return 0.0
    outline = TextPath((0, 0), text, prop=FontProperties(weight="bold" if bold else "normal", size=size))
    across = outline.vertices[outline.codes != Path.CLOSEPOLY, 0]  # as get_extents() has it, in a tenth of the time
    return (across.max() - across.min()) / 72


def draw(pairs: list[list[Layout]], title: str) -> Figure:
    """Pairs of columns from left to right, as many as go side by side, then the next line."""
    panels = [[_Panel(plan) for plan in pair] for pair in pairs]
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


def _draw_line(ax: Axes, line: list[list[_Panel]], y: float, height: float) -> None:
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
    return _wide(text, LEGEND_SIZE) + 0.4


def _legend(ax: Axes, x: float, y: float) -> None:
    for text, kind in LEGEND.items():
        if kind == "skip":
            ax.plot([x, x + 0.18], [y, y], color=SKIP, lw=1.1)
        else:
            ax.add_patch(Rectangle((x, y - 0.06), 0.18, 0.12, fc=COLOURS[kind], ec=INK, lw=0.5))
        ax.text(x + 0.23, y, text, fontsize=LEGEND_SIZE, color=INK, va="center_baseline")
        x += _legend_width(text)
