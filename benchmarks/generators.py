"""Generators of style transfer as integer networks: what they cost, how near INT8 comes to fake-quant, and latency
beside float.

    PYTHONPATH=. python benchmarks/generators.py                        # about 7 minutes on a quiet machine of two
    cores
    PYTHONPATH=. python benchmarks/generators.py --run runs/A runs/B    # also what retrain.py trained, on pictures of
    its data
    PYTHONPATH=. python benchmarks/generators.py --minutes 3            # as far as that goes; the same command goes on
    PYTHONPATH=. python benchmarks/generators.py --minutes 0            # measures nothing: the page anew from the JSON,
    of any machine
    PYTHONPATH=. python benchmarks/generators.py --smoke                # tiny pictures, into smoke/

Untrained generators have random weights, batch-norm statistics and ranges from pictures of `scenes`. Writes
docs/results/generators.{json,md} after each network. The last line is one JSON object.
"""

import functools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio
from tqdm import tqdm

import quant
from benchmarks import dense_networks
from benchmarks.dense_networks import LIMITS, SEED, Form, attempt, begun, form, profiled, visits
from benchmarks.dense_page import (
    failed_section,
    float_section,
    int8_over_float,
    losing_section,
    one_line,
    ratio_words,
    summarized,
)
from benchmarks.latency_tables import ORT, table, times, worth_a_profile
from common.cli import guard, option, parse
from common.errors import UserError
from common.files import plain, read_json, write_bytes, write_json
from latency_lut.bench.contenders import FROZEN, SESSION
from latency_lut.bench.results import file_prefix
from latency_lut.machine import Watch, describe
from latency_lut.timing import BEST, torch_threads
from tasks import kinds, parts, scenes, trained
from tasks.picture_metrics import MOST_PSNR
from tasks.translation import both
from zoo import generators

NETWORKS = (
    "resnet_6blocks",
    "resnet_9blocks",
    "resnet_6blocks:instance",
    "unet_256",
    "frost_generator",
    "frost_generator:instance",
)
SMOKE_NETWORKS, SMOKE_SIZE = ("resnet_6blocks:instance", "frost_generator"), 32
ENGINES = ("reference", *quant.available())
TIMED = (FROZEN, SESSION, "fbgemm", "x86", "onednn", ORT)  # qnnpack is written for ARM
UNITS = {"params": 1e6, "macs": 1e9}
ROUNDS, PICTURES = BEST, 2  # of timing; that statistics and ranges come from, and that PSNR is of


@dataclass(frozen=True)
class GeneratorsConfig:
    networks: tuple[str, ...] = option(NETWORKS, "untrained generators, in the order of measuring")
    run: tuple[str, ...] = option(
        (), "folders of finished runs of pix2pix or cyclegan: compared on their own data, not timed"
    )
    data_root: str | None = option(None, "folder of the pictures for --run (default: the one that each was trained on)")
    input_size: int = option(256, "pixels of untrained generators")
    minutes: float = option(math.inf, "begin no further network after so many minutes; 0: only write the page anew")
    smoke: bool = option(False, f"{' and '.join(SMOKE_NETWORKS)} at {SMOKE_SIZE} px, for a try")
    output: str = option("", "the results, without .json and .md (default: docs/results/generators; smoke/generators)")

    def __post_init__(self):
        if self.smoke:
            networks = SMOKE_NETWORKS if self.networks == NETWORKS else self.networks
            vars(self).update(networks=networks, input_size=SMOKE_SIZE)
        for name in self.networks:
            if not generators.knows(name):
                raise UserError(
                    f"networks: {name!r} is no generator; known here: {', '.join(generators.NAMES)}, each also :instance"
                )
            generators.check_size(name, self.input_size)
        if len(set(map(label, self.run))) < len(self.run):
            raise UserError("run: two folders have one name, so that their rows could not be told apart; rename one")
        file_prefix(self.prefix)

    @property
    def prefix(self) -> str:
        return self.output or ("smoke/generators" if self.smoke else "docs/results/generators")

    def about(self) -> dict:
        """What figures that stand in one file have in common."""
        return {
            "sizes": {"style": self.input_size},
            "classes": {"style": 3},
            "rounds": ROUNDS,
            "pictures": PICTURES,
            "machine": describe(),
        }


