"""Pieces of a report's HTML. Every text from outside passes through `escape`."""

import base64
import json
import math
from collections.abc import Iterable
from html import escape
from typing import Any

# Whatever a file of a run says, the page loads nothing and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --page: #f4f6f9; --paper: #ffffff; --ink: #22303c; --soft: #5f6d7a; --grid: #dde3e9; --faint: #f3f6f9;
  --accent: #d1495b; --line0: #2f6fb3; --line1: #e08a1e; --line2: #3b8f5a; --line3: #8b5fb0; --line4: #7a6a58; --line5: #0f8b8d;
  --frost: #8fbce6; --mb: #d9d3c7; --se: #a5d3a9; --add: #f2bf8a; --ends: #c3cbd3; }
@media (prefers-color-scheme: dark) { :root { --page: #10151b; --paper: #182028; --ink: #e4eaf0; --soft: #9aa8b5; --grid: #2d3843;
  --faint: #202a34; --accent: #f0798a; --line0: #6aa9ea; --line1: #f0a848; --line2: #6cc08b; --line3: #b794d8; --line4: #b5a692;
  --line5: #4fc3c5; --frost: #4478aa; --mb: #736c5f; --se: #4c8552; --add: #a5713a; --ends: #525e6a; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink); background: var(--page); margin: 0; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { font-size: 1.8em; line-height: 1.2; margin: 0 0 .4em; overflow-wrap: anywhere; }
h2 { font-size: 1.2em; margin: 0 0 .5em; } h3 { font-size: 1em; margin: 1.4em 0 .4em; }
p { margin: .3em 0 .9em; color: var(--soft); max-width: 75ch; } .kind { margin: 0; font-size: .85em; letter-spacing: .04em; }
section, .notice { background: var(--paper); border: 1px solid var(--grid); border-radius: 12px; padding: 20px 22px; margin: 18px 0; }
.notice { border-left: 4px solid var(--accent); } .notice ul { margin: .3em 0 0; padding-left: 1.2em; }
nav { display: flex; flex-wrap: wrap; gap: .2em 1.1em; margin: 1em 0 0; font-size: .92em; }
a { color: var(--line0); text-decoration: none; } a:hover { text-decoration: underline; }
pre { background: var(--faint); border: 1px solid var(--grid); border-radius: 8px; padding: .7em 1em; margin: .6em 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; margin: 1em 0; }
.facts div { background: var(--paper); border: 1px solid var(--grid); border-radius: 8px; padding: .5em .9em; color: var(--soft);
  font-size: .87em; overflow-wrap: anywhere; }
section .facts div { background: var(--faint); }
.facts .long { grid-column: span 2; }
.facts b { display: block; font-size: 1.45em; line-height: 1.25; font-weight: 600; color: var(--ink); }
.tables h3 { margin-top: .6em; } .tables { display: flex; flex-wrap: wrap; gap: 0 56px; } .tables > div { min-width: 0; max-width: 100%; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .5em 0; font-size: .93em; }
th, td { padding: .32em 1.1em .32em 0; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; } tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; } td { overflow-wrap: break-word; }
td:first-child { white-space: nowrap; }
tr.chosen td { font-weight: 650; } tr.chosen td:first-child::after { content: " \\2605"; color: var(--accent); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 18px 26px; }
.plots.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
.beside { display: grid; grid-template-columns: minmax(0, 440px) 1fr; gap: 18px 40px; align-items: start; }
figure { margin: 0; min-width: 0; } figure > img { max-width: 100%; border-radius: 6px; }
svg.plot { display: block; width: 100%; height: auto; } svg.plot text { font-family: inherit !important; }
.frost { background: var(--frost); } .mb { background: var(--mb); } .se { background: var(--se); } .add { background: var(--add); }
.ends { background: var(--ends); }
.ribbon { display: flex; gap: 5px; margin: .4em 0 1.2em; } .ribbon > div { min-width: 0; }
.ribbon .parts { display: flex; gap: 1px; border-radius: 5px; overflow: hidden; } .ribbon i { height: 40px; min-width: 0; }
.ribbon small { display: block; text-align: center; color: var(--soft); font-size: .75em; white-space: nowrap; overflow: hidden; }
.legend { display: flex; flex-wrap: wrap; gap: .2em 1.2em; margin: 0 0 .7em; font-size: .88em; color: var(--soft); }
.chip { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .45em; vertical-align: -.05em; }
table.parts { width: 100%; font-size: .88em; } table.parts td { padding: .17em .9em .17em 0; border: 0; white-space: nowrap; }
table.parts tr.size td { border-top: 1px solid var(--grid); } table.parts td.bar { width: 42%; padding-right: .6em; }
td.bar i { display: block; height: 1.15em; border-radius: 3px; min-width: 2px; margin-top: .15em; } td.soft { color: var(--soft); }
.stage { display: grid; grid-template-columns: 135px 1fr; gap: 6px 22px; border-top: 1px solid var(--grid); padding: 14px 0 16px; }
.stage h3 { margin: 0 0 .4em; } .stage:last-child { padding-bottom: 0; }
.heats { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px 16px; }
.heat { font-size: 11px; line-height: 16px; } .heat figcaption { color: var(--soft); margin-bottom: 2px; }
.heat > div { display: grid; grid-template-columns: max-content 1fr max-content; gap: 0 6px; font-variant-numeric: tabular-nums; }
.heat ol { list-style: none; margin: 0; padding: 0; color: var(--soft); white-space: nowrap; max-width: 120px; overflow: hidden; }
.heat ol + img + ol { text-align: right; } .heat .best { font-weight: 700; color: var(--ink); }
.heat img { width: 100%; height: 0; min-height: 100%; image-rendering: pixelated; background: var(--faint);
  border-radius: 3px; display: block; }
@media (max-width: 640px) { main { padding: 18px 10px 32px; } section, .notice { padding: 15px 13px; border-radius: 10px; }
  h1 { font-size: 1.5em; } .facts { grid-template-columns: repeat(2, 1fr); } .more { display: none; }
  table.parts td { padding-right: .55em; } table.parts td.bar { width: 30%; } .ribbon { gap: 2px; } .ribbon i { height: 32px; }
  .stage, .beside { grid-template-columns: minmax(0, 1fr); } .stage > div:first-child .heat { max-width: 210px; } }
"""


def page(title: str, header: list[str], sections: dict[str, list[str]]) -> str:
    """The whole page; `sections` by heading, those without content left out."""
    shown = {heading: body for heading, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(heading)}">{heading}</a>' for heading in shown)
    bodies = [
        f'<section id="{_anchor(heading)}"><h2>{heading}</h2>\n' + "\n".join(body) + "</section>"
        for heading, body in shown.items()
    ]
    return "\n".join(
        [
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>',
            f"<style>{STYLE}</style></head><body><main>",
            "<header>",
            *header,
            f"<nav>{links}</nav></header>",
            *bodies,
            "</main></body></html>\n",
        ]
    )


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
    """Heading and cells; numbers have as many decimals as four digits of the largest need, where all stay readable so."""
    floats = [abs(v) for v in values if isinstance(v, float) and v != 0 and math.isfinite(v)]
    decimals = 3 - math.floor(math.log10(max(floats))) if floats else 0
    even = bool(floats) and 0 <= decimals <= 6 and min(floats) >= 10 ** (1 - decimals)

    def write(v):
        return f"{v:.{decimals}f}" if even and isinstance(v, float) else text(v)

    kind = " class=number" if all(_is_number(v) or v is None for v in values) else ""
    return [f"<th{kind}>{escape(label(key))}</th>", *(f"<td{kind}>{write(v)}</td>" for v in values)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
