"""What several ranks cost: a supernet's step against the number of ranks and of candidates in a slot, on this CPU with
gloo.

    PYTHONPATH=. python benchmarks/scaling.py                # about five minutes; writes docs/results/scaling.json and
    its table
    PYTHONPATH=. python benchmarks/scaling.py --rounds 1     # a look

Each rank has one thread and a batch of its own, so that two ranks do twice the work in a step. Launches with 1 and 2
ranks take turns, and in each the supernets take turns step by step, so that whatever slows the machine slows all. CPU
time is that of one rank, its communication included: unlike wall time it hardly depends on what else runs. Reported are
medians over all launches, of weight steps on one path. The last line is JSON.
"""

import json
import os
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pandas
import torch
import torch.distributed as dist
import torch.nn.functional as F

from common import distributed
from common.cli import guard, option, parse
from common.files import write_bytes, write_json
from common.runs import Run
from latency_lut.machine import cpu_model
from nas import SearchSpace, find_space
from nas.space import Slot
from quant import QuantConfig
from supernet import Plan, Search, Supernet

PAGE, BEGIN, END = Path("docs/scaling.md"), "<!-- measured -->", "<!-- end of measured -->"
SIZE, CLASSES, WARM_UP = 32, 10, 2
PHASES = {"float": Plan(0, 1000, 0, 1), "quant": Plan(0, 0, 1000, 1)}


@dataclass(frozen=True)
class ScalingConfig:
    ranks: tuple[int, ...] = option((1, 2), "numbers of ranks")
    candidates: tuple[int, ...] = option((2, 4, 8), "candidates in a slot, at most")
    batch_size: int = option(32, "pictures of one rank in a step")
    width: float = option(0.5, "width multiplier")
    rounds: int = option(4, "launches with each number of ranks")
    steps: int = option(5, "steps of each kind that a launch times")
    output: str = option("docs/results/scaling.json", "file to write")


@guard
def main(argv=None) -> dict:
    config = parse(ScalingConfig, argv, "scaling.py", __doc__)
    times: dict[tuple, list[dict]] = {}
    for _ in range(config.rounds):
        for count in config.ranks:
            for row in launch(config, count):
                times.setdefault((row["phase"], row["candidates"], count), []).append(row)
        result = written(config, times)
    print(table(result["rows"]).to_string(index=False))
    print(json.dumps({"rows": result["rows"]}))
    return result


def written(config: ScalingConfig, times: dict[tuple, list[dict]]) -> dict:
    """What has been found so far, as JSON and in the page."""
    rows = [summary(key, found) for key, found in times.items()]
    result = {
        "cpu": cpu_model(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
        "settings": vars(config),
        "rows": rows,
    }
    write_json(config.output, result)
    write_table(result)
    return result


def launch(config: ScalingConfig, count: int) -> list[dict]:
    """What rank 0 measured among `count` fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(one_rank, (config, count, free_port(), folder), nprocs=count)
        return Run(folder).read_json("rows.json")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def one_rank(number: int, config: ScalingConfig, count: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with distributed.joined():
        counter = Counter()
        searches = {(phase, n): search(config, phase, n) for phase in PHASES for n in config.candidates}
        rows = []
        for step in range(WARM_UP + config.steps):
            for (phase, n), one in searches.items():
                row = {"phase": phase, "candidates": n, **counter.step(one), "parameters": parameters(one)}
                rows += [row] if step >= WARM_UP else []
        if distributed.is_main():
            Run(folder).write_json("rows.json", rows)


class Counter:
    """Times steps, and counts what the ranks tell each other in them: it stands in for torch's all_reduce."""

    def __init__(self):
        self.all_reduce, self.messages, self.values = dist.all_reduce, 0, 0
        dist.all_reduce = self.reduce

    def reduce(self, tensor, *args, **options):
        self.messages += 1
        self.values += tensor.numel()
        return self.all_reduce(tensor, *args, **options)

    def step(self, search: Search) -> dict:
        distributed.barrier()
        self.messages = self.values = 0
        wall, cpu = time.perf_counter(), time.process_time()
        search.step()
        spent = {"cpu_ms": 1e3 * (time.process_time() - cpu), "wall_ms": 1e3 * (time.perf_counter() - wall)}
        return spent | {"messages": self.messages, "values": self.values}


def search(config: ScalingConfig, phase: str, candidates: int) -> Search:
    """A search on noise that stays in one phase."""
    torch.manual_seed(0)
    space = thinned(find_space("frostnet")(config.width, SIZE, CLASSES), candidates)
    x = torch.randn(config.batch_size, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    batch = (x, torch.arange(config.batch_size) % CLASSES)
    blocks = [[[1.0 + i for i in range(len(slot.candidates))] for slot in stage.slots] for stage in space.stages]
    latency = SimpleNamespace(stem_ms=1.0, head_ms=1.0, blocks=blocks)
    network = Supernet(space).to(memory_format=torch.channels_last)
    return Search(
        network, PHASES[phase], latency, 20.0, F.cross_entropy, lambda _: batch, lambda _: batch, QuantConfig()
    )


def thinned(space: SearchSpace, candidates: int) -> SearchSpace:
    """The space with at most so many candidates in a slot: the last ones, the largest among them."""

    def slots(stage):
        return tuple(Slot(slot.candidates[-candidates:]) for slot in stage.slots)

    return replace(space, stages=tuple(replace(stage, slots=slots(stage)) for stage in space.stages))


def parameters(search: Search) -> int:
    return sum(p.numel() for p in search.supernet.parameters())


# ---- results -----------------------------------------------------------------------------------------------


def summary(key: tuple, found: list[dict]) -> dict:
    """Medians of one kind of step over all launches, and the quartiles of its CPU time."""
    median = {
        name: statistics.median(row[name] for row in found) for name in found[0] if name not in ("phase", "candidates")
    }
    low, _, high = statistics.quantiles([row["cpu_ms"] for row in found], n=4)
    row = dict(zip(("phase", "candidates", "ranks"), key, strict=True)) | {k: round(v, 2) for k, v in median.items()}
    return row | {"cpu_ms_quartiles": [round(low, 1), round(high, 1)], "steps": len(found)}


def table(rows: list[dict]) -> pandas.DataFrame:
    return pandas.DataFrame(
        [
            {
                "phase": row["phase"],
                "candidates": row["candidates"],
                "parameters in all": f"{round(row['parameters']):,}",
                "ranks": row["ranks"],
                "CPU ms": f"{row['cpu_ms']:.0f}",
                "quartiles": "{:.0f} to {:.0f}".format(*row["cpu_ms_quartiles"]),
                "wall ms": f"{row['wall_ms']:.0f}",
                "all-reduces": round(row["messages"]),
                "values in them": f"{round(row['values']):,}",
            }
            for row in sorted(rows, key=lambda row: (row["phase"], row["candidates"], row["ranks"]))
        ]
    )


def write_table(result: dict) -> None:
    """Put the table between the two marks of docs/scaling.md."""
    frame = table(result["rows"])
    lines = [frame.columns, ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    text = PAGE.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    rows = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    write_bytes(PAGE, f"{before}\n\n{rows}\n\n{after}".encode())


if __name__ == "__main__":
    main()
