"""Join latency tables that were measured on the same kind of machine, for the same engine, threads and batch, into one file.

python -m latency_lut merge --lut size_32.json size_224.json --output fbgemm.json
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from latency_lut.build import calibrated
from latency_lut.identity import IDENTITY
from latency_lut.report import table_text
from latency_lut.sections import Section
from latency_lut.table import LatencyTable
from latency_lut.timing import Timing
from latency_lut.validate import judged
from nas import UserError
from nas.cli import guard, option, parse


@dataclass(frozen=True)
class MergeConfig:
    """One call of the command line."""

    lut: tuple[str, ...] = option(help="two or more latency tables")
    output: str = option(help="table to write; it may be one of them")

    def __post_init__(self):
        if len(set(self.lut)) < 2:
            raise UserError(f"lut: {' '.join(self.lut)!r}, must be two or more tables")
        if Path(self.output).exists() and self.output not in self.lut:
            raise UserError(f"output: {self.output} exists and is not among the tables; name it with --lut too, or give another")


@guard
def command(words: Sequence[str]) -> LatencyTable:
    """Merge tables into one file."""
    config = parse(MergeConfig, words[1:], "python -m latency_lut merge", __doc__.splitlines()[0])
    table = merge([LatencyTable.load(path) for path in config.lut], Path(config.output))
    table.save()
    print(table_text(table))
    return table


def merge(tables: Sequence[LatencyTable], path: Path) -> LatencyTable:
    """One table with the entries and sections of all; raises UserError where they do not speak for the same.

    What several of them hold keeps the rounds of all. Ratios and figures are computed anew from the joined rounds.
    """
    first = tables[0]
    for other in tables[1:]:
        _check_alike(first, other)
    entries: dict[str, list[float]] = {}
    for table in tables:
        for key, timing in table.entries.items():
            entries[key] = [*entries.get(key, ()), *timing.rounds]
    joined = replace(first, entries={key: Timing(tuple(rounds)) for key, rounds in entries.items()}, sections={}, path=path)
    for section in [section for table in tables for section in table.sections.values()]:
        joined = joined.with_section(_better(joined.sections.get(section.key), section, joined))
    for section in [section for section in joined.sections.values() if section.complete]:
        section = calibrated(joined, section)
        if section.validated and section.validated.figures:
            section = judged(joined, section)
        joined = joined.with_section(section)
    return joined


def _check_alike(first: LatencyTable, other: LatencyTable) -> None:
    for field in IDENTITY:
        a, b = first.meta[field], other.meta[field]
        if a != b:
            raise UserError(
                f"{field}: {first.path} was measured with {a}, {other.path} with {b}; a table speaks for one of them: "
                "keep them apart (diff compares them), or measure one of them anew"
            )


def _better(old: Section | None, new: Section, joined: LatencyTable) -> Section:
    """Of two sections of the same space the complete one, else the first."""
    if old is None:
        return new
    if old.hash != new.hash:
        raise UserError(f"sections.{old.key}.hash: the tables are of unlike spaces of that name; measure one anew with --restart")
    return new if new.complete and not old.complete else old
