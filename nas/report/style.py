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

from common import checks
from common.errors import UserError
from common.files import write_bytes
from nas.ops import OPS

# Each is a CSS variable of the page: colour on a light page (and in figures that are files), colour on a dark page.
COLOURS = {
    "page": ("#f4f6f9", "#10151b"),
    "paper": ("#ffffff", "#182028"),
    "ink": ("#22303c", "#e4eaf0"),
    "soft": ("#5f6d7a", "#9aa8b5"),
    "grid": ("#dde3e9", "#2d3843"),
    "faint": ("#f3f6f9", "#202a34"),
    "accent": ("#d1495b", "#f0798a"),
    "line0": ("#2f6fb3", "#6aa9ea"),
    "line1": ("#e08a1e", "#f0a848"),
    "line2": ("#3b8f5a", "#6cc08b"),
    "line3": ("#8b5fb0", "#b794d8"),
    "line4": ("#7a6a58", "#b5a692"),
    "line5": ("#0f8b8d", "#4fc3c5"),
    **{name: (op.colour, op.dark) for name, op in OPS.items()},
    "ends": ("#c3cbd3", "#525e6a"),  # stem and head
}
PAPER, INK, SOFT, GRID, FAINT, ACCENT = (
    COLOURS[name][0] for name in ("paper", "ink", "soft", "grid", "faint", "accent")
)
LINES = tuple(light for name, (light, _) in COLOURS.items() if name.startswith("line"))
FILLS = {name: COLOURS[name][0] for name in (*OPS, "ends")}  # of blocks, by op, and of stem and head

LARGEST = 1e30  # what can be drawn
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
    """Whether this is a number that can be drawn."""
    return checks.is_number(value, LARGEST)


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
    """A figure as an <svg> element in the page's colours; its ids begin with `name`, `text` says what it shows."""
    buffer = io.StringIO()
    with _svg_settings(name):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    view = re.search(r'viewBox="([^"]*)"', svg)[1]
    body = svg[svg.index("<defs>") :]  # what stands before it is the declaration and metadata
    for mark in (' id="', "url(#", 'href="#'):
        body = body.replace(mark, f"{mark}{name}-")
    for name, (light, _) in COLOURS.items():
        body = body.replace(light, f"var(--{name})")
    return f'<svg class="plot" role="img" aria-label="{escape(text)}" viewBox="{view}">\n{body}'


def _svg_settings(salt: str):
    """Text stays text, and the same figure is the same bytes."""
    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt})
