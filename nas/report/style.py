"""How every picture looks: its colours, its axes, and the two forms it is kept in, PNG files and SVG inside a page."""

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.errors import UserError
from common.files import write_bytes
from nas.ops import OPS

INK, SOFT, GRID, FAINT, PAPER = "#22303c", "#5f6d7a", "#dde3e9", "#f3f6f9", "#ffffff"
ACCENT = "#d1495b"
LINES = ("#2f6fb3", "#e08a1e", "#3b8f5a", "#8b5fb0", "#7a6a58", "#0f8b8d")
FILLS = {name: op.colour for name, op in OPS.items()} | {"ends": "#c3cbd3"}  # of blocks; "ends": stem and head

# In a page each colour is a CSS variable, so that pictures follow its light or dark look.
VARIABLES = {INK: "ink", SOFT: "soft", GRID: "grid", FAINT: "faint", PAPER: "paper", ACCENT: "accent"}
VARIABLES |= {colour: f"line{i}" for i, colour in enumerate(LINES)} | {colour: name for name, colour in FILLS.items()}

Draw = Callable[[Axes], None]  # one panel of a picture


def panels(draws: Sequence[Draw], columns: int = 3, size: tuple[float, float] = (3.9, 2.9)) -> Figure:
    """A figure of panels in rows of at most `columns`; `size` of each in inches."""
    columns = min(columns, len(draws))
    lines = -(-len(draws) // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for ax, draw in zip(axes, draws):
        draw(ax)
    for ax in axes[len(draws) :]:
        ax.axis("off")
    return figure


def finish(ax: Axes, title: str = "", x: str = "", y: str = "", above: float = 6) -> None:
    """Title (`above` its axes in points), names of both axes, grid and, where there is more than one thing to tell
    apart, a legend.
    """
    ax.set_title(title, fontsize=10, color=INK, loc="left", pad=above)
    ax.set_xlabel(x, fontsize=9, color=SOFT)
    ax.set_ylabel(y, fontsize=9, color=SOFT)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(SOFT)
    ax.tick_params(labelsize=8, colors=SOFT)
    ax.grid(color=GRID, lw=0.6)
    ax.set_axisbelow(True)
    if len(ax.get_legend_handles_labels()[1]) > 1:
        ax.legend(fontsize=8, frameon=False, labelcolor=INK)


def word(text: Any) -> str:
    """A text from outside as a label: at most 30 printable ASCII characters, none of which means mathematics."""
    printable = "".join(c if " " <= c <= "~" else "?" for c in str(text)[:30])
    return printable.replace("$", r"\$")


def is_number(value: Any) -> bool:
    """A number that can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30  # false for nan


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG or SVG, by the suffix, atomically."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".svg"):
        raise UserError(f"picture: {str(path)!r}, must end in .png or .svg")
    buffer = io.BytesIO()
    with _svg_settings("figure"):
        figure.savefig(buffer, format=suffix[1:], dpi=160, bbox_inches="tight", pad_inches=0.12, facecolor=PAPER)
    write_bytes(path, buffer.getvalue())


def inline_svg(figure: Figure, name: str, text: str) -> str:
    """A figure as an <svg> element: its colours are the page's, its ids begin with `name`, `text` says what it
    shows.
    """
    buffer = io.StringIO()
    with _svg_settings(name):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    view = re.search(r'viewBox="([^"]*)"', svg)[1]
    body = svg[svg.index("<defs>") :]  # what stands before it is the declaration and metadata
    for mark in (' id="', "url(#", 'href="#'):
        body = body.replace(mark, f"{mark}{name}-")
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg class="plot" role="img" aria-label="{escape(text)}" viewBox="{view}">\n{body}'


def _svg_settings(salt: str):
    """Text stays text, and the same figure is the same bytes."""
    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt})
