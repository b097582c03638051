"""What a step of the search costs beside a training step of a plain network: CPU time and memory, by sampler and
candidates.

    PYTHONPATH=. python benchmarks/supernet_step.py                                   # about ten minutes; writes
    docs/results PYTHONPATH=. python benchmarks/supernet_step.py --candidates 2 4 --rounds 2 --output look.json

Plain networks are the architectures of the paths that the supernet samples, attached alone, with the same pictures and
an optimizer of the same kind. Rounds take one step of every kind in turn, so whatever slows the machine slows all;
reported are ratios of medians of the CPU time of one thread. The supernets are that of the default space and some whose
slots all have equally many candidates, Frost blocks of several expansions, kernels and activations. The last line is
JSON.
"""

import gc
import itertools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pandas
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import quant
from common.cli import guard, option, parse
from common.errors import UserError
from common.files import write_bytes, write_json
from frostnet import FrostNet
from latency_lut.machine import cpu_model
from nas import Choice, SearchSpace, find_space
from nas.arch import BlockSpec, resolve
from nas.space import Slot
from supernet import SAMPLERS, Plan, Search, Supernet, fair_choice
from supernet.samplers import round_length

# expansion, kernel, activation of frost blocks
KINDS = tuple(itertools.product((6, 5, 4, 3, 2), (3, 5), ("relu", "hard_swish")))
CLASSES, CONFIG = 10, quant.QuantConfig(engine="fbgemm")
ONE_PATH, TWO_PATHS = 1.3, 2.3  # times the plain step: the bars
ALIKE = 0.01  # relative difference between peaks that are called the same
PLAN = Plan(0, 0, 10**6, 10**6)
MIB = 2**20


@dataclass(frozen=True)
class StepConfig:
    candidates: tuple[int, ...] = option((2, 4, 8, 20), "candidates in a slot")
    rounds: int = option(12, "steps of each kind that are timed")
    paths: int = option(4, "paths that take turns")
    width: float = option(0.5, "width multiplier")
    input_size: int = option(32, "pixels")
    batch_size: int = option(32, "pictures in a step")
    output: str = option("docs/results/supernet_step.json", "file to write; the table goes beside it as .md")

    def __post_init__(self):
        for field in ("rounds", "paths", "batch_size"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}: {getattr(self, field)}, must be at least 1")
        for count in self.candidates:
            if not 2 <= count <= len(KINDS):
                raise UserError(f"candidates: {count}, must be 2 to {len(KINDS)}")


