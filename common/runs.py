"""The folder of a run, runs/NAME: settings, logs, a checkpoint, and what the run made.

config.json     the settings that the run was begun with
log.jsonl       a row of numbers for every logged step; also as TensorBoard events, in tensorboard/
checkpoint.pt   the complete state, to continue from
RESULTS         files that the run makes, most of them at its end
RESULT_FOLDERS  folders of further files
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

CONFIG, CHECKPOINT = "config.json", "checkpoint.pt"
LOG, ALPHAS = "log.jsonl", "alphas.jsonl"  # logs: of a training; of a search's architecture parameters
EVENTS = "tensorboard"
CONTACT = "contact.png"  # in figures/: the sample images of a style transfer, shown in report.html
RESULTS = (
    *("arch.json", "network.json", "calibrated.pt", "float_phase.pt", "int8.pt", "int8.onnx"),
    *("bottleneck.json", "rescored.json", "metrics.json", "front.json", "latency.json", "report.html"),
)
RESULT_FOLDERS = (EVENTS, "tried", "pareto", "figures")
_FORMAT = {"format": "checkpoint", "version": 1}


def processes_before(path: Path) -> int | None:
    """The number of processes that trained the checkpoint in a run's folder; None where there is none to read."""
    try:
        saved = torch.load(path / CHECKPOINT, map_location="cpu", weights_only=True, mmap=True)
        count = saved["state"]["ranks"]
    except Exception:  # what is wrong with the file is said when it is loaded
        return None
    return count if type(count) is int and count >= 1 else None


class Run:
    """The folder of one run. Every write is atomic; every failure is a UserError that names the file and the fix."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._writer = None  # of TensorBoard events; opened when the first row is logged
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
        """The path of an image in the run's folder `figures`."""
        return self.path / "figures" / name

    def claim(self, config: dict, restart: bool = False, free: tuple[str, ...] = ()) -> bool:
        """Make this the folder of a run with `config`.

        Args:
            config: The settings, "program" among them.
            restart: Begin anew, even if there is a checkpoint.
            free: Settings that do not change results, so that a run may continue with other values of them.

        Returns:
            Whether there is a checkpoint to continue from.

        Raises:
            UserError: If the folder holds a run of another program, or, without `restart`, one with other settings.
        """
        before = self._config_before(config)
        if restart:
            (self.path / CHECKPOINT).unlink(missing_ok=True)
        elif self.has(CHECKPOINT) and self.has(CONFIG):
            self._refuse_other_settings(before, {k: v for k, v in plain(config).items() if k not in free})
        if not self.has(CHECKPOINT):
            self._clear()
        self.write_json(CONFIG, config)
        return self.has(CHECKPOINT)

    def _config_before(self, config: dict) -> dict:
        """The settings of the run that the folder holds; {} if it holds none."""
        if not self.has(CONFIG):
            return {}
        before = self.read_json(CONFIG)
        if not isinstance(before, dict):
            raise UserError(
                f"{self.path / CONFIG}: a {type(before).__name__}, must be an object; choose another --name"
            )
        if before.get("program") != config.get("program"):
            raise UserError(f"name: {self.path} holds a run of another program; choose another --name")
        return before

    def _refuse_other_settings(self, before: dict, now: dict) -> None:
        different = [text for name, value in now.items() for text in _differences(name, before.get(name), value)]
        if different:
            fix = "repeat them, choose another --name, or add --restart"
            raise UserError(f"{self.path}: holds a run with other settings ({', '.join(different)}); {fix}")

    def _clear(self) -> None:
        """Delete what an earlier run left: without a checkpoint, the run starts at its first step."""
        for name in (LOG, ALPHAS, *RESULTS):
            (self.path / name).unlink(missing_ok=True)
        for name in RESULT_FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    # ---- logs: one JSON object a line ----

    def append_log(self, row: dict, name: str = LOG) -> None:
        """Add one line to a log. The numbers of a row of log.jsonl that has a "step" also become TensorBoard events."""
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
        if "step" not in row:
            return
        for key, value in row.items():
            if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer = self._writer or self._open_events()
                self._writer.add_scalar(key, value, row["step"])

    def _open_events(self, purge_step: int | None = None):
        """A writer of TensorBoard events; earlier events from `purge_step` on are dropped."""
        from torch.utils.tensorboard import SummaryWriter  # a slow import, not needed to read runs

        # Rarely flushed: a kill loses only events after the last checkpoint, which a resumed run writes again.
        writer = SummaryWriter(str(self.path / EVENTS), purge_step=purge_step, max_queue=1000, flush_secs=120)
        weakref.finalize(self, writer.close)  # the run ends with this object, at the latest when the program does
        return writer

    def read_log(self, name: str = LOG) -> list[dict]:
        """The rows of a log, without a line that a kill cut short; [] if there is no log."""
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
        """Save a dict of tensors, numbers, strings, lists and dicts."""
        if self._writer:
            self._writer.flush()  # events up to here reach the disk before the checkpoint does
        buffer = io.BytesIO()  # in memory first: torch turns a full disk into an error without its cause
        torch.save({**_FORMAT, "state": state}, buffer)
        write_bytes(self.path / name, buffer.getvalue())

    def load_checkpoint(self, name: str = CHECKPOINT) -> dict:
        """The saved dict. Nothing in the file is executed. Raises UserError for a broken or foreign file."""
        path = self.path / name
        data = read_bytes(path)
        try:
            saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen kinds for broken bytes, all with one meaning
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: not a whole checkpoint ({first}); delete it to start again") from error
        if not isinstance(saved, dict) or any(saved.get(k) != v for k, v in _FORMAT.items()):
            raise UserError(f"{path}: a checkpoint of another program or version; delete it to start again")
        return saved["state"]


def _differences(name: str, then: Any, now: Any) -> list[str]:
    """A text for each difference of a setting; for nested settings only the innermost, with dots in their names."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [text for k in {**then, **now} for text in _differences(f"{name}.{k}", then.get(k), now.get(k))]
    return [f"{name}: {then!r} then, {now!r} now"] if then != now else []


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
