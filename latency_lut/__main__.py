"""Measure what every block of a search space takes as INT8 on this CPU, and how well their sums predict networks.

    python -m latency_lut --engine fbgemm --output fbgemm.json
    python -m latency_lut --engine fbgemm --output fbgemm.json --input-size 96      # adds a size to the same file
    python -m latency_lut validate --lut fbgemm.json                                # predictions against fresh networks
    python -m latency_lut show --lut fbgemm.json --picture fbgemm.png
    python -m latency_lut predict --lut fbgemm.json --arch frostnet_small_1_0       # block by block
    python -m latency_lut merge --lut a.json b.json --output c.json                 # of the same machine
    python -m latency_lut diff --lut laptop.json server.json                        # of unlike machines
    python -m latency_lut bench --arch frostnet_small_1_0 mobilenet_v2              # times whole networks; see bench
    --help

The first may also be written `python -m latency_lut build ..`. Each word has --help; docs/new_cpu.md is a guide.

Stop it at any time: the same command goes on where it was.
"""

import importlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import quant
from common.cli import guard, option, parse
from common.errors import UserError
from latency_lut.build import NETWORKS, begun, build_section
from latency_lut.report import odd_pairs, table_text
from latency_lut.restart import without
from latency_lut.sections import space_key
from latency_lut.table import ENGINES, LatencyTable
from nas import SPACES, SearchSpace, find_space

FEWEST_NETWORKS = 24
SMALL_INPUT = 64  # pixels; up to there the default head has 10 classes, above 1000


WORDS = ("validate", "show", "merge", "diff", "predict", "bench")


@dataclass(frozen=True)
class Config:
    """One call of the command line."""

    engine: Literal[ENGINES] = option(help="integer kernels to measure")
    output: str = option(help="table to write, or to add to")
    input_size: tuple[int, ...] = option((32, 224), "pixels, height and width, one or several")
    width: float = option(1.0, "width multiplier of the space")
    threads: int = option(1, "threads that a network runs on")
    num_classes: tuple[int, ...] | None = option(
        None, "class counts of the heads to measure (default: 10 up to 64 px, 1000 above)"
    )
    batch: int = option(1, "pictures at a time")
    space: str = option("frostnet", f"search space: {', '.join(SPACES)}, or module:function of your own")
    networks: int = option(NETWORKS, "random networks timed whole: a third calibrates, the rest judges")
    seed: int = option(0, "seed of the random networks and of the order of visits")
    restart: bool = option(
        False, "measure the sections of this space, width and input sizes anew; others in the file stay"
    )

    def __post_init__(self):
        for field, low, high in (
            ("threads", 1, 1024),
            ("batch", 1, 1024),
            ("networks", FEWEST_NETWORKS, 1000),
            ("seed", 0, 2**63 - 1),
        ):
            if not low <= getattr(self, field) <= high:
                raise UserError(f"{field}: {getattr(self, field)}, must be {low} to {high}")
        for size in self.input_size:
            if not 16 <= size <= 1024:
                raise UserError(f"input_size: {size}, must be 16 to 1024 pixels")
        if not Path(self.output).name or self.output.endswith("/") or Path(self.output).is_dir():
            raise UserError(
                f"output: {self.output!r} is a folder or no name; give the name of a file, such as {self.engine}.json"
            )
        if self.engine not in quant.available():
            raise UserError(f"engine: {self.engine!r} does not run here; choose from {', '.join(quant.available())}")
        find_space(self.space)

    def spaces(self) -> list[SearchSpace]:
        """The space at each input size."""
        return [find_space(self.space)(self.width, size, self.class_counts(size)[0]) for size in self.input_size]

    def class_counts(self, size: int) -> tuple[int, ...]:
        return self.num_classes or (10 if size <= SMALL_INPUT else 1000,)


def main(argv=None):
    """Measure what the file lacks, save it, print the result; returns the table.

    After one of WORDS: what that file's `command` does.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] and words[0] in WORDS:
        # the zoo and pandas take seconds to import
        return importlib.import_module(f"latency_lut.commands.{words[0]}").command(words)
    words = words[1:] if words[:1] == ["build"] else words
    if "--restart" not in words:
        return _measure(words)
    guard(_start_over)(words)
    return _measure([w for w in words if w != "--restart"])  # so that resuming does not start over again


@guard(errors=(quant.QuantError,))
def _measure(argv: list[str]) -> LatencyTable:
    config = _parsed(argv)
    spaces = config.spaces()
    table = LatencyTable.load(config.output) if Path(config.output).exists() else _new(config, argv)
    table.check(config.engine, config.threads, batch=config.batch)
    if config.threads > 1:
        print("note: on several threads it is wall time that counts; leave the machine alone meanwhile")
    for space in spaces:
        table = build_section(table, space, config.class_counts(space.input_size), config.networks, config.seed)
        for remark in odd_pairs(table, space):
            print(f"note: {remark}")
    print(table_text(table))
    return table


def _start_over(argv: list[str]) -> None:
    """Forget the sections that the flags name; nothing is touched before all that can be wrong has been looked at."""
    config = _parsed(argv)
    spaces, table = config.spaces(), _new(config, [word for word in argv if word != "--restart"])
    if Path(config.output).exists():
        table = without(LatencyTable.load(config.output), [space_key(space) for space in spaces], table)
    for space in spaces:
        begun(table, space, config.networks, config.seed)
    table.save()


def _new(config: Config, argv: list[str]) -> LatencyTable:
    made_by = shlex.join(["python", "-m", "latency_lut", *argv])
    return LatencyTable.new(config.engine, config.threads, config.output, config.batch, made_by)


def _parsed(argv: list[str]) -> Config:
    about = f"{__doc__.splitlines()[0]} Other words: {', '.join(WORDS)}; each has --help."
    return parse(Config, argv, "python -m latency_lut", about)


def cli() -> None:
    """The console script: what `main` returns is no exit code."""
    main()


if __name__ == "__main__":
    main()
