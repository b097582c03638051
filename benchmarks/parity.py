"""Does every engine compute what fake-quant does? Every network of the zoo, layer by layer on equal integer inputs.

    PYTHONPATH=. python benchmarks/parity.py                      # all networks and engines, about a quarter of an hour
    on two cores PYTHONPATH=. python benchmarks/parity.py --models resnet20 frostnet_small_0_5 --engines fbgemm
    onnxruntime

Networks have fresh weights, batch-norm statistics and ranges from the embedded pictures, and the range of weights that
the engine takes. Writes docs/results/parity.{json,md} after each network; the same command goes on where it was
stopped. The last line is one JSON object.
"""

import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx
from tqdm import tqdm

import frostnet
import quant
import zoo
from common.checks import check_number, check_object, check_str
from common.cli import guard, option, parse
from common.errors import UserError
from common.files import read_json, write_bytes, write_json
from latency_lut.bench.results import file_prefix
from nas import count
from quant.integer.parity import MAX_LAYER_STEPS
from tasks import Pictures, Stream, classification, in_order

CLASSES, SIZE, BATCH = 10, 32, 32
FIGURES = ("layers", "layer_steps", "output_steps", "float_ops")  # of a row, beside "worst_layer"
LIMITS = {63: "fbgemm", 127: "reference"}  # largest weight code -> an engine to attach for


@dataclass(frozen=True)
class ParityConfig:
    models: tuple[str, ...] = option((), "networks (default: the whole zoo and the published FrostNets)")
    engines: tuple[str, ...] = option(quant.available(), "engines")
    batches: int = option(6, f"batches of {BATCH} pictures that set statistics and ranges")
    pictures: int = option(32, "held-out pictures that are compared")
    seed: int = option(0, "seed")
    minutes: float = option(1e9, "begin no further network after so many minutes")
    output: str = option("docs/results/parity", "the results, without .json and .md")

    def __post_init__(self):
        for engine in self.engines:
            if engine not in quant.available():
                raise UserError(f"engines: {engine!r} does not run here; choose from {', '.join(quant.available())}")
        file_prefix(self.output)


@guard(errors=(quant.QuantError,))
def main(argv=None) -> dict:
    config = parse(ParityConfig, argv, "parity.py", __doc__)
    found, end = _begun(config), time.monotonic() + 60 * config.minutes
    data = classification("scenes", None, SIZE, config.seed, 1000, False)
    networks = found["networks"]
    for name in tqdm(sorted(config.models or (*frostnet.PUBLISHED, *zoo.NAMES), key=_macs), desc="networks"):
        missing = [engine for engine in config.engines if engine not in networks.get(name, {})]
        if missing and time.monotonic() < end:
            rows = compare(name, missing, config, data.train, next(in_order(data.test, config.pictures))[0])
            networks[name] = networks.get(name, {}) | rows
            write(found, config)
    write(found, config)
    print(json.dumps(summary(found)))
    return found


def _begun(config: ParityConfig) -> dict:
    """What an earlier call with the same settings found."""
    about = {name: getattr(config, name) for name in ("seed", "batches", "pictures")} | {"torch": torch.__version__}
    path = Path(f"{file_prefix(config.output)}.json")
    if not path.exists():
        return {"about": about, "networks": {}}
    try:
        before = checked(read_json(path))
    except UserError as error:
        raise UserError(
            f"{error}" if str(path) in str(error) else f"{path}: {error}; choose another --output, or remove it"
        ) from error
    if before["about"] != about:
        raise UserError(
            f"{path}: was made with {before['about']}, this is {about}; choose another --output, or remove it"
        )
    return before


def checked(data: Any) -> dict:
    """What the JSON holds. Raises UserError naming the field."""
    check_object("the file", data)
    check_object("", data, ("about", "networks"))
    for name, rows in check_object("networks", data["networks"]).items():
        for engine, row in check_object(f"networks.{name}", rows).items():
            path = f"networks.{name}.{engine}"
            check_object(path, row, (*FIGURES, "worst_layer"))
            check_str(f"{path}.worst_layer", row["worst_layer"])
            for field in FIGURES:
                check_number(f"{path}.{field}", row[field], 0)
    return data


@functools.cache
def _macs(name: str) -> int:
    with torch.device("meta"):
        return count(zoo.build(name, CLASSES, SIZE), torch.empty(1, 3, SIZE, SIZE))[1]