@guard
def main(argv=None) -> dict:
    """Measure; returns what the last line says."""
    config = parse(StepConfig, argv, "supernet_step.py", __doc__)
    torch.set_num_threads(1)
    spaces = {"frostnet": find_space("frostnet")(config.width, config.input_size, CLASSES)}
    spaces |= {f"{n} candidates": cut(n, config) for n in config.candidates}
    rows = []
    for name, space in spaces.items():
        rows.append({"space": name} | measured(space, config))
        print(table(rows[-1:]).to_string(index=False))
        gc.collect()
    result = {
        "bars": bars(rows),
        "rows": rows,
        "cpu": cpu_model(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
        "settings": vars(config),
    }
    write_json(config.output, result)
    write_bytes(Path(config.output).with_suffix(".md"), text(result, Path(config.output).name).encode())
    print(json.dumps(result["bars"]))
    return result


def cut(count: int, config: StepConfig) -> SearchSpace:
    """The default space with the first `count` of KINDS in every slot with a choice."""
    space = find_space("frostnet")(config.width, config.input_size, CLASSES)

    def kinds(slot: Slot) -> Slot:
        at = slot.candidates[0]
        specs = (
            BlockSpec("frost", k, at.in_channels, at.out_channels, at.stride, e, 4, act) for e, k, act in KINDS[:count]
        )
        return Slot(tuple(map(resolve, specs))) if len(slot.candidates) > 1 else slot

    return replace(space, name="cut", stages=tuple(replace(s, slots=tuple(map(kinds, s.slots))) for s in space.stages))


def measured(space: SearchSpace, config: StepConfig) -> dict:
    """Times, peaks and sizes of all kinds of steps in one space."""
    bench = Bench(space, config)
    ms = {kind: 1e3 * median(seconds) for kind, seconds in timed(bench, config.rounds).items()}
    peaks = {kind: bench.peak_bytes(kind) / MIB for kind in bench.kinds}
    return {
        "candidates": [min(counts(space)), max(counts(space))],
        "ms": rounded(ms, 1),
        "over_plain": rounded({kind: value / ms["plain"] for kind, value in ms.items()}, 3),
        "peak_mib": rounded(peaks, 2),
        **rounded(bench.sizes(), 1),
    }


def counts(space: SearchSpace) -> list[int]:
    """The numbers of candidates of the slots that have a choice."""
    return [len(slot.candidates) for stage in space.stages for slot in stage.slots if len(slot.candidates) > 1]


def rounded(numbers: dict[str, float], digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in numbers.items()}


def timed(bench: "Bench", rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind, a step of every kind a round, all of them about the same path; each round begins with
    another kind.
    """
    times, order = {kind: [] for kind in bench.kinds}, list(bench.kinds)
    for round_ in range(-1, rounds):  # the first warms up
        turn = round_ % len(order)
        for kind in order[turn:] + order[:turn]:
            started = time.thread_time()
            bench.kinds[kind](round_)
            if round_ >= 0:
                times[kind].append(time.thread_time() - started)
    return times


def peak_bytes(step: Callable[[], None]) -> int:
    """The most bytes that were alive at once during a step, beyond those alive before it.

    Exact: torch's profiler notes every allocation and release of its CPU allocator, kernels' temporaries included, and
    this is the highest of the running sums of all notes.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    notes = sorted(
        (e.start_ns(), e.nbytes()) for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"
    )
    alive = peak = 0
    for _, size in notes:
        alive += size
        peak = max(peak, alive)
    return peak


# ---- steps -------------------------------------------------------------------------------------------------


class Bench:
    """A search in its quantized phase, and the plain networks of `paths` of its paths.

    kinds: by name a function of the round that takes one step: `plain`, `path` (the weight step on that path), and an
    alpha step with each sampler. Alphas are uniform but for the depths, which are full throughout, as the plain
    networks' are.
    """

    def __init__(self, space: SearchSpace, config: StepConfig):
        torch.manual_seed(0)
        images = torch.randn(config.batch_size, 3, config.input_size, config.input_size)
        self.batch = images.contiguous(memory_format=torch.channels_last), torch.arange(config.batch_size) % CLASSES
        network = Supernet(space).to(memory_format=torch.channels_last)
        latency = SimpleNamespace(
            stem_ms=1.0, head_ms=1.0, blocks=[[[1.0] * len(s.candidates) for s in st.slots] for st in space.stages]
        )
        self.search = Search(network, PLAN, latency, 1.0, F.cross_entropy, self._draw, self._draw, CONFIG)
        # every candidate has momentum and statistics, as after a while
        for _ in range(max(2 * round_length(space), 16)):
            self.search.step()
        self.paths = [fair_choice(space, 1, i) for i in range(min(config.paths, round_length(space)))]
        self.paths[0] = Choice(self.paths[0].depths, tuple((0,) * len(ops) for ops in self.paths[0].ops))
        self.plain = [Plain(space, path, self.batch) for path in self.paths]
        self.search._path = lambda step, phase: self.paths[step % len(self.paths)]
        with torch.no_grad():
            for alpha in self.search.alphas.depths:
                alpha[-1] = 60.0
        samplers = {name: partial(self.alpha_step, name) for name in SAMPLERS}
        self.kinds: dict[str, Callable[[int], None]] = {"plain": self.plain_step, "path": self.weight_step, **samplers}

    def _draw(self, step: int) -> tuple[Tensor, Tensor]:
        return self.batch

    def plain_step(self, round_: int) -> None:
        self.plain[round_ % len(self.plain)].step()

    def weight_step(self, round_: int) -> None:
        self.search.optimizer.zero_grad()
        self.search._weight_step(round_, "quant")

    def alpha_step(self, sampler: str, round_: int) -> None:
        self.search.plan = replace(PLAN, sampler=sampler)
        self.search._alpha_step(round_)

    def peak_bytes(self, kind: str) -> int:
        """The peak of a step in which a sampler of one path draws the first candidates, one of two paths the first two."""
        with torch.no_grad():
            for alpha in (alpha for stage in self.search.alphas.ops for alpha in stage):
                alpha.zero_()[: 1 if kind == "gumbel" else 2] = 60.0
        return peak_bytes(partial(self.kinds[kind], 0))

    def sizes(self) -> dict[str, float]:
        """MiB that grow with the candidates: of weights with their buffers, and of what the optimizer keeps for them."""
        kept = self.search.optimizer.state_dict()
        momentum = [row["momentum_buffer"] for row in kept["optimizer"]["state"].values()]
        statistics = [n for bucket in kept["boost"]["buckets"] for name in ("n_min", "n_max") for n in bucket[name]]
        weights = [t for t in self.search.supernet.state_dict().values() if isinstance(t, Tensor)]
        return {"weights_mib": bytes_of(weights) / MIB, "optimizer_mib": bytes_of([*momentum, *statistics]) / MIB}


class Plain:
    """The network of a path alone, trained as retraining does."""

    def __init__(self, space: SearchSpace, path: Choice, batch: tuple[Tensor, Tensor]):
        network = FrostNet(space.architecture(path)).to(memory_format=torch.channels_last)
        self.batch, self.model = batch, quant.attach(network, batch[0], CONFIG).train()
        sgd = torch.optim.SGD(
            quant.weight_decay_groups(self.model, PLAN.weight_decay), lr=1e-3, momentum=PLAN.momentum, nesterov=True
        )
        self.optimizer = quant.GradBoost(sgd)
        self.optimizer.active = True
        self.step()

    def step(self) -> None:
        images, targets = self.batch
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), PLAN.clip_norm)
        self.optimizer.step()
        loss.item()


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# ---- results -----------------------------------------------------------------------------------------------


