"""Can latency tables be trusted here? Builds two tables an engine and validates one on fresh networks, also beside a
busy process.

    PYTHONPATH=. python benchmarks/latency_lut_quality.py             # as the machine is
    PYTHONPATH=. python benchmarks/latency_lut_quality.py --busy      # with one more process that never rests

Of each engine and input size: seconds of a build, |A - B| / min(A, B) of every entry of two independent builds, and the
errors of 32 networks that neither has seen. Writes docs/results/latency_lut.{json,md} after each; the same command goes
on where it was stopped.
"""

import contextlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import latency_lut.__main__ as program
import quant
from common.checks import check_number, check_object, check_str
from common.cli import guard, option, parse
from common.errors import UserError
from common.files import read_json, write_bytes, write_json
from latency_lut import LatencyTable, machine
from latency_lut.commands.validate import validate

BARS = {"seconds_224": ("<=", 90), "seconds_32": ("<=", 60), "repeat_p95": ("<=", 0.08), "mape": ("<=", 0.04),
        "within_10": (">=", 0.95), "spearman": (">=", 0.97)}  # fmt: skip
HEADINGS = ("engine, px, machine", "seconds", "CPU s", "repeat p50", "p95", "max", "bias", "MAPE", "within 10 %", "Spearman", "load",
            "steal", "bars missed")  # fmt: skip
FIELDS = (
    "seconds",
    "cpu_seconds",
    "repeat_p50",
    "repeat_p95",
    "repeat_max",
    "bias",
    "mape",
    "within_10",
    "spearman",
    "load",
    "steal",
)


@dataclass(frozen=True)
class QualityConfig:
    engines: tuple[str, ...] = option(("fbgemm", "onednn", "onnxruntime"), "engines")
    sizes: tuple[int, ...] = option((32, 224), "pixels")
    busy: bool = option(False, "beside a process that never rests, pinned nowhere")
    minutes: float = option(1e9, "begin nothing further after so many minutes")
    tables: str = option("runs/latency_lut_quality", "folder of the tables")
    output: str = option("docs/results/latency_lut", "the results, without .json and .md")
    restart: bool = option(False, "measure anew what was measured before")

    def __post_init__(self):
        for engine in self.engines:
            if engine not in quant.available():
                raise UserError(f"engines: {engine!r} does not run here; choose from {', '.join(quant.available())}")


@guard(errors=(quant.QuantError,))
def main(argv=None) -> dict:
    config = parse(QualityConfig, argv, "latency_lut_quality.py", __doc__)
    found, end = _begun(config), time.monotonic() + 60 * config.minutes
    jobs = [(engine, size) for size in config.sizes for engine in config.engines]
    for engine, size in tqdm(jobs, desc="engines and sizes"):
        name = f"{engine} {size} {'busy' if config.busy else 'as it is'}"
        if (name in found["rows"] and not config.restart) or time.monotonic() > end:
            continue
        with _busy() if config.busy else contextlib.nullcontext():
            found["rows"][name] = measured(engine, size, Path(config.tables) / ("busy" if config.busy else "quiet"))
        write(found, config.output)
    write(found, config.output)
    print(json.dumps(found["rows"]))
    return found


