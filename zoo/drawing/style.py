"""Colours and sizes of text."""

from functools import cache

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

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
BOLD, PLAIN, SMALL, LEGEND_SIZE = 6.8, 6.2, 5.6, 7.5  # points


def colour(kind: str) -> str:
    return COLOURS.get(kind, OTHER)


@cache
def text_width(text: str, size: float, bold: bool = False) -> float:
    """The width of a text in inches."""
    if not text:
        return 0.0
    outline = TextPath((0, 0), text, prop=FontProperties(weight="bold" if bold else "normal", size=size))
    across = outline.vertices[outline.codes != Path.CLOSEPOLY, 0]  # as get_extents() has it, in a tenth of the time
    return (across.max() - across.min()) / 72
