"""report.html of a run: one self-contained page from the files in its folder.

It reads, where they exist: config.json ("command" is shown first), arch.json or network.json, latency.json ({"parts": {"stem": ms,
"blocks.0": ms, .., "head": ms}, further numbers}), log.jsonl, front.json (see `nas.draw.front_figure`), metrics.json.
"""

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nas.arch import Architecture
from nas.cost import cost
from nas.draw import architecture_figure, curves_figure, front_figure, save
from nas.errors import UserError
from nas.files import read_bytes, write_bytes
from nas.runs import LOG, Run

FILES = ("config.json", "arch.json", "network.json", "metrics.json", "front.json", LOG)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22303c; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: .2em; }
h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #dde3e9; }
h3 { font-size: 1em; margin: 1.2em 0 .3em; } img { max-width: 100%; height: auto; }
pre { background: #f3f6f9; padding: .7em 1em; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .5em 0; }
th, td { padding: .25em .9em .25em 0; border-bottom: 1px solid #e6ebf0; text-align: left; vertical-align: top; }
th { font-weight: 600; color: #5a6672; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.facts { display: flex; flex-wrap: wrap; gap: .6em; margin: 1em 0; }
.facts div { background: #f3f6f9; border-radius: 6px; padding: .4em .9em; }
.facts b { display: block; font-size: 1.25em; }
"""


def write_report(path: str | Path) -> Path:
    """Draw the run's figures, write its report.html and return that path. Raises UserError."""
    if not any((Path(path) / name).is_file() for name in FILES):
        raise UserError(f"{path}: no run in this folder; it holds none of {', '.join(FILES)}")
    run = Run(path)
    config = _object(run, "config.json")
    body = [f"<h1>{escape(run.path.resolve().name)}</h1>"]
    if "command" in config:
        body.append(f"<pre>{escape(str(config.pop('command')))}</pre>")
    body += _architecture(run) + _metrics(run) + _front(run) + _curves(run)
    if config:
        body.append(f"<details><summary>Configuration</summary>{_table('', config)}</details>")
    title = escape(run.path.resolve().name)
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    page = run.path / "report.html"
    write_bytes(page, "\n".join([head, *body, "</html>\n"]).encode())
    return page


# ---- sections: lists of HTML, empty where the run has no such file -------------------------------------------


def _architecture(run: Run) -> list[str]:
    if not run.has("arch.json"):
        return _network(run)
    arch = Architecture.load(run.path / "arch.json")
    total, latency = cost(arch), _object(run, "latency.json")
    parts = latency.pop("parts", None)
    if parts is not None and set(parts) != {row.name for row in total.rows}:
        raise UserError(f"{run.path / 'latency.json'}: parts: {', '.join(parts)}, must be those of arch.json")
    facts = {"parameters": f"{total.params / 1e6:.2f} M", "multiply-accumulates": f"{total.macs / 1e6:.1f} M"}
    facts |= {"input": f"{arch.input_size} px", "blocks": len(arch.blocks)}
    facts |= {key.replace("_ms", " (ms)"): value for key, value in latency.items()}
    picture = _picture(run, "architecture", architecture_figure(arch, parts))
    return ["<h2>Architecture</h2>", _tiles(facts), picture]


def _network(run: Run) -> list[str]:
    """A network that is known by its name alone."""
    if not run.has("network.json"):
        return []
    network, metrics = _object(run, "network.json"), _object(run, "metrics.json")
    facts = {"network": network.get("name"), "parameters": metrics.get("params"), "multiply-accumulates": metrics.get("macs")}
    return ["<h2>Network</h2>", _tiles(facts | {"input (px)": network.get("input_size")})]


def _metrics(run: Run) -> list[str]:
    if not run.has("metrics.json"):
        return []
    metrics = _object(run, "metrics.json")
    numbers = {key: value for key, value in metrics.items() if not isinstance(value, (dict, list))}
    tables = [_table("", numbers)] if numbers else []
    tables += [_table(key, value) for key, value in metrics.items() if key not in numbers]
    return ["<h2>Metrics</h2>", *tables]


def _front(run: Run) -> list[str]:
    if not run.has("front.json"):
        return []
    data = _object(run, "front.json")
    networks = _table("Networks tried", data.get("networks", [])) if data.get("networks") else ""
    return ["<h2>Pareto front</h2>", _picture(run, "front", front_figure(data)), networks]


def _curves(run: Run) -> list[str]:
    figure = curves_figure(run.read_log())
    return ["<h2>Curves</h2>", _picture(run, "curves", figure)] if figure else []


# ---- parts ---------------------------------------------------------------------------------------------------


def _object(run: Run, name: str) -> dict:
    """A JSON object of the run, {} where there is no such file."""
    value = run.read_json(name) if run.has(name) else {}
    if not isinstance(value, dict):
        raise UserError(f"{run.path / name}: a {type(value).__name__}, must be an object")
    return value


def _tiles(facts: dict[str, Any]) -> str:
    tiles = "".join(f"<div>{escape(str(k))}<b>{_text(v)}</b></div>" for k, v in facts.items())
    return f'<div class="facts">{tiles}</div>'


def _picture(run: Run, name: str, figure: Figure) -> str:
    path = run.figure(f"{name}.png")
    save(figure, path)
    data = base64.b64encode(read_bytes(path)).decode()
    return f'<img alt="{name}" src="data:image/png;base64,{data}">'


def _table(title: str, value: Any) -> str:
    """An HTML table: of a list of objects or an object of objects, one a row; of other objects, one key a row."""
    heading = f"<h3>{escape(title.replace('_', ' '))}</h3>" if title else ""
    if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
        value = [{"": key, **row} for key, row in value.items()]
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        columns = list(dict.fromkeys(key for row in value for key in row))
        head = "".join(f"<th>{escape(str(c))}</th>" for c in columns)
        rows = [[row.get(column, "") for column in columns] for row in value]
    else:
        items = value.items() if isinstance(value, dict) else [("", value)]
        head, rows = "", [[key, item] for key, item in items]
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f'{heading}<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"<td{' class=number' if number else ''}>{_text(value)}</td>"


def _text(value: Any) -> str:
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
