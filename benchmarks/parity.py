"""Does INT8 compute what was trained? Every network of the zoo on every engine, layer by layer and end to end.

    PYTHONPATH=. python benchmarks/parity.py                      # all networks, about half an hour on two cores
    PYTHONPATH=. python benchmarks/parity.py --models resnet20 frostnet_small_0_5 --train-steps 600

Each network is trained briefly on the embedded pictures (half of the steps in float, half under fake-quant for the engine's range of
weights), converted for each engine, and compared on held-out pictures. Writes docs/results/parity.{json,md} after each network; the same
command goes on where it was stopped. The last line is one JSON object.
"""

import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import frostnet
import quant
import zoo
from nas import UserError, count, read_json, write_json
from nas.cli import guard, option, parse
from nas.files import write_bytes
from tasks import Pictures, Stream, classification, in_order, lr_factor, subset

CLASSES, SIZE, BATCH = 10, 32, 32
TRAINED_FOR = "fbgemm"  # weights up to 63: no engine saturates on any CPU
USUAL_MACS = 40e6  # networks of more get so many times fewer training steps, but FEWEST_STEPS
FEWEST_STEPS = 20
LAYERWISE = 16  # pictures of the comparison layer by layer
MOST_STEPS, LEAST_AGREEMENT, MOST_LOSS = 2, 0.995, 0.002  # the bars: steps in a layer, equal top-1, loss of accuracy


@dataclass(frozen=True)
class ParityConfig:
    models: tuple[str, ...] = option((), "networks (default: the whole zoo and the published FrostNets)")
    engines: tuple[str, ...] = option(quant.available(), "engines")
    train_steps: int = option(160, f"training steps of {BATCH} pictures")
    lr: float = option(0.002, "peak learning rate")
    pictures: int = option(500, "held-out pictures that are compared end to end")
    seed: int = option(0, "seed")
    minutes: float = option(1e9, "begin no further network after so many minutes")
    output: str = option("docs/results/parity", "the results, without .json and .md")

    def __post_init__(self):
        for engine in self.engines:
            if engine not in quant.available():
                raise UserError(f"engines: {engine!r} does not run here; choose from {', '.join(quant.available())}")


@guard(errors=(quant.QuantError,))
def main(argv=None) -> dict:
    config = parse(ParityConfig, argv, "parity.py", __doc__.splitlines()[0])
    found = _begun(config)
    data = classification("scenes", None, SIZE, config.seed, 4000, False)
    end = time.monotonic() + 60 * config.minutes
    names = config.models or (*frostnet.PUBLISHED, *zoo.NAMES)
    for name in tqdm(sorted(names, key=_macs), desc="networks"):
        if time.monotonic() < end and set(config.engines) - found["networks"].get(name, {}).keys():
            found["networks"][name] = compare(name, config, data.train, subset(data.test, config.pictures, 0))
            write_json(f"{config.output}.json", found)
            write_bytes(f"{config.output}.md", page(found).encode())
    print(json.dumps(summary(found)))
    return found


def _begun(config: ParityConfig) -> dict:
    """What an earlier call with the same settings found."""
    about = {
        "seed": config.seed,
        "train_steps": config.train_steps,
        "lr": config.lr,
        "pictures": config.pictures,
        "torch": torch.__version__,
    }
    path = Path(f"{config.output}.json")
    if not path.exists():
        return {"about": about, "networks": {}}
    before = read_json(path)
    if before.get("about") != about:
        raise UserError(f"{path}: was made with {before.get('about')}, this is {about}; choose another --output, or remove it")
    return before


def compare(name: str, config: ParityConfig, train: Pictures, pictures: Pictures) -> dict[str, dict]:
    """By engine: parity of the network after a brief training."""
    graph = _trained(name, config, train)
    fake_quant = torch.cat([graph(x).argmax(1) for x, _ in in_order(pictures, 250)])
    return {engine: _row(graph, engine, pictures, fake_quant) for engine in config.engines}


