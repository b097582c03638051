"""GradBoost (arXiv:2006.09679): an optimizer whose gradients are lengthened at random early in quantized training.

quant/training/gradient_noise.py has the recursion and the noise. The noise goes where the published optimizers put it:
before weight decay in SGD, RMSprop and AdamW, after it in Adam (whose L2 term is folded into the gradient here for that
step).
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.quantizers.base import choose
from quant.training.gradient_noise import Noise, boost, update_stats

MODES = ("paper", "released", "off")
# elements at a time on a CPU: they stay in its cache, and what is allocated for them is too small to need fresh pages
CHUNK = 2**17


class _Bucket:
    """Parameters of one device and type whose gradients come in the same steps, so they share a count of steps.

    Their statistics and a copy of their gradients are flat tensors of float32 (float64 for float64): a few large
    operations instead of a few per parameter. Each parameter's share of them lies in its own memory order.

    params  by position in the optimizer's param_groups
    """

    def __init__(self, params: dict[int, Tensor]):
        self.params, self.step = params, 0
        self.sizes = [p.numel() for p in params.values()]
        first = next(iter(params.values()))
        dtype = torch.promote_types(first.dtype, torch.float32)
        self.grad = torch.zeros(sum(self.sizes), dtype=dtype, device=first.device)
        self.grads = self.by_parameter(self.grad)  # views
        self.n_min, self.n_max = torch.zeros_like(self.grad), torch.zeros_like(self.grad)

    @property
    def first(self) -> int:
        return next(iter(self.params))

    def by_parameter(self, flat: Tensor) -> list[Tensor]:
        """Views of the shares of a flat tensor, with the shapes and memory formats of the parameters."""
        shares = zip(flat.split(self.sizes), self.params.values(), strict=True)
        return [share.as_strided(p.shape, torch.empty_like(p).stride()) for share, p in shares]

    def take_in(self, beta: float, mode: str) -> None:
        """Copy the gradients and update the statistics by them."""
        torch._foreach_copy_(self.grads, [p.grad for p in self.params.values()])
        self.step += 1
        for grad, n_min, n_max in zip(*map(_chunks, (self.grad, self.n_min, self.n_max)), strict=True):
            update_stats(n_min, n_max, grad.abs(), self.step, beta, mode)

    def boost(self, noise: Noise, scale: float, bound: float) -> None:
        """Boost the gradients that were taken in."""
        levels = (noise.levels * scale).to(self.grad.dtype)
        for grad, n_min, n_max in zip(*map(_chunks, (self.grad, self.n_min, self.n_max)), strict=True):
            boost(grad, n_max - n_min, noise.draw(levels, grad.numel()), bound)
        torch._foreach_copy_([p.grad for p in self.params.values()], self.grads)

    def split(self, present: dict[int, Tensor]) -> "list[_Bucket]":
        """Itself, or a bucket of the parameters that are present and one of the others, where it has both."""
        here = [i for i in self.params if i in present]
        absent = [i for i in self.params if i not in present]
        if not here or not absent:
            return [self]
        return [self._only(here), self._only(absent)]

    def _only(self, positions: list[int]) -> "_Bucket":
        """A bucket of some of the parameters, with their statistics."""
        state = self.state()
        rows = dict(zip(self.params, zip(state["n_min"], state["n_max"], strict=True), strict=True))
        n_min, n_max = zip(*(rows[i] for i in positions), strict=True)
        return _Bucket.of({i: self.params[i] for i in positions}, state | {"n_min": n_min, "n_max": n_max})

    def state(self) -> dict:
        return {
            "positions": list(self.params),
            "step": self.step,
            "n_min": self.by_parameter(self.n_min),
            "n_max": self.by_parameter(self.n_max),
        }

    @classmethod
    def of(cls, params: dict[int, Tensor], state: dict) -> "_Bucket":
        """A bucket of these parameters with the step and the statistics of a `state()`."""
        bucket = cls(params)
        bucket.step = state["step"]
        torch._foreach_copy_(bucket.by_parameter(bucket.n_min), list(state["n_min"]))
        torch._foreach_copy_(bucket.by_parameter(bucket.n_max), list(state["n_max"]))
        return bucket


class GradBoost:
    """A torch.optim optimizer (whose step needs no closure) with gradients boosted while `active`; they keep the noise.

    `active` is off in the float phase (statistics gather, gradients stay as they are); `progress` in [0, 1] is the
    share of quantized training done. Parameters without a gradient in a step are left out of it, as in torch.optim.
    Everything that changes is in state_dict(); parameters are known there by their position in param_groups.

    Args:
        optimizer: The optimizer to drive; its param_groups and state are its own. A group with "boost": False is never
            boosted.
        mode: "paper", "released" or "off" (then it is the optimizer, bit for bit).
        beta: Decay of the statistics; None takes the optimizer's momentum or first beta, else 0.9.
        clip_by: Largest length added to a gradient element, <= 0 for no bound.
        noise_decay: Relative decay of the noise at each boosted step, in mode "released".
        seed: Of the generators that draw the noise, one per device.

    Raises:
        QuantError: For an unknown mode, and at the first step with it for a sparse gradient.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        mode: str = "paper",
        beta: float | None = None,
        clip_by: float = 1e-3,
        noise_decay: float = 1e-2,
        seed: int = 0,
    ):
        self.optimizer, self.mode = optimizer, choose("mode", mode, *MODES)
        self.beta = _beta(optimizer) if beta is None else beta
        self.clip_by = clip_by if clip_by > 0 else math.inf
        self.noise_decay, self.seed = noise_decay, seed
        self.active, self.progress, self.boosted_steps = False, 0.0, 0
        self.buckets: list[_Bucket] = []
        self.noises: dict[torch.device, Noise] = {}

    @property
    def param_groups(self) -> list[dict]:
        return self.optimizer.param_groups

    def add_param_group(self, group: dict) -> None:
        self.optimizer.add_param_group(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self) -> None:
        """Take in the gradients, boost them if active, then the optimizer's own step."""
        if self.mode == "off":
            self.optimizer.step()
            return
        self.boosted_steps += self.active
        with _weight_decay_folded(self.optimizer):
            for bucket in self._buckets_due():
                bucket.take_in(self.beta, self.mode)
                if self.active:
                    bucket.boost(self._noise(bucket.grad.device), self._noise_scale(), self.clip_by)
            self.optimizer.step()

    def _noise_scale(self) -> float:
        if self.mode == "paper":
            return math.exp(-5.0 * self.progress)
        return (1.0 - self.noise_decay) ** self.boosted_steps

    def _noise(self, device: torch.device) -> Noise:
        if device not in self.noises:
            self.noises[device] = Noise(device, self.seed + len(self.noises))
        return self.noises[device]

    def _buckets_due(self) -> list[_Bucket]:
        """The buckets whose gradients have come.

        One that got only a part of them is split; parameters not seen before make new ones.
        """
        present = self._present()
        self.buckets = [part for bucket in self.buckets for part in bucket.split(present)]
        due = [bucket for bucket in self.buckets if bucket.first in present]
        known = {i for bucket in due for i in bucket.params}
        new = _new_buckets({i: p for i, p in present.items() if i not in known})
        self.buckets += new
        return due + new

    def _present(self) -> dict[int, Tensor]:
        """The parameters to boost that have a gradient, by position."""
        everything = [(p, group.get("boost", True)) for group in self.param_groups for p in group["params"]]
        least = 0 if self.mode == "released" else 2  # dimensions
        return {i: p for i, (p, wanted) in enumerate(everything) if wanted and p.grad is not None and p.dim() >= least}

    def state_dict(self) -> dict:
        # a parameter's position names its device
        homes = {bucket.grad.device: bucket.first for bucket in self.buckets}
        return {
            "optimizer": self.optimizer.state_dict(),
            "boost": {
                "mode": self.mode,
                "stats": "element",  # the first version had "layer" too
                "active": self.active,
                "progress": self.progress,
                "boosted_steps": self.boosted_steps,
                "buckets": [bucket.state() for bucket in self.buckets],
                "generators": {homes[device]: noise.generator.get_state() for device, noise in self.noises.items()},
            },
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state_dict(), made with the same parameter groups.

        Raises QuantError for one of another mode or statistics.
        """
        boosting = state["boost"]
        for name, mine in (("mode", self.mode), ("stats", "element")):
            if boosting[name] != mine:
                raise QuantError(f"{name}: the checkpoint holds {boosting[name]!r}, this optimizer is {mine!r}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.active, self.progress = boosting["active"], boosting["progress"]
        self.boosted_steps = boosting["boosted_steps"]
        params = [p for group in self.param_groups for p in group["params"]]
        self.buckets = [_Bucket.of({i: params[i] for i in s["positions"]}, s) for s in boosting["buckets"]]
        for home, generator in boosting["generators"].items():
            self._noise(params[home].device).generator.set_state(generator.cpu())


def _chunks(flat: Tensor) -> tuple[Tensor, ...]:
    return (flat,) if flat.is_cuda else flat.split(CHUNK)


def _new_buckets(params: dict[int, Tensor]) -> list[_Bucket]:
    """Buckets of parameters that had none, one per device and type."""
    kinds: dict[tuple, dict[int, Tensor]] = {}
    for i, p in params.items():
        if p.grad.layout is not torch.strided:
            raise QuantError(
                f"gradient: {p.grad.layout} of a parameter of shape {tuple(p.shape)} cannot be boosted; use dense "
                "gradients"
            )
        kinds.setdefault((p.device, p.dtype), {})[i] = p
    return [_Bucket(of_kind) for of_kind in kinds.values()]


@contextlib.contextmanager
def _weight_decay_folded(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Adam's L2 term joins the gradient before the noise; the other optimizers' comes after it."""
    groups = optimizer.param_groups
    if not isinstance(optimizer, torch.optim.Adam) or groups[0].get("decoupled_weight_decay", False):
        yield
        return
    decays = [group["weight_decay"] for group in groups]
    for group, decay in zip(groups, decays, strict=True):
        params = [p for p in group["params"] if p.grad is not None] if decay else []
        if params:
            torch._foreach_add_([p.grad for p in params], params, alpha=-decay if group["maximize"] else decay)
        group["weight_decay"] = 0.0
    try:
        yield
    finally:
        for group, decay in zip(groups, decays, strict=True):
            group["weight_decay"] = decay


def _beta(optimizer: torch.optim.Optimizer) -> float:
    options = optimizer.param_groups[0]
    return options["betas"][0] if "betas" in options else options.get("momentum") or 0.9
