"""A run's folder: config.json, log.jsonl, checkpoint.pt, the network, what is shipped of it, metrics.json, figures/, report.html."""

import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from nas.errors import UserError
from nas.files import plain, read_bytes, read_json, reason, write_bytes, write_json

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
NETWORKS = ("arch.json", "network.json", "calibrated.pt", "int8.pt", "int8.onnx")
RESULTS = (*NETWORKS, "metrics.json", "front.json", "latency.json", "report.html")
_FORMAT = {"format": "checkpoint", "version": 1}


class Run:
    """The folder of one run. Every write is atomic; every failure is a UserError that names file and mend."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: this folder cannot be made ({reason(error)})") from error

    def write_json(self, name: str, value: Any) -> None:
        write_json(self.path / name, value)

    def read_json(self, name: str) -> Any:
        return read_json(self.path / name)

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def figure(self, name: str) -> Path:
        """The path of a picture, in the run's `figures` folder."""
        return self.path / "figures" / name

    def claim(self, config: dict, restart: bool = False, free: tuple[str, ...] = ()) -> bool:
        """Make this the folder of a run with `config`; returns whether there is a checkpoint to go on from.

        A run that was begun with other settings is not mixed with this one: UserError naming the fields that differ (those
        in `free`, which do not change results, may). `restart` deletes what such a run left.
        """
        if self.has("config.json") and self.read_json("config.json").get("program") != config.get("program"):
            raise UserError(f"name: {self.path} holds a run of another program; choose another --name")
        if restart:
            for name in (CHECKPOINT, LOG, *RESULTS):
                (self.path / name).unlink(missing_ok=True)
        elif self.has(CHECKPOINT) and self.has("config.json"):
            before = self.read_json("config.json")
            unlike = [words for k, v in plain(config).items() if k not in free for words in _differences(k, before.get(k), v)]
            if unlike:
                mend = "repeat them, choose another --name, or add --restart"
                raise UserError(f"{self.path}: holds a run with other settings ({', '.join(unlike)}); {mend}")
        self.write_json("config.json", config)
        return self.has(CHECKPOINT)

    # ---- log: one JSON object a line ----

    def append_log(self, row: dict) -> None:
        """Add one line to log.jsonl."""
        line = json.dumps(plain(row), allow_nan=False) + "\n"
        path = self.path / LOG
        try:
            with open(path, "ab") as file:
                torn = file.tell() > 0 and not _ends_with_newline(path)
                file.write(b"\n" * torn + line.encode())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({reason(error)})") from error

    def read_log(self) -> list[dict]:
        """The rows of log.jsonl, without a line that a kill cut short; [] where there is no log."""
        if not self.has(LOG):
            return []
        rows = []
        for line in read_bytes(self.path / LOG).splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows

    def rewind_log(self, step: int) -> None:
        """Drop the rows after `step` (their "step"), which a resumed run will write again."""
        rows = [row for row in self.read_log() if row.get("step", 0) <= step]
        write_bytes(self.path / LOG, "".join(json.dumps(row) + "\n" for row in rows).encode())

    # ---- checkpoint: tensors and plain values ----

    def save_checkpoint(self, state: dict, name: str = CHECKPOINT) -> None:
        """Save a dict of tensors, numbers, strings, lists and dicts."""
        buffer = io.BytesIO()  # in memory first: torch turns a full disk into an error without its cause
        torch.save({**_FORMAT, "state": state}, buffer)
        write_bytes(self.path / name, buffer.getvalue())

    def load_checkpoint(self, name: str = CHECKPOINT, map_location: str = "cpu") -> dict:
        """The saved dict. Nothing in the file is executed. Raises UserError for a broken or foreign file."""
        path = self.path / name
        data = read_bytes(path)
        try:
            saved = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
        except Exception as error:  # torch raises a dozen kinds for broken bytes, all with one meaning
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: not a whole checkpoint ({first}); delete it to start again") from error
        if not isinstance(saved, dict) or any(saved.get(k) != v for k, v in _FORMAT.items()):
            raise UserError(f"{path}: a checkpoint of another program or version; delete it to start again")
        return saved["state"]


def _differences(name: str, then: Any, now: Any) -> list[str]:
    """In words, where two settings differ: of nested ones only the innermost, with dots in their names."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [words for k in {**then, **now} for words in _differences(f"{name}.{k}", then.get(k), now.get(k))]
    return [f"{name}: {then!r} then, {now!r} now"] if then != now else []


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