def bars(rows: list[dict]) -> dict:
    """The worst figure of each bar, and whether it is met."""
    one, two = (max(row["over_plain"][kind] for row in rows) for kind in ("path", "proxyless"))
    peaks = [row["peak_mib"]["path"] for row in rows[1:]]
    spread = max(peaks) / min(peaks) - 1.0
    met = {"one_path": one <= ONE_PATH, "two_paths": two <= TWO_PATHS, "memory": spread <= ALIKE}
    return {
        "one_path_over_plain": one,
        "two_paths_over_plain": two,
        "peak_mib_of_one_path": peaks,
        "peak_spread": round(spread, 4),
        "met": met,
    }


def table(rows: list[dict]) -> pandas.DataFrame:
    kinds = list(rows[0]["ms"])
    return pandas.DataFrame(
        [
            {
                "space": row["space"],
                "candidates": "-".join(map(str, dict.fromkeys(row["candidates"]))),
                "plain ms": row["ms"]["plain"],
            }
            | {f"{kind} ×": f"{row['over_plain'][kind]:.2f}" for kind in kinds[1:]}
            | {f"{kind} MiB": f"{row['peak_mib'][kind]:.1f}" for kind in kinds}
            | {"weights MiB": row["weights_mib"], "optimizer MiB": row["optimizer_mib"]}
            for row in rows
        ]
    )


def text(result: dict, name: str) -> str:
    """The page beside the JSON."""
    frame, settings, found = table(result["rows"]), result["settings"], result["bars"]
    lines = [
        "| " + " | ".join(map(str, row)) + " |" for row in (frame.columns, ["---"] * len(frame.columns), *frame.values)
    ]

    def word(bar):
        return "met" if found["met"][bar] else "missed"

    return f"""# What a step of the search costs

Written by `PYTHONPATH=. python benchmarks/supernet_step.py`; the numbers are in [{name}]({name}).

{result["cpu"]}, one thread, torch {result["torch"]}, load {result["load"]:.1f}. Width {settings["width"]}, {settings["input_size"]} px, \
batch {settings["batch_size"]}, under fake-quant with GradBoost; medians of {settings["rounds"]} interleaved rounds of CPU time. \
`plain` is the training step of the network that a path samples, alone (forward, backward, clipping, GradBoost on SGD); `path` is the \
supernet's weight step on that path; the others are alpha steps with each sampler, at full depth. × is the time over `plain`. \
Spaces: the default one, and the same places with so many Frost blocks of unlike expansion, kernel and activation in each.

MiB is the most memory alive at once in a step beyond what was alive before it, in bytes counted by torch's own allocator: activations, \
gradients and temporaries. Weights (with batch norms and quantizers) and what the optimizer keeps (momentum, GradBoost's statistics) \
exist once for the whole supernet, grow with the candidates and stand in columns of their own. For memory the path and the \
plain network take the first candidate of each slot, and so does `gumbel`; `proxyless` takes the first two, `darts` all of them.

{chr(10).join(lines)}

- One path at most {ONE_PATH} times the plain step: {found["one_path_over_plain"]:.2f} at worst, {word("one_path")}.
- Two paths (`proxyless`) at most {TWO_PATHS} times: {found["two_paths_over_plain"]:.2f} at worst, {word("two_paths")}. An alpha step \
computes no gradients of weights, which is why two paths cost less than two steps.
- Memory of one path independent of the number of candidates: {100 * found["peak_spread"]:.1f} % between the least and the most, \
{word("memory")}.
"""


if __name__ == "__main__":
    main()
