"""Time whole networks on this CPU, side by side: INT8 on every engine, and float as a user would deploy it.

    python -m latency_lut bench --arch frostnet_small_1_0 mobilenet_v2 --threads 1,2 --batch 1,8 --output bench

Writes bench.json, bench.csv and bench.png after each network. The same command goes on where it was stopped.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

import frostnet
import quant
import zoo
from common.checks import check_fields
from common.cli import option
from common.errors import UserError
from common.files import read_json
from common.processes import cpu_count
from latency_lut.bench import report
from latency_lut.bench.contenders import FLOATS
from latency_lut.bench.measure import Job, measure
from latency_lut.bench.results import Results, file_prefix
from latency_lut.timing import BEST
from nas import count
from nas.arch import find_file

ALL = "all"
_NAMED = ", ".join(name for name, engine in quant.ENGINES.items() if not engine.by_default)
_BOUNDS = {
    "threads": (1, cpu_count()),
    "batch": (1, 1024),
    "input_size": (16, 1024),
    "classes": (1, 100_000),
    "rounds": (BEST, 1000),
}


@dataclass(frozen=True)
class BenchConfig:
    """One call of the command line."""

    arch: tuple[str, ...] = option(
        help="networks: files, runs, published names, or names of the zoo (python -m zoo list)"
    )
    engine: tuple[str, ...] = option(
        (ALL,), f"INT8 engines; 'all' is what runs here, {_NAMED} apart, which has to be named"
    )
    threads: tuple[int, ...] = option((1,), "threads, one or several counts")
    batch: tuple[int, ...] = option((1,), "images at a time, one or several counts")
    input_size: int = option(224, "pixels, height and width")
    classes: int = option(1000, "classes")
    rounds: int = option(12, "rounds; the latency is the best of them")
    output: str = option("bench", "beginning of the names of the files to write: .json, .csv and .png are added")
    profile: bool = option(False, "time every operation too")
    restart: bool = option(False, "start over where the output file exists")

    def __post_init__(self):
        check_fields(self, _BOUNDS)
        for field in ("arch", "engine", "threads", "batch"):
            if not getattr(self, field):
                raise UserError(f"{field}: an empty list; give one or several, separated by commas or spaces")
        for name in self.engine:
            _check_engine(name)
        file_prefix(self.output)

    def engines(self) -> tuple[str, ...]:
        """The engines asked for, each once."""
        usual = tuple(name for name in quant.available() if quant.ENGINES[name].by_default)
        return tuple(dict.fromkeys(e for name in self.engine for e in (usual if name == ALL else (name,))))


def start_over(config: BenchConfig) -> None:
    """Empty the results."""
    jobs(config)  # a mistyped name must not cost the old results
    Results.new(config.output).save()


def command(config: BenchConfig) -> Results:
    """Time the networks that the results lack, and write them after each."""
    results = Results.open(config.output)
    todo = jobs(config)
    results.save()  # a folder that cannot be written to shows now, not after the first network
    if max(config.threads) > 1:
        print("note: on several threads it is wall time that counts; leave the machine alone meanwhile")
    names = (*FLOATS, *config.engines())
    for number, job in enumerate(todo, 1):
        result = results.find(job, config.rounds, names, config.profile)
        if result is None:
            progress = f"{job.arch} ({number} of {len(todo)})"
            result = measure(job, names, config.rounds, (lambda rows: names) if config.profile else _nothing, progress)
            results.put(result)
            report.save(results)
        print("\n" + report.text(result), flush=True)
    report.save(results)
    print(f"\nwritten: {results.prefix}.json, .csv, .png")
    return results


def jobs(config: BenchConfig) -> list[Job]:
    """All networks under all conditions; raises UserError for one that does not exist or does not take such images."""
    networks = [_described(name, config) for name in dict.fromkeys(map(_known_name, config.arch))]
    conditions = [(t, b) for t in dict.fromkeys(config.threads) for b in dict.fromkeys(config.batch)]
    return [Job(*network[:3], threads, batch, *network[3:]) for threads, batch in conditions for network in networks]


def _nothing(rows: list[dict]) -> tuple[str, ...]:
    return ()


def _known_name(name: str, runs: str | Path = "runs") -> str:
    """The comparison network of a run that trained one, by the network.json in its folder; any other name as it is."""
    files = (folder / "network.json" for folder in (Path(name), Path(runs) / name))
    file = next((file for file in files if file.is_file()), None)
    if file is None or name in (*zoo.NAMES, *frostnet.PUBLISHED) or find_file(name, runs) is not None:
        return name
    data = read_json(file)
    known = data.get("name") if isinstance(data, dict) else None
    if known not in zoo.NAMES:
        raise UserError(
            f"arch: {name} is a run, but the name in its {file} ({known!r}) is no comparison network; restore that file"
        )
    return known


def _described(name: str, config: BenchConfig) -> tuple:
    """(name, input size, classes, parameters, MACs, fingerprint) of a network, found without computing anything."""
    with torch.device("meta"):
        try:
            model = zoo.build(name, config.classes, config.input_size)
        except UserError as error:
            raise UserError(f"arch: {str(error).removeprefix('model: ').removeprefix('arch: ')}") from error
        try:
            params, macs = count(model, torch.empty(1, 3, config.input_size, config.input_size))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"input_size: {config.input_size} does not suit {name} ({str(error).splitlines()[0]}); try 224"
            ) from error
    fingerprint = hashlib.sha256(str(model).encode()).hexdigest()[:16]
    return name, config.input_size, config.classes, params, macs, fingerprint


def _check_engine(name: str) -> None:
    known = [name for name, engine in quant.ENGINES.items() if not engine.oracle]
    if name not in (ALL, *known):
        raise UserError(f"engine: {name!r} is not one of {', '.join((ALL, *known))}")
    if name != ALL and name not in quant.available():
        raise UserError(f"engine: {name!r} does not run here; choose from {', '.join((ALL, *quant.available()))}")