def _trained(name: str, config: ParityConfig, train: Pictures) -> nn.Module:
    """The attached graph after float and fake-quant steps, in evaluation mode."""
    torch.manual_seed(config.seed)
    model, stream = zoo.build(name, CLASSES, SIZE).train(), Stream(train, BATCH, config.seed)
    model = model.to(memory_format=torch.channels_last)
    steps = max(FEWEST_STEPS, int(config.train_steps * min(1.0, USUAL_MACS / _macs(name))))
    _train(model, stream, 0, steps // 2, steps, config.lr)
    graph = quant.attach(model, torch.zeros(2, 3, SIZE, SIZE), quant.QuantConfig(engine=TRAINED_FOR)).train()
    _train(graph, stream, steps // 2, steps, steps, config.lr)
    return graph.eval().requires_grad_(False)


@functools.cache
def _macs(name: str) -> int:
    with torch.device("meta"):
        return count(zoo.build(name, CLASSES, SIZE), torch.empty(1, 3, SIZE, SIZE))[1]


def _train(model: nn.Module, stream: Stream, start: int, end: int, steps: int, lr: float) -> None:
    """Steps start to end of so many."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    for step in range(start, end):
        optimizer.param_groups[0]["lr"] = lr * lr_factor(step / steps, 0.1)
        images, labels = stream.batch(step)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # VGG without batch norm
        optimizer.step()


@torch.inference_mode()
def _row(graph: nn.Module, engine: str, pictures: Pictures, fake_quant: torch.Tensor) -> dict:
    executor = quant.convert(graph, engine)
    report = quant.parity(graph, executor, next(in_order(pictures, LAYERWISE))[0])
    with quant.use_engine(engine):
        int8 = torch.cat([executor(x).argmax(1) for x, _ in in_order(pictures, 250)])
    labels = torch.cat([y for _, y in in_order(pictures, 250)])
    accuracy = {"fake_quant_top1": (fake_quant == labels).double().mean().item(), "int8_top1": (int8 == labels).double().mean().item()}
    return {"layer_steps": report.layer_steps, "worst_layer": report.worst.name, "layers": len(report.rows),
            "output_steps": report.output_steps, "agreement": (fake_quant == int8).double().mean().item(), **accuracy,
            "float_ops": len(executor.float_ops)}  # fmt: skip


def summary(found: dict) -> dict:
    """The worst of all rows, against the bars."""
    rows = {(name, engine): row for name, engines in found["networks"].items() for engine, row in engines.items()}
    steps, same = max(r["layer_steps"] for r in rows.values()), [r["agreement"] for r in rows.values()]
    loss = [abs(r["fake_quant_top1"] - r["int8_top1"]) for r in rows.values()]
    below = sorted(f"{name} on {engine}" for (name, engine), r in rows.items() if r["agreement"] < LEAST_AGREEMENT)
    over = sum(change > MOST_LOSS + 1e-9 for change in loss)
    return {"networks": len(found["networks"]), "rows": len(rows), "layer_steps": steps, "within_steps": steps <= MOST_STEPS,
            "least_agreement": min(same), "median_agreement": sorted(same)[len(same) // 2], "below_agreement": below,
            "largest_change_of_top1": round(max(loss), 4), "rows_changing_more_than_bar": over}  # fmt: skip


def page(found: dict) -> str:
    about, total = found["about"], summary(found)
    head = ["network", "engine", "layers", "worst steps in a layer", "at", "steps at the output", "equal top-1, %",
            "fake-quant top-1, %", "INT8 top-1, %", "float operations"]  # fmt: skip
    lines = [_PAGE.format(**about, **total, rounds=about["train_steps"] // 2), f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, engines in found["networks"].items():
        for engine, r in engines.items():
            percent = [f"{100 * r[key]:.1f}" for key in ("agreement", "fake_quant_top1", "int8_top1")]
            steps = [r["layers"], f"{r['layer_steps']:g}", r["worst_layer"], f"{r['output_steps']:.0f}"]
            cells = [name, engine, *steps, *percent, r["float_ops"]]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


_PAGE = """# Parity: does INT8 compute what was trained?

Written by `PYTHONPATH=. python benchmarks/parity.py`. {networks} networks at 32 px, each trained for {rounds} float and {rounds}
fake-quant steps of 32 pictures drawn by `scenes` (fewer for networks above 40 million multiply-accumulates; weights up to 63, as fbgemm
wants them, seed {seed}), converted for each engine and compared on {pictures} held-out pictures. Such brief training leaves small
margins, so these are checks of arithmetic, not accuracies to
quote: docs/results/ptq.md has trained networks. A *step* is one step of the tensor's own 8-bit grid. Layer by layer, every operation
gets equal integer inputs; end to end, single steps add up on the way.

fbgemm, x86 and onednn add biases as real numbers, as training does; qnnpack, onnxruntime and openvino as integers in units of input
scale times weight scale, which moves about one code in a thousand by one step.

Worst layer: {layer_steps:g} steps. Equal top-1: median {median_agreement:.3f}, least {least_agreement:.3f}. Largest change of top-1
accuracy: {largest_change_of_top1:.3f}.
"""

if __name__ == "__main__":
    main()