def compare(
    name: str, wanted: Sequence[str], config: ParityConfig, train: Pictures, images: torch.Tensor
) -> dict[str, dict]:
    """By engine, of those wanted: parity of the network attached for its range of weights."""
    rows = {}
    for limit, target in LIMITS.items():
        engines = [engine for engine in wanted if quant.weight_qmax(engine) == limit]
        graph = _attached(name, config, train, target) if engines else None
        rows |= {engine: _row(graph, engine, images) for engine in engines}
    return rows


@torch.no_grad()
def _attached(name: str, config: ParityConfig, train: Pictures, engine: str) -> fx.GraphModule:
    """A network with batch-norm statistics and ranges from pictures, in evaluation mode."""
    torch.manual_seed(config.seed)
    stream = Stream(train, BATCH, config.seed)
    batches = [stream.batch(step)[0] for step in range(config.batches)]
    model = zoo.build(name, CLASSES, SIZE).train()
    for images in 2 * batches:
        model(images)
    graph = quant.attach(model, batches[0], quant.QuantConfig(engine=engine)).train()
    quant.freeze_bn(graph)
    for images in batches:
        graph(images)
    return graph.eval()


def _row(graph: fx.GraphModule, engine: str, images: torch.Tensor) -> dict:
    executor = quant.convert(graph, engine)
    report = quant.parity(graph, executor, images)
    return {
        "layers": len(report.rows),
        "layer_steps": report.layer_steps,
        "worst_layer": report.worst.name,
        "output_steps": report.output_steps,
        "float_ops": len(executor.float_ops),
    }


def summary(found: dict) -> dict:
    """The worst of all rows, against the bar, which nothing holds before anything was compared."""
    rows = [row for engines in found["networks"].values() for row in engines.values()]
    steps = max(row["layer_steps"] for row in rows) if rows else None
    return {
        "networks": len(found["networks"]),
        "rows": len(rows),
        "layers": sum(row["layers"] for row in rows),
        "layer_steps": steps,
        "bar": MAX_LAYER_STEPS,
        "holds": bool(rows) and steps <= MAX_LAYER_STEPS,
    }


def write(found: dict, config: ParityConfig) -> None:
    """JSON and page; nothing where nothing was compared."""
    if any(found["networks"].values()):
        prefix = file_prefix(config.output)
        write_json(f"{prefix}.json", found)
        write_bytes(f"{prefix}.md", page(found).encode())


def page(found: dict) -> str:
    engines = list(dict.fromkeys(engine for row in found["networks"].values() for engine in row))
    lines = [_PAGE.format(**found["about"], **summary(found)), f"| network | layers | {' | '.join(engines)} |"]
    lines.append("|---" * (2 + len(engines)) + "|")
    for name, rows in found["networks"].items():
        layers = max((row["layers"] for row in rows.values()), default="-")
        lines.append(f"| {name} | {layers} | {' | '.join(cell(rows.get(engine)) for engine in engines)} |")
    return "\n".join(lines) + "\n"


def cell(row: dict | None) -> str:
    return f"{row['layer_steps']:g} / {row['output_steps']:.0f} / {row['float_ops']}" if row else "-"


_PAGE = """# Parity: does every engine compute what fake-quant does?

Written by `PYTHONPATH=. python benchmarks/parity.py`. {networks} networks at 32 px with fresh weights (seed {seed}), batch-norm
statistics and ranges from {batches} batches of `scenes`, each with the range of weights that the engine takes; {pictures} held-out
pictures. A *step* is one step of the tensor's own 8-bit grid. Every operation gets equal integer inputs, once in fake-quant arithmetic,
once in the integer reference, once on the engine.

**Worst of {layers} comparisons: {layer_steps:g} step(s); {bar} are allowed.**

Each cell: worst layer in steps / the network's output in steps, end to end / operations computed in float. End to end, single steps add
up, and networks that learned nothing amplify them; how often a *trained* network's top-1 differs is in [ptq.md](ptq.md). fbgemm, x86 and
onednn add biases as real numbers, as training does; qnnpack, onnxruntime and openvino as integers in units of input scale times weight
scale, which moves about one code in a thousand by one step.
"""

if __name__ == "__main__":
    main()
