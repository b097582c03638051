"""The main job on real images: measure this CPU, search, retrain the searched network and FrostNet-Small under one
recipe, both to INT8.

    python -m benchmarks.studies.cifar10 --data-root FOLDER          # FOLDER/{train,val,test}/<class>/*.png, 32 px

Writes docs/results/cifar10.{json,md} and figures of the search. The same command continues after a stop. Trainings run
side by side; all latencies are measured at the end, alone, in interleaved rounds.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

import latency_lut.__main__ as latency_lut_program
import quant
import retrain
import search
from benchmarks.harness import Cell, Study, main
from benchmarks.stats import paired_difference
from benchmarks.tables import Column, table
from common.cli import option
from common.errors import UserError
from common.files import read_json, write_json
from common.processes import cpu_count
from frostnet import FrostNet, find
from latency_lut import LatencyTable, time_networks
from nas import Architecture
from nas.report.architecture import architecture_figure
from nas.report.front import front_figure
from nas.report.style import save as save_figure
from tasks import Diverged

SIZE = 32  # pixels
SEARCHED = "searched"
FORMS = {"float_top1": "float", "fake_quant_top1": "fake_quant", "int8_top1": "int8"}
TEMPLATE = """# Search and retraining on CIFAR-10 images

<!-- setup -->
<!-- end of setup -->

![front](front.png)

![network](architecture.png)

<!-- networks -->
<!-- end of networks -->

## Conclusions

