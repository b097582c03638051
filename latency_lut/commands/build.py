"""Measure what every block of a search space takes as INT8 on this CPU, and how well their sums predict networks.

    python -m latency_lut --engine fbgemm --output fbgemm.json
    python -m latency_lut --engine fbgemm --output fbgemm.json --input-size 96      # adds a size to the same file

Writes every few seconds. The same command goes on where it was stopped.
"""

import shlex
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import quant
from common.checks import check_fields
from common.cli import arguments, option
from common.errors import UserError
from common.processes import cpu_count
from latency_lut.advice import Advice, heads
from latency_lut.build import NETWORKS, begun, build_section
from latency_lut.machine import FINGERPRINT
from latency_lut.report import odd_pairs, table_text
from latency_lut.sections import CALL, Section, space_key
from latency_lut.table import ENGINES, LatencyTable
from nas import SPACES, SearchSpace, find_space

SMALL_INPUT = 64  # pixels; up to there the default head has 10 classes, above 1000
_BOUNDS = {
    "threads": (1, 1024),
    "batch": (1, 1024),
    "networks": (24, 1000),
    "seed": (0, 2**63 - 1),
    "input_size": (16, 1024),  # pixels
}


@dataclass(frozen=True)
class BuildConfig:
    """One call of the command line."""

    engine: Literal[ENGINES] = option(help="integer kernels to measure")
    output: str = option(help="table to write, or to add to")
    input_size: tuple[int, ...] = option((32, 224), "pixels, height and width, one or several")
    width: float = option(1.0, "width multiplier of the space")
    threads: int = option(1, "threads that a network runs on")
    num_classes: tuple[int, ...] | None = option(
        None, "class counts of the heads to measure (default: 10 up to 64 px, 1000 above)"
    )
    batch: int = option(1, "images at a time")
    space: str = option("frostnet", f"search space: {', '.join(SPACES)}, or module:function of your own")
    networks: int = option(NETWORKS, "random networks timed whole: a third calibrates, the rest validates")
    seed: int = option(0, "seed of the random networks and of the order of visits")
    restart: bool = option(
        False, "measure the sections of this space, width and input sizes anew; others in the file stay"
    )

    def __post_init__(self):
        check_fields(self, _BOUNDS)
        if not Path(self.output).name or self.output.endswith("/") or Path(self.output).is_dir():
            raise UserError(
                f"output: {self.output!r} is a folder or no name; give the name of a file, such as {self.engine}.json"
            )
        if self.threads > cpu_count():
            raise UserError(f"threads: {self.threads}, but this process may use {cpu_count()} CPUs")
        if self.engine not in quant.available():
            raise UserError(f"engine: {self.engine!r} does not run here; choose from {', '.join(quant.available())}")
        find_space(self.space)

    def spaces(self) -> list[SearchSpace]:
        """The space at each input size."""
        return [find_space(self.space)(self.width, size, self.class_counts(size)[0]) for size in self.input_size]

    def class_counts(self, size: int) -> tuple[int, ...]:
        return self.num_classes or (10 if size <= SMALL_INPUT else 1000,)


def command(config: BuildConfig) -> LatencyTable:
    """Measure what the file lacks, save it and print the result."""
    spaces = config.spaces()
    table = LatencyTable.load(config.output) if Path(config.output).exists() else _new(config)
    table.check(config.engine, config.threads, batch=config.batch)
    if config.threads > 1:
        print("note: on several threads it is wall time that counts; leave the machine alone meanwhile")
    for space in spaces:
        table = build_section(table, space, config.class_counts(space.input_size), config.networks, config.seed)
        for remark in odd_pairs(table, space):
            print(f"note: {remark}")
    print(table_text(table))
    return table


def _new(config: BuildConfig) -> LatencyTable:
    made_by = shlex.join(["python", "-m", "latency_lut", *arguments(replace(config, restart=False))])
    return LatencyTable.new(config.engine, config.threads, config.output, config.batch, made_by)


# ---- restart -----------------------------------------------------------------------------------------------


def start_over(config: BuildConfig) -> None:
    """Forget the sections that the flags name; nothing is touched before all that can be wrong has been checked."""
    spaces, table = config.spaces(), _new(config)
    if Path(config.output).exists():
        table = without(LatencyTable.load(config.output), [space_key(space) for space in spaces], table)
    for space in spaces:
        begun(table, space, config.networks, config.seed)
    table.save()


def without(table: LatencyTable, keys: Collection[str], new: LatencyTable) -> LatencyTable:
    """`table` without the sections named and the entries that only they need.

    Args:
        new: an empty table of this machine, which is returned where no section is left.

    Raises:
        UserError: where sections would stay that are not valid for the machine of `new`: one table cannot hold both.
    """
    kept = {key: section for key, section in table.sections.items() if key not in keys}
    if not kept:
        return new
    _check_kept(table, new, kept)
    lost = [section for key, section in table.sections.items() if key in keys]
    forgotten = _entries(lost, table) - _entries(kept.values(), table) - {CALL}
    entries = {key: timing for key, timing in table.entries.items() if key not in forgotten}
    return replace(table, sections=kept, entries=entries)


def _check_kept(table: LatencyTable, new: LatencyTable, kept: dict[str, Section]) -> None:
    for field in FINGERPRINT:
        if table.meta[field] != new.meta[field]:
            other = Advice(new.meta, table.path, kept.values(), table.entries).anew()
            raise UserError(
                f"{table.path}: {field}: the table was measured with {table.meta[field]}, here is {new.meta[field]}, "
                f"so that --restart would have to forget {', '.join(kept)}, too; measure into another file ({other}), "
                "or delete this one"
            )


def _entries(sections: Collection[Section], table: LatencyTable) -> set[str]:
    """Signatures of all parts of the sections, further heads among them."""
    return set().union(*(section.needed() | heads(section, table.entries).keys() for section in sections))
