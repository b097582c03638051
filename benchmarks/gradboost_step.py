"""What GradBoost costs: the optimizer's step with and without it, inside whole training steps, in one interleaved run.

    PYTHONPATH=. python benchmarks/gradboost_step.py   # this CPU with 1 thread and with all; CUDA if there is one
    PYTHONPATH=. python benchmarks/gradboost_step.py --modes released --optimizers sgd --rounds 50

Each kind takes a float training step of the same network in turn (forward, backward, optimizer), so whatever slows the
machine slows all; its optimizer's step is timed apart. `gathering` is the float phase, where statistics are kept and
nothing is boosted. Reported are ratios of medians. The last line is JSON.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import pandas
import torch
import torch.nn.functional as F
from torchvision.models import mobilenet_v2

import quant
from common.cli import guard, option, parse
from common.errors import UserError
from frostnet import FrostNet, find

NETS = {
    "mobilenet_v2_0_5": lambda: mobilenet_v2(num_classes=10, width_mult=0.5),
    "frostnet_small_0_5": lambda: FrostNet(find("frostnet_small_0_5").for_input(32).with_classes(10)),
}
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=1e-5, momentum=0.9, nesterov=True, weight_decay=4e-5),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-6),
}
BATCH, SIZE, WARM_UP = 64, 32, 3


@dataclass(frozen=True)
class BoostConfig:
    nets: tuple[str, ...] = option(tuple(NETS), "networks")
    optimizers: tuple[str, ...] = option(tuple(OPTIMIZERS), "optimizers")
    modes: tuple[str, ...] = option(("paper",), "modes of GradBoost: paper, released")
    threads: tuple[int, ...] = option((1, 0), "threads on the CPU; 0 for torch's choice")
    rounds: int = option(20, "steps of each kind that are timed")

    def __post_init__(self):
        for field, known in (("nets", NETS), ("optimizers", OPTIMIZERS), ("modes", ("paper", "released"))):
            for name in getattr(self, field):
                if name not in known:
                    raise UserError(f"{field}: {name!r} is not one of {', '.join(known)}")
        if self.rounds < 1:
            raise UserError(f"rounds: {self.rounds}, must be at least 1")


@guard(errors=(quant.QuantError,))
def main(argv=None) -> dict:
    """Measure; returns what the last line says."""
    config = parse(BoostConfig, argv, "gradboost_step.py", __doc__)
    results, default = {}, torch.get_num_threads()
    for name in config.nets:
        for threads in dict.fromkeys(count or default for count in config.threads):
            torch.set_num_threads(threads)
            results |= measured(config, name, "cpu", f"{threads} thread{'s' * (threads > 1)}")
        torch.set_num_threads(default)
        if torch.cuda.is_available():
            results |= measured(config, name, "cuda", torch.cuda.get_device_name())
    print(json.dumps(results))
    return results


def measured(config: BoostConfig, name: str, device: str, where: str) -> dict[str, dict]:
    """Overheads by "net, machine, mode" and optimizer."""
    steps = kinds(config, name, device)
    times = timed(steps, config.rounds)
    backward = 1e3 * median(fb for rows in times.values() for fb, _ in rows)
    ms = {kind: 1e3 * median(step for _, step in rows) for kind, rows in times.items()}
    print(
        f"\n{name}, {device}, {where}, torch {torch.__version__}: forward and backward {backward:.1f} ms at batch {BATCH}, {SIZE} px"
    )
    print(pandas.Series(ms, name="optimizer ms").to_string(float_format="{:.2f}".format))
    found = {}
    for optimizer, mode in {kind[:2] for kind in ms if kind[1] != "bare"}:
        bare, boosted, gathering = (
            ms[optimizer, *rest] for rest in (("bare", ""), (mode, "boosting"), (mode, "gathering"))
        )
        found.setdefault(f"{name}, {device}, {where}, {mode}", {})[optimizer] = {
            "overhead_of_optimizer_step": round(boosted / bare - 1.0, 3),
            "overhead_of_training_step": round((boosted - bare) / (backward + bare), 4),
            "gathering_overhead_of_optimizer_step": round(gathering / bare - 1.0, 3),
        }
    return dict(sorted(found.items()))


def kinds(config: BoostConfig, name: str, device: str) -> dict[tuple, Callable[[], tuple[float, float]]]:
    """A training step of each kind, (optimizer, mode, phase), that returns the seconds of its two parts."""
    torch.manual_seed(0)
    model = NETS[name]().to(device, memory_format=torch.channels_last).train()
    x = torch.randn(BATCH, 3, SIZE, SIZE, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (BATCH,), device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def training_step(optimizer) -> tuple[float, float]:
        began = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        wait()
        ready = time.perf_counter()
        optimizer.step()
        wait()
        return ready - began, time.perf_counter() - ready

    steps = {}
    for optimizer in config.optimizers:
        plain = OPTIMIZERS[optimizer](model.parameters())
        steps[optimizer, "bare", ""] = lambda optimizer=plain: training_step(optimizer)
        for mode in config.modes:
            for phase in ("boosting", "gathering"):
                boosted = quant.GradBoost(OPTIMIZERS[optimizer](model.parameters()), mode)
                boosted.active = phase == "boosting"
                steps[optimizer, mode, phase] = lambda optimizer=boosted: training_step(optimizer)
    return steps


def timed(steps: dict[tuple, Callable], rounds: int) -> dict[tuple, list[tuple[float, float]]]:
    """The seconds of each, a step of every kind a round; each round begins with another kind."""
    times, order = {kind: [] for kind in steps}, list(steps)
    for round_ in range(WARM_UP + rounds):
        turn = round_ % len(order)
        for kind in order[turn:] + order[:turn]:
            seconds = steps[kind]()
            if round_ >= WARM_UP:
                times[kind].append(seconds)
    return times


if __name__ == "__main__":
    main()