To be written by hand.
"""


@dataclass(frozen=True, kw_only=True)
class Cifar10(Study):
    name: ClassVar[str] = "cifar10"
    template: ClassVar[str] = TEMPLATE
    smoke_settings: ClassVar[dict[str, Any]] = {
        **{"data": "scenes", "data_root": "", "width": 0.35, "preset": "smoke"},
        **{"epochs": 2, "seeds": (0,), "train_images": 640},
    }

    data_root: str = option("", "folder with train, val and test, one folder per class in each")
    data: Literal["imagefolder", "scenes"] = option("imagefolder", "layout of the images")
    width: float = option(0.5, "width multiplier of the space")
    preset: str = option("small", "preset of the search")
    epochs: int = option(4, "epochs of each training")
    lr: float = option(0.02, "peak learning rate of each training")
    seeds: tuple[int, ...] = option((0, 1), "seeds of the trainings")
    train_images: int = option(20_000, "images of each training")
    engine: Literal[tuple(quant.ENGINES)] = option("fbgemm", "engine")

    @property
    def networks(self) -> tuple[str, str]:
        return SEARCHED, f"frostnet_small_{self.width}".replace(".", "_")

    def cells(self) -> list[Cell]:
        recipe = {name: getattr(self, name) for name in ("data", "epochs", "lr", "train_images", "engine")}
        searches = {SEARCHED: {"search": {"width": self.width, "preset": self.preset}}}
        return [
            Cell(self.name, {"network": network, "seed": seed, "recipe": recipe, **searches.get(network, {})})
            for seed in self.seeds
            for network in self.networks
        ]

    def prepare(self) -> None:
        """The latency table and the search, each continued where it was stopped."""
        if self.data == "imagefolder" and not self.data_root:
            raise UserError("data_root: missing; give the folder of the images")
        with timed(self.store.folder, "table"):
            latency_lut_program.main(self.table_flags())
        with timed(self.store.folder, "search"):
            search.main(self.search_flags())

    def table_flags(self) -> list[str]:
        space = ["--input-size", str(SIZE), "--width", str(self.width)]
        return ["--engine", self.engine, "--output", str(self.store.folder / "table.json"), *space]

    def search_flags(self) -> list[str]:
        space = ["--latency-lut", str(self.store.folder / "table.json"), "--width", str(self.width)]
        run = ["--preset", self.preset, "--name", SEARCHED, "--runs", str(self.store.folder)]
        return [*space, *self.data_flags(), *run]

    def retrain_flags(self, cell: Cell, folder: Path) -> list[str]:
        run = ["--arch", self.source(cell["network"]), "--name", folder.name, "--runs", str(folder.parent)]
        recipe = ["--epochs", str(self.epochs), "--lr", str(self.lr), "--train-images", str(self.train_images)]
        size = ["--input-size", str(SIZE), "--engine", self.engine, "--processes", "1"]
        return [*run, "--seed", str(cell["seed"]), *self.data_flags(), *size, *recipe]

    def data_flags(self) -> list[str]:
        return ["--data", self.data, *(["--data-root", self.data_root] if self.data_root else [])]

    def source(self, network: str) -> str:
        """What names a network: for the searched one its file."""
        return str(self.store.folder / SEARCHED / "arch.json") if network == SEARCHED else network

    def run(self, cell: Cell, folder: Path) -> dict:
        """Retrain one network with one seed."""
        try:
            retrain.main(self.retrain_flags(cell, folder))
        except SystemExit as stop:
            if isinstance(stop.__context__, Diverged):
                return {"diverged": str(stop.__context__)}
            raise
        metrics = read_json(folder / "metrics.json")
        top1 = {row["network"]: row["top1_test"] for row in metrics["networks"]}
        return {
            **{column: top1[form] for column, form in FORMS.items()},
            **{name: metrics[name] for name in ("params", "macs", "test_images", "train_seconds")},
            **{name: metrics["parity"][name] for name in ("layer_steps", "agreement")},
        }

    def finish(self) -> None:
        """Latencies, once; figures of the search."""
        path, output = self.store.folder / "latencies.json", self.output_folder
        if not path.is_file():
            write_json(path, self.measure())
        arch, run = self.architecture(SEARCHED), self.store.folder / SEARCHED
        provenance = {name: value for name, value in arch.provenance.items() if name != "command"}
        replace(arch, provenance=provenance).save(output / "cifar10_searched.json")
        save_figure(architecture_figure(arch, read_json(run / "latency.json")["parts"]), output / "architecture.png")
        save_figure(front_figure(read_json(run / "front.json")), output / "front.png")

    def measure(self) -> dict[str, dict[str, float]]:
        """INT8 and float milliseconds of all networks in one interleaved measurement. Weights do not matter to it."""
        image, forms = torch.randn(1, 3, SIZE, SIZE), {}
        for name in self.networks:
            model = FrostNet(self.architecture(name))
            graph = quant.attach(model, image, quant.QuantConfig(engine=self.engine)).train()
            with torch.no_grad():
                graph(torch.randn(8, 3, SIZE, SIZE))
            forms[f"{name}/int8"] = quant.freeze(quant.convert(graph, self.engine), image)
            forms[f"{name}/float"] = quant.freeze_float(model, image)
        timings = time_networks(forms, image, engine=self.engine, rounds=20)
        return {
            name: {f"{form}_ms": timings[f"{name}/{form}"].ms for form in ("int8", "float")} for name in self.networks
        }

    def architecture(self, network: str) -> Architecture:
        return find(self.source(network), self.store.folder).for_input(SIZE).with_classes(10)

    def result(self, records: list[dict]) -> dict:
        latencies = self.store.folder / "latencies.json"
        timings = read_json(latencies) if latencies.is_file() else {}
        measured, run = LatencyTable.load(self.store.folder / "table.json"), self.store.folder / SEARCHED
        tests = [record["row"]["test_images"] for record in records if "test_images" in record.get("row", {})]
        return {
            **{"command": self.command, "engine": self.engine, "cpu": measured.meta["cpu"], "cores": cpu_count()},
            **{"torch": torch.__version__, "width": self.width, "epochs": self.epochs, "lr": self.lr},
            **{"seeds": self.seeds, "train_images": self.train_images, "test_images": max(tests, default=None)},
            "table": next(iter(measured.sections.values())).validation,
            "seconds": read_json(self.store.folder / "seconds.json"),
            "search": read_json(run / "metrics.json"),
            "finalists": read_json(run / "front.json")["networks"],
            "networks": {name: summary(records, name, self.seeds) | timings.get(name, {}) for name in self.networks},
        }

    def sections(self, result: dict) -> dict[str, str]:
        return {"setup": setup(result), "networks": f"{networks(result)}\n\n{recipe(result)}\n\n{differences(result)}"}


@contextlib.contextmanager
def timed(folder: Path, stage: str) -> Iterator[None]:
    """Add the seconds of a stage, over all starts, to seconds.json."""
    started = time.monotonic()
    try:
        yield
    finally:
        path = folder / "seconds.json"
        seconds = read_json(path) if path.is_file() else {}
        write_json(path, seconds | {stage: round(seconds.get(stage, 0.0) + time.monotonic() - started, 1)})


def summary(records: Sequence[dict], network: str, seeds: Sequence[int]) -> dict:
    """Of one network the size, the top-1 of each form by seed (None: not done, diverged), and its worst parity."""
    rows = {r["cell"]["parameters"]["seed"]: r["row"] for r in records if _trained(r, network)}
    if not rows:
        return dict.fromkeys(FORMS, [None] * len(seeds))
    size = {name: next(iter(rows.values()))[name] for name in ("params", "macs")}
    top1 = {form: [rows[seed][form] if seed in rows else None for seed in seeds] for form in FORMS}
    parity = {
        "layer_steps": max(row["layer_steps"] for row in rows.values()),
        "agreement": min(row["agreement"] for row in rows.values()),
    }
    return size | top1 | parity | {"train_seconds": [row["train_seconds"] for row in rows.values()]}


def _trained(record: dict, network: str) -> bool:
    return record["cell"]["parameters"]["network"] == network and "int8_top1" in record.get("row", {})


# ---- the page ----


def setup(result: dict) -> str:
    """What was measured where, and how table and search went."""
    validation, searched, seconds = result["table"], result["search"], result["seconds"]
    trainings = sum(sum(row.get("train_seconds", ())) for row in result["networks"].values())
    return f"""\
