"""The latency table: measured milliseconds of every block of a search space on one CPU, one engine, one thread count,
one batch size.

`entries` hold raw measurements by signature (nas.signature), and that of a call that computes nothing (CALL). A
*section* is one space at one width and input size: the networks that were timed whole, the ratio from sums of blocks to
networks fitted on a third of them, and its errors on the others. What a user asks a table for, `predict` and
`for_space`, is calibrated:

    latency = ratio * (stem + sum of (block - call) + (head - call))

Each part was timed by a call of its own; a network is called once, so that all parts but the stem are taken without it.
"""

import hashlib
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import quant
from common.checks import check_format, check_int, check_object, check_str, check_strs
from common.errors import UserError
from common.files import read_json, write_json
from frostnet import WIDTHS
from latency_lut.advice import Advice, build_command
from latency_lut.machine import FINGERPRINT, fingerprint, revision, shown
from latency_lut.sections import CALL, Section, parts, section_from_json, space_key, timing_from_json, timing_to_json
from latency_lut.timing import BEST, Timing
from nas import SPACES, Architecture, SearchSpace, find_space, signature

FORMAT, VERSION, UNIT = "latency_lut", 2, "ms"
ELSEWHERE = ("cpu", "flags", "torch", "runtime")  # what may differ where a table of another machine is allowed
ABOUT = ("cores", "created", "revision", "command")  # of meta, beside the fingerprint
ENGINES = tuple(name for name, engine in quant.ENGINES.items() if not engine.oracle)


@dataclass(frozen=True)
class Prediction:
    """`rows`: calibrated milliseconds of each part, "stem", "blocks.0", .., "head"; their sum is `latency_ms`.

    `section`: whose ratio.
    """

    latency_ms: float
    rows: dict[str, float]
    section: str


@dataclass(frozen=True)
class SpaceLatency:
    """Calibrated milliseconds of every part of a space; a network's latency is the sum of its parts'."""

    stem_ms: float
    head_ms: float
    blocks: tuple[tuple[tuple[float, ...], ...], ...]  # [stage][slot][candidate]
    ratio: float  # already in all of them; for the record


