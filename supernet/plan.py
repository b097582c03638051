"""The plan of a search: how long its phases last, and the rates and schedules of its training."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Lengths and rates of a search; `supernet.loop` describes its phases.

    Attributes:
        base_steps, float_steps, quant_steps, joint_steps: Weight steps in each phase.
        alpha_every: Weight steps between two alpha steps of the joint phase.
        lr, momentum, weight_decay: Of the weights' SGD; `lr` is the peak of a cosine after a short warm-up.
        alpha_lr: Of the alphas' Adam, whose beta1 is 0: the task's gradient moves an alpha only while it is sampled
            (ProxylessNAS, arXiv:1812.00332).
        temperature: Of the alphas' softmax at the beginning and the end of the joint phase; falls exponentially.
        mu_rate, rho: Of the latency constraint: step size of its dual variable, weight of the squared miss.
        entropy: Weight of the alphas' entropy in their loss: rewarded in the first half of the joint phase, to explore,
            penalized in the second, to commit.
        uniform_share: Share of uniform probability mixed into the paths that the alphas draw.
        sampler: Which paths an alpha step runs, a key of `supernet.samplers.SAMPLERS`.
        clip_norm: Largest norm of the gradients of all weights together.
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
        """Weight steps of the whole search."""
        return self.joint_from + self.joint_steps

    @property
    def quant_from(self) -> int:
        """The first step under fake-quant."""
        return self.base_steps + self.float_steps

    @property
    def joint_from(self) -> int:
        """The first step of the joint phase."""
        return self.quant_from + self.quant_steps

    def phase(self, step: int) -> str:
        """The phase that a step belongs to."""
        ends = {"base": self.base_steps, "float": self.quant_from, "quant": self.joint_from}
        return next((name for name, end in ends.items() if step < end), "joint")

    def quant_progress(self, step: int) -> float:
        """How much of the phases under fake-quant has passed before `step`, in [0, 1]."""
        return max(0, step - self.quant_from) / max(1, self.steps - self.quant_from)

    def joint_progress(self, step: int) -> float:
        """How much of the joint phase has passed before `step`, in [0, 1]."""
        return min(max((step - self.joint_from) / max(self.joint_steps, 1), 0.0), 1.0)

    def learning_rate(self, step: int) -> float:
        """The weights' learning rate: a linear warm-up of a tenth of the steps, then a cosine to 0."""
        warmup = max(1, self.steps // 10)
        return self.lr * min((step + 1) / warmup, 0.5 * (1.0 + math.cos(math.pi * step / self.steps)))

    def temperature_at(self, step: int) -> float:
        """The temperature of the alphas' softmax."""
        first, last = self.temperature
        return first * (last / first) ** self.joint_progress(step)

    def entropy_weight(self, step: int) -> float:
        """The weight of the entropy in the alphas' loss, from -entropy to +entropy over the joint phase."""
        return self.entropy * (2.0 * self.joint_progress(step) - 1.0)
