"""A study whose cells take milliseconds and import nothing heavy.

python -m tests.benchmarks.toy_study --runs FOLDER --output FOLDER
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.harness import Cell, Study, main, rows_of
from benchmarks.tables import Column, table
from common.cli import guard, option
from common.errors import UserError

PROVENANCE = {"machine": {"cpu": "toy", "torch": "none", "threads": 1}, "commit": "toy"}


@guard
def program(argv):
    raise UserError("lr: 0, must be positive\nsecond line")


@dataclass(frozen=True, kw_only=True)
class Toy(Study):
    name: ClassVar[str] = "toy"
    template: ClassVar[str] = "# Toy\n\n<!-- squares -->\n<!-- end of squares -->\n\n## Conclusions\n\nTo be written.\n"
    smoke_settings: ClassVar[dict] = {"numbers": (1,), "offset": 1}

    numbers: tuple[int, ...] = option((1, 2, 3), "numbers")
    offset: int = option(0, "changes every row, so it stands in every cell")
    data_root: str = option("", "folder")
    behave: tuple[str, ...] = option((), "what number N does, as N:square, N:crash, N:kill, N:exit or N:wait")
    chain: bool = option(False, "each cell needs the one before")

    def cells(self):
        return [Cell(self.name, {"number": n, "recipe": {"offset": self.offset}}) for n in self.numbers]

    def needs(self, cell):
        cells = self.cells()
        return cells[: cells.index(cell)][-1:] if self.chain else ()

    def provenance(self):
        return PROVENANCE  # the true one imports torch

    def prepare(self):
        (self.store.folder / "prepared").touch()

    def run(self, cell, folder):
        with open(folder / "begun", "a") as file:  # one line per start
            print(os.getpid(), os.environ["OMP_NUM_THREADS"], file=file, flush=True)
        what = dict(text.split(":") for text in self.behave).get(str(cell["number"]), "square")
        if what == "crash":
            raise ValueError("first line\nsecond line")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "exit":
            program([])
        while what == "wait" and not (self.store.folder / "go_on").exists():
            time.sleep(0.01)
        print("the row of", cell.label)
        return {"square": cell["number"] ** 2 + self.offset, "loss": float("nan")}

    def finish(self):
        (self.store.folder / "finished").touch()

    def sections(self, result):
        return {"squares": table(rows_of(result), (Column("number", "number"), Column("square", "square")))}


def started(study: Toy, number: int) -> list[str]:
    """A line for each process that began to compute a number."""
    path: Path = study.store.work(next(c for c in study.cells() if c["number"] == number)) / "begun"
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main(Toy)