Written by `{result["command"]}`; the numbers are in [cifar10.json](cifar10.json). {result["train_images"]:,} training images of CIFAR-10 (Krizhevsky 2009), {SIZE} px, 10 classes; top-1 on {result["test_images"]:,} test images that chose nothing. These figures compare methods under one short recipe; they are not comparable with published CIFAR-10 accuracies, which train on 50,000 images for hundreds of epochs.

Machine: {result["cpu"]}, {result["cores"]} cores; latency of batch 1 on one thread (the thread's CPU time), engine {result["engine"]}, torch {result["torch"]}. Seconds: table {seconds["table"]:.0f}, search {seconds["search"]:.0f}, all trainings {trainings:.0f}, each on one thread.

**The table** predicts {validation["networks"]} held-out networks with a MAPE of {100 * validation["mape"]:.1f} %, bias {100 * validation["bias"]:+.1f} %, {100 * validation["within_5"]:.0f} % within 5 % and {100 * validation["within_10"]:.0f} % within 10 %, Spearman {validation["spearman"]:.3f}.

**The search** aimed at {searched["target_ms"]:.3f} ms, the predicted latency of FrostNet-Small at width {result["width"]}. The searched network: {searched["predicted_ms"]:.3f} ms predicted, {searched["measured_ms"]:.3f} ms measured."""


def networks(result: dict) -> str:
    """The table of networks."""
    columns = (
        Column("network", "network", align="left"),
        Column("parameters", "params", ".2f", 1e-6, " M"),
        Column("MACs", "macs", ".1f", 1e-6, " M"),
        Column("INT8 ms", "int8_ms", ".3f"),
        Column("float ms", "float_ms", ".3f"),
        Column("float top-1, %", "float_top1", ".1f", 100),
        Column("fake-quant top-1, %", "fake_quant_top1", ".1f", 100),
        Column("INT8 top-1, %", "int8_top1", ".1f", 100),
        Column("largest layer difference, quantization steps", "layer_steps", "g"),
        Column("agreement", "agreement", ".1f", 100, " %"),
    )
    return table([{"network": name, **row} for name, row in result["networks"].items()], columns)


def recipe(result: dict) -> str:
    """How to read the table."""
    seeds = ", ".join(map(str, result["seeds"]))
    return (
        f"{result['epochs']} epochs, seeds {seeds}; mean ± standard deviation over seeds (number of seeds). *float* is "
        "the model at the end of the float phase (a third of the epochs), not a float training of the whole length; "
        "float latency is that of the folded, channels_last, frozen form. *agreement*: share of images on which INT8 "
        "and fake-quant predict the same class."
    )


def differences(result: dict) -> str:
    """The networks' difference in INT8 top-1 and the loss from fake-quant to INT8, paired by seed."""
    names = list(result["networks"])
    values = {name: _by_seed(result, name, "int8_top1") for name in names}
    pairs = {f"INT8: {names[0]} - {names[1]}": (values[names[0]], values[names[1]])}
    pairs |= {f"{name}: INT8 - fake-quant": (values[name], _by_seed(result, name, "fake_quant_top1")) for name in names}
    rows = [{"difference": text, **_difference(*pair)} for text, pair in pairs.items()]
    columns = (
        Column("difference, paired by seed", "difference", align="left"),
        Column("points", "mean", "+.1f", 100),
        Column("standard error", "error", ".1f", 100),
        Column("95 % from", "low", "+.1f", 100),
        Column("95 % to", "high", "+.1f", 100),
        Column("seeds", "n"),
    )
    return table(rows, columns)


def _difference(a: dict[int, float], b: dict[int, float]) -> dict:
    return vars(paired_difference(a, b)) if a.keys() & b.keys() else {}


def _by_seed(result: dict, network: str, form: str) -> dict[int, float]:
    values = zip(result["seeds"], result["networks"][network][form], strict=True)
    return {seed: value for seed, value in values if value is not None}


if __name__ == "__main__":
    main(Cifar10)