@dataclass(frozen=True)
class LatencyTable:
    """A latency table; `meta` holds what it is valid for (FINGERPRINT) and, for the record, ABOUT."""

    meta: dict
    entries: dict[str, Timing]
    sections: dict[str, Section]
    path: Path

    @classmethod
    def new(cls, engine: str, threads: int, path: str | Path, batch: int = 1, made_by: str = "") -> "LatencyTable":
        """An empty table for this machine; `made_by` is the command line, for the record."""
        about = {
            "cores": os.cpu_count(),
            "created": time.strftime("%Y-%m-%d %H:%M:%S"),
            "revision": revision(),
            "command": made_by,
        }
        return cls({**fingerprint(engine, threads, batch), **about}, {}, {}, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """The table in a file. Raises UserError naming the file and the field that is wrong."""
        if not Path(path).exists():
            raise UserError(
                f"{path}: no such file; measure a table: {build_command({'engine': ENGINES[0], 'threads': 1}, path)}"
            )
        data = read_json(path)
        try:
            return _table(data, Path(path))
        except UserError as error:
            raise UserError(f"{path}: {error}; restore the file, or measure into another one") from error

    def with_section(self, section: Section) -> "LatencyTable":
        return replace(self, sections={**self.sections, section.key: section})

    def save(self) -> None:
        """Write the file atomically."""
        write_json(self.path, self.to_json())

    def to_json(self) -> dict:
        entries = {key: timing_to_json(timing) for key, timing in self.entries.items()}
        sections = {key: section.to_json() for key, section in self.sections.items()}
        return {
            "format": FORMAT,
            "version": VERSION,
            "unit": UNIT,
            "meta": self.meta,
            "entries": entries,
            "sections": sections,
        }

    @property
    def hash(self) -> str:
        """sha256 of the table as canonical JSON: says in other files which measurements they rest on."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def advice(self) -> Advice:
        """The commands that fix this table."""
        return Advice(self.meta, self.path, self.sections.values(), self.entries)

    def check(
        self, engine: str | None = None, threads: int | None = None, allow_other_cpu: bool = False, batch: int = 1
    ) -> None:
        """Refuse a table that is not valid for this machine, engine, thread count and batch size.

        Args:
            engine, threads: as wanted (default: the table's own).
            allow_other_cpu: let another CPU pass, whose figures are then used, and print a note where torch or runtime
                are other ones. Everything else must be the same: it decides how weights are quantized.
            batch: as wanted.

        Raises:
            UserError: names the field, both values and the command that fixes it.
        """
        here = fingerprint(engine or self.meta["engine"], threads or self.meta["threads"], batch)
        for field in FINGERPRINT:
            if self.meta[field] == here[field]:
                continue
            if not (allow_other_cpu and field in ELSEWHERE):
                raise UserError(
                    f"{self.path}: {field}: the table was measured with {shown(self.meta[field])}, wanted is "
                    f"{shown(here[field])}; {self.advice.fix(field, here)}"
                )
            if field in ("torch", "runtime"):
                print(f"note: {self.path}: {field}: measured with {self.meta[field]}, here is {here[field]}")

    # ---- look-ups ----

    def entry_ms(self, key: str, fix: str) -> float:
        """The raw measurement of a part.

        Raises UserError with `fix`, a command, where there is none: no value stands in for it.
        """
        if key not in self.entries:
            raise UserError(f"{self.path}: no latency of {key}; {fix}")
        if len(self.entries[key].rounds) < BEST:
            raise UserError(f"{self.path}: the measurement of {key} was interrupted; {fix}")
        return self.entries[key].ms

    def inside_ms(self, key: str, fix: str) -> float:
        """What a part takes inside a network: its measurement without the call."""
        ms, call = self.entry_ms(key, fix), self.entry_ms(CALL, fix)
        if ms <= call:
            raise UserError(
                f"{self.path}: {key} took {ms:g} ms, no more than a call that computes nothing ({call:g} ms), which "
                f"cannot be true; measure it anew: {self.advice.anew()}"
            )
        return ms - call

    def section(self, space: SearchSpace) -> Section:
        """The complete section of a space. Raises UserError with the command that measures it."""
        section, add = self.sections.get(space_key(space)), self._measure(space)
        if section is None:
            raise UserError(
                f"{self.path}: input_size {space.input_size}, width {space.width:g} of the space {space.name!r} was "
                f"not measured (there is {', '.join(self.sections) or 'nothing yet'}); add it: {add}"
            )
        if section.hash != space.hash():
            raise UserError(
                f"{self.path}: sections.{space_key(space)}.hash: the space {space.name!r} "
                f"has changed since it was measured; measure it anew: {add} --restart"
            )
        if not section.complete:
            raise UserError(
                f"{self.path}: its measurement was interrupted at input_size {space.input_size}; go on with: {add}"
            )
        return section

    def for_space(self, space: SearchSpace) -> SpaceLatency:
        """Calibrated milliseconds of every part of `space`. Raises UserError for what was not measured."""
        ratio, fix = self.section(space).ratio, f"measure it: {self._measure(space)}"

        def ms(spec, size) -> float:
            return ratio * self.inside_ms(signature(spec, size), fix)

        blocks = tuple(
            tuple(tuple(ms(spec, size) for spec in slot.candidates) for slot, size in zip(stage.slots, sizes))
            for stage, sizes in zip(space.stages, space.sizes)
        )
        stem_ms = ratio * self.entry_ms(signature(space.stem, space.input_size), fix)
        return SpaceLatency(stem_ms, ms(space.head, space.head_size), blocks, ratio)

    def predict(self, arch: Architecture, space: SearchSpace | None = None) -> Prediction:
        """Calibrated latency of a network by the section of `space`, else by the first that holds it. Raises UserError
        where none does.

        Sections have ratios of their own: what a search of a space is to be compared with must be asked for by that
        space.
        """
        if space is None:
            return self.predict_by(self.holding(arch)[0], arch)
        section = self.section(space)
        if not _holds(section, arch):
            raise UserError(
                f"{self.path}: sections.{section.key} does not hold the blocks of {arch.name} ({arch.input_size} px)"
            )
        return self.predict_by(section, arch)

    def predict_by(self, section: Section, arch: Architecture) -> Prediction:
        """Calibrated latency of a network by a section that holds its blocks."""
        fix = self.advice.measure(section.space, section.width, arch.input_size, arch.head.num_classes)
        return self.sum_up(section, parts(arch), f"measure it: {fix}")

    def holding(self, arch: Architecture) -> list[Section]:
        """The complete sections that hold a network's blocks. Raises UserError where none does."""
        found = [section for section in self.sections.values() if section.complete and _holds(section, arch)]
        if found:
            return found
        home = _home_of(arch)
        if home is None:
            raise UserError(
                f"{arch.name}: its blocks are in no space that comes with the program, so that no table of one can "
                "hold them"
            )
        raise UserError(
            f"{self.path}: no section holds the blocks of {arch.name} (width {home[1]:g}) at input_size "
            f"{arch.input_size}; add it: {self.advice.measure(*home, arch.input_size, arch.head.num_classes)}"
        )

    def sum_up(self, section: Section, named: dict[str, str], fix: str) -> Prediction:
        """The prediction for the signatures of a network's parts, the stem first."""
        stem, *others = named
        rows = {stem: section.ratio * self.entry_ms(named[stem], fix)}
        rows |= {name: section.ratio * self.inside_ms(named[name], fix) for name in others}
        return Prediction(sum(rows.values()), rows, section.key)

    def _measure(self, space: SearchSpace) -> str:
        """The command that measures what is missing of a space, into this file."""
        return self.advice.measure(space.name, space.width, space.input_size, space.head.num_classes)


# ---- names -------------------------------------------------------------------------------------------------


def _holds(section: Section, arch: Architecture) -> bool:
    """Whether all parts of a network but its head, which is looked up by class count, are of a section."""
    *others, _ = parts(arch).values()
    return section.input_size == arch.input_size and set(others) <= set(section.parts)


def _home_of(arch: Architecture) -> tuple[str, float] | None:
    """A shipped space and a published width that hold a network's blocks."""
    for name in SPACES:
        for width in WIDTHS:
            try:
                find_space(name)(width, arch.input_size, arch.head.num_classes).choice_of(arch)
            except UserError:
                continue
            return name, width
    return None


# ---- JSON --------------------------------------------------------------------------------------------------


def _table(data: Any, path: Path) -> LatencyTable:
    check_format(data, FORMAT, VERSION, ("unit", "meta", "entries", "sections"))
    check_str("unit", data["unit"], (UNIT,))
    _check_meta(data["meta"])
    entries = {
        key: timing_from_json(f"entries.{key}", v) for key, v in check_object("entries", data["entries"]).items()
    }
    sections = {
        key: section_from_json(f"sections.{key}", v) for key, v in check_object("sections", data["sections"]).items()
    }
    for key, section in sections.items():
        _check_section(key, section, entries)
    return LatencyTable(data["meta"], entries, sections, path)


def _check_meta(meta: Any) -> None:
    check_object("meta", meta, (*FINGERPRINT, *ABOUT))
    check_str("meta.engine", meta["engine"], ENGINES)
    check_int("meta.threads", meta["threads"], 1, 4096)
    check_strs("meta.flags", meta["flags"])
    check_int("meta.weight_qmax", meta["weight_qmax"], 1, 127)
    check_int("meta.batch", meta["batch"], 1, 4096)
    check_int("meta.cores", meta["cores"], 1, 65536)
    for key in ("cpu", "torch", "runtime", "memory_format", "created", "revision", "command"):
        check_str(f"meta.{key}", meta[key])


def _check_section(key: str, section: Section, entries: dict[str, Timing]) -> None:
    """A section's name agrees with its fields, and a complete one has every figure it rests on."""
    if key != section.key:
        raise UserError(f"sections.{key}: its fields say {section.key!r}")
    if not section.complete:
        return
    if missing := sorted((section.needed() | {CALL}) - entries.keys()):
        raise UserError(f"entries.{missing[0]}: missing, though sections.{key} is complete")
    for name, network in section.networks.items():
        if network.timing is None:
            raise UserError(f"sections.{key}.networks.{name}.timing: missing, though the section is complete")
