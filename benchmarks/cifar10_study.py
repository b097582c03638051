"""The main job on real pictures: measure this CPU, search, retrain what was found and FrostNet-Small under one recipe,
both to INT8.

    python benchmarks/cifar10_study.py --data-root FOLDER            # FOLDER/{train,val,test}/<class>/*.png, 32 px

Writes docs/results/cifar10.{json,md} and the picture of the network. Every stage goes on where it was stopped.
Trainings run side by side on one thread each; all latencies are measured at the end, alone, in interleaved rounds.
"""

import contextlib
import math
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import latency_lut.__main__ as latency_lut_program
import quant
import search
from common.cli import guard, option, parse
from common.errors import UserError
from common.files import read_json, write_bytes, write_json
from frostnet import FrostNet, find
from latency_lut import LatencyTable, time_networks
from nas import Architecture
from nas.report.architecture import architecture_figure
from nas.report.front import front_figure
from nas.report.style import save as save_figure

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class StudyConfig:
    data_root: str = option(help="folder with train, val and test, one folder a class in each")
    width: float = option(0.5, "width multiplier of the space")
    preset: str = option("small", "preset of the search")
    epochs: int = option(4, "epochs of each training")
    lr: float = option(0.02, "peak learning rate of each training")
    seeds: tuple[int, ...] = option((0, 1), "seeds of the trainings")
    train_images: int = option(20_000, "pictures of each training")
    engine: str = option("fbgemm", "engine")
    jobs: int = option(2, "trainings at a time, one thread each")
    runs: str = option("runs/cifar10_study", "folder of all runs of the study")
    output: str = option("docs/results", "folder of the results")


@guard(errors=(quant.QuantError,))
def main(argv=None) -> Path:
    """Run the study, or go on with it; returns the JSON's path."""
    config = parse(StudyConfig, argv, "cifar10_study.py", __doc__)
    runs = Path(config.runs)
    table_path = runs / "table.json"
    words = ["--engine", config.engine, "--output", str(table_path), "--input-size", "32", "--width", str(config.width)]
    with timed(runs, "table"):
        latency_lut_program.main(words)
    with timed(runs, "search"):
        search.main(
            [
                "--latency-lut",
                str(table_path),
                "--width",
                str(config.width),
                "--data",
                "imagefolder",
                "--data-root",
                config.data_root,
                "--preset",
                config.preset,
                "--name",
                "found",
                "--runs",
                str(runs),
            ]
        )
    names = ["found", f"frostnet_small_{config.width}".replace(".", "_")]
    with timed(runs, "retrain"):
        retrain_all(config, names)
    rows = {name: summary(config, runs, name) for name in names}
    for name, timing in latencies(config, runs, names).items():
        rows[name] |= timing
    table = LatencyTable.load(table_path)
    result = {
        "command": f"python benchmarks/cifar10_study.py --data-root FOLDER --epochs {config.epochs} --seeds {words_of(config.seeds)}",
        "engine": config.engine,
        "cpu": table.meta["cpu"],
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "width": config.width,
        "epochs": config.epochs,
        "lr": config.lr,
        "seeds": list(config.seeds),
        "train_images": config.train_images,
        "test_images": rows[names[0]].pop("test_images"),
        "table": next(iter(table.sections.values())).validation,
        "seconds": read_json(runs / "seconds.json"),
        "search": read_json(runs / "found" / "metrics.json"),
        "finalists": read_json(runs / "found" / "front.json")["networks"],
        "networks": rows,
    }
    return write(config, runs, result)


@contextlib.contextmanager
def timed(runs: Path, stage: str):
    """Add the seconds of a stage, over all sittings, to seconds.json."""
    started = time.monotonic()
    try:
        yield
    finally:
        path = runs / "seconds.json"
        seconds = read_json(path) if path.is_file() else {}
        write_json(path, seconds | {stage: round(seconds.get(stage, 0.0) + time.monotonic() - started, 1)})


