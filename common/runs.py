"""A run's folder: config.json, log.jsonl, checkpoint.pt, the network, what is shipped of it, metrics.json, figures/,
report.html.

The log's numbers are also written as TensorBoard events, into tensorboard/.
"""

import io
import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.files import plain, read_bytes, read_json, reason, write_bytes, write_json

CHECKPOINT, LOG, ALPHAS, EVENTS = "checkpoint.pt", "log.jsonl", "alphas.jsonl", "tensorboard"
NETWORKS = ("arch.json", "network.json", "calibrated.pt", "float_phase.pt", "int8.pt", "int8.onnx")
CONTACT = "contact.png"  # among the figures: what the networks of a style transfer make
RESULTS = (*NETWORKS, "bottleneck.json", "rescored.json", "metrics.json", "front.json", "latency.json", "report.html")
FOLDERS = (EVENTS, "tried", "pareto", "figures")
_FORMAT = {"format": "checkpoint", "version": 1}


class Run:
    """The folder of one run. Every write is atomic; every failure is a UserError that names file and mend."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._writer = None  # of TensorBoard events, opened by the first row
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

        A run that was begun with other settings is not mixed with this one: UserError naming the fields that differ
        (those in `free`, which do not change results, may). `restart` deletes what such a run left.
        """
        before = self.read_json("config.json") if self.has("config.json") else {"program": config.get("program")}
        if not isinstance(before, dict):
            raise UserError(
                f"{self.path / 'config.json'}: a {type(before).__name__}, must be an object; choose another --name"
            )
        if before.get("program") != config.get("program"):
            raise UserError(f"name: {self.path} holds a run of another program; choose another --name")
        if restart:
            (self.path / CHECKPOINT).unlink(missing_ok=True)
        elif self.has(CHECKPOINT) and self.has("config.json"):
            unlike = [
                words for k, v in plain(config).items() if k not in free for words in _differences(k, before.get(k), v)
            ]
            if unlike:
                mend = "repeat them, choose another --name, or add --restart"
                raise UserError(f"{self.path}: holds a run with other settings ({', '.join(unlike)}); {mend}")
        if not self.has(CHECKPOINT):  # it begins at its first step: nothing that an earlier sitting left belongs to it
            for name in (LOG, ALPHAS, *RESULTS):
                (self.path / name).unlink(missing_ok=True)
            for name in FOLDERS:
                shutil.rmtree(self.path / name, ignore_errors=True)
        self.write_json("config.json", config)
        return self.has(CHECKPOINT)

    # ---- logs: one JSON object a line ----

    def append_log(self, row: dict, name: str = LOG) -> None:
        """Add one line to a log. Numbers of log.jsonl, where they have a "step", become TensorBoard events, too."""
        row = plain(row)
        line = json.dumps(row, allow_nan=False) + "\n"
        path = self.path / name
        try:
            with open(path, "ab") as file:
                torn = file.tell() > 0 and not _ends_with_newline(path)
                file.write(b"\n" * torn + line.encode())
            if name == LOG:
                self._add_events(row)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({reason(error)})") from error

    def _add_events(self, row: dict) -> None:
        for key, value in row.items():
            if "step" in row and key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer = self._writer or self._open_events()
                self._writer.add_scalar(key, value, row["step"])

    def _open_events(self, purge_step: int | None = None):
        """A writer of TensorBoard events, in which those at `purge_step` and after, of an earlier sitting, no longer
        count.
        """
        from torch.utils.tensorboard import SummaryWriter  # here: who only reads runs need not wait for its import

        # Rarely flushed: what is lost by a kill comes after the last checkpoint and is written again.
        writer = SummaryWriter(str(self.path / EVENTS), purge_step=purge_step, max_queue=1000, flush_secs=120)
        weakref.finalize(self, writer.close)  # the run ends with this object, at the latest when the program does
        return writer

    def read_log(self, name: str = LOG) -> list[dict]:
        """The rows of a log, without a line that a kill cut short; [] where there is no log."""
        if not self.has(name):
            return []
        rows = []
        for line in read_bytes(self.path / name).splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows

    def rewind_log(self, step: int) -> None:
        """Drop the rows and events after `step` (their "step"), which a resumed run will write again."""
        for name in (LOG, ALPHAS):
            rows = [row for row in self.read_log(name) if row.get("step", 0) <= step]
            if self.has(name):
                write_bytes(self.path / name, "".join(json.dumps(row) + "\n" for row in rows).encode())
        if self._writer:
            self._writer.close()
        self._writer = self._open_events(purge_step=step + 1)

    # ---- checkpoint: tensors and plain values ----

    def save_checkpoint(self, state: dict, name: str = CHECKPOINT) -> None:
        """Save a dict of tensors, numbers, strings, lists and dicts; the events up to here are on the disk before it
        is.
        """
        if self._writer:
            self._writer.flush()
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
