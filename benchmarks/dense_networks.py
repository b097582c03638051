"""Detectors and segmenters as integer networks: what they cost, whether every engine computes what fake-quant does,
what their ONNX files leave float, latency of float and INT8 side by side, and the milliseconds of what comes behind
them.

    PYTHONPATH=. python benchmarks/dense_networks.py                 # about 20 minutes on a quiet machine
    PYTHONPATH=. python benchmarks/dense_networks.py --minutes 10    # as far as that goes; the same command goes on
    PYTHONPATH=. python benchmarks/dense_networks.py --minutes 0     # measures nothing: the page anew from the JSON, of
    any machine
    PYTHONPATH=. python benchmarks/dense_networks.py --smoke         # tiny pictures, few rounds, into smoke/

Networks are untrained: weights are random, biases zero, batch-norm statistics and ranges from pictures of `scenes`.
Writes docs/results/dense_networks.{json,md} after each network. The last line is one JSON object.
"""

import functools
import json
import math
import operator
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import quant
from benchmarks import dense_page
from benchmarks.dense_page import AFTER, NAMES
from benchmarks.latency_tables import ORT, TORCH_ENGINES, worth_a_profile
from common.checks import check_list, check_number, check_object
from common.cli import guard, option, parse
from common.errors import UserError
from common.files import plain, read_json, write_bytes, write_json
from latency_lut.bench.contenders import FLOATS, Contender, as_fed, freeze_float
from latency_lut.bench.profile import TOP, profile_rows
from latency_lut.bench.results import SAME, file_prefix
from latency_lut.machine import Watch, describe
from latency_lut.timing import BEST, time_interleaved, torch_threads
from nas import count
from tasks import parts, scenes
from zoo import detectors, segmenters

NETWORKS = (
    "ssdlite:frostnet_small_0_5", "ssdlite:frostnet_a", "ssdlite:mobilenet_v2", "ssdlite:mobilenet_v3_small_relu", "tdsod",
    "retinanet:frostnet_small_0_5", "faster_rcnn:frostnet_small_0_5",
    "lraspp:frostnet_small_0_5", "lraspp:mobilenet_v2", "raspp:frostnet_small_0_5", "espnet", "espnetv2_x0_5", "espnetv2_x2_0",
)  # fmt: skip
SIZES = {"detection": 300, "segmentation": 512}  # pixels
SMOKE_SIZES = {"detection": 96, "segmentation": 64}
CLASSES = {"detection": 20, "segmentation": 21}  # of VOC; a segmenter counts the background
SETTLED = 8  # pictures that batch norms and ranges come from
LIMITS = {63: "fbgemm", 127: "reference"}  # largest weight code -> an engine to attach for
SEED = 0
FIELDS = ("task", "parts", "parity", "onnx", "latency", "profile", "found", "seen")  # of a network's results


@dataclass(frozen=True)
class DenseConfig:
    networks: tuple[str, ...] = option(NETWORKS, "detectors and segmenters, in the order of measuring")
    rounds: int = option(8, "rounds of timing; 0: no latencies")
    pictures: int = option(1, "pictures that are compared")
    minutes: float = option(math.inf, "begin no further network after so many minutes; 0: only write the page anew")
    smoke: bool = option(
        False,
        f"pictures of {SMOKE_SIZES['segmentation']} to {SMOKE_SIZES['detection']} px and {BEST} rounds, for a try",
    )
    output: str = option(
        "", "the results, without .json and .md (default: docs/results/dense_networks; smoke/dense_networks)"
    )

    def __post_init__(self):
        if not (self.rounds == 0 or BEST <= self.rounds <= 1000):
            raise UserError(f"rounds: {self.rounds}, must be 0 or {BEST} to 1000")
        if not 1 <= self.pictures <= SETTLED:
            raise UserError(f"pictures: {self.pictures}, must be 1 to {SETTLED}")
        for name in self.networks:
            if not detectors.knows(name) and not segmenters.knows(name):
                raise UserError(
                    f"networks: {name!r} is neither a detector nor a segmenter; such as {', '.join(NETWORKS[:3])}, espnet"
                )
        file_prefix(self.prefix)

    @property
    def prefix(self) -> str:
        return self.output or ("smoke/dense_networks" if self.smoke else "docs/results/dense_networks")

    @property
    def sizes(self) -> dict[str, int]:
        return SMOKE_SIZES if self.smoke else SIZES

    def about(self) -> dict:
        """What figures that stand in one file have in common."""
        rounds = min(BEST, self.rounds) if self.smoke else self.rounds
        return {
            "sizes": self.sizes,
            "classes": CLASSES,
            "rounds": rounds,
            "pictures": self.pictures,
            "machine": describe(),
        }


