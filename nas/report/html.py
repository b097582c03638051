"""Pieces of a report's HTML. Every text from outside passes through `escape`."""

import base64
import json
import math
from collections.abc import Iterable
from html import escape
from importlib import resources
from string import Template
from typing import Any

from nas.report.style import COLOURS, FILLS, is_number

# Whatever a file of a run says, the page loads nothing and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, header: list[str], sections: dict[str, list[str]]) -> str:
    """The whole page; `sections` by heading, those without content left out."""
    shown = {heading: body for heading, body in sections.items() if body}
    bodies = [
        f'<section id="{_anchor(heading)}"><h2>{heading}</h2>\n' + "\n".join(body) + "</section>"
        for heading, body in shown.items()
    ]
    return Template(_read("template.html")).substitute(
        policy=POLICY,
        title=escape(title),
        style=_style(),
        header="\n".join(header),
        links="".join(f'<a href="#{_anchor(heading)}">{heading}</a>' for heading in shown),
        sections="\n".join(bodies),
    )


def _style() -> str:
    """The style sheet: each colour as a variable, light and dark, the fill of each block op, and style.css."""
    light, dark = (" ".join(f"--{name}: {pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1))
    fills = "\n".join(f".{name} {{ background: var(--{name}); }}" for name in FILLS)
    themes = f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return "\n".join([themes, fills, _read("style.css")])


def _read(name: str) -> str:
    """A file of this package."""
    return resources.files("nas.report").joinpath(name).read_text(encoding="utf-8")


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def tiles(facts: dict[str, Any]) -> str:
    shown = {key: text(value) for key, value in facts.items()}
    items = "".join(f"<div{' class=long' if len(v) > 10 else ''}>{escape(k)}<b>{v}</b></div>" for k, v in shown.items())
    return f'<div class="facts">{items}</div>' if facts else ""


def plots(figures: Iterable[str], wide: bool = False) -> str:
    items = "".join(f"<figure>{figure}</figure>" for figure in figures)
    return f'<div class="plots{" wide" if wide else ""}">{items}</div>'


def image(png: bytes, words: str) -> str:
    """A PNG inside the page."""
    return f'<figure><img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>'


def notice(warnings: list[str]) -> str:
    items = "".join(f"<li>{escape(words)}</li>" for words in warnings)
    return f'<div class="notice"><b>Warnings</b><ul>{items}</ul></div>' if warnings else ""


def table(title: str, value: Any, chosen: str | None = None) -> str:
    """An HTML table: of a list of objects or an object of objects, one a row; of other objects, one key a row.

    The row whose "name" is `chosen` stands out.
    """
    if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
        value = [{"": key, **row} for key, row in value.items()]
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        rows = _rows(value, chosen)
    elif isinstance(value, dict):
        rows = [f"<tr><td>{escape(label(key))}</td><td>{text(item)}</td></tr>" for key, item in value.items()]
    else:
        rows = [f"<tr><td>{text(value)}</td></tr>"]
    heading = f"<h3>{escape(label(title))}</h3>" if title else ""
    return f'<div>{heading}<div class="scroll"><table>{"".join(rows)}</table></div></div>'


def _rows(objects: list[dict], chosen: str | None) -> list[str]:
    """The heading and a row for each object."""
    columns = {
        key: _column(key, [row.get(key, "") for row in objects])
        for key in dict.fromkeys(key for row in objects for key in row)
    }
    marks = ["", *(' class="chosen"' if chosen is not None and row.get("name") == chosen else "" for row in objects)]
    return [f"<tr{mark}>{''.join(cells)}</tr>" for mark, cells in zip(marks, zip(*columns.values()))]


def _column(key: str, values: list[Any]) -> list[str]:
    """Heading and cells; numbers have as many decimals as four digits of the largest need, if all stay readable."""
    floats = [abs(v) for v in values if isinstance(v, float) and v != 0 and math.isfinite(v)]
    decimals = 3 - math.floor(math.log10(max(floats))) if floats else 0
    even = bool(floats) and 0 <= decimals <= 6 and min(floats) >= 10 ** (1 - decimals)

    def write(v):
        return f"{v:.{decimals}f}" if even and isinstance(v, float) else text(v)

    kind = " class=number" if all(is_number(v) or v is None for v in values) else ""
    return [f"<th{kind}>{escape(label(key))}</th>", *(f"<td{kind}>{write(v)}</td>" for v in values)]


def label(key: str) -> str:
    """A field's name in words, its unit in brackets."""
    for ending, unit in (("_ms", "ms"), ("_px", "px"), ("_seconds", "s")):
        key = f"{key.removesuffix(ending)} ({unit})" if key.endswith(ending) else key
    return key.replace("_", " ")


def text(value: Any) -> str:
    """One value, readable and escaped."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return escape(", ".join(value)) or "none"
    return escape(value if isinstance(value, str) else json.dumps(value))
