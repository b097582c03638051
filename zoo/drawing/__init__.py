"""Traced models drawn: before and after quantizers are attached, side by side; a graph as DOT text and as JSON."""

from zoo.drawing.figure import graph_figure
from zoo.drawing.text import as_dot, as_json

__all__ = ["as_dot", "as_json", "graph_figure"]