@guard(errors=(quant.QuantError,))
def main(argv=None) -> dict:
    """Measure what is missing, write the page; returns what the last line says."""
    config = parse(GeneratorsConfig, argv, "generators.py", __doc__)
    results, started = begun(config), time.monotonic()
    jobs = {name: functools.partial(untrained, name, config.input_size) for name in config.networks}
    for run in config.run:
        trained.finished_run(run)  # a mistake shows now
        jobs[label(run)] = functools.partial(of_run, run, config.data_root)
    for number, (name, make) in enumerate(jobs.items(), 1):
        if name not in results["networks"] and time.monotonic() - started < 60 * config.minutes:
            results["networks"][name] = measure(make, f"{name} ({number} of {len(jobs)})")
            write(results, config.prefix, jobs)
            print(
                f"{(time.monotonic() - started) / 60:5.1f} min  {one_line(name, results['networks'][name])}", flush=True
            )
    write(results, config.prefix, jobs)
    summary = summarized(results["networks"], len(jobs)) | {"psnr_least": least_of(results["networks"])}
    print(json.dumps(plain(summary)))
    return summary


def write(results: dict, prefix: str, asked: Iterable[str]) -> None:
    """JSON and page; nothing where nothing was measured."""
    if results["networks"]:
        write_json(f"{file_prefix(prefix)}.json", results)
        write_bytes(f"{file_prefix(prefix)}.md", page(results, asked).encode())


def label(run: str) -> str:
    """What a run is called here; no generator is."""
    return f"{Path(run).resolve().name} (trained)"


