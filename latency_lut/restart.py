"""Forget some sections of a table, so that they are measured anew, and keep what the others rest on."""

from collections.abc import Collection
from dataclasses import replace

from common.errors import UserError
from latency_lut.advice import heads, to_measure
from latency_lut.identity import CALL, IDENTITY
from latency_lut.sections import Section
from latency_lut.table import LatencyTable


def without(table: LatencyTable, keys: Collection[str], new: LatencyTable) -> LatencyTable:
    """`table` without the sections named and the entries that they alone need; `new`, an empty table of this hour,
    where none is left.

    Raises UserError where sections would stay that do not speak for what `new` does: one table cannot hold both.
    """
    kept = {key: section for key, section in table.sections.items() if key not in keys}
    if not kept:
        return new
    for field in IDENTITY:
        if table.meta[field] != new.meta[field]:
            other = " && ".join(
                to_measure(new.meta, table.path.with_stem(f"{table.path.stem}_new"), kept.values(), table.entries)
            )
            raise UserError(
                f"{table.path}: {field}: the table was measured with {table.meta[field]}, here is {new.meta[field]}, "
                "so that "
                f"--restart would have to forget {', '.join(kept)}, too; measure into another file ({other}), or "
                "delete this one"
            )
    lost = [section for key, section in table.sections.items() if key in keys]
    forgotten = _entries(lost, table) - _entries(list(kept.values()), table) - {CALL}
    return replace(
        table, sections=kept, entries={key: timing for key, timing in table.entries.items() if key not in forgotten}
    )


def _entries(sections: list[Section], table: LatencyTable) -> set[str]:
    """Signatures of all that sections rest on, further heads among them."""
    return set().union(*(section.needed() | heads(section, table.entries).keys() for section in sections))