@guard(errors=(quant.QuantError,))
def main(argv=None) -> dict:
    """Measure what is missing, write the page; returns what the last line says."""
    config = parse(DenseConfig, argv, "dense_networks.py", __doc__)
    results, started = begun(config), time.monotonic()
    for name in config.networks if config.minutes > 0 else ():
        with torch.device("meta"):
            build(name, config.sizes)  # a mistyped name shows now
    for number, name in enumerate(config.networks, 1):
        if name not in results["networks"] and time.monotonic() - started < 60 * config.minutes:
            results["networks"][name] = measure(name, results["about"], f"{name} ({number} of {len(config.networks)})")
            write(results, config)
            print(
                f"{(time.monotonic() - started) / 60:5.1f} min  {dense_page.one_line(name, results['networks'][name])}",
                flush=True,
            )
    write(results, config)
    summary = dense_page.summarized(results["networks"], len(config.networks))
    print(json.dumps(plain(summary)))
    return summary


def begun(config: DenseConfig) -> dict:
    """What an earlier call with the same settings found on the same machine; with --minutes 0, on any.

    Raises UserError.
    """
    path, about = Path(f"{file_prefix(config.prefix)}.json"), config.about()
    if not path.exists():
        return {"about": about, "networks": {}}
    try:
        before = checked(read_json(path))
        for field in () if config.minutes <= 0 else ("sizes", "classes", "rounds", "pictures", *SAME):
            was, is_ = ({**data, **data["machine"]}[field] for data in (before["about"], about))
            if was != plain(is_):
                raise UserError(
                    f"about.{field}: measured with {was}, this is {is_}; choose another --output, or remove the file"
                )
    except UserError as error:
        raise UserError(f"{error}" if str(path) in str(error) else f"{path}: {error}") from error
    return before


def checked(data: Any) -> dict:
    """What the JSON holds. Raises UserError naming the field."""
    check_object("", check_object("the file", data), ("about", "networks"))
    check_object("about", data["about"], ("sizes", "classes", "rounds", "pictures", "machine"))
    check_object("about.machine", data["about"]["machine"], tuple(describe()))
    for name, found in check_object("networks", data["networks"]).items():
        check_object(f"networks.{name}", found, FIELDS)
        for field in ("parts", "parity", "onnx", "profile", "seen"):
            check_object(f"networks.{name}.{field}", found[field])
        for number, row in enumerate(check_list(f"networks.{name}.latency", found["latency"])):
            path = f"networks.{name}.latency[{number}]"
            for i, ms in enumerate(check_list(f"{path}.rounds_ms", check_object(path, row).get("rounds_ms", []))):
                check_number(f"{path}.rounds_ms[{i}]", ms, 0)
    return data


def write(results: dict, config: DenseConfig) -> None:
    """JSON and page, the networks that are asked for first; nothing where nothing was measured."""
    order = [*(name for name in config.networks if name in results["networks"])]
    results["networks"] = {name: results["networks"][name] for name in dict.fromkeys([*order, *results["networks"]])}
    if results["networks"]:
        prefix = file_prefix(config.prefix)
        write_json(f"{prefix}.json", results)
        write_bytes(f"{prefix}.md", dense_page.page(results, len(config.networks)).encode())