def measured(engine: str, size: int, folder: Path) -> dict:
    """One row: two builds from nothing and a validation."""
    seconds, tables = [], []
    for letter, seed in (("a", 0), ("b", 1)):
        path = folder / f"{engine}_{size}_{letter}.json"
        words = ["--engine", engine, "--output", str(path), "--input-size", str(size), "--seed", str(seed)]
        wall, cpu = time.monotonic(), time.process_time()
        tables.append(program.main([*words, "--restart"]))
        seconds.append((time.monotonic() - wall, time.process_time() - cpu))
    (key,) = tables[0].sections
    table = validate(tables[0], key, seed=1000)
    seen = [c for t in (*tables, table) for c in t.sections[key].conditions] + list(
        table.sections[key].validated.conditions
    )
    figures = table.sections[key].validated.figures
    return {
        "seconds": round(max(s for s, _ in seconds), 1),
        "cpu_seconds": round(max(c for _, c in seconds), 1),
        **repeatability(*tables),
        **{field: figures[field] for field in ("bias", "mape", "within_10", "spearman")},
        **{field: max((c[field] for c in seen if c[field] is not None), default=None) for field in ("load", "steal")},
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def repeatability(a: LatencyTable, b: LatencyTable) -> dict:
    """|A - B| / min(A, B) over the entries of two builds: median, 95 % quantile, largest."""
    pairs = [(a.entries[key].ms, b.entries[key].ms) for key in a.entries.keys() & b.entries.keys()]
    apart = [abs(x - y) / min(x, y) for x, y in pairs]
    return {
        "repeat_p50": float(np.median(apart)),
        "repeat_p95": float(np.quantile(apart, 0.95)),
        "repeat_max": max(apart),
    }


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """Beside a process that multiplies matrices all the time."""
    process = multiprocessing.get_context("spawn").Process(target=_multiply, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _multiply() -> None:
    numbers = np.random.default_rng(0).random((700, 700))
    while True:
        numbers @ numbers  # noqa: B018


# ---- files -------------------------------------------------------------------------------------------------


def _begun(config: QualityConfig) -> dict:
    """What an earlier call on this machine found."""
    about = {"cpu": machine.cpu_model(), "flags": list(machine.cpu_flags()), "cores": os.cpu_count()}
    path = Path(f"{config.output}.json")
    if not path.exists():
        return {"about": about, "rows": {}}
    try:
        before = checked(read_json(path))
    except UserError as error:
        raise UserError(f"{path}: {error}; choose another --output, or remove it") from error
    if before["about"] != about:
        raise UserError(
            f"{path}: is of another machine ({before['about']['cpu']}); choose another --output, or remove it"
        )
    return before


def checked(data: Any) -> dict:
    """What the JSON holds. Raises UserError naming the field."""
    check_object("", check_object("the file", data), ("about", "rows"))
    check_object("about", data["about"], ("cpu", "flags", "cores"))
    for name, row in check_object("rows", data["rows"]).items():
        check_object(f"rows.{name}", row, (*FIELDS, "date"))
        check_str(f"rows.{name}.date", row["date"])
        for field in FIELDS:
            if row[field] is not None:
                check_number(f"rows.{name}.{field}", row[field])
    return data


def misses(name: str, row: dict) -> list[str]:
    """The bars that a row misses."""
    size = name.split()[1]
    values = {**row, f"seconds_{size}": row["seconds"]}
    return [
        field
        for field, (sign, bar) in BARS.items()
        if field in values and (values[field] - bar) * (1 if sign == "<=" else -1) > 0
    ]


def write(found: dict, output: str) -> None:
    write_json(f"{output}.json", found)
    about = found["about"]
    lines = [
        "# How good are the latency tables?",
        "",
        f"{about['cpu']}, {about['cores']} cores, 1 thread, batch 1, the default space. Of each engine and input size two independent",
        "builds (seconds: the slower one, by the clock and in CPU time; load and steal: the worst seen), how far their entries lie",
        "apart (|A - B| / min), and how well the first predicts 32 fresh random networks.",
        "",
        "Bars: a build within 90 s at 224 px and 60 s at 32 px, entries repeat to 8 % (p95), MAPE at most 4 %, at least 95 % of the",
        "networks within 10 %, Spearman at least 0.97.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|---" * len(HEADINGS) + "|",
    ]
    for name, r in found["rows"].items():
        steal = "-" if r["steal"] is None else f"{r['steal']:.1%}"
        lines.append(
            f"| {name} | {r['seconds']:.0f} | {r['cpu_seconds']:.0f} | "
            f"{r['repeat_p50']:.1%} | {r['repeat_p95']:.1%} | {r['repeat_max']:.1%} | "
            f"{r['bias']:+.1%} | {r['mape']:.1%} | {r['within_10']:.0%} | {r['spearman']:.3f} | {r['load']} | {steal} | "
            f"{', '.join(misses(name, r)) or 'none'} |"
        )
    lines += ["", "Again: `PYTHONPATH=. python benchmarks/latency_lut_quality.py`, then with `--busy`.", ""]
    write_bytes(f"{output}.md", "\n".join(lines).encode())


if __name__ == "__main__":
    main()
