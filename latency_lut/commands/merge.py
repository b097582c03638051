"""Join latency tables of the same kind of machine, engine, threads and batch size into one file.

python -m latency_lut merge --lut size_32.json size_224.json --output fbgemm.json
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from common.cli import option
from common.errors import UserError
from latency_lut.fitting import refitted
from latency_lut.machine import FINGERPRINT
from latency_lut.report import table_text
from latency_lut.sections import Network, Section, Validated
from latency_lut.table import LatencyTable
from latency_lut.timing import Timing

Rounds = tuple[float, ...]


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


def command(config: MergeConfig) -> LatencyTable:
    """Merge tables into one file."""
    table = merge([LatencyTable.load(path) for path in config.lut], Path(config.output))
    table.save()
    print(table_text(table))
    return table


def merge(tables: Sequence[LatencyTable], path: Path) -> LatencyTable:
    """One table with the entries and sections of all.

    What several of them hold, parts and networks, keeps the rounds of all. Ratios and figures are computed anew from
    the joined rounds, and do not depend on the order in which the tables are given.

    Raises:
        UserError: where they are not valid for the same machine and settings, or one holds another.
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
    for field in FINGERPRINT:
        a, b = first.meta[field], other.meta[field]
        if a != b:
            raise UserError(
                f"{field}: {first.path} was measured with {a}, {other.path} with {b}; a table is valid for one of "
                "them: keep them apart (diff compares them), or measure one of them anew"
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


# ---- sections of one space ---------------------------------------------------------------------------------


def joined_rounds(several: Sequence[Rounds]) -> Rounds:
    """All rounds one after another, without those that are a run within others: a copied measurement counts once.

    >>> joined_rounds([(1.0, 2.0), (3.0,), (1.0, 2.0, 4.0)])
    (3.0, 1.0, 2.0, 4.0)
    """
    kept: list[Rounds] = []
    for rounds in several:
        if not any(_within(rounds, other) for other in kept):
            kept = [*(other for other in kept if not _within(other, rounds)), rounds]
    return sum(kept, ())


def _within(few: Rounds, many: Rounds) -> bool:
    return any(many[i : i + len(few)] == few for i in range(len(many) - len(few) + 1))


def joined_sections(sections: Sequence[Section], ms: Mapping[str, float]) -> Section:
    """One section of several, which does not depend on their order but in its rounds; its ratio is still to be fitted
    anew.

    ms: of every part. A section that was interrupted adds rounds to the networks of the others, but no networks of its
    own.
    """
    base = max(sections, key=lambda s: (s.complete, _visits(s.networks)))
    networks = _networks(
        "random", [s.networks for s in sections if s.complete] or [base.networks], [s.networks for s in sections], ms
    )
    known = {network.parts for network in networks.values()}
    conditions = tuple(seen for section in sections for seen in section.conditions)
    validated = _validated([s.validated for s in sections if s.validated], known, ms)
    return replace(base, networks=networks, conditions=conditions, validated=validated)


def _validated(several: Sequence[Validated], known: set[tuple[str, ...]], ms: Mapping[str, float]) -> Validated | None:
    """Fresh networks of all, none of which calibrates the joined section."""
    if not several:
        return None
    base = max(several, key=lambda v: (v.figures is not None, _visits(v.networks)))
    networks = _networks(
        "fresh", [v.networks for v in several if v.figures] or [base.networks], [v.networks for v in several], ms
    )
    fresh = {name: network for name, network in networks.items() if network.parts not in known}
    return (
        replace(base, networks=fresh, conditions=tuple(seen for v in several for seen in v.conditions))
        if fresh
        else None
    )


def _visits(networks: Mapping[str, Network]) -> int:
    return sum(len(network.timing.rounds) for network in networks.values() if network.timing)


def _networks(
    kind: str, chosen: Sequence[Mapping[str, Network]], timed: Sequence[Mapping[str, Network]], ms: Mapping[str, float]
) -> dict[str, Network]:
    """The networks of all in `chosen`, each with its rounds in all of `timed`.

    Where they are the same they keep names and order; else they are named anew from the quickest by its parts to the
    slowest, so that those which calibrate span the range.
    """
    rounds: dict[tuple[str, ...], list[Rounds]] = {}
    for network in (network for networks in timed for network in networks.values() if network.timing):
        rounds.setdefault(network.parts, []).append(network.timing.rounds)

    def whole(parts: tuple[str, ...]) -> Network:
        return Network(parts, Timing(joined_rounds(rounds[parts])) if parts in rounds else None)

    first, *others = [{name: network.parts for name, network in networks.items()} for networks in chosen]
    if all(list(other.items()) == list(first.items()) for other in others):
        return {name: whole(parts) for name, parts in first.items()}
    every = sorted(
        {parts for named in (first, *others) for parts in named.values()}, key=lambda p: (sum(ms[key] for key in p), p)
    )
    return {f"{kind}_{i:02}": whole(parts) for i, parts in enumerate(every)}
