"""An architecture drawn: as text for a terminal, and as a figure."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from nas.arch import Architecture, BlockSpec, HeadSpec, StemSpec
from nas.cost import Row, cost
from nas.ops import OPS
from nas.report.style import FAINT, FILLS, INK, SOFT

_BAR_AT, _BAR_WIDTH = 6.6, 3.4  # inches
_TEXT_BAR = 40  # characters of the longest bar


# ---- one part in words -------------------------------------------------------------------------------------


def op_of(row: Row) -> str:
    """What colours a part: its block's op, or "ends" for stem and head."""
    return getattr(row.spec, "op", "ends")


class Words(NamedTuple):
    """One part in words; "" where it has none."""

    block: str
    channels: str
    hidden: str = ""
    squeeze: str = ""
    stride: str = ""


def words(spec: StemSpec | BlockSpec | HeadSpec) -> Words:
    if isinstance(spec, HeadSpec):
        return Words("head 1×1", f"{spec.in_channels} → {spec.num_classes}", str(spec.channels))
    k, channels = spec.kernel_size, f"{spec.in_channels} → {spec.out_channels}"
    act = "" if spec.activation == "relu" else f" {spec.activation}"
    stride = f"↓ {spec.stride}" if spec.stride > 1 else ""
    if not isinstance(spec, BlockSpec):
        return Words(f"stem {k}×{k}{act}", channels, stride=stride)
    hidden = f"{spec.hidden_channels}  (e{spec.expand_ratio})"
    sign = "+" if OPS[spec.op].concatenates else ""
    squeeze = f"{sign}{spec.squeeze_channels}  (r{spec.squeeze_factor})" if spec.squeeze_channels else ""
    return Words(f"{spec.op} {k}×{k}{act}", channels, hidden, squeeze, "residual" if spec.residual else stride)


def full_name(spec: StemSpec | BlockSpec | HeadSpec) -> str:
    """The block with its expand ratio and squeeze factor, such as "frost 5×5 e6 r4"."""
    expand, squeeze = getattr(spec, "expand_ratio", 0), getattr(spec, "squeeze_factor", 0)
    return words(spec).block + (f" e{expand}" if expand else "") + (f" r{squeeze}" if squeeze else "")


def text_drawing(arch: Architecture, unicode: bool = True) -> str:
    """The network for a terminal: one line a part with a bar for its MACs; ASCII alone if not `unicode`."""
    rows = cost(arch).rows
    longest = max(row.macs for row in rows)
    lines, size = [], None
    for row in rows:
        pixels = f"{row.size} px" if row.size != size else ""
        bar = "█" * max(1, round(_TEXT_BAR * row.macs / longest))
        lines.append(
            f"{pixels:>8}  {full_name(row.spec):<25} {words(row.spec).channels:>12}  {bar} {row.macs / 1e6:.2f} M"
        )
        size = row.size
    text = "\n".join(lines)
    return text if unicode else text.translate(str.maketrans({"█": "#", "×": "x", "→": ">"}))


# ---- the architecture as a figure --------------------------------------------------------------------------


def architecture_figure(arch: Architecture, parts_ms: dict[str, float] | None = None) -> Figure:
    """One row a part, its box as long as its latency `parts_ms` ("stem", "blocks.0", .., "head"), else its MACs."""
    total = cost(arch)
    if parts_ms:
        values, form = [parts_ms[row.name] for row in total.rows], "{:.3f} ms"
        label = f"latency, {sum(values):.2f} ms in all"
    else:
        values, form = [row.macs / 1e6 for row in total.rows], "{:.1f} M"
        label = f"multiply-accumulates, {sum(values):.1f} M in all"
    figure, ax = _canvas(len(total.rows))
    title = (
        f"{arch.name}   {total.params / 1e6:.2f} M parameters, {arch.input_size} px, {arch.head.num_classes} classes"
    )
    ax.text(0, -1.55, title, fontsize=12, weight="bold", color=INK)
    _heading(ax, label)
    _bands(ax, total.rows)
    for y, (row, value) in enumerate(zip(total.rows, values)):
        _part(ax, y, row, value, form, _BAR_WIDTH / max(values))
    return figure


def _canvas(rows: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(11, 0.29 * (rows + 2.2)))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 11), ylim=(rows - 0.4, -1.9))
    ax.axis("off")
    return figure, ax


_COLUMNS = (
    (0.05, "input"),
    (0.85, "block"),
    (2.6, "channels"),
    (3.6, "hidden"),
    (4.6, "squeeze"),
    (5.55, "stride, skip"),
)


def _heading(ax: Axes, label: str) -> None:
    for x, name in (*_COLUMNS, (_BAR_AT, label)):
        ax.text(x, -0.72, name, fontsize=9, color=SOFT, va="center")


def _bands(ax: Axes, rows: Sequence[Row]) -> None:
    """Shade every other resolution and write each once."""
    sizes = [row.size for row in rows]
    shaded = False
    for y, size in enumerate(sizes):
        if y == 0 or size != sizes[y - 1]:
            shaded = not shaded
            ax.text(_COLUMNS[0][0], y, f"{size} px", fontsize=9, color=INK, va="center")
        if shaded:
            ax.axhspan(y - 0.5, y + 0.5, color=FAINT, lw=0, zorder=0)


def _part(ax: Axes, y: int, row: Row, value: float, form: str, inches: float) -> None:
    for (x, _), text in zip(_COLUMNS[1:], words(row.spec)):
        ax.text(x, y, text, fontsize=9, color=INK, va="center")
    width = max(0.02, value * inches)
    box = FancyBboxPatch(
        (_BAR_AT, y - 0.36),
        width,
        0.72,
        boxstyle=f"round,pad=0,rounding_size={min(0.05, width / 2)}",
        fc=FILLS[op_of(row)],
        ec=INK,
        lw=0.6,
        mutation_aspect=1 / 0.29,
    )
    ax.add_patch(box)
    ax.text(_BAR_AT + width + 0.07, y, form.format(value), fontsize=8.5, color=INK, va="center")
