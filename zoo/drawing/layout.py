"""Where the nodes and edges of a graph stand: rows, the rows at which columns are cut, and lanes.

A column runs from top to bottom, one row per step of the longest path. The longest path goes straight down the first
lane; every other branch and every skip connection gets another lane beside it, so no line runs behind a box.
"""

import itertools
import math
from dataclasses import dataclass
from typing import final

import networkx as nx

ROWS = 46  # of one column, about


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
    """First rows of the columns, and the end: few columns of near equal lengths, cut where few tensors cross."""
    end = max(rows.values()) + 1
    columns = math.ceil(end / most)
    length = end / columns
    found = [0]
    for i in range(1, columns):
        near = range(max(found[-1] + 1, round((i - 0.2) * length)), min(end, round((i + 0.2) * length) + 1))
        found.append(min(near, key=lambda row: (*_crossing(flow, rows, row), abs(row - i * length))))
    return [*found, end]


def _crossing(flow: nx.DiGraph, rows: dict[str, int], row: int) -> tuple[int, int]:
    """How many tensors made above `row` are read from there on, and how many by a quantizer, best kept with them."""
    edges = [(a, b) for a, b in flow.edges if rows[a] < row <= rows[b]]
    return len({a for a, _ in edges}), sum(flow.nodes[b]["kind"] == "quantizer" for _, b in edges)


# ---- lanes -------------------------------------------------------------------------------------------------


@final
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
    """The longest path in lane 0, then the longest of what remains in the first free lane beside it, and so on."""
    rest = flow.copy()
    lanes = {}
    taken = set()
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