def retrain_all(config: StudyConfig, names: list[str]) -> None:
    """Every network with every seed, `jobs` at a time."""

    def one(job: tuple[int, str]) -> None:
        seed, name = job
        command = [
            sys.executable,
            str(ROOT / "retrain.py"),
            "--arch",
            name,
            "--name",
            f"{name}_{seed}",
            "--runs",
            config.runs,
            "--seed",
            str(seed),
            "--data",
            "imagefolder",
            "--data-root",
            config.data_root,
            "--input-size",
            "32",
            "--engine",
            config.engine,
            "--epochs",
            str(config.epochs),
            "--lr",
            str(config.lr),
            "--train-images",
            str(config.train_images),
        ]
        with open(Path(config.runs) / f"{name}_{seed}.log", "w") as log:
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        if done.returncode:
            raise UserError(f"retrain.py stopped with exit code {done.returncode}; see {log.name}")
        print(f"retrained {name} with seed {seed}")

    with ThreadPoolExecutor(config.jobs) as pool:
        list(pool.map(one, [(seed, name) for seed in config.seeds for name in names]))


def summary(config: StudyConfig, runs: Path, name: str) -> dict:
    """Parameters, multiply-accumulates, and test accuracy of each form over the seeds: values, mean, standard
    deviation.
    """
    metrics = [read_json(runs / f"{name}_{seed}" / "metrics.json") for seed in config.seeds]
    row = {"params": metrics[0]["params"], "macs": metrics[0]["macs"], "test_images": metrics[0]["test_images"]}
    for form in ("float", "fake_quant", "int8"):
        values = [next(n for n in m["networks"] if n["network"] == form)["top1_test"] for m in metrics]
        row[f"{form}_top1"] = {
            "values": values,
            "mean": statistics.mean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
    row["layer_steps"] = max(m["parity"]["layer_steps"] for m in metrics)
    row["agreement"] = min(m["parity"]["agreement"] for m in metrics)
    row["train_seconds"] = [m["train_seconds"] for m in metrics]
    return row


def latencies(config: StudyConfig, runs: Path, names: list[str]) -> dict[str, dict]:
    """INT8 and float milliseconds of all networks in one interleaved measurement. Weights do not matter to it."""
    image, forms = torch.randn(1, 3, 32, 32), {}
    for name in names:
        model = FrostNet(_architecture(runs, name))
        graph = quant.attach(model, image, quant.QuantConfig(engine=config.engine)).train()
        with torch.no_grad():
            graph(torch.randn(8, 3, 32, 32))
        forms[f"{name}/int8"] = quant.freeze(quant.convert(graph, config.engine), image)
        forms[f"{name}/float"] = quant.freeze_float(model, image)
    timings = time_networks(forms, image, engine=config.engine, rounds=20)
    return {name: {f"{form}_ms": timings[f"{name}/{form}"].ms for form in ("int8", "float")} for name in names}


def _architecture(runs: Path, name: str) -> Architecture:
    return find(name, runs).for_input(32).with_classes(10)


# ---- results -----------------------------------------------------------------------------------------------


def write(config: StudyConfig, runs: Path, result: dict) -> Path:
    """cifar10.json, cifar10.md and architecture.png."""
    output = Path(config.output)
    arch = _architecture(runs, "found")
    replace(arch, provenance={k: v for k, v in arch.provenance.items() if k != "command"}).save(
        output / "cifar10_found.json"
    )
    parts = read_json(runs / "found" / "latency.json")["parts"]
    save_figure(architecture_figure(arch, parts), output / "architecture.png")
    save_figure(front_figure(read_json(runs / "found" / "front.json")), output / "front.png")
    write_json(output / "cifar10.json", result)
    write_bytes(output / "cifar10.md", page(config, result).encode())
    return output / "cifar10.json"


def words_of(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))


