"""The search: phases, the joint training of weights and alphas, and the latency constraint. Everything it holds is in
state_dict().

base     weights of the largest candidate of every slot alone; then all candidates start from its weights
         (supernet.inherit). In a tied space, which is there to compare unlike blocks, fair paths from the start: none
         is to profit from being near the largest
float    fair paths: every candidate learns, the optimizer and batch norm gather statistics (StatAssist)
quant    the same under fake-quant with GradBoost, alphas still frozen
joint    weights on paths drawn half by the alphas, half fairly; every `alpha_every` steps the alphas on a held-out
         batch:
             min_alpha  CE + mu x + rho/2 x^2 + entropy term,   x = E/T - 1,   mu <- mu + mu_rate x
         an augmented Lagrangian, first order: the dual variable mu rises while the expected latency E is above the
         target T and falls, below 0 too, while it is under it. A penalty on the excess alone ended a fifth under the
         target: once pressed down, nothing brought slower candidates back within a short search.

Under torchrun (common.distributed) all ranks run the same path, on other pictures: a path follows from (seed, step) and
the alphas, which are equal on all ranks, since gradients and statistics are averaged in every step. This is checked.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import quant
from common import distributed
from common.errors import UserError
from nas.derive import latency_range
from nas.space import Choice
from quant.statistics import frozen_statistics, frozen_weights, weight_decay_groups
from supernet.alphas import Alphas
from supernet.inherit import hand_down
from supernet.model import Supernet
from supernet.samplers import covering_length, fair_choice, largest_choice, sampled_choice, sampled_gates, seed_for

LOWEST_MU = -1.0  # bound on the reward for slower networks
Batch = Callable[[int], tuple[Tensor, Tensor]]  # step -> (images, targets), the same for the same step


@dataclass(frozen=True)
class Plan:
    """Lengths and rates of a search.

    base_steps float_steps quant_steps joint_steps   weight steps in each phase
    alpha_every     weight steps between two alpha steps
    lr momentum weight_decay              of the weights' SGD; lr falls along a cosine after a short warm-up
    alpha_lr        of the alphas' Adam (beta1 = 0: the task's gradient moves an alpha only while it is sampled,
                    arXiv:1812.00332)
    temperature     of the softmax at the beginning and the end of the joint phase, falling exponentially
    mu_rate rho     how fast the dual variable follows the missed target, and the weight of the squared miss
    entropy         weight of the entropy term: explores in the first half of the joint phase, commits in the second
    uniform_share   of the paths drawn by the alphas, how much is drawn uniformly instead
    clip_norm       largest norm of all gradients of the weights together
    sampler         which paths an alpha step runs, a key of supernet.samplers.SAMPLERS
    """

    base_steps: int
    float_steps: int
    quant_steps: int
    joint_steps: int
    alpha_every: int = 2
    lr: float = 0.015
    momentum: float = 0.9
    weight_decay: float = 1e-5
    alpha_lr: float = 0.05
    temperature: tuple[float, float] = (2.0, 0.5)
    mu_rate: float = 0.02
    rho: float = 3.0
    entropy: float = 0.01
    uniform_share: float = 0.1
    sampler: str = "proxyless"
    clip_norm: float = 2.0

    @property
    def steps(self) -> int:
        return self.joint_from + self.joint_steps

    @property
    def quant_from(self) -> int:
        return self.base_steps + self.float_steps

    @property
    def joint_from(self) -> int:
        return self.quant_from + self.quant_steps

    def phase(self, step: int) -> str:
        """The phase that a step belongs to."""
        ends = {"base": self.base_steps, "float": self.quant_from, "quant": self.joint_from}
        return next((name for name, end in ends.items() if step < end), "joint")

    def joint_progress(self, step: int) -> float:
        """How much of the joint phase has passed before `step`, in [0, 1]."""
        return min(max((step - self.joint_from) / max(self.joint_steps, 1), 0.0), 1.0)

    def learning_rate(self, step: int) -> float:
        warmup = max(1, self.steps // 10)
        return self.lr * min((step + 1) / warmup, 0.5 * (1.0 + math.cos(math.pi * step / self.steps)))

    def temperature_at(self, step: int) -> float:
        first, last = self.temperature
        return first * (last / first) ** self.joint_progress(step)


class Search:
    """One search, step by step.

    latency     calibrated milliseconds of the space: stem_ms, head_ms, blocks[stage][slot][candidate]
    target_ms   what the network should take
    loss        (outputs, targets) -> 0-dim loss
    train, val  batches by step; `val` is held out from training and moves the alphas only
    """

    def __init__(
        self,
        supernet: Supernet,
        plan: Plan,
        latency,
        target_ms: float,
        loss: Callable,
        train: Batch,
        val: Batch,
        config: quant.QuantConfig,
        boost_mode: str = "paper",
        seed: int = 0,
    ):
        self.supernet, self.plan, self.latency, self.target_ms = supernet, plan, latency, target_ms
        self.loss, self.train, self.val, self.config, self.seed = loss, train, val, config, seed
        self.device = next(supernet.parameters()).device
        self.alphas = Alphas(supernet.space)  # on the CPU, where paths are drawn: a few hundred numbers
        sgd = torch.optim.SGD(
            weight_decay_groups(supernet, plan.weight_decay), lr=plan.lr, momentum=plan.momentum, nesterov=True
        )
        self.optimizer = quant.GradBoost(sgd, boost_mode, seed=seed)
        self.alpha_optimizer = torch.optim.Adam(self.alphas.parameters(), lr=plan.alpha_lr, betas=(0.0, 0.999))
        self.step_index, self.mu, self.attached = 0, 0.0, False
        # a target that every network meets steers nothing
        self.steered = target_ms < latency_range(supernet.space, latency)[1]
        supernet.train()

    @property
    def finished(self) -> bool:
        return self.step_index >= self.plan.steps

    def step(self) -> dict[str, float | str]:
        """One weight step, and an alpha step where it is due; returns what to log."""
        step, phase = self.step_index, self.plan.phase(self.step_index)
        # dropout's masks: the same whether or not the search was stopped before
        torch.manual_seed(seed_for(self.seed, 6, step))
        distributed.reseed(self.seed, step)
        if step == self.plan.base_steps and not self.supernet.space.tied:
            hand_down(self.supernet)
        if phase in ("quant", "joint") and not self.attached:
            self._attach()
            self._calibrate()
        row = {"step": step, "phase": phase, "loss": self._weight_step(step, phase)}
        if phase == "joint" and step % self.plan.alpha_every == 0:
            row |= self._alpha_step(step)
        self.step_index += 1
        return row

    def _attach(self) -> None:
        self.supernet.attach(self.config, self.train(0)[0].to(self.device))
        self.supernet.to(self.device).train()
        self.optimizer.active = True
        self.attached = True

    @torch.no_grad()
    def _calibrate(self) -> None:
        """The first paths of a round, so that every quantizer has seen data before anything depends on it."""
        images = self.train(0)[0].to(self.device)
        for position in range(covering_length(self.supernet.space)):
            choice = fair_choice(self.supernet.space, self.seed, position)
            self.supernet(images, choice)
            distributed.average(self.supernet.path(choice))

    def _weight_step(self, step: int, phase: str) -> float:
        images, targets = (t.to(self.device, non_blocking=True) for t in self.train(step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate(step)
        self.optimizer.progress = max(0, step - self.plan.quant_from) / max(1, self.plan.steps - self.plan.quant_from)
        choice = self._path(step, phase)
        loss = self.loss(self.supernet(images, choice), targets)
        self.optimizer.zero_grad()
        loss.backward()
        loss = loss.detach()
        distributed.average(self.supernet.path(choice), also=[loss])
        value = self._finite(loss, step, phase)
        nn.utils.clip_grad_norm_(
            [p for module in self.supernet.path(choice) for p in module.parameters()], self.plan.clip_norm
        )
        self.optimizer.step()
        return value

    def _path(self, step: int, phase: str) -> Choice:
        if phase == "base" and not self.supernet.space.tied:
            return largest_choice(self.supernet.space, self.seed, step)
        if phase == "joint" and step % 2:
            return sampled_choice(self.alphas, self.plan.temperature_at(step), self.plan.uniform_share, self.seed, step)
        return fair_choice(self.supernet.space, self.seed, step // 2 if phase == "joint" else step)

    def _alpha_step(self, step: int) -> dict[str, float]:
        images, targets = (t.to(self.device, non_blocking=True) for t in self.val(step // self.plan.alpha_every))
        temperature, progress = self.plan.temperature_at(step), self.plan.joint_progress(step)
        gates = sampled_gates(self.plan.sampler, self.alphas, temperature, self.seed, step)
        # to walk over all candidates would take a fifth of the step
        running = nn.ModuleList(self.supernet.gated(gates[0]))
        with frozen_weights(running), frozen_statistics(running):
            task_loss = self.loss(self.supernet.forward_gated(images, *gates), targets)
            task_loss = task_loss.cpu()
            expected = self.alphas.expected_latency(self.latency, temperature)
            excess = expected / self.target_ms - 1.0
            entropy = self.alphas.entropy(temperature)
            pressure = self.mu * excess + 0.5 * self.plan.rho * excess.square()
            loss = task_loss + self.steered * pressure + self.plan.entropy * (2.0 * progress - 1.0) * entropy
            self.alpha_optimizer.zero_grad()
            loss.backward()
        task_loss, loss = task_loss.detach(), loss.detach()
        distributed.average([self.alphas], also=[task_loss, loss])
        self._finite(loss, step, "joint")
        self.alpha_optimizer.step()
        # before a path is drawn by them: unlike paths crash or hang
        distributed.assert_equal(self.alphas.state_dict(), "alphas")
        self.mu = max(LOWEST_MU, self.mu + self.steered * self.plan.mu_rate * excess.item())
        return {
            "val_loss": task_loss.item(),
            "expected_ms": expected.item(),
            "target_ms": self.target_ms,
            "mu": self.mu,
            "entropy": entropy.item(),
            "cheapest_share": self.alphas.cheapest_share(self.latency, temperature),
            "temperature": temperature,
        }

    def _finite(self, loss: Tensor, step: int, phase: str) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(
                f"loss: {value} at step {step} of the search ({phase} phase); lower --lr and start over with --restart"
            )
        return value

    def state_dict(self) -> dict:
        return {
            "step": self.step_index,
            "mu": self.mu,
            "attached": self.attached,
            "supernet": self.supernet.state_dict(),
            "alphas": self.alphas.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "ranks": distributed.world_size(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state_dict().

        Raises UserError where it is that of another search, or of another number of ranks.
        """
        distributed.refuse_other_count(state.get("ranks", 1))
        try:
            if state["attached"]:
                self._attach()
            self.supernet.load_state_dict(state["supernet"])
            self.alphas.load_state_dict(state["alphas"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
            self.step_index, self.mu = state["step"], state["mu"]
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"checkpoint: not of this search ({first}); choose another --name, or add --restart"
            ) from error

    def assert_same(self) -> None:
        """Raise UserError unless all ranks hold the same search, bit for bit."""
        distributed.assert_equal(self.alphas.state_dict(), "alphas")
        distributed.assert_equal(self.supernet.state_dict(), "weights")

    def refuse_broken(self) -> None:
        """Raise UserError where a weight or an alpha is not a number: such a state must not replace a good
        checkpoint.
        """
        tensors = [*self.supernet.parameters(), *self.supernet.buffers(), *self.alphas.parameters()]
        if not all(bool(p.isfinite().all()) for p in tensors):
            raise UserError(
                f"weights: not finite after step {self.step_index - 1} of the search; lower --lr and start over with "
                "--restart"
            )
