"""Training and search speed of this source tree against an earlier commit, in interleaved repeats.

    python -m benchmarks.speed.training --before COMMIT --output docs/results/training_speed

Each repeat runs retrain.py and search.py of both trees with their defaults on the same images, in an order that
alternates. What is compared are ratios of medians. Conditions: `idle`, `one_core` (the programs may use one CPU) and
`busy` (another process computes without a pause).
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from common.checks import check_choice
from common.cli import guard, option, parse
from common.errors import UserError
from common.files import read_json, write_bytes, write_json
from common.processes import cpu_count
from latency_lut.machine import cpu_model

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("drive_training.py")
RETRAIN = ("--arch", "frostnet_small_0_5", "--input-size", "32", "--epochs", "2", "--train-images", "4096")
SEARCH = ("--width", "0.5", "--preset", "smoke", "--controls", "2", "--train-images", "4000")
STEPS = {"base-steps": 8, "float-steps": 16, "quant-steps": 16, "joint-steps": 24, "rescored": 4, "tune-steps": 20}
CONDITIONS, PROGRAMS = ("idle", "one_core", "busy"), ("retrain", "search")
BUSY = "while True: pass"


@dataclass(frozen=True)
class SpeedConfig:
    before: str = option(help="commit to compare with")
    conditions: tuple[str, ...] = option(("idle",), f"what else the machine does: {', '.join(CONDITIONS)}")
    repeats: int = option(3, "repeats of each program in each tree")
    programs: tuple[str, ...] = option(PROGRAMS, "programs to time")
    folder: str = option("runs/training_speed", "folder of the runs and of the latency table")
    output: str = option("docs/results/training_speed", "results, without the ending")

    def __post_init__(self):
        for condition in self.conditions:
            check_choice("conditions", condition, CONDITIONS)
        for program in self.programs:
            check_choice("programs", program, PROGRAMS)


@guard
def main(argv=None) -> Path:
    """Measure, add to the results of other conditions, and write the page; returns the JSON's path."""
    config = parse(SpeedConfig, argv, "training.py", __doc__)
    folder, path = Path(config.folder).absolute(), Path(config.output).with_suffix(".json")
    results = read_json(path) if path.is_file() else {}
    with source_tree(config.before) as before:
        trees = {"before": before, "after": ROOT}
        table = latency_table(folder)
        for condition in config.conditions:
            with beside(condition):
                rows = repeats(config, trees, folder, table, condition)
            results[condition] = {**results.get(condition, {}), **summary(rows)}
            results["machine"] = {"cpu": cpu_model(), "cpus": cpu_count(), "before": config.before}
            write_json(path, results)
    write_bytes(path.with_suffix(".md"), page(results).encode())
    return path


@contextlib.contextmanager
def source_tree(commit: str) -> Iterator[Path]:
    """The files of a commit in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
        if archive.returncode:
            raise UserError(f"before: {archive.stderr.decode().strip()}")
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


def latency_table(folder: Path) -> Path:
    """A table for the search: measured once, what it says does not matter here."""
    path = folder / "fbgemm.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        words = ["--engine", "fbgemm", "--width", "0.5", "--input-size", "32", "--output", str(path)]
        subprocess.run([sys.executable, "-m", "latency_lut", *words], cwd=ROOT, check=True)
    return path


@contextlib.contextmanager
def beside(condition: str) -> Iterator[None]:
    """The condition that the machine is in."""
    busy = subprocess.Popen([sys.executable, "-c", BUSY]) if condition == "busy" else None
    try:
        yield
    finally:
        if busy:
            busy.kill()


def repeats(config: SpeedConfig, trees: dict[str, Path], folder: Path, table: Path, condition: str) -> list[dict]:
    """{"side": .., "what": .., "images_per_second": ..} of every run."""
    rows = []
    for number in range(config.repeats):
        for side in sorted(trees, reverse=bool(number % 2)):
            for program in config.programs:
                found = drive(program, trees[side], folder / f"{side}_{program}", table, condition)
                rows += [{"side": side, "what": f"{program} {name}", "rate": rate} for name, rate in found.items()]
                print(f"{condition} {number + 1}/{config.repeats} {side} {program}: {found}", flush=True)
    return rows


def drive(program: str, tree: Path, runs: Path, table: Path, condition: str) -> dict[str, float]:
    """Images per second of one run by phase; of the search's finalists networks per second."""
    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir(parents=True)
    words = list(RETRAIN)
    if program == "search":
        words = [*SEARCH, "--latency-lut", str(table), *(w for k, v in STEPS.items() for w in (f"--{k}", str(v)))]
    command = [sys.executable, str(DRIVER), program, str(runs / "rates.json"), *words]
    command += ["--name", "run", "--runs", str(runs)]
    command = ["taskset", "-c", "0", *command] if condition == "one_core" else command
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise UserError(f"{program} of {tree}: {done.stderr.strip().splitlines()[-1]}")
    rates = read_json(runs / "rates.json")
    if program == "search":
        batch = read_json(runs / "run" / "config.json")["batch_size"]
        rates = {name: rate * (1 if name == "tuned" else batch) for name, rate in rates.items()}
    return rates


def environment() -> dict[str, str]:
    """Ours without settings of threads, which would decide for the programs."""
    return {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}


def summary(rows: list[dict]) -> dict[str, dict]:
    """By what was timed: medians, ratio, and all values of both sides."""
    found = {}
    for what in dict.fromkeys(row["what"] for row in rows):
        sides = {
            side: [row["rate"] for row in rows if (row["what"], row["side"]) == (what, side)]
            for side in ("before", "after")
        }
        found[what] = {**sides, "ratio": median(sides["after"]) / median(sides["before"])}
    return found


def page(results: dict) -> str:
    """The results as Markdown."""
    machine = results["machine"]
    lines = [
        "# Training speed",
        "",
        f"Written by `python -m benchmarks.speed.training --before {machine['before']}` on {machine['cpu']}, "
        f"{machine['cpus']} CPUs. Images per second (search tuned: networks per second), medians of interleaved runs.",
        "",
        "| condition | what | before | after | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for condition, found in results.items():
        for what, row in found.items() if condition != "machine" else ():
            before, after = median(row["before"]), median(row["after"])
            lines.append(f"| {condition} | {what} | {before:.4g} | {after:.4g} | {row['ratio']:.2f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
