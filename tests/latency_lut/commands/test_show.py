"""show: the grid of candidates, as text and as a figure."""

from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

from latency_lut.__main__ import main
from latency_lut.commands.show import Grid, space_of
from latency_lut.timing import Timing
from nas import BlockSpec, frostnet_space
from nas.arch import block_label
from tests.latency_lut.tables import SECTION, SPACE


def test_the_grid_holds_every_candidate_of_every_slot(tables):
    table = tables[0]
    grid, latency = Grid(table, SPACE), table.for_space(SPACE)
    assert grid.ms.shape == (sum(len(s.slots) for s in SPACE.stages), len(grid.columns))
    assert np.nansum(grid.ms) == pytest.approx(sum(ms for stage in latency.blocks for slot in stage for ms in slot))
    assert np.isfinite(grid.ms).sum() == sum(len(slot.candidates) for stage in SPACE.stages for slot in stage.slots)
    slot = SPACE.stages[2].slots[1]
    row = grid.ms[grid.rows.index("2.1 24-24@8")]
    assert [row[grid.columns.index(block_label(spec))] for spec in slot.candidates] == pytest.approx(
        list(latency.blocks[2][1])
    )


def test_candidates_of_a_slot_have_unlike_labels():
    specs = [
        BlockSpec(op, k, 40, 40, 1, 3, 4, act)
        for op in ("frost", "se")
        for k in (3, 5)
        for act in ("relu", "hard_swish")
    ]
    assert len({block_label(spec) for spec in specs}) == 8


def test_show_prints_and_draws(tables, tmp_path, capsys):
    main(["show", "--lut", str(tables[0].path), "--picture", str(tmp_path / "lut.png")])
    said = capsys.readouterr().out
    assert SECTION in said and "frost k5 e6 r2" in said and "fresh networks" in said
    picture = matplotlib.image.imread(tmp_path / "lut.png")
    assert min(picture.shape[:2]) > 300 and picture.std() > 0.05


def test_show_takes_tables_of_other_machines_and_flags_odd_pairs(tables, tmp_path, capsys):
    odd = next(key for key in tables[0].entries if "_k5_e6" in key)
    other = replace(
        tables[0], entries={**tables[0].entries, odd: Timing((0.0101, 0.0101, 0.0101))}, path=tmp_path / "other.json"
    )
    replace(other, meta={**other.meta, "cpu": "Other", "flags": []}).save()
    main(["show", "--lut", str(other.path)])
    said = capsys.readouterr().out
    assert "Other" in said and f"note: {odd} takes 0.0101 ms, less than {odd.replace('_e6', '_e3')}" in said


def test_a_tables_own_space_is_found_again(tables):
    assert space_of(tables[1], "frostnet_0.5_48") == frostnet_space(0.5, 48, 10)