# ---- one network -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A float network in evaluation mode and what surrounds it:

    `run(model, images)` uses a model of any sort as evaluation does.
    """

    task: str
    model: nn.Module
    run: Callable[[Any, Tensor], Any]
    images: Tensor


def measure(name: str, about: dict, progress: str = "") -> dict:
    """All figures of a network, FIELDS; what an engine cannot do is a reason in its place."""
    watch = Watch()
    with (
        torch_threads(1),
        quant.use_engine("reference"),
        torch.random.fork_rng(devices=[]),
        tqdm(total=4, desc=progress, leave=False) as bar,
    ):
        subject = settled(name, about["sizes"])
        inputs = {
            count: parts.inputs_of(subject.model, subject.images[:count], subject.run)
            for count in (1, about["pictures"])
        }
        graphs = {limit: attached(subject, engine) for limit, engine in LIMITS.items()}
        graph_for = {engine: graphs[quant.weight_qmax(engine)] for engine in (*TORCH_ENGINES, ORT)}
        bar.update()
        found = {"task": subject.task, "parts": costs(subject.model, inputs[1])}
        found["parity"] = {
            engine: attempt(compare, graph, engine, inputs[about["pictures"]]) for engine, graph in graph_for.items()
        }
        bar.update()
        found["onnx"] = exports(graph_for[ORT], inputs[about["pictures"]])
        bar.update()
        found |= timed(subject, graph_for, inputs[1], about["rounds"])
    return found | {"seen": {"date": time.strftime("%Y-%m-%d %H:%M:%S"), **watch.seen()}}


def attempt(function: Callable, *args) -> Any:
    """What the function returns; {"reason"} where it fails: whatever an engine raises, the others are measured."""
    try:
        return function(*args)
    except Exception as error:
        return {"reason": f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"}


def build(name: str, sizes: Mapping[str, int]) -> nn.Module:
    if detectors.knows(name):
        return detectors.build(name, CLASSES["detection"], sizes["detection"])
    return segmenters.build(name, CLASSES["segmentation"])


def settled(name: str, sizes: Mapping[str, int]) -> Subject:
    """A network whose batch norms know some pictures.

    Its biases are zero: scores that begin near zero would leave nothing to decode.
    """
    task = "detection" if detectors.knows(name) else "segmentation"
    torch.manual_seed(SEED)
    model, images = build(name, sizes), pictures(sizes[task])
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    quant.recalibrate(model.eval(), [images])
    if task == "segmentation":
        return Subject(task, model, classes_of, images)
    return Subject(task, model, detectors.machinery(name, CLASSES[task], sizes[task]).detections, images)


def pictures(size: int) -> Tensor:
    """(SETTLED, 3, size, size) of `scenes`, each channel of mean 0 and deviation 1."""
    images = torch.from_numpy(scenes.images(SEED, np.arange(SETTLED), size)).float()
    std, mean = torch.std_mean(images, (0, 2, 3), keepdim=True)
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def classes_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Of each pixel of the pictures, (N, H, W): what a segmenter's logits are for."""
    return F.interpolate(model(images), images.shape[-2:], mode="bilinear", align_corners=False).argmax(1)


def attached(subject: Subject, engine: str) -> nn.Module:
    """The network on grids, with the range of weights that the engine takes."""
    return parts.calibrate(
        subject.model, subject.images.split(4), quant.QuantConfig(engine=engine), "minmax", subject.run
    )


def costs(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, dict]:
    """Of each part: parameters, MACs of one input, and how many inputs one picture leads to."""
    found = {}
    for name, part in parts.parts_of(model).items():
        params, macs = count(part, inputs[name][:1])
        found[name] = {"params": params, "macs": macs, "inputs": len(inputs[name])}
    return found


# ---- parity and ONNX ---------------------------------------------------------------------------------------


def compare(graph: nn.Module, engine: str, inputs: Mapping[str, Tensor]) -> dict:
    """Each part on an engine, layer by layer on equal integers, and what is computed in float there."""
    converted = parts.convert(graph, engine)
    reports = parts.parity(graph, converted, inputs)
    rows = {
        name: {
            "layers": len(report.rows),
            "layer_steps": report.layer_steps,
            "worst_layer": report.worst.name,
            "output_steps": report.output_steps,
            "agreement": report.agreement,
        }
        for name, report in reports.items()
    }
    executors = parts.parts_of(converted)
    resizes = sum(op.kind == "resize" for executor in executors.values() for op in executor.graph.ops)
    return {
        "parts": rows,
        "float_ops": [word for part in executors.items() for word in in_words(*part)],
        "resizes": resizes,
    }


def in_words(part: str, executor: nn.Module) -> list[str]:
    """What an executor computes in float: "the operation's name (the function's)"."""
    found = [executor.graph.op(op) for op in executor.float_ops]
    calls = {op.name: op.attrs["call"].function if "call" in op.attrs else op.kind for op in found}
    names = {
        op: call if isinstance(call, str) else getattr(call, "__name__", type(call).__name__)
        for op, call in calls.items()
    }
    return [f"{part}.{op} ({name})".removeprefix(".") for op, name in names.items()]


