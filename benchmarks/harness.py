"""Studies: cells that run side by side, one process and one thread each, and the page that their results make.

A study is one file in benchmarks/studies/: a dataclass whose fields are the flags, its cells, and its tables.

@dataclass(frozen=True, kw_only=True)
class Widths(Study):
    name: ClassVar[str] = "widths"
    template: ClassVar[str] = "# Accuracy by width\n\n<!-- accuracy -->\n<!-- end of accuracy -->\n"
    seeds: tuple[int, ...] = option((0, 1), "seeds")

    def cells(self):
        return [Cell(self.name, {"width": width, "seed": seed}) for seed in self.seeds for width in (0.5, 1.0)]

    def run(self, cell, folder):
        return {"top1": train(cell["width"], cell["seed"], folder)}

    def sections(self, result):
        return {"accuracy": table(rows_of(result), (Column("width", "width"), Column("top-1", "top1")))}

if __name__ == "__main__":
    main(Widths)
"""

import contextlib
import math
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from benchmarks.cells import Cell, Store
from benchmarks.tables import write_page
from benchmarks.workers import Workers, provenance
from common.checks import check_int
from common.cli import arguments, guard, option, parse
from common.files import read_json, write_json
from common.processes import cpu_count


@dataclass(frozen=True, kw_only=True)
class Study(ABC):
    """A study and its settings. Fields that a subclass adds are flags of its command line, too."""

    name: ClassVar[str]
    template: ClassVar[str]  # of the page, with the markers of every section
    smoke_settings: ClassVar[dict[str, Any]] = {}  # fields that --smoke replaces

    jobs: int = option(cpu_count(), "cells at a time, one thread each")
    minutes: float | None = option(None, "start no cell after so many minutes")
    smoke: bool = option(False, "a few images and steps, to see that it runs; writes to a separate folder")
    show: bool = option(False, "list the cells and which are done, run nothing", flag="--list")
    page_only: bool = option(False, "write the page from the results that there are, run nothing")
    retry_failed: bool = option(False, "run cells anew that failed")
    runs: str = option("runs/studies", "folder of the cells of all studies")
    output: str = option("docs/results", "folder of the page")

    @abstractmethod
    def cells(self) -> list[Cell]:
        """Every cell, in the order in which they should run."""

    @abstractmethod
    def run(self, cell: Cell, folder: Path) -> dict:
        """Compute one cell, in a worker process.

        Args:
            cell: One of `cells()`.
            folder: The cell's folder. What was written there stays after a kill, so that a training can continue.

        Returns:
            The row, plain JSON. A training that diverged is a row, too; an exception makes a failed cell.
        """

    @abstractmethod
    def sections(self, result: dict) -> dict[str, str]:
        """Name -> Markdown of every section of the page, from what `result` returned."""

    def needs(self, cell: Cell) -> Sequence[Cell]:
        """Cells that must be done before this one starts."""
        return ()

    def prepare(self) -> None:  # noqa: B027 (nothing by default)
        """What comes before the cells: tables, searches. Called on every start, so it must skip what is done."""

    def finish(self) -> None:  # noqa: B027 (nothing by default)
        """What comes after the last cell, alone on the machine: latencies. Called on every start, like `prepare`."""

    def result(self, records: list[dict]) -> dict:
        """The content of OUTPUT/NAME.json, from the records of all finished cells."""
        return {"command": self.command, "planned": len(self.cells()), "cells": records}

    def provenance(self) -> dict:
        """What every record says about the machine and the program."""
        return provenance()

    @property
    def store(self) -> Store:
        return Store(Path(self.runs) / (f"{self.name}_smoke" if self.smoke else self.name))

    @property
    def output_folder(self) -> Path:
        return self.store.folder if self.smoke else Path(self.output)

    @property
    def command(self) -> str:
        """The command that makes these results; folders of data are replaced by FOLDER."""
        shared = {field.name: field.default for field in fields(Study)}
        roots = {f.name: "FOLDER" for f in fields(self) if f.name.endswith("_root") and getattr(self, f.name)}
        return shlex.join(
            ["python", "-m", f"benchmarks.studies.{self.name}", *arguments(replace(self, **shared, **roots))]
        )


def main(study: type[Study], argv: Sequence[str] | None = None) -> Path | None:
    """The command line of a study: run it, or continue it; returns the path of the page, None with --list."""

    @guard
    def guarded(argv: Sequence[str] | None) -> Path | None:
        return start(_parsed(study, argv))

    return guarded(argv)


