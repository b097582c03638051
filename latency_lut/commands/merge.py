"""Join latency tables that were measured on the same kind of machine, for the same engine, threads and batch, into one
file.

python -m latency_lut merge --lut size_32.json size_224.json --output fbgemm.json
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from common.cli import guard, option, parse
from common.errors import UserError
from latency_lut.fitting import refitted
from latency_lut.identity import IDENTITY
from latency_lut.joining import joined_rounds, joined_sections
from latency_lut.report import table_text
from latency_lut.sections import Section
from latency_lut.table import LatencyTable
from latency_lut.timing import Timing


@dataclass(frozen=True)
class MergeConfig:
    """One call of the command line."""

    lut: tuple[str, ...] = option(help="two or more latency tables")
    output: str = option(help="table to write; it may be one of them")

    def __post_init__(self):
        files = [Path(path).resolve() for path in self.lut]
        if len(files) < 2:
            raise UserError(f"lut: {' '.join(self.lut)!r}, must be two or more tables")
        if len(set(files)) < len(files):
            raise UserError(
                f"lut: {' '.join(self.lut)!r} names a file twice; its measurements count once, so name it once"
            )
        if Path(self.output).exists() and Path(self.output).resolve() not in files:
            raise UserError(
                f"output: {self.output} exists and is not among the tables; name it with --lut too, or give another"
            )


@guard
def command(words: Sequence[str]) -> LatencyTable:
    """Merge tables into one file."""
    config = parse(MergeConfig, words[1:], "python -m latency_lut merge", __doc__.splitlines()[0])
    table = merge([LatencyTable.load(path) for path in config.lut], Path(config.output))
    table.save()
    print(table_text(table))
    return table


def merge(tables: Sequence[LatencyTable], path: Path) -> LatencyTable:
    """One table with the entries and sections of all; raises UserError where they do not speak for the same, or one
    holds another.

    What several of them hold, parts and networks, keeps the rounds of all. Ratios and figures are computed anew from
    the joined rounds, and do not depend on the order in which the tables are given.
    """
    tables = sorted(tables, key=lambda table: (table.meta["created"], table.hash))
    for first, other in combinations(tables, 2):
        _check_alike(first, other)
        _check_new(first, other)
    keys = dict.fromkeys(key for table in tables for key in table.entries)
    entries = {key: Timing(joined_rounds([t.entries[key].rounds for t in tables if key in t.entries])) for key in keys}
    joined = replace(tables[0], entries=entries, sections={}, path=path)
    for key in dict.fromkeys(key for table in tables for key in table.sections):
        sections = [table.sections[key] for table in tables if key in table.sections]
        _check_spaces(sections)
        section = joined_sections(sections, {key: timing.ms for key, timing in entries.items()})
        joined = joined.with_section(refitted(joined, section) if section.complete else section)
    return joined


def _check_alike(first: LatencyTable, other: LatencyTable) -> None:
    for field in IDENTITY:
        a, b = first.meta[field], other.meta[field]
        if a != b:
            raise UserError(
                f"{field}: {first.path} was measured with {a}, {other.path} with {b}; a table speaks for one of them: "
                "keep them apart (diff compares them), or measure one of them anew"
            )


def _check_new(first: LatencyTable, other: LatencyTable) -> None:
    """Refuse a copy, and a table that the other was merged from."""
    for part, whole in ((first, other), (other, first)):
        if part.sections.keys() <= whole.sections.keys() and _measured(part) <= _measured(whole):
            raise UserError(
                f"lut: {whole.path} holds every measurement of {part.path} already; merge tables that were measured "
                "apart"
            )


def _measured(table: LatencyTable) -> set[tuple[str, float]]:
    """Every round of a table with the name of what was timed; that of a network is its parts."""
    sections = table.sections.values()
    networks = [
        n
        for s in sections
        for n in (*s.networks.values(), *(s.validated.networks.values() if s.validated else ()))
        if n.timing
    ]
    named = [*table.entries.items(), *((" ".join(network.parts), network.timing) for network in networks)]
    return {(name, ms) for name, timing in named for ms in timing.rounds}


def _check_spaces(sections: Iterable[Section]) -> None:
    first, *others = sections
    if any(other.hash != first.hash for other in others):
        raise UserError(
            f"sections.{first.key}.hash: the tables are of unlike spaces of that name; measure one anew with --restart"
        )
