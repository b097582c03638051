"""Cells of a study, and the folder that keeps their results.

FOLDER/cells/KEY.json  the record of one cell: {"cell", "row" or "failed", "seconds", "machine", "commit"}
FOLDER/work/KEY/       what a cell writes while it runs: checkpoints, and all that it prints, in output.log
FOLDER/lock            held by the one process that runs the study
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import plain, read_json, write_json

_LONGEST = 80  # characters of a label in a file name


@dataclass(frozen=True)
class Cell:
    """One training, or whatever a study computes, identified by all that determines its result.

    Args:
        study: The name of the study.
        parameters: Plain JSON. Strings and numbers at the top level, the most telling first, also make the label;
            what is nested (a recipe) counts in the hash alone.
    """

    study: str
    parameters: dict[str, Any]

    def __post_init__(self):
        object.__setattr__(self, "parameters", plain(self.parameters))

    def __getitem__(self, name: str) -> Any:
        return self.parameters[name]

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def description(self) -> dict:
        """The cell as its record holds it."""
        return {"study": self.study, "parameters": self.parameters}

    @property
    def label(self) -> str:
        """The cell in messages: "frostnet_small seed=0"."""
        shown = {k: v for k, v in self.parameters.items() if isinstance(v, (str, int, float))}
        return " ".join(v if isinstance(v, str) else f"{k}={v}" for k, v in shown.items())

    @property
    def key(self) -> str:
        """The name of its files: its label, and a hash of its canonical JSON."""
        canonical = json.dumps(self.description, sort_keys=True, separators=(",", ":"), allow_nan=False)
        label = re.sub(r"[^\w.=-]+", "_", self.label, flags=re.ASCII).strip("._")[:_LONGEST]
        return f"{label}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Store:
    """The folder of a study's results."""

    folder: Path

    def work(self, cell: Cell) -> Path:
        """The folder that a cell writes to while it runs; it stays, so that a stopped training can continue."""
        return self.folder / "work" / cell.key

    def log(self, cell: Cell) -> Path:
        return self.work(cell) / "output.log"

    def write(self, cell: Cell, record: dict) -> None:
        """Keep the record of a finished cell. Written at once and atomically."""
        write_json(self._path(cell), {"cell": cell.description, **record})

    def read(self, cell: Cell) -> dict | None:
        """The record of a cell; None if there is none."""
        path = self._path(cell)
        record = read_json(path) if path.is_file() else None
        if record is not None and (not isinstance(record, dict) or record.get("cell") != cell.description):
            raise UserError(f"{path}: not the record of {cell.label}; delete it")
        return record

    def forget(self, cell: Cell) -> None:
        self._path(cell).unlink(missing_ok=True)

    def others(self, cells: Sequence[Cell]) -> int:
        """How many records belong to none of these cells."""
        return len({path.name for path in self._path(None).glob("*.json")} - {f"{cell.key}.json" for cell in cells})

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder. The system releases it when this process ends, however it ends. Raises UserError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                holder = f" (process {pid})" if (pid := file.read().strip()) else ""
                raise UserError(f"{self.folder}: in use by another run{holder}; wait or choose other --runs") from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def _path(self, cell: Cell | None) -> Path:
        return self.folder / "cells" / f"{cell.key}.json" if cell else self.folder / "cells"
