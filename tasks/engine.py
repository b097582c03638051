"""The one training loop: float epochs, then quantized ones (StatAssist, arXiv:2006.09679), for every task.

A task is any object with `train_step(model, batch) -> (loss, logs)` and `evaluate(model, data) -> metrics`, and perhaps
a `rival` (tasks.rival) that learns inside train_step; a stream has `batch(step)`, a pure function, `batch_size` and
`steps_per_epoch`. A run stopped at any moment goes on from its checkpoint and, on a CPU, ends in the same numbers bit
for bit as if it had not been stopped. Under torchrun (common.distributed) gradients are averaged, so that all ranks
hold the same state in every step; rank 0 writes it down.
"""

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

import quant
from common import distributed
from common.errors import UserError
from common.runs import CHECKPOINT, Run
from quant import GradBoost, Phase, QuantConfig, Schedule, phase_at
from tasks import parts


class Optimizer(NamedTuple):
    kind: type[torch.optim.Optimizer]
    lr: float  # a default peak learning rate, for batches of about 64 pictures where they are classified
    options: dict


OPTIMIZERS = {
    "sgd": Optimizer(torch.optim.SGD, 0.05, {"momentum": 0.9, "nesterov": True}),
    "adamw": Optimizer(torch.optim.AdamW, 0.003, {}),
    "adam": Optimizer(torch.optim.Adam, 0.003, {}),
    "adam_gan": Optimizer(torch.optim.Adam, 2e-4, {"betas": (0.5, 0.999)}),  # arXiv:1611.07004, section 3.3
    "rmsprop": Optimizer(torch.optim.RMSprop, 0.003, {"alpha": 0.9, "momentum": 0.9, "eps": 1e-3}),
}
WATCH_EVERY = 20  # steps between looks at the loss on a GPU, where each look waits for the device


class Task(Protocol):
    def train_step(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]: ...
    def evaluate(self, model: nn.Module, data: Any) -> dict[str, float]: ...


class Stream(Protocol):
    batch_size: int
    steps_per_epoch: int

    def batch(self, step: int) -> Any: ...


@dataclass(frozen=True)
class Recipe:
    """How to train: phases, optimizer (a key of OPTIMIZERS), peak learning rate, warm-up, GradBoost's mode.

    warmup      share of all steps
    clip_norm   largest norm of all gradients together, 0 for no limit. Deep networks of bottlenecks trained quantized
                from scratch lose what they have learned to single steps without it.
    decay       how the learning rate falls after the warm-up, a key of DECAYS
    look_every  epochs between two looks at the validation part
    """

    schedule: Schedule
    optimizer: str = "sgd"
    lr: float = 0.05
    weight_decay: float = 4e-5
    warmup: float = 0.05
    boost: str = "paper"
    quant: QuantConfig = QuantConfig()
    seed: int = 0
    checkpoint_seconds: float = 60.0
    clip_norm: float = 2.0
    decay: str = "cosine"
    look_every: int = 1


class Watcher(Protocol):
    """Shows what a model makes of some pictures, on rank 0: every so many steps, and at the end of the float phase."""

    every: int

    def show(self, model: nn.Module, step: int, float_ends: bool) -> None: ...


@dataclass(frozen=True)
class Fitted:
    """The outcome of a training.

    `model` is the float model, or the attached graph if training ended quantized; `float_metrics` by split are of the
    end of the float phase (None without one), `metrics` of the end; `seconds` are of all sittings, with evaluation.
    """

    model: nn.Module
    float_metrics: dict[str, dict[str, float]] | None
    metrics: dict[str, dict[str, float]]
    seconds: float