def page(config: StudyConfig, result: dict) -> str:
    """The results as a page."""
    table, found, seeds = result["table"], result["search"], ", ".join(map(str, result["seeds"]))
    seconds = result["seconds"]
    lines = [
        f"# Search and retraining on CIFAR-10 pictures, on {result['cores']} CPU cores",
        "",
        f"Written by `{result['command']}`; the numbers are in [cifar10.json](cifar10.json). {result['train_images']:,} training pictures "
        f"of CIFAR-10 (Krizhevsky 2009), 32 px, 10 classes; top-1 on {result['test_images']:,} test pictures that chose nothing. These "
        "figures compare methods under one short recipe; they are not comparable with published CIFAR-10 accuracies, which train on "
        "50,000 pictures for hundreds of epochs.",
        "",
        f"Machine: {result['cpu']}, {result['cores']} cores; latency of batch 1 on one thread (the thread's CPU time), engine "
        f"{result['engine']}, torch {result['torch']}. Seconds: table {seconds['table']:.0f}, search {seconds['search']:.0f}, all "
        f"trainings {seconds['retrain']:.0f}.",
        "",
        f"**The table** predicts {table['networks']} held-out networks with a MAPE of {100 * table['mape']:.1f} %, bias "
        f"{100 * table['bias']:+.1f} %, {100 * table['within_5']:.0f} % within 5 % and {100 * table['within_10']:.0f} % within 10 %, "
        f"Spearman {table['spearman']:.3f}.",
        "",
        f"**The search** aimed at {found['target_ms']:.3f} ms, the predicted latency of FrostNet-Small at width {result['width']}. Found: "
        f"{found['predicted_ms']:.3f} ms predicted, {found['measured_ms']:.3f} ms measured.",
        "",
        "![front](front.png)",
        "",
        "![network](architecture.png)",
        "",
        "| network | parameters | MACs | INT8 ms | float ms | float top-1 | fake-quant top-1 | INT8 top-1 | layer steps | agreement |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["networks"].items():
        lines.append(
            f"| {name} | {row['params'] / 1e6:.2f} M | {row['macs'] / 1e6:.1f} M | {row['int8_ms']:.3f} | {row['float_ms']:.3f} | "
            f"{_percent(row['float_top1'])} | {_percent(row['fake_quant_top1'])} | {_percent(row['int8_top1'])} | "
            f"{row['layer_steps']:g} | {100 * row['agreement']:.1f} % |"
        )
    lines += [
        "",
        f"{result['epochs']} epochs, seeds {seeds}; mean ± standard deviation over seeds. *float* is the "
        "model at the end of the float phase (a third of the epochs), not a float training of the whole length; float latency is "
        "that of the folded, channels_last, frozen form.",
        "",
        "## What it shows",
        "",
        *reading(result),
        "",
    ]
    return "\n".join(lines)


def reading(result: dict) -> list[str]:
    """The results in sentences, for better or worse."""
    (_, found), (small_name, small) = result["networks"].items()
    gain = 100 * (found["int8_top1"]["mean"] - small["int8_top1"]["mean"])
    top1, one = found["int8_top1"]["mean"], 1 - found["int8_top1"]["mean"]
    error = 100 * math.sqrt(2 * top1 * one / result["test_images"] / len(result["seeds"]))
    tried = {kind: [n["accuracy"] for n in result["finalists"] if n["kind"] == kind] for kind in ("derived", "random")}
    low, high = min(tried["derived"]), max(tried["derived"])
    clear = low > max(tried["random"])
    search = result["search"]
    slower, smaller = 100 * (found["int8_ms"] / small["int8_ms"] - 1), 100 * (found["params"] / small["params"] - 1)
    chance = "A supernet trained for so few steps ranks coarsely, and no random network was retrained: this does not show more than chance."
    return [
        f"- As INT8 the found network is {gain:+.1f} points from {small_name} at {slower:+.0f} % latency and {smaller:+.0f} % parameters; "
        f"{len(result['seeds'])} seed(s), and the test pictures alone give that difference a standard error of {error:.1f} points.",
        f"- INT8 is {100 * (found['int8_top1']['mean'] - found['fake_quant_top1']['mean']):+.1f} points from fake-quant, and "
        f"{found['float_ms'] / found['int8_ms']:.1f} times as fast as the frozen float form.",
        f"- Inside the supernet the derived networks (top-1 {100 * low:.1f} to {100 * high:.1f}) "
        f"{'stand above' if clear else 'do not stand apart from'} the random ones that meet the same target by the table (median "
        f"{100 * statistics.median(tried['random']):.1f}, best {100 * max(tried['random']):.1f}). {'' if clear else chance}".rstrip(),
        f"- As the search measured it, the network took {search['measured_ms'] / search['predicted_ms']:.2f} times its prediction; "
        "the choice goes by the measurement.",
    ]


def _percent(value: dict) -> str:
    spread = f" ± {100 * value['std']:.1f}" if value["std"] is not None else ""
    return f"{100 * value['mean']:.1f}{spread}"


if __name__ == "__main__":
    main()
