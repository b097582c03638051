"""The JSON file of a benchmark: what was measured on which machine, kept network by network."""

import dataclasses
import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latency_lut import machine
from latency_lut.checks import a_list, a_number, a_text, a_whole, an_object
from latency_lut.timing import Timing
from nas import UserError, read_json, write_json

FORMAT, VERSION = "latency_bench", 1
SAME = ("cpu", "flags", "torch", "onnxruntime", "openvino")  # of meta: figures of two machines do not mix
KEY = ("arch", "input_size", "classes", "threads", "batch")  # of a result
_OTHER_FIELDS = ("params", "macs", "fingerprint", "rounds", "rows", "profile", "seen")


@dataclass
class Results:
    """`results`: dicts as bench.measure makes them, one for each KEY. `prefix`: the files' names without .json, .csv, .png."""

    prefix: Path
    meta: dict
    results: list[dict] = dataclasses.field(default_factory=list)

    @classmethod
    def new(cls, prefix: str | Path) -> "Results":
        return cls(_prefix(prefix), identity())

    @classmethod
    def open(cls, prefix: str | Path) -> "Results":
        """What the file holds, else nothing yet. Raises UserError for a broken file or one of another machine."""
        path = f"{_prefix(prefix)}.json"
        if not Path(path).exists():
            return cls.new(prefix)
        try:
            return cls(_prefix(prefix), *_checked(read_json(path)))
        except UserError as error:
            raise UserError(f"{error}" if path in str(error) else f"{path}: {error}") from error

    def save(self) -> None:
        """Write the JSON, atomically."""
        write_json(f"{self.prefix}.json", {"format": FORMAT, "version": VERSION, "meta": self.meta, "results": self.results})

    def find(self, job: tuple, rounds: int, names: Sequence[str], profiled: bool) -> dict | None:
        """The result of a job (bench.Job) that was measured with the same settings."""
        for result in self.results:
            same = all(result[field] == value for field, value in job._asdict().items()) and result["rounds"] == rounds
            if same and [row["name"] for row in result["rows"]] == list(names) and (result["profile"] or not profiled):
                return result
        return None

    def put(self, result: dict) -> None:
        """Keep a result, in the place of one of the same network and condition."""
        key = [result[field] for field in KEY]
        self.results = [r for r in self.results if [r[field] for field in KEY] != key] + [result]


def identity() -> dict:
    """What a measurement on this machine speaks for."""
    versions = {name: _version(name) for name in ("torch", "onnxruntime", "openvino")}
    return {"cpu": machine.cpu_model(), "flags": list(machine.cpu_flags()), "cores": os.cpu_count(), **versions}


def latency_ms(row: dict) -> float | None:
    """A row's latency in milliseconds, the minimum over its rounds; None where it did not run."""
    return Timing(tuple(row["rounds_ms"])).ms if row.get("rounds_ms") else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _prefix(prefix: str | Path) -> Path:
    return Path(str(prefix).removesuffix(".json"))


def _checked(data: Any) -> tuple[dict, list[dict]]:
    """(meta, results) of a file. Raises UserError naming the field."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"format: must be {FORMAT!r}: this is no file of this benchmark; choose another --output")
    an_object("", data, ("format", "version", "meta", "results"))
    a_whole("version", data["version"], VERSION, VERSION)
    here = identity()
    meta = an_object("meta", data["meta"], tuple(here))
    for field in SAME:
        if meta[field] != here[field]:
            was, is_ = (_worded(m[field]) for m in (meta, here))
            raise UserError(f"meta.{field}: measured with {was}, here is {is_}; choose another --output, or add --restart")
    for number, result in enumerate(a_list("results", data["results"])):
        _check_result(f"results[{number}]", result)
    return meta, data["results"]


def _check_result(path: str, result: Any) -> None:
    an_object(path, result, (*KEY, *_OTHER_FIELDS))
    for field in ("arch", "fingerprint"):
        a_text(f"{path}.{field}", result[field])
    for field in ("input_size", "classes", "threads", "batch", "params", "macs", "rounds"):
        a_whole(f"{path}.{field}", result[field], 1, 2**53)
    an_object(f"{path}.profile", result["profile"])
    an_object(f"{path}.seen", result["seen"], ("date", "seconds", "load", "steal"))
    for number, row in enumerate(a_list(f"{path}.rows", result["rows"])):
        _check_row(f"{path}.rows[{number}]", row)


def _check_row(path: str, row: Any) -> None:
    a_text(f"{path}.name", an_object(path, row).get("name"))
    if row.get("reason") is not None:
        return
    an_object(path, row, ("name", "rounds_ms", "file_bytes", "float_ops", "float_convs", "reason"))
    for number, ms in enumerate(a_list(f"{path}.rounds_ms", row["rounds_ms"], 1)):
        a_number(f"{path}.rounds_ms[{number}]", ms, 1e-6, 1e9)
    a_whole(f"{path}.file_bytes", row["file_bytes"], 1, 2**53)
    a_whole(f"{path}.float_convs", row["float_convs"], 0, 2**53)
    if row["float_ops"] is not None:
        a_list(f"{path}.float_ops", row["float_ops"])


def _worded(value: Any) -> str:
    return " ".join(value) or "none" if isinstance(value, list) else str(value)
