"""The two drawings of a report that are HTML, so that they read on a phone: the architecture, and the alphas
over time.
"""

import base64
import io
from html import escape
from itertools import groupby

import numpy as np
from PIL import Image

from nas.cost import Row
from nas.ops import OPS
from nas.report.architecture import full_name, op_of, words
from nas.report.data import Distribution, Stage, Trajectory

_MOST_COLUMNS = 120  # of a heat map's time
_HEAT = (66, 134, 205)

MEANING = {name: f"{name}: {op.title}" for name, op in OPS.items()} | {"ends": "stem and head"}


def architecture(rows: tuple[Row, ...], values: list[float], unit: str) -> list[str]:
    """The network as a ribbon and as a table, parts as long as their `values`, in `unit`."""
    shown = [op for op in MEANING if any(op_of(row) == op for row in rows)]
    legend = "".join(f'<span><i class="chip {op}"></i>{MEANING[op]}</span>' for op in shown)
    parts = list(zip(rows, values))
    groups = [(size, list(group)) for size, group in groupby(parts, lambda part: part[0].size)]
    ribbon = "".join(_ribbon(size, group, unit) for size, group in groups)
    table = "".join(
        _part(row, value, max(values), unit, i == 0) for _, group in groups for i, (row, value) in enumerate(group)
    )
    return [
        f'<div class="legend">{legend}</div>',
        f'<div class="ribbon">{ribbon}</div>',
        f'<div class="scroll"><table class="parts">{table}</table></div>',
    ]


def _ribbon(size: int, group: list[tuple[Row, float]], unit: str) -> str:
    items = "".join(
        f'<i class="{op_of(row)}" style="{_share(value)}" title="{full_name(row.spec)}: {value:.3g} {unit}"></i>'
        for row, value in group
    )
    total = sum(value for _, value in group)
    return f'<div style="{_share(total)}"><div class="parts">{items}</div><small>{size} px</small></div>'


def _share(value: float) -> str:
    return f"flex: {1000 * value:.6g} 1 0"  # shares that come to less than 1 would leave room empty


def _part(row: Row, value: float, longest: float, unit: str, first: bool) -> str:
    part, op = words(row.spec), op_of(row)
    # without the ratio, which the block's name has
    size, hidden = f"{row.size} px" if first else "", part.hidden.split("  ")[0]
    return (
        f"<tr{' class=size' if first else ''}>"
        f"<td class=soft>{size}</td><td>{full_name(row.spec)}</td><td>{part.channels}</td>"
        f'<td class="soft more">{hidden and f"hidden {hidden}"}</td><td class="soft more">{part.stride}</td>'
        f'<td class=bar><i class="{op}" style="width: {100 * value / longest:.2f}%"></i></td>'
        f"<td class=number>{value:.3f} {unit}</td></tr>"
    )


# ---- alphas ------------------------------------------------------------------------------------------------


def alphas(found: Trajectory) -> list[str]:
    """One heat map a distribution: time from left to right, one row a candidate, the darker the likelier."""
    first, last = found.steps
    when = f"from step {first:,.0f} to {last:,.0f}" if last > first else f"at step {last:,.0f}"
    words = (
        f"Probability of each candidate {when}: the stronger the colour, the likelier. On the right is where it ended."
    )
    return [f"<p>{words}</p>", *map(_stage, found.stages)]


def _stage(stage: Stage) -> str:
    depth = _heat(stage.depth) if stage.depth else ""
    slots = "".join(map(_heat, stage.slots))
    return f'<div class="stage"><div><h3>{stage.title}</h3>{depth}</div><div class="heats">{slots}</div></div>'


def _heat(distribution: Distribution) -> str:
    last = distribution.rows[-1]
    best = last.index(max(last))

    def items(texts):
        return "".join(f"<li{' class=best' if i == best else ''}>{escape(t)}</li>" for i, t in enumerate(texts))

    image = f'<img alt="probabilities over time: {escape(distribution.title)}" src="{_heat_map(distribution.rows)}">'
    return (
        f'<figure class="heat"><figcaption>{distribution.title}</figcaption><div>'
        f"<ol>{items(distribution.labels)}</ol>{image}"
        f"<ol>{items(f'{p:.0%}' for p in last)}</ol></div></figure>"
    )


def _heat_map(rows: list[list[float]]) -> str:
    """Probabilities as the opacity of one colour, which reads on light and dark pages; a PNG as a data URI."""
    keep = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_COLUMNS)).round().astype(int))
    p = np.array([rows[i] for i in keep]).T
    pixels = np.empty((*p.shape, 4), np.uint8)
    pixels[..., :3] = _HEAT
    pixels[..., 3] = (255 * np.sqrt(p.clip(0, 1))).astype(np.uint8)  # the root shows differences among small ones, too
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
