"""What is being timed, put into the table and saved every few seconds."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from latency_lut.fitting import refitted_since
from latency_lut.sections import Network, Section
from latency_lut.table import LatencyTable
from latency_lut.timing import Timing

SAVE_SECONDS = 3.0


class Journal:
    """Rounds of parts and of a section's networks: those that calibrate it, or the fresh ones of its `validated`."""

    def __init__(self, table: LatencyTable, section: Section, names: Iterable[str]):
        self.old, self.section, self.saved = table, section, time.monotonic()
        fresh = section.validated.networks if section.validated else {}
        self.networks = {**section.networks, **fresh}
        known = {**table.entries, **{name: network.timing for name, network in self.networks.items()}}
        self.rounds = {name: list(known[name].rounds) if known.get(name) else [] for name in names}

    def add(self, name: str, ms: float) -> None:
        self.rounds[name].append(ms)
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.table().save()
            self.saved = time.monotonic()

    def finish(self, seen: dict) -> None:
        """Note what the machine did meanwhile, and save."""
        seen = {"date": time.strftime("%Y-%m-%d %H:%M:%S"), **seen}
        validated = self.section.validated
        if validated and validated.networks.keys() & self.rounds.keys():
            self.section = replace(self.section, validated=replace(validated, conditions=(*validated.conditions, seen)))
        else:
            self.section = replace(self.section, conditions=(*self.section.conditions, seen))
        self.table().save()

    def table(self) -> LatencyTable:
        """The table as measured so far; finished sections that share re-timed parts are fitted anew."""
        timings = {name: Timing(tuple(values)) for name, values in self.rounds.items() if values}
        entries = {**self.old.entries, **{key: timing for key, timing in timings.items() if key not in self.networks}}
        section = replace(self.section, networks=_timed(self.section.networks, timings))
        if section.validated:
            section = replace(
                section, validated=replace(section.validated, networks=_timed(section.validated.networks, timings))
            )
        return refitted_since(replace(self.old, entries=entries).with_section(section), self.old)


def _timed(networks: Mapping[str, Network], timings: Mapping[str, Timing]) -> dict[str, Network]:
    return {name: replace(network, timing=timings.get(name, network.timing)) for name, network in networks.items()}