def exports(graph: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, dict]:
    """What exporting each part as ONNX, checking and running the file says."""
    return {name: attempt(export, part, inputs[name]) for name, part in parts.parts_of(graph).items()}


def export(part: nn.Module, images: Tensor) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        report = quant.export_onnx(part, Path(folder) / "part.onnx", images)
    kept = ("bytes", "integer_layers", "layer_steps", "output_steps", "agreement", "float_ops")
    return {field: getattr(report, field) for field in kept}


# ---- latency -----------------------------------------------------------------------------------------------


class Form:
    """One form of all parts of a network, ready to run, one part after the other on inputs of its own."""

    def __init__(self, contenders: Mapping[str, Contender]):
        self.contenders = contenders

    def __call__(self) -> None:
        for contender in self.contenders.values():
            contender()


def timed(subject: Subject, graph_for: Mapping[str, nn.Module], inputs: Mapping[str, Tensor], rounds: int) -> dict:
    """{"latency", "profile", "found"}: rows of all forms and of what comes behind the network; operations of the forms
    that disappoint.
    """
    behind, found = after(subject, inputs)
    if not rounds:
        return {"latency": [], "profile": {}, "found": found}
    forms = {name: attempt(form, name, subject.model, graph_for.get(name), inputs) for name in NAMES}
    ready = {name: made for name, made in forms.items() if isinstance(made, Form)}
    times = visits(ready | {AFTER: behind}, rounds)
    rows = [
        {"name": name, "rounds_ms": times[name]} if name in times else {"name": name, **forms[name]}
        for name in (*NAMES, AFTER)
    ]
    disappointing = [name for name in NAMES if name in worth_a_profile(rows)]
    profiles = {name: attempt(profiled, ready[name]) for name in disappointing}
    return {
        "latency": rows,
        "profile": {name: rows for name, rows in profiles.items() if isinstance(rows, list)},
        "found": found,
    }


def form(name: str, model: nn.Module, graph: nn.Module | None, inputs: Mapping[str, Tensor]) -> Form:
    """The parts frozen for one of NAMES, which have run once."""
    found = {}
    for part, module in parts.parts_of(model if name in FLOATS else graph).items():
        x = as_fed(name, inputs[part])
        if name in FLOATS:
            found[part] = Contender(name, freeze_float(name, module, x), x)
        else:
            found[part] = Contender(name, quant.freeze(quant.convert(module, name), x), x)
    made = Form(found)
    with torch.inference_mode():
        made()
    return made


def after(subject: Subject, inputs: Mapping[str, Tensor]) -> tuple[Callable[[], Any], int]:
    """What is done with a network's outputs, on outputs that are there already; and how many boxes, or pixels' classes,
    it finds.
    """
    with torch.inference_mode():
        given = replay({name: part(inputs[name]) for name, part in parts.parts_of(subject.model).items()})
        behind = functools.partial(subject.run, given, subject.images[:1])
        found = behind()
    return behind, len(found[0]["boxes"]) if subject.task == "detection" else found.numel()


def replay(outputs: Mapping[str, Any]) -> Any:
    """A model whose parts give what they once gave."""
    given = {name: functools.partial(_second, value) for name, value in outputs.items()}
    return given[""] if "" in given else SimpleNamespace(**given)


def _second(value: Any, x: Tensor) -> Any:
    return value


def visits(ready: Mapping[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round, interleaved."""
    with tqdm(total=rounds * len(ready), desc="timing", unit="visit", leave=False) as bar:

        def on_visit(name: str, ms: float) -> None:
            bar.total = max(bar.total, bar.n + 1)  # unstable ones are visited again
            bar.update()

        found = time_interleaved(ready, rounds, seed=SEED, max_rounds=int(1.5 * rounds), on_visit=on_visit)
    return {name: list(timing.rounds) for name, timing in found.items()}


def profiled(made: Form) -> list[dict]:
    """The longest operations of all parts together."""
    found = {part: profile_rows(contender) for part, contender in made.contenders.items()}
    whole = sum(rows[0]["ms"] / (rows[0]["share"] or 1) for rows in found.values() if rows) or 1
    rows = [
        row | {"op": f"{part}.{row['op']}".removeprefix("."), "share": round(row["ms"] / whole, 4)}
        for part, operations in found.items()
        for row in operations
    ]
    return sorted(rows, key=operator.itemgetter("ms"), reverse=True)[:TOP]


if __name__ == "__main__":
    main()