def fit(
    model: nn.Module,
    task: Task,
    stream: Stream,
    held_out: Mapping[str, Any],
    recipe: Recipe,
    run: Run,
    example: Tensor,
    watcher: Watcher | None = None,
) -> Fitted:
    """Train `model` in place by the recipe, from the run's checkpoint if it has one, and evaluate it.

    held_out  data by split; the first, the validation part, is evaluated after every recipe.look_every epochs, all of
              them at the end of the float phase and of training. Nothing is chosen by any of them.
    example   (N, C, H, W), a batch of the kind that will come, to trace the model with
    Raises Diverged, a UserError, where the loss stops being finite; the last checkpoint stays as it is.
    """
    total = recipe.schedule.epochs * stream.steps_per_epoch
    training = _Training(model, task, stream, held_out, recipe, run, example, watcher)
    state = distributed.from_main(lambda: run.load_checkpoint() if run.has(CHECKPOINT) else None)
    if state is not None:
        training.load_state_dict(state)
        if distributed.is_main():
            run.rewind_log(training.step)
        print(f"going on at step {training.step} of {total}")
    distributed.assert_equal(training.net.state_dict(), "weights")
    with tqdm(
        total=total * stream.batch_size,
        initial=training.step * stream.batch_size,
        desc="training",
        unit="img",
        unit_scale=True,
        smoothing=0.05,
    ) as bar:
        while training.step < total:
            training.run_epoch(bar)
    return Fitted(training.net, training.float_metrics, training.metrics, training.seconds)