# ---- what is measured --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """Generators, one or two (tasks.parts), and pictures.

    model   one in float, to be timed; None: an untrained one of that name takes as long
    graphs  with quantizers, by the largest weight code
    inputs  of each part, (N, 3, H, W) in [-1, 1]
    """

    what: str
    model: nn.Module | None
    graphs: Mapping[int, nn.Module]
    inputs: Mapping[str, Tensor]

    @property
    def first(self) -> dict[str, Tensor]:
        return {part: x[:1] for part, x in self.inputs.items()}

    def graph_for(self, engine: str) -> nn.Module:
        """Raises UserError where it was trained with weights that the engine does not take."""
        limit = quant.weight_qmax(engine)
        if limit not in self.graphs:
            raise UserError(f"it was trained with weights up to {max(self.graphs)}, {engine} takes {limit} here")
        return self.graphs[limit]


def untrained(name: str, size: int) -> Subject:
    torch.manual_seed(SEED)
    images = torch.from_numpy(scenes.images(SEED, np.arange(PICTURES), size)).float().div_(127.5).sub_(1)
    model = generators.build(name)
    quant.recalibrate(model.eval(), [images])
    dense = dense_networks.Subject("style", model, nn.Module.__call__, images)
    graphs = {
        limit: dense_networks.attached(dense, LIMITS[limit])
        for limit in {quant.weight_qmax(engine) for engine in ENGINES}
    }
    return Subject(f"untrained, {size} px", model, graphs, {"": images})


def of_run(run: str, data_root: str | None) -> Subject:
    """The generators that a run trained, and held-out pictures of its data. Raises UserError."""
    found, settings = trained.load(run), read_json(Path(run) / "config.json")
    kind = kinds.KINDS[found.task]
    if not kind.shows:
        raise UserError(
            f"run: {run} is one of {found.task}; name runs of {' or '.join(n for n, k in kinds.KINDS.items() if k.shows)}"
        )
    wanted = {field: settings.get(field) for field in ("data", "data_root", "bad_data", "direction")}
    data = kind.load(
        kinds.Request(**wanted | ({"data_root": data_root} if data_root else {}), input_size=found.input_size)
    )
    pictures = both(next(kind.in_order(data.test or data.val, PICTURES)))
    what = f"{found.name}, {found.task} of {wanted['data']}, {found.input_size} px"
    graphs = {limit: found.graph for limit in LIMITS if found.weight_qmax <= limit}
    return Subject(what, None, graphs, dict(zip(parts.parts_of(found.graph), pictures)))


def measure(make: Callable[[], Subject], progress: str = "") -> dict:
    """All figures, dense_networks.FIELDS; what an engine cannot do is a reason in its place."""
    watch = Watch()
    with quant.use_engine("reference"), torch.random.fork_rng(devices=[]):
        subject = make()
        found = {"task": subject.what, "found": sum(x[0].numel() for x in subject.inputs.values())}
        found["parts"] = dense_networks.costs(subject.graph_for("reference"), subject.first)
        found["parity"] = {
            engine: attempt(compare, subject, engine) for engine in tqdm(ENGINES, desc=progress, leave=False)
        }
        found["onnx"] = {name: attempt(export, subject, name) for name in subject.inputs}
        found |= timed(subject) if subject.model is not None else {"latency": [], "profile": {}}
    return found | {"seen": {"date": time.strftime("%Y-%m-%d %H:%M:%S"), **watch.seen()}}


def compare(subject: Subject, engine: str) -> dict:
    """Each part on an engine: layer by layer on equal integers, and in dB what it makes against what fake-quant makes."""
    graph = subject.graph_for(engine)
    converted, rows, floats, resizes = parts.convert(graph, engine), {}, Counter(), 0
    for name, report in parts.parity(graph, converted, subject.first).items():
        executor, x = parts.parts_of(converted)[name], subject.inputs[name]
        with quant.use_engine(engine), torch.no_grad():
            psnr = peak_signal_noise_ratio(
                executor(x), fake_quant(parts.parts_of(graph)[name], x), data_range=2.0
            ).clamp(max=MOST_PSNR)
        rows[name] = {"layers": len(report.rows), "layer_steps": report.layer_steps, "psnr": round(psnr.item(), 2)}
        floats.update(function_of(executor.graph.op(op)) for op in executor.float_ops)
        resizes += sum(op.kind == "resize" for op in executor.graph.ops)
    return {"parts": rows, "float_ops": [f"{number} {name}" for name, number in floats.items()], "resizes": resizes}


@functools.lru_cache(4)  # two generators, two largest weight codes; many engines
def fake_quant(part: nn.Module, x: Tensor) -> Tensor:
    return part(x)


def function_of(op) -> str:
    """What an operation computes, in a word."""
    function = op.attrs["call"].function if "call" in op.attrs else None
    return op.kind if function is None else getattr(function, "__name__", type(function).__name__)


def export(subject: Subject, part: str) -> dict:
    return dense_networks.export(parts.parts_of(subject.graph_for(ORT))[part], subject.first[part])


def timed(subject: Subject) -> dict:
    """{"latency", "profile"}: rows of all forms on one thread, and operations of those that disappoint."""

    def made(name: str) -> Form:
        return form(name, subject.model, subject.graph_for(name) if name in ENGINES else None, subject.first)

    with torch_threads(1):
        forms = {name: attempt(made, name) for name in TIMED}
        ready = {name: found for name, found in forms.items() if isinstance(found, Form)}
        ms = visits(ready, ROUNDS)
        rows = [
            {"name": name, "rounds_ms": ms[name]} if name in ready else {"name": name, **forms[name]} for name in TIMED
        ]
        profiles = {name: attempt(profiled, ready[name]) for name in sorted(worth_a_profile(rows))}
    return {"latency": rows, "profile": {name: found for name, found in profiles.items() if isinstance(found, list)}}


# ---- the page ----------------------------------------------------------------------------------------------


def page(results: dict, asked: Iterable[str]) -> str:
    networks = results["networks"]
    missing = [name for name in asked if name not in networks]
    sections = [
        HEAD.format(
            **results["about"]["machine"],
            size=results["about"]["sizes"]["style"],
            least=kinds.PICTURES.least,
            load=max(found["seen"]["load"] or 0 for found in networks.values()),
        )
    ]
    sections += [f"**Not measured yet: {', '.join(missing)}.**"] if missing else []
    sections += [costs_section(networks), parity_section(networks), float_section(networks), losing_section(networks)]
    return "\n\n".join(section for section in [*sections, failed_section(networks)] if section) + "\n"


HEAD = """# Generators as integer networks

