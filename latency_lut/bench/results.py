"""The JSON file of a benchmark: what was measured on which machine, kept network by network."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.checks import check_format, check_int, check_list, check_number, check_object, check_str, check_strs
from common.errors import UserError
from common.files import read_json, write_json
from latency_lut.bench.contenders import FLOATS
from latency_lut.machine import RUNTIMES, describe, shown
from latency_lut.timing import Timing

FORMAT, VERSION = "latency_bench", 1
SAME = ("cpu", "flags", *RUNTIMES)  # of meta: figures of two machines do not mix
KEY = ("arch", "input_size", "classes", "threads", "batch")  # of a result
_OTHER_FIELDS = ("params", "macs", "fingerprint", "rounds", "rows", "profile", "seen")


@dataclass
class Results:
    """`results`: dicts as bench.measure.measure makes them, one for each KEY.

    `prefix`: the files' names without .json, .csv, .png.
    """

    prefix: Path
    meta: dict
    results: list[dict] = dataclasses.field(default_factory=list)

    @classmethod
    def new(cls, prefix: str | Path) -> "Results":
        return cls(file_prefix(prefix), describe())

    @classmethod
    def open(cls, prefix: str | Path, any_machine: bool = False) -> "Results":
        """What the file holds, else nothing yet.

        Raises UserError for a broken file and, unless `any_machine`, one of another machine.
        """
        path = f"{file_prefix(prefix)}.json"
        if not Path(path).exists():
            return cls.new(prefix)
        try:
            return cls(file_prefix(prefix), *_checked(read_json(path), any_machine))
        except UserError as error:
            raise UserError(f"{error}" if path in str(error) else f"{path}: {error}") from error

    def save(self) -> None:
        """Write the JSON, atomically."""
        write_json(
            f"{self.prefix}.json", {"format": FORMAT, "version": VERSION, "meta": self.meta, "results": self.results}
        )

    def find(self, job: tuple, rounds: int, names: Sequence[str], profiled: bool) -> dict | None:
        """The result of a job (bench.measure.Job) that was measured with the same settings."""
        for result in self.results:
            same = all(result[field] == value for field, value in job._asdict().items()) and result["rounds"] == rounds
            if same and [row["name"] for row in result["rows"]] == list(names) and (result["profile"] or not profiled):
                return result
        return None

    def put(self, result: dict) -> None:
        """Keep a result, in the place of one of the same network and condition."""
        key = [result[field] for field in KEY]
        self.results = [r for r in self.results if [r[field] for field in KEY] != key] + [result]


def latency_ms(row: dict) -> float | None:
    """A row's latency in milliseconds, the minimum over its rounds; None where it did not run."""
    return Timing(tuple(row["rounds_ms"])).ms if row.get("rounds_ms") else None


def median_ms(row: dict) -> float | None:
    """The median of a row's rounds in milliseconds; None where it did not run."""
    return statistics.median(row["rounds_ms"]) if row.get("rounds_ms") else None


def file_prefix(prefix: str | Path) -> Path:
    """The beginning of the names of the files to write, without .json.

    Raises UserError for a folder and for no name at all.
    """
    text = str(prefix).removesuffix(".json")
    if not Path(text).name or text.endswith("/") or Path(text).is_dir():
        raise UserError(
            f"output: {str(prefix)!r} is a folder or no name; give the beginning of the names of the files, such as "
            "here/bench"
        )
    return Path(text)


def _checked(data: Any, any_machine: bool) -> tuple[dict, list[dict]]:
    """(meta, results) of a file. Raises UserError naming the field."""
    check_format(data, FORMAT, VERSION, ("meta", "results"))
    here = describe()
    meta = _checked_meta(data["meta"], here)
    for field in () if any_machine else SAME:
        if meta[field] != here[field]:
            was, is_ = (shown(m[field]) for m in (meta, here))
            raise UserError(
                f"meta.{field}: measured with {was}, here is {is_}; choose another --output, or add --restart"
            )
    for number, result in enumerate(check_list("results", data["results"])):
        _check_result(f"results[{number}]", result)
    return meta, data["results"]


def _checked_meta(meta: Any, here: dict) -> dict:
    # a runtime that the file does not know, since it was added later, measured none of its results
    added = {name: here[name] for name in RUNTIMES if name not in check_object("meta", meta)}
    meta = check_object("meta", meta | added, tuple(here))
    check_strs("meta.flags", meta["flags"])
    check_str("meta.cpu", meta["cpu"])
    _unless_none(check_int, "meta.cores", meta["cores"], 1, 2**20)
    for field in RUNTIMES:
        _unless_none(check_str, f"meta.{field}", meta[field])
    return meta


def _check_result(path: str, result: Any) -> None:
    check_object(path, result, (*KEY, *_OTHER_FIELDS))
    for field in ("arch", "fingerprint"):
        check_str(f"{path}.{field}", result[field])
    for field in ("input_size", "classes", "threads", "batch", "params", "macs", "rounds"):
        check_int(f"{path}.{field}", result[field], 1, 2**53)
    _check_seen(f"{path}.seen", result["seen"])
    for name, rows in check_object(f"{path}.profile", result["profile"]).items():
        for number, row in enumerate(check_list(f"{path}.profile.{name}", rows)):
            _check_operation(f"{path}.profile.{name}[{number}]", row)
    for number, row in enumerate(check_list(f"{path}.rows", result["rows"])):
        _check_row(f"{path}.rows[{number}]", row)


def _check_seen(path: str, seen: Any) -> None:
    check_object(path, seen, ("date", "seconds", "load", "steal"))
    check_str(f"{path}.date", seen["date"])
    check_number(f"{path}.seconds", seen["seconds"])
    for field in ("load", "steal"):
        _unless_none(check_number, f"{path}.{field}", seen[field])


def _check_operation(path: str, row: Any) -> None:
    check_object(path, row, ("op", "kind", "calls", "ms", "share"))
    check_str(f"{path}.op", row["op"])
    check_str(f"{path}.kind", row["kind"], ("integer", "float", "convert", ""))
    check_int(f"{path}.calls", row["calls"], 0, 2**53)
    check_number(f"{path}.ms", row["ms"])
    check_number(f"{path}.share", row["share"])


def _check_row(path: str, row: Any) -> None:
    check_str(f"{path}.name", check_object(path, row).get("name"))
    if row.get("reason") is not None:
        check_str(f"{path}.reason", check_object(path, row, ("name", "reason"))["reason"])
        return
    check_object(path, row, ("name", "rounds_ms", "file_bytes", "float_ops", "float_convs", "reason"))
    for number, ms in enumerate(check_list(f"{path}.rounds_ms", row["rounds_ms"], 1)):
        check_number(f"{path}.rounds_ms[{number}]", ms, 1e-6, 1e9)
    check_int(f"{path}.file_bytes", row["file_bytes"], 1, 2**53)
    check_int(f"{path}.float_convs", row["float_convs"], 0, 2**53)
    if row["name"] not in FLOATS or row["float_ops"] is not None:
        check_strs(f"{path}.float_ops", row["float_ops"])


def _unless_none(check: Callable, path: str, value: Any, *bounds: Any) -> None:
    if value is not None:
        check(path, value, *bounds)
