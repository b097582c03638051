"""Measure a search space into a latency table: blocks and random networks in the same interleaved rounds.

Everything is built and converted first. Machine drift then touches blocks and networks alike, so that their ratio is
one of the program, not of the hour. What is measured is saved every few seconds; the same call goes on from there.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

import quant
from common.errors import UserError
from latency_lut import prepare
from latency_lut.fitting import calibrated, refitted_since
from latency_lut.machine import Watch
from latency_lut.sections import CALL, Network, Section, parts, space_key
from latency_lut.table import LatencyTable
from latency_lut.timing import BEST, Timing, time_interleaved, torch_threads
from nas import Architecture, HeadSpec, SearchSpace, cost, signature

REPEATS = 3  # timed calls per visit: many short rounds see more of the machine's quiet moments than few long ones
ROUNDS, CHEAP_ROUNDS = 16, 24  # the second up to CHEAP_SIZE pixels, where a round takes less than half a second
CHEAP_SIZE = 64
NETWORK_VISITS = 3  # of each network in a round: what takes longer meets a quiet moment less often
MAX_ROUNDS = 3  # times as many for what stays unstable, within
SECONDS, CHEAP_SECONDS = 40.0, 25.0  # of CPU time spent on timing
SAVE_SECONDS = 3.0  # between two savings of what was measured
NETWORKS = 30
DRAWS = 30  # random networks drawn for each one that is timed


def build_section(
    table: LatencyTable,
    space: SearchSpace,
    class_counts: tuple[int, ...],
    networks: int = NETWORKS,
    seed: int = 0,
    rounds: int | None = None,
) -> LatencyTable:
    """`table` with everything of `space` measured, and saved; what it holds already is not measured again.

    class_counts: heads to measure, in the place of the space's own; the first is that of the networks timed whole.
    rounds: visits of everything (default: ROUNDS or, for small inputs, CHEAP_ROUNDS).
    Raises UserError where the section's space has changed, or where the result cannot be true.
    """
    space = replace(space, head=replace(space.head, num_classes=class_counts[0]))
    rounds = rounds or (CHEAP_ROUNDS if space.input_size <= CHEAP_SIZE else ROUNDS)
    section = begun(table, space, networks, seed)
    wanted = {CALL: None} | space.specs() | _heads(space, class_counts)
    if section.complete:
        todo, archs = {key: value for key, value in wanted.items() if _short(table, section, key, rounds)}, {}
    else:
        todo, archs = wanted, sample_networks(space, len(section.networks), section.seed)
    if todo:
        table = measure(table.with_section(section), section, todo, archs, rounds)
    section = table.sections[section.key] if todo else section
    if not section.complete:
        table = table.with_section(calibrated(table, section))
        table.save()
    return table


def sample_networks(space: SearchSpace, count: int, seed: int) -> dict[str, Architecture]:
    """`count` random networks that span the range of the space, in the order of their MACs.

    Depth and candidates are uniform (SearchSpace.random), so most networks are of middling size; of DRAWS * count of
    them, those nearest to evenly spaced logarithms of MACs are taken. A rank correlation over networks that all
    take the same time would say nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [space.architecture(space.random(generator)) for _ in range(DRAWS * count)]
    drawn = list({arch.blocks: arch for arch in drawn}.values())
    if len(drawn) < count:
        raise UserError(
            f"networks: {count}, but only {len(drawn)} different ones were drawn from the space {space.name!r}; ask "
            "for fewer"
        )
    log_macs = np.log([cost(arch).macs for arch in drawn])
    free, chosen = np.ones(len(drawn), bool), []
    for target in np.linspace(log_macs.min(), log_macs.max(), count):
        nearest = int(np.argmin(np.where(free, abs(log_macs - target), np.inf)))
        free[nearest] = False
        chosen.append(nearest)
    chosen.sort(key=lambda i: log_macs[i])
    return {f"random_{n:02}": drawn[i].with_name(f"random_{n:02}") for n, i in enumerate(chosen)}