Written by `PYTHONPATH=. python benchmarks/generators.py` (`--run RUN ..` adds trained ones); the numbers are in the JSON beside this page.
Machine: {cpu}, {cores} cores, highest load {load:.1f}; torch {torch}, onnxruntime {onnxruntime}, openvino {openvino}.

Untrained generators have random weights, batch-norm statistics and ranges from pictures of `scenes`, {size} px. They amplify single codes,
which a trained network has learned to smooth: their PSNR end to end says little, and the {least:.0f} dB that are wanted are wanted of
trained ones. The steps of each layer on equal inputs and latency hardly depend on training."""


def costs_section(networks: Mapping[str, dict]) -> str:
    lines = []
    for name, found in networks.items():
        ms, ratio = times({"rows": found["latency"]}), int8_over_float(found)
        params, macs = (
            joined(f"{part[field] / unit:.2f}" for part in found["parts"].values()) for field, unit in UNITS.items()
        )
        latencies = [f"{ms[form]:.1f}" if form in ms else "-" for form in TIMED]
        lines.append([name, found["task"], params, macs, *latencies, "-" if math.isnan(ratio) else f"{ratio:.2f}"])
    columns = [
        "network",
        "what",
        "parameters M",
        "MACs G",
        "float torch",
        "float ort",
        *TIMED[2:-1],
        "ort",
        "INT8 / float",
    ]
    note = (
        "Milliseconds of one picture, frozen forms, one thread, its CPU time, the minimum over interleaved rounds. *INT8 / float*: the "
        "fastest of each kind. Trained generators, not timed, take as long as untrained ones of their name and size."
    )
    measured = {name: found for name, found in networks.items() if found["latency"]}
    return "\n\n".join(
        ["## Cost and latency", *([ratio_words(measured)] if measured else []), table(columns, lines), note]
    )


def parity_section(networks: Mapping[str, dict]) -> str:
    engines = [*dict.fromkeys(engine for found in networks.values() for engine in found["parity"])]
    lines = [
        [
            name,
            *(parity_cell(found["parity"].get(engine, {})) for engine in engines),
            joined(map(onnx_cell, found["onnx"].values())),
        ]
        for name, found in networks.items()
    ]
    note = (
        "Worst layer in steps of its own 8-bit grid, on equal integers, one picture / PSNR in dB between what fake-quant and what the "
        f"engine makes of {PICTURES} pictures, end to end; {MOST_PSNR:.0f} dB: equal. ONNX files were checked by onnx, run in onnxruntime "
        "and compared with the integer reference: megabytes; integer layers; worst layer / picture in steps."
    )
    return "\n\n".join(["## INT8 beside fake-quant", table(["network", *engines, "ONNX"], lines), note])


def least_of(networks: Mapping[str, dict]) -> dict[str, float]:
    """The least PSNR of each network, over its parts and all engines."""
    found = {
        name: [part["psnr"] for row in found["parity"].values() for part in row.get("parts", {}).values()]
        for name, found in networks.items()
    }
    return {name: min(values) for name, values in found.items() if values}


def parity_cell(row: dict) -> str:
    return joined(f"{part['layer_steps']:g} / {part['psnr']:.1f}" for part in row.get("parts", {}).values()) or "-"


def onnx_cell(row: dict) -> str:
    if "reason" in row:
        return "-"
    return f"{row['bytes'] / 1e6:.2f}; {row['integer_layers']}; {row['layer_steps']:g} / {row['output_steps']:.0f}"


def joined(cells: Iterable[str]) -> str:
    return " + ".join(cells)


if __name__ == "__main__":
    main()
