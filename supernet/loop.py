"""The search: its phases, and the joint training of weights and alphas. Everything it holds is in state_dict().

base     weights of the largest candidate of every slot alone; then all candidates start from its weights
         (supernet.inherit). A tied space, which compares blocks that differ in kind, trains fair paths from the start:
         no candidate may profit from being similar to the largest
float    fair paths: every candidate learns, the optimizer and batch norm gather statistics (StatAssist)
quant    the same under fake-quant with GradBoost, alphas still frozen
joint    weights on paths of which half are drawn by the alphas, half fairly; every `alpha_every` steps the alphas on a
         held-out batch:
             min_alpha  cross-entropy + latency penalty (supernet.constraint) + weight * entropy

Under torchrun (common.distributed) all ranks run the same path, on different images: a path follows from (seed, step)
and the alphas, which are equal on all ranks, since gradients and statistics are averaged in every step. This is
checked.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import quant
from common import distributed
from common.errors import UserError
from nas.derive import latency_range
from nas.space import Choice, Latencies
from quant.statistics import frozen_statistics, frozen_weights, weight_decay_groups
from supernet.alphas import Alphas
from supernet.constraint import LatencyConstraint
from supernet.inherit import hand_down
from supernet.model import Supernet
from supernet.plan import Plan
from supernet.samplers import covering_length, fair_choice, largest_choice, sampled_choice, sampled_gates, seed_for

Batch = Callable[[int], tuple[Tensor, Tensor]]  # step -> (images, targets), the same for the same step


class Search:
    """One search, step by step.

    Args:
        supernet: The network whose weights are trained, on its device.
        plan: Lengths and rates.
        latency: Calibrated milliseconds of every candidate of the space.
        target_ms: Latency that the network should take, milliseconds.
        loss: (outputs, targets) -> 0-dim loss.
        train: Batches of the weight steps.
        val: Held-out batches of the alpha steps; they train no weights.
        config: How quantizers are attached after the float phase.
        boost_mode: GradBoost on the weights: "paper", "released" or "off".
        seed: Of paths, gates, dropout and GradBoost's noise.
    """

    def __init__(
        self,
        supernet: Supernet,
        plan: Plan,
        latency: Latencies,
        target_ms: float,
        loss: Callable[[Tensor, Tensor], Tensor],
        train: Batch,
        val: Batch,
        config: quant.QuantConfig,
        boost_mode: str = "paper",
        seed: int = 0,
    ):
        self.supernet, self.plan, self.latency = supernet, plan, latency
        self.loss = loss
        self.train = train
        self.val = val
        self.config = config
        self.seed = seed
        self.device = next(supernet.parameters()).device
        self.alphas = Alphas(supernet.space)  # on the CPU, where paths are drawn: a few hundred numbers
        slowest_ms = latency_range(supernet.space, latency)[1]
        self.constraint = LatencyConstraint(target_ms, slowest_ms, plan.rho, plan.mu_rate)
        sgd = torch.optim.SGD(
            weight_decay_groups(supernet, plan.weight_decay), lr=plan.lr, momentum=plan.momentum, nesterov=True
        )
        self.optimizer = quant.GradBoost(sgd, boost_mode, seed=seed)
        self.alpha_optimizer = torch.optim.Adam(self.alphas.parameters(), lr=plan.alpha_lr, betas=(0.0, 0.999))
        self.step_index, self.attached = 0, False
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

    # ---- the steps -----------------------------------------------------------------------------------------

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

    def _path(self, step: int, phase: str) -> Choice:
        """The path of a weight step."""
        if phase == "base" and not self.supernet.space.tied:
            return largest_choice(self.supernet.space, self.seed, step)
        if phase == "joint" and step % 2:
            return sampled_choice(self.alphas, self.plan.temperature_at(step), self.plan.uniform_share, self.seed, step)
        return fair_choice(self.supernet.space, self.seed, step // 2 if phase == "joint" else step)

    def _weight_step(self, step: int, phase: str) -> float:
        images, targets = (t.to(self.device, non_blocking=True) for t in self.train(step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate(step)
        self.optimizer.progress = self.plan.quant_progress(step)
        choice = self._path(step, phase)
        path = self.supernet.path(choice)
        loss = self.loss(self.supernet(images, choice), targets)
        self.optimizer.zero_grad()
        loss.backward()
        loss = loss.detach()
        distributed.average(path, also=[loss])
        value = self._finite(loss, step, phase)
        nn.utils.clip_grad_norm_([p for module in path for p in module.parameters()], self.plan.clip_norm)
        self.optimizer.step()
        return value

    def _alpha_step(self, step: int) -> dict[str, float]:
        images, targets = (t.to(self.device, non_blocking=True) for t in self.val(step // self.plan.alpha_every))
        temperature = self.plan.temperature_at(step)
        gates = sampled_gates(self.plan.sampler, self.alphas, temperature, self.seed, step)
        # only the candidates that run: to freeze all of them would take a fifth of the step
        running = nn.ModuleList(self.supernet.gated(gates[0]))
        with frozen_weights(running), frozen_statistics(running):
            task_loss = self.loss(self.supernet.forward_gated(images, *gates), targets).cpu()
            expected = self.alphas.expected_latency(self.latency, temperature)
            entropy = self.alphas.entropy(temperature)
            loss = task_loss + self.constraint.penalty(expected) + self.plan.entropy_weight(step) * entropy
            self.alpha_optimizer.zero_grad()
            loss.backward()
        task_loss, loss = task_loss.detach(), loss.detach()
        distributed.average([self.alphas], also=[task_loss, loss])
        self._finite(loss, step, "joint")
        self.alpha_optimizer.step()
        # before a path is drawn by them: ranks on different paths crash or hang
        distributed.assert_equal(self.alphas.state_dict(), "alphas")
        self.constraint.update(expected)
        return {
            "val_loss": task_loss.item(),
            "expected_ms": expected.item(),
            "target_ms": self.constraint.target_ms,
            "mu": self.constraint.mu,
            "entropy": entropy.item(),
            "cheapest_share": self.alphas.cheapest_share(self.latency, temperature),
            "temperature": temperature,
        }

    # ---- checks and state ----------------------------------------------------------------------------------

    def _finite(self, loss: Tensor, step: int, phase: str) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(
                f"loss: {value} at step {step} of the search ({phase} phase); lower --lr and start over with --restart"
            )
        return value

    def refuse_broken(self) -> None:
        """Raise UserError where a weight or an alpha is not finite, before such a state replaces a good checkpoint."""
        tensors = [*self.supernet.parameters(), *self.supernet.buffers(), *self.alphas.parameters()]
        if not all(bool(p.isfinite().all()) for p in tensors):
            raise UserError(
                f"weights: not finite after step {self.step_index - 1} "
                "of the search; lower --lr and start over with --restart"
            )

    def assert_same(self) -> None:
        """Raise UserError unless all ranks hold the same search, bit for bit."""
        distributed.assert_equal(self.alphas.state_dict(), "alphas")
        distributed.assert_equal(self.supernet.state_dict(), "weights")

    def state_dict(self) -> dict:
        return {
            "step": self.step_index,
            **self.constraint.state_dict(),
            "attached": self.attached,
            "supernet": self.supernet.state_dict(),
            "alphas": self.alphas.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "ranks": distributed.world_size(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state_dict().

        Raises:
            UserError: It belongs to another search, or to another number of ranks.
        """
        distributed.refuse_other_count(state.get("ranks", 1))
        try:
            if state["attached"]:
                self._attach()
            self.supernet.load_state_dict(state["supernet"])
            self.alphas.load_state_dict(state["alphas"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
            self.constraint.load_state_dict(state)
            self.step_index = state["step"]
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"checkpoint: not of this search ({first}); choose another --name, or add --restart"
            ) from error
