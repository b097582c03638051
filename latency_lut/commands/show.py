"""Show what a latency table holds: calibrated milliseconds of every candidate in every slot, as text and as a figure.

python -m latency_lut show --lut fbgemm.json --picture fbgemm.png
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from common.cli import option
from common.errors import UserError
from latency_lut.report import figures_text, odd_pairs, table_text
from latency_lut.table import LatencyTable
from nas import SearchSpace, find_space
from nas.arch import block_label
from nas.report.style import INK, save


@dataclass(frozen=True)
class ShowConfig:
    """One call of the command line."""

    lut: str = option(help="latency table to show; it may be another machine's")
    picture: str = option("", "PNG file to draw: slots by candidates, in milliseconds")


def command(config: ShowConfig) -> LatencyTable:
    """Print a table and, if asked for, draw it."""
    table = LatencyTable.load(config.lut)
    grids = {key: Grid(table, space_of(table, key)) for key, section in table.sections.items() if section.complete}
    print(table_text(table))
    for key, grid in grids.items():
        print(f"\n{key}: calibrated milliseconds of a block, by slot and candidate\n{grid.text()}")
        if validated := table.sections[key].validated:
            print(figures_text(key, validated))
        for remark in odd_pairs(table, grid.space):
            print(f"note: {remark}")
    if config.picture:
        if not grids:
            fix = table.advice.again()
            raise UserError(f"picture: {table.path} holds no complete section yet; go on measuring: {fix}")
        save(figure(grids), config.picture)
        print(f"written: {config.picture}")
    return table


def space_of(table: LatencyTable, key: str) -> SearchSpace:
    section = table.sections[key]
    return find_space(section.space)(section.width, section.input_size, section.num_classes)


class Grid:
    """A section as a matrix.

    Attributes:
        ms: Milliseconds (slots, candidates), NaN where a slot lacks a candidate.
        rows, columns: The names of slots and candidates.
    """

    def __init__(self, table: LatencyTable, space: SearchSpace):
        latency = table.for_space(space)
        self.space, self.stem_ms, self.head_ms = space, latency.stem_ms, latency.head_ms
        slots = [
            (f"{i}.{j} {slot.candidates[0].in_channels}-{slot.candidates[0].out_channels}@{size}", slot.candidates, ms)
            for i, stage in enumerate(space.stages)
            for j, (slot, size, ms) in enumerate(zip(stage.slots, space.sizes[i], latency.blocks[i]))
        ]
        self.rows = [name for name, _, _ in slots]
        self.columns = sorted({block_label(spec) for _, candidates, _ in slots for spec in candidates})
        self.ms = np.full((len(self.rows), len(self.columns)), np.nan)
        for row, (_, candidates, ms) in zip(self.ms, slots):
            for spec, value in zip(candidates, ms):
                row[self.columns.index(block_label(spec))] = value

    def text(self) -> str:
        wide = max(map(len, self.rows))
        widths = [max(7, len(column)) for column in self.columns]
        lines = [" " * wide + "".join(f"  {column:>{w}}" for column, w in zip(self.columns, widths))]
        for name, row in zip(self.rows, self.ms):
            lines.append(
                f"{name:<{wide}}"
                + "".join("  " + (f"{v:{w}.4f}" if np.isfinite(v) else " " * w) for v, w in zip(row, widths))
            )
        return "\n".join([*lines, f"stem {self.stem_ms:.4f}, head {self.head_ms:.4f}"])


def figure(grids: dict[str, Grid]) -> Figure:
    """A heat map for each section, on a logarithmic scale of colours."""
    wide = max(len(grid.columns) for grid in grids.values())
    tall = max(len(grid.rows) for grid in grids.values())
    chart = Figure(figsize=((1.6 + 0.62 * wide) * len(grids), 1.8 + 0.26 * tall), layout="constrained")
    for ax, (key, grid) in zip(chart.subplots(1, len(grids), squeeze=False)[0], grids.items()):
        shades = ax.imshow(np.log(grid.ms), aspect="auto", cmap="YlGnBu")
        middle = sum(shades.get_clim()) / 2
        for (i, j), value in np.ndenumerate(grid.ms):
            if np.isfinite(value):
                colour = "white" if np.log(value) > middle else INK
                ax.text(
                    j,
                    i,
                    f"{value:.2g}" if value < 0.1 else f"{value:.3f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color=colour,
                )
        ax.set_xticks(range(len(grid.columns)), grid.columns, rotation=60, ha="right", fontsize=7)
        ax.set_yticks(range(len(grid.rows)), grid.rows, fontsize=7)
        ax.set_title(f"{key}: ms a block (stem {grid.stem_ms:.3f}, head {grid.head_ms:.3f})", fontsize=9, color=INK)
    return chart