class _Training:
    """Everything that changes during training, and the work of an epoch."""

    def __init__(self, model, task, stream, held_out, recipe, run, example, watcher):
        self.task, self.stream, self.held_out, self.recipe, self.run, self.example = (
            task,
            stream,
            held_out,
            recipe,
            run,
            example,
        )
        self.watcher = watcher if distributed.is_main() else None
        self.net, self.attached = quant.speed_up(model), False
        self.device = next(model.parameters()).device
        self.rival = getattr(task, "rival", None)
        if self.rival is not None:
            self.rival.to(self.device)
        self.optimizer = make_optimizer(model, recipe)
        self.step, self.sums = 0, {}
        self.seconds, self._since = 0.0, time.monotonic()  # trained before, and when this sitting's unsaved part began
        self.float_metrics, self.metrics = None, None

    def run_epoch(self, bar: tqdm) -> None:
        """The rest of the current epoch, its evaluation, its line in the log, and a checkpoint."""
        epoch = self.step // self.stream.steps_per_epoch
        phase = phase_at(self.recipe.schedule, epoch)
        self._enter(phase)
        bar.set_postfix(phase=phase.name, epoch=f"{epoch + 1}/{self.recipe.schedule.epochs}")
        self._run_steps((epoch + 1) * self.stream.steps_per_epoch, phase, bar)
        if self.attached and epoch + 1 == self.recipe.schedule.epochs:
            with contextlib.suppress(quant.QuantError):  # what has no integer form says so when it is converted
                parts.snap_biases(self.net)
        self._evaluate(epoch)
        self._log(epoch, phase)
        self.sums = {}
        distributed.assert_equal(self.net.state_dict(), "weights")
        if self.rival is not None:
            distributed.assert_equal(self.rival.networks.state_dict(), "discriminators")
        if epoch + 1 == self.recipe.schedule.float_epochs:
            self._show(float_ends=True)
        self._save()

    def _run_steps(self, until: int, phase: Phase, bar: tqdm) -> None:
        """Train up to step `until`, with a checkpoint every `checkpoint_seconds`."""
        watch = _LossWatch(phase.name, 1 if self.device.type == "cpu" else WATCH_EVERY)
        saved = time.monotonic()
        while self.step < until:
            for name, value in self._train_step(watch).items():
                self.sums[name] = self.sums.get(name, 0.0) + value.double()
            self.step += 1
            if self.watcher and self.step % self.watcher.every == 0:
                self._show()
            bar.update(self.stream.batch_size)
            bar.set_description(f"loss {watch.last:.3f}", refresh=False)
            if time.monotonic() - saved > self.recipe.checkpoint_seconds and self.step < until:
                watch.look()
                self._save()
                saved = time.monotonic()
        watch.look()
        self._refuse_broken_state()

    def _show(self, float_ends: bool = False) -> None:
        if self.watcher:
            training = [module for module in self.net.modules() if module.training]  # all but frozen batch norms
            self.net.eval()
            self.watcher.show(self.net, self.step, float_ends)
            for module in training:
                module.training = True

    def _enter(self, phase: Phase) -> None:
        """Put model and optimizer into a phase: all switches, and the quantizers before the first quantized one."""
        if phase.fake_quant and not self.attached:
            self._attach()
        if phase.bits is not None:
            quant.set_bits(self.net, phase.bits)
        self.net.train()
        quant.set_mode(self.net, observe=phase.observe, fake_quant=phase.fake_quant)
        if phase.bn_frozen:
            quant.freeze_bn(self.net)
        self.optimizer.active = phase.fake_quant

    def _attach(self) -> None:
        """Attach the quantizers; the optimizer learns what they learn, too."""
        self.net, self.attached = parts.attach(self.net, self.example, self.recipe.quant), True
        for group in quant.quantizer_parameters(self.net):
            self.optimizer.add_param_group(group)

    def _train_step(self, watch: "_LossWatch") -> dict[str, Tensor]:
        schedule, per_epoch = self.recipe.schedule, self.stream.steps_per_epoch
        total, quantized_from = schedule.epochs * per_epoch, schedule.float_epochs * per_epoch
        factor = lr_factor((self.step + 0.5) / total, self.recipe.warmup, self.recipe.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * factor * group.get("lr_scale", 1.0)
        if self.rival is not None:
            self.rival.scale_lr(factor)
        self.optimizer.progress = max(0.0, (self.step - quantized_from) / max(1, total - quantized_from))
        batch = self.stream.batch(self.step)
        distributed.reseed(self.recipe.seed, self.step)
        try:
            loss, logs = self.task.train_step(self.net, batch)
        except ValueError:  # there is no integer grid for a range that is not finite
            self._refuse_broken_state()
            raise
        whole = loss + quant.extra_loss(self.net) if self.attached else loss
        self.optimizer.zero_grad()
        whole.backward()
        whole, logs = whole.detach(), {"loss": loss.detach(), **logs}
        distributed.average([self.net], also=[whole, *logs.values()])
        watch.add(self.step, whole)
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        return logs

    def _evaluate(self, epoch: int) -> None:
        schedule = self.recipe.schedule
        last, float_ends = epoch + 1 == schedule.epochs, epoch + 1 == schedule.float_epochs
        looks = (epoch + 1) % self.recipe.look_every == 0
        splits = list(self.held_out.items())[: None if last or float_ends else int(looks)]
        self.metrics = {name: self.task.evaluate(self.net, data) for name, data in splits}
        if float_ends:
            self.float_metrics = self.metrics

    def _log(self, epoch: int, phase: Phase) -> None:
        if not distributed.is_main():
            return
        means = {name: float(total) / self.stream.steps_per_epoch for name, total in self.sums.items()}
        metrics = {f"{split}_{name}": value for split, row in self.metrics.items() for name, value in row.items()}
        lr, seconds = self.optimizer.param_groups[0]["lr"], round(self.seconds + time.monotonic() - self._since, 1)
        self.run.append_log(
            {
                "step": self.step,
                "epoch": epoch + 1,
                "phase": phase.name,
                "lr": lr,
                **means,
                **metrics,
                "seconds": seconds,
            }
        )

    def _save(self) -> None:
        self._refuse_broken_state()
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        if distributed.is_main():
            self.run.save_checkpoint(self.state_dict())

    def _refuse_broken_state(self) -> None:
        """Raise where a weight, a batch-norm statistic or a range is not finite, to save the last good checkpoint."""
        state = [
            *self.net.parameters(),
            *self.net.buffers(),
            *(self.rival.parameters() if self.rival is not None else ()),
        ]
        if not all(bool(t.isfinite().all()) for t in state):
            epoch = max(0, self.step - 1) // self.stream.steps_per_epoch
            raise _diverged(
                "weights or ranges stopped being finite", self.step, phase_at(self.recipe.schedule, epoch).name
            )

    def state_dict(self) -> dict:
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        rival = {"rival": self.rival.state_dict()} if self.rival is not None else {}
        sums = {name: float(value) for name, value in self.sums.items()}
        return {
            "attached": self.attached,
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **rival,
            "step": self.step,
            "ranks": distributed.world_size(),
            "seconds": self.seconds,
            "sums": sums,
            "float_metrics": self.float_metrics,
            "metrics": self.metrics,
            "rng": torch.get_rng_state(),
            "cuda_rng": cuda,
        }

    def load_state_dict(self, state: dict) -> None:
        distributed.refuse_other_count(state.get("ranks", 1))
        try:
            if state["attached"]:
                self._attach()
            self.net.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.rival is not None:
                self.rival.load_state_dict(state["rival"])
            self.step, self.seconds, self.sums = state["step"], state["seconds"], state["sums"]
            self.float_metrics, self.metrics = state["float_metrics"], state["metrics"]
            torch.set_rng_state(state["rng"].cpu())
            if state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
        except (RuntimeError, ValueError, KeyError) as error:
            path = self.run.path / CHECKPOINT
            raise UserError(
                f"{path}: made by another model, optimizer or program ({error}); use another --name, or --restart"
            ) from error


class _LossWatch:
    """Keeps losses on their device and looks at them every few steps; the first that is not finite is an error."""

    def __init__(self, phase: str, every: int):
        self.phase, self.every, self.last = phase, every, math.nan
        self._steps, self._losses = [], []

    def add(self, step: int, loss: Tensor) -> None:
        self._steps.append(step)
        self._losses.append(loss.detach())
        if len(self._losses) >= self.every:
            self.look()

    def look(self) -> None:
        for step, loss in zip(self._steps, torch.stack(self._losses).tolist() if self._losses else []):
            if not math.isfinite(loss):
                raise _diverged(f"the loss became {loss}", step, self.phase)
            self.last = loss
        self._steps, self._losses = [], []


class Diverged(UserError):
    """A training whose loss or weights stopped being finite."""


def _diverged(what: str, step: int, phase: str) -> Diverged:
    mend = (
        "lower --lr, lengthen --warmup, or look for bad pictures; then start over with "
        "--restart or under another --name"
    )
    return Diverged(f"{what} at step {step} of phase {phase}; the last checkpoint is kept. Mend: {mend}")


DECAYS = {  # of progress in [0, 1]
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
    "poly": lambda done: (1 - done) ** 0.9,
    "second_half": lambda done: min(1.0, 2 - 2 * done),  # constant, then to 0 in a line
}


def lr_factor(progress: float, warmup: float, decay: str = "cosine") -> float:
    """Linear warm-up, then one of DECAYS to 0, as a function of progress in [0, 1).

    >>> [round(lr_factor(p, .1), 2) for p in (0., .05, .1, .55, 1.)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return progress / warmup if progress < warmup else DECAYS[decay]((progress - warmup) / (1 - warmup))


def make_optimizer(model: nn.Module, recipe: Recipe) -> GradBoost:
    """The recipe's optimizer behind GradBoost. Batch norm and biases are not decayed."""
    if recipe.optimizer not in OPTIMIZERS:
        raise UserError(f"optimizer: {recipe.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
    choice = OPTIMIZERS[recipe.optimizer]
    groups = quant.weight_decay_groups(model, recipe.weight_decay)
    return GradBoost(choice.kind(groups, lr=recipe.lr, **choice.options), mode=recipe.boost, seed=recipe.seed)
