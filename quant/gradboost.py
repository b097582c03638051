"""GradBoost (arXiv:2006.09679, section on gradient boosting): noise that lengthens gradients early in quantized training.

For gradient g, a = |g|, per element, c_t = 1 - beta^t:
    n_min <- beta n_min + (1-beta) min(n_min', a)        n_max <- beta n_max + (1-beta) max(n_max', a)        every step
    g     <- g + clip(|Laplace(0,1)| (n_max' - n_min') d b sign(g), -clip_by, clip_by)      b ~ Bernoulli(1/2)      boosted steps
`paper`     n' = n / c_t, a corrected copy (n_min' starts at infinity, so the first is a); d = exp(-5 progress), progress of the schedule;
            weights alone are boosted, not the vectors of batch norms and biases
`released`  what the published code does: n' is divided into the stored value, so it compounds; n_min' starts at 0 and stays there;
            d = (1 - noise_decay)^k at the k-th boosted step; every parameter is boosted

The noise goes where the published optimizers put it: before weight decay in SGD, RMSprop and AdamW, after it in Adam (whose L2 term is
folded into the gradient here for that step).
"""

import contextlib
import math

import torch
from torch import Tensor

from quant.errors import QuantError

MODES = ("paper", "released", "off")


def update_stats(n_min: Tensor, n_max: Tensor, a: Tensor, step: int, beta: float, mode: str) -> tuple[Tensor, Tensor]:
    """One step of the recursion, in place on n_min and n_max; returns the values to use, (n_min', n_max'). `step` counts from 1."""
    if mode == "released":
        low, high, divisor = torch.minimum(n_min, a), torch.maximum(n_max, a), 1.0 - beta**step
        return tuple(n.mul_(beta).add_(extreme, alpha=1.0 - beta).div_(divisor) for n, extreme in ((n_min, low), (n_max, high)))
    before, now = 1.0 - beta ** (step - 1), 1.0 - beta**step
    low = a if step == 1 else torch.minimum(n_min / before, a)
    high = a if step == 1 else torch.maximum(n_max / before, a)
    return n_min.lerp_(low, 1.0 - beta) / now, n_max.lerp_(high, 1.0 - beta) / now


def boost(grad: Tensor, spread: Tensor, decay: float, clip_by: float, uniform: Tensor) -> Tensor:
    """The boosted gradient. `spread` is n_max' - n_min' and `uniform` is U(0,1), both of grad's shape.

    One uniform number gives coin and noise: its upper half is heads, and twice its distance into the half is uniform again, whose -log
    is |Laplace(0,1)|.
    """
    heads = uniform > 0.5
    noise = -torch.log1p(-(2.0 * uniform - 1.0).clamp(min=0.0))
    length = torch.where(heads & (grad != 0), noise * spread * decay, 0.0)  # where, not a product: an inflated spread may be infinite
    return grad + (length.clamp(max=clip_by) if clip_by > 0 else length) * torch.sign(grad)