def begun(table: LatencyTable, space: SearchSpace, networks: int, seed: int) -> Section:
    """The section of a space: the table's own where it can be gone on with, else a new one without measurements."""
    old = table.sections.get(space_key(space))
    if old and old.hash != space.hash():
        raise UserError(
            f"{table.path}: sections.{old.key}.hash: the space has changed since; add --restart to measure it anew"
        )
    if old and (
        old.complete or (old.num_classes, len(old.networks), old.seed) == (space.head.num_classes, networks, seed)
    ):
        return old
    archs = sample_networks(space, networks, seed)
    return Section(
        space=space.name,
        width=float(space.width),
        input_size=space.input_size,
        num_classes=space.head.num_classes,
        hash=space.hash(),
        parts=tuple(key for key, (spec, _) in space.specs().items() if not isinstance(spec, HeadSpec)),
        seed=seed,
        networks={name: Network(tuple(parts(arch).values()), None) for name, arch in archs.items()},
    )


def _heads(space: SearchSpace, class_counts: tuple[int, ...]) -> dict[str, tuple[HeadSpec, int]]:
    specs = [replace(space.head, num_classes=n) for n in class_counts]
    return {signature(spec, space.head_size): (spec, space.head_size) for spec in specs}


def _short(table: LatencyTable, section: Section, key: str, rounds: int) -> bool:
    """Whether a part of a finished section was not measured to the end: a further head may have been stopped in the
    middle.
    """
    least = BEST if key in {CALL, *section.needed()} else rounds
    return key not in table.entries or len(table.entries[key].rounds) < least


def measure(
    table: LatencyTable,
    section: Section,
    specs: Mapping[str, tuple | None],
    archs: Mapping[str, Architecture],
    rounds: int | None = None,
) -> LatencyTable:
    """The table with `rounds` rounds of every part and network of a section; saved as it goes, also when it is
    stopped.
    """
    cheap = section.input_size <= CHEAP_SIZE
    rounds = rounds or (CHEAP_ROUNDS if cheap else ROUNDS)
    journal, watch = Journal(table, section, (*specs, *archs)), Watch()
    with torch_threads(table.meta["threads"]), quant.use_engine(table.meta["engine"]):
        callables = _prepare(specs, archs, section.input_size, table.meta)
        visits = dict.fromkeys(archs, NETWORK_VISITS)
        left = sum(max(0, rounds * visits.get(name, 1) - len(measured)) for name, measured in journal.rounds.items())
        with tqdm(total=left, desc=f"timing at {section.input_size} px", unit="visit", mininterval=0.5) as bar:

            def on_visit(name: str, ms: float) -> None:
                journal.add(name, ms)
                bar.total = max(bar.total, bar.n + 1)  # unstable ones are visited again
                bar.update()

            most, seconds = int(MAX_ROUNDS * rounds), CHEAP_SECONDS if cheap else SECONDS
            try:
                time_interleaved(
                    callables,
                    rounds,
                    REPEATS,
                    section.seed,
                    max_rounds=most,
                    seconds=seconds,
                    visits=visits,
                    done=journal.rounds,
                    on_visit=on_visit,
                )
            finally:
                journal.finish(watch.seen())
    return journal.table()


def _prepare(
    specs: Mapping[str, tuple | None], archs: Mapping[str, Architecture], size: int, meta: dict
) -> dict[str, Callable]:
    """Callables of all parts and networks."""
    engine, batch = meta["engine"], meta["batch"]
    with tqdm(total=len(specs) + len(archs), desc=f"converting at {size} px", unit="module", mininterval=0.5) as bar:
        callables = {}
        for key, spec in specs.items():
            callables[key] = prepare.call(engine, batch) if key == CALL else prepare.part(*spec, engine, batch)
            bar.update()
        for name, arch in archs.items():
            callables[name] = prepare.network(arch, engine, batch)
            bar.update()
    return callables


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