def start(study: Study) -> Path | None:
    """What `main` does, for a study with its settings."""
    if study.show:
        return _list(study)
    if not study.page_only:
        with study.store.locked():
            study.prepare()
            if _run_cells(study):
                study.finish()
    return write(study)


def write(study: Study) -> Path | None:
    """OUTPUT/NAME.json from the records; the page from that file, which may be older than the folder of the runs."""
    data, page = (study.output_folder / f"{study.name}.{ending}" for ending in ("json", "md"))
    records = [record for cell in study.cells() if (record := study.store.read(cell))]
    if records:
        write_json(data, study.result(records))
    elif not study.page_only:
        print("no cell is done yet, so there is no page")
        return None
    write_page(page, study.template, study.sections(read_json(data)))
    print(page)
    return page


def rows_of(result: dict) -> list[dict]:
    """Parameters and row of every cell that did not fail, from what `Study.result` returns by default."""
    return [{**record["cell"]["parameters"], **record["row"]} for record in result["cells"] if "row" in record]


def _parsed(study: type[Study], argv: Sequence[str] | None) -> Study:
    text = sys.modules[study.__module__].__doc__ or study.__doc__ or study.name
    parsed = parse(study, argv, study.name, text)
    check_int("jobs", parsed.jobs, 1, 1024)
    return replace(parsed, **study.smoke_settings) if parsed.smoke else parsed


def _list(study: Study) -> None:
    for cell in study.cells():
        record = study.store.read(cell)
        state = "not done" if record is None else "failed" if "failed" in record else f"{record['seconds']:.0f} s"
        print(f"{state:>8}  {cell.label}  {cell.key}")


# ---- the cells ----


def _run_cells(study: Study) -> bool:
    """Run the cells that have no record yet; whether all are done now."""
    cells = study.cells()
    waiting = [cell for cell in cells if (record := study.store.read(cell)) is None or _again(study, record)]
    if others := study.store.others(cells):
        print(f"{others} records in {study.store.folder / 'cells'} belong to other settings and are ignored")
    workers, started = Workers(study, study.provenance()), time.monotonic()
    until = math.inf if study.minutes is None else started + 60 * study.minutes
    with contextlib.closing(workers), tqdm(total=len(cells), initial=len(cells) - len(waiting), disable=None) as bar:
        while _start_ready(study, workers, waiting, until):
            bar.set_postfix(running=len(workers.running))
            for cell in workers.ended():
                bar.write(f"{(time.monotonic() - started) / 60:5.1f} min  {_line(study, cell)}")
                bar.update()
    return _summary(study, cells)


def _again(study: Study, record: dict) -> bool:
    return study.retry_failed and "failed" in record


def _start_ready(study: Study, workers: Workers, waiting: list[Cell], until: float) -> bool:
    """Start cells while there is room and time, each after those that it needs; whether any is running now."""
    while len(workers.running) < study.jobs and time.monotonic() < until:
        ready = next((c for c in waiting if all(_has_row(study, need) for need in study.needs(c))), None)
        if ready is None:
            break
        waiting.remove(ready)
        workers.start(ready)
    return bool(workers.running)


def _has_row(study: Study, cell: Cell) -> bool:
    record = study.store.read(cell)
    return record is not None and "row" in record


def _line(study: Study, cell: Cell) -> str:
    """A finished cell in one line."""
    record = study.store.read(cell)
    if failed := record.get("failed"):
        return f"{cell.label}: failed, {failed['type']}: {failed['message']}; see {study.store.log(cell)}"
    numbers = {k: v for k, v in record["row"].items() if isinstance(v, (int, float))}
    shown = [f"{name} {value:.4g}" for name, value in list(numbers.items())[:5]] + [f"{record['seconds']:.0f} s"]
    return f"{cell.label}: {', '.join(shown)}"


def _summary(study: Study, cells: Sequence[Cell]) -> bool:
    """Print how many cells are done; whether all are, failed ones included."""
    records = [study.store.read(cell) for cell in cells]
    failed, done = sum("failed" in record for record in records if record), sum(map(bool, records))
    hint = f"; {failed} failed, --retry-failed runs them anew" if failed else ""
    print(f"{done} of {len(cells)} cells are done{hint}")
    return done == len(cells)