class GradBoost:
    """Any torch.optim optimizer, its gradients boosted while `active` (gradients keep the noise after `step`).

    optimizer    the optimizer to drive; its param_groups and state are its own
    mode         "paper", "released" or "off" (then it is the optimizer, bit for bit)
    beta         decay of the statistics; None takes the optimizer's momentum or first beta, else 0.9
    clip_by      largest length added to a gradient element, <= 0 for no bound
    noise_decay  `released` mode: relative decay of the noise at each boosted step
    seed         of the generator that draws the noise on the parameters' device

    `active` is off in the float phase (statistics gather, gradients stay as they are); `progress` in [0, 1] is the share of quantized
    training done and sets the decay of `paper` mode. Parameters without a gradient in a step are left out of it, as in torch.optim.
    Everything that changes is in state_dict(). Raises QuantError for a bad mode.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, mode: str = "paper", beta: float | None = None, clip_by: float = 1e-3,
                 noise_decay: float = 1e-2, seed: int = 0):  # fmt: skip
        if mode not in MODES:
            raise QuantError(f"mode: {mode!r} is not one of {', '.join(MODES)}")
        self.optimizer, self.mode = optimizer, mode
        self.clip_by, self.noise_decay = clip_by, noise_decay
        self.beta = _beta(optimizer) if beta is None else beta
        self.active, self.progress, self.boosted_steps = False, 0.0, 0
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.stats: dict[int, dict] = {}  # by position in self.parameters: n_min, n_max, step
        self.generator = torch.Generator(self.parameters[0].device).manual_seed(seed)

    @property
    def param_groups(self) -> list[dict]:
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self) -> None:
        """Boost the gradients where it is time to, then the optimizer's own step."""
        if self.mode == "off":
            self.optimizer.step()
            return
        with self._weight_decay_folded():
            present = [i for i, p in enumerate(self.parameters) if p.grad is not None and (p.dim() > 1 or self.mode == "released")]
            spreads = [self._spread(i) for i in present]
            if self.active:
                self._boost(present, spreads)
            self.optimizer.step()

    def _spread(self, i: int) -> Tensor:
        """Take in parameter i's gradient; returns n_max' - n_min'."""
        magnitude = self.parameters[i].grad.abs()
        if i not in self.stats:
            self.stats[i] = {"n_min": torch.zeros_like(magnitude), "n_max": torch.zeros_like(magnitude), "step": 0}
        stats = self.stats[i]
        stats["step"] += 1
        low, high = update_stats(stats["n_min"], stats["n_max"], magnitude, stats["step"], self.beta, self.mode)
        return high - low

    def _boost(self, present: list[int], spreads: list[Tensor]) -> None:
        self.boosted_steps += 1
        decay = math.exp(-5.0 * self.progress) if self.mode == "paper" else (1.0 - self.noise_decay) ** self.boosted_steps
        sizes = [spread.numel() for spread in spreads]
        uniform = torch.empty(sum(sizes), device=self.generator.device).uniform_(generator=self.generator).split(sizes)
        for i, spread, u in zip(present, spreads, uniform, strict=True):
            grad = self.parameters[i].grad
            grad.copy_(boost(grad, spread, decay, self.clip_by, u.view(grad.shape)))

    @contextlib.contextmanager
    def _weight_decay_folded(self):
        """Adam's L2 term joins the gradient before the noise; the other optimizers' comes after it."""
        coupled = isinstance(self.optimizer, torch.optim.Adam) and not self.param_groups[0].get("decoupled_weight_decay", False)
        decays = [group["weight_decay"] for group in self.param_groups] if coupled else []
        for group, decay in zip(self.param_groups, decays):
            for p in group["params"]:
                if p.grad is not None and decay:
                    p.grad.add_(p, alpha=decay)
            group["weight_decay"] = 0.0
        try:
            yield
        finally:
            for group, decay in zip(self.param_groups, decays):
                group["weight_decay"] = decay

    def state_dict(self) -> dict:
        return {
            "optimizer": self.optimizer.state_dict(),
            "boost": {"mode": self.mode, "active": self.active, "progress": self.progress, "boosted_steps": self.boosted_steps,
                      "stats": self.stats, "generator": self.generator.get_state()},
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        boost_state = state["boost"]
        if boost_state["mode"] != self.mode:
            raise QuantError(f"mode: the checkpoint holds {boost_state['mode']!r}, this optimizer is {self.mode!r}")
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("active", "progress", "boosted_steps"):
            setattr(self, name, boost_state[name])
        device = self.parameters[0].device
        self.stats = {i: {k: v.to(device) if isinstance(v, Tensor) else v for k, v in s.items()} for i, s in boost_state["stats"].items()}
        self.generator.set_state(boost_state["generator"].cpu())


def _beta(optimizer: torch.optim.Optimizer) -> float:
    options = optimizer.param_groups[0]
    return options["betas"][0] if "betas" in options else options.get("momentum") or 0.9
