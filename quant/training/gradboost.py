"""GradBoost (arXiv:2006.09679, section on gradient boosting): noise that lengthens gradients early in quantized
training.

With gradient g, a = |g|, t the number of gradients seen, c_t = 1 - beta^t:
    n_min <- [beta c n_min + (1-beta) min(n_min, a)] / c_t        n_max <- [beta c n_max + (1-beta) max(n_max, a)] / c_t
    every step
    g     <- g + min(|Laplace(0,1)| b (n_max - n_min) d, bound) sign(g)                 b ~ Bernoulli(1/2)
          boosted steps
`paper`     c = c_(t-1): averages with their bias corrected, of the running extremes (both are a at the first step);
            weights alone are boosted, not the vectors of batch norms and biases; d = exp(-5 progress), progress of the
            schedule
`released`  c = 1, as in the published code: the correction is stored, so it compounds; n_min starts at 0 and stays
            there; every parameter is boosted; d = (1 - noise_decay)^k at the k-th boosted step

The noise goes where the published optimizers put it: before weight decay in SGD, RMSprop and AdamW, after it in Adam
(whose L2 term is folded into the gradient here for that step).
"""

import contextlib
import itertools
import math

import torch
from torch import Tensor

from quant.errors import QuantError

CHOICES = {
    "mode": ("paper", "released", "off"),
    "stats": ("element", "layer"),
    "decay": ("schedule", "step"),
    "clip": ("absolute", "relative"),
}
DECAYS = {"paper": "schedule", "released": "step", "off": "schedule"}  # what a mode does unless told otherwise
BOUNDS = {"absolute": 1e-3, "relative": 1.0}
NOISE_LEVELS = 2**15
# elements at a time on a CPU: they stay in its cache, and what is allocated for them is too small to need fresh pages
CHUNK = 2**17


def update_stats(n_min: Tensor, n_max: Tensor, a: Tensor, step: int, beta: float, mode: str) -> None:
    """One step of the recursion, in place on n_min and n_max, which have a's shape and start at 0.

    `step` counts from 1.
    """
    divisor = 1.0 - beta**step
    # n_min is 0 for ever; an n_max that overflows (beta above 0.98) stays finite, as coin 0 times infinity is not 0
    if mode == "released":
        largest = torch.maximum(n_max, a)
        n_max.mul_(beta / divisor).add_(largest, alpha=(1.0 - beta) / divisor).clamp_(max=torch.finfo(a.dtype).max)
    elif step == 1:
        n_min.copy_(a)
        n_max.copy_(a)
    else:  # the average with an extreme of n and a is the extreme of n and of the average with a
        share = (1.0 - beta) / divisor
        torch.maximum(n_max, torch.lerp(n_max, a, share), out=n_max)
        torch.minimum(n_min, torch.lerp(n_min, a, share), out=n_min)


def boost(grad: Tensor, spread: Tensor, noise: Tensor, bound: float | Tensor = math.inf) -> Tensor:
    """Lengthen `grad` in place by min(noise * spread, bound); zeros stay.

    All of grad's shape; `noise`, not negative, is overwritten.
    """
    return grad.addcmul_(noise.mul_(spread).clamp_(max=bound), grad.sign())


def noise_levels() -> Tensor:
    """|Laplace(0,1)| times a fair coin as 2^16 equally likely values: zeros, and the means of the 2^15 equal shares of
    Exp(1).
    """
    survival = torch.linspace(1.0, 0.0, NOISE_LEVELS + 1, dtype=torch.float64)
    integral = survival - torch.xlogy(survival, survival)  # of -log(survival)
    return torch.cat([torch.zeros(NOISE_LEVELS, dtype=torch.float64), -integral.diff() * NOISE_LEVELS])


class _Noise:
    """Draws |Laplace(0,1)| b on one device: 16 random bits an element look it up, several times faster on a CPU than a
    logarithm of a uniform number. The levels lie 3e-5 apart in probability and have the exact mean."""

    def __init__(self, device: torch.device, seed: int):
        self.generator, self.levels = torch.Generator(device).manual_seed(seed), noise_levels().to(device)

    def draw(self, levels: Tensor, count: int) -> Tensor:
        """`count` of the levels, or of what was made of them."""
        words = torch.empty(-(-count // 4), dtype=torch.int64, device=self.levels.device).random_(
            -(2**63), None, generator=self.generator
        )
        return levels.index_select(0, words.view(torch.uint16)[:count].int())


class _Bucket:
    """Parameters of one device and type whose gradients come in the same steps, so they share a count of steps.

    Their statistics and a copy of their gradients are flat tensors of float32 (float64 for float64): a few large
    operations instead of a few per parameter. Each parameter's part lies in its own memory order.

    params  by position in the optimizer's param_groups
    layers  one number a parameter, of its mean |g|, instead of one an element
    state   of another bucket, or a part of one, with just these parameters
    """

    def __init__(self, params: dict[int, Tensor], layers: bool, state: dict | None = None):
        self.params, self.layers, self.step = params, layers, 0
        first = next(iter(params.values()))
        dtype = torch.promote_types(first.dtype, torch.float32)
        self.sizes = [p.numel() for p in params.values()]
        self.flat = torch.zeros(sum(self.sizes), dtype=dtype, device=first.device)
        self.shaped = self._by_parameter(self.flat)
        self.n_min, self.n_max = (
            self.flat.new_zeros(len(params)) if layers else torch.zeros_like(self.flat) for _ in range(2)
        )
        if state is not None:
            self.step = state["step"]
            torch._foreach_copy_(self._pieces(self.n_min), state["n_min"])
            torch._foreach_copy_(self._pieces(self.n_max), state["n_max"])

    def _by_parameter(self, flat: Tensor) -> list[Tensor]:
        """Views of the parts of a flat tensor, with the shapes and memory formats of the parameters."""
        parts = zip(flat.split(self.sizes), self.params.values(), strict=True)
        return [part.as_strided(p.shape, torch.empty_like(p).stride()) for part, p in parts]

    def _pieces(self, n: Tensor) -> list[Tensor]:
        return list(n.unbind()) if self.layers else self._by_parameter(n)

    def state(self) -> dict:
        return {
            "positions": list(self.params),
            "step": self.step,
            "n_min": self._pieces(self.n_min),
            "n_max": self._pieces(self.n_max),
        }

    def split(self, present: dict[int, Tensor]) -> "list[_Bucket]":
        """Itself, or a bucket of the parameters that are present and one of the others, where it has both."""
        inside = [i in present for i in self.params]
        if all(inside) or not any(inside):
            return [self]
        return [self._part([k for k, here in enumerate(inside) if here == wanted]) for wanted in (True, False)]

    def _part(self, places: list[int]) -> "_Bucket":
        state, params = self.state(), list(self.params.items())
        chosen = {name: [state[name][k] for k in places] for name in ("n_min", "n_max")}
        return _Bucket(dict(params[k] for k in places), self.layers, {"step": self.step, **chosen})

    def means(self) -> Tensor:
        """(P,) each parameter's mean |g|."""
        parts = self.flat.split(self.sizes)
        # the quicker of two ways
        sums = torch._foreach_norm(parts, 1) if self.flat.is_cuda else [part.abs().sum() for part in parts]
        return torch.stack([total / size for total, size in zip(sums, self.sizes, strict=True)])

    def spread_out(self, values: Tensor) -> Tensor:
        """(P,) values as a flat tensor, each repeated over its parameter's part."""
        return torch.cat([value.expand(size) for value, size in zip(values.unbind(), self.sizes, strict=True)])


class GradBoost:
    """Any torch.optim optimizer (whose step needs no closure), its gradients boosted while `active`; gradients keep the
    noise.

    optimizer    the optimizer to drive; its param_groups and state are its own. A group with "boost": False is never
                 boosted
    mode         "paper", "released" or "off" (then it is the optimizer, bit for bit)
    beta         decay of the statistics; None takes the optimizer's momentum or first beta, else 0.9
    clip_by      largest length added to a gradient element, <= 0 for no bound; None takes 1e-3, or 1 where `clip` is
                 "relative"
    noise_decay  relative decay of the noise at each boosted step, where `decay` is "step"
    seed         of the generators that draw the noise, one a device
    stats        "element", or "layer": one pair of statistics a parameter, with a its mean |g|
    decay        "schedule": exp(-5 progress); "step": (1 - noise_decay)^k. None takes the mode's own
    clip         "absolute", or "relative": clip_by is a multiple of the parameter's mean |g|, so that small gradients
                 are not drowned

    `active` is off in the float phase (statistics gather, gradients stay as they are); `progress` in [0, 1] is the
    share of quantized training done. Parameters without a gradient in a step are left out of it, as in torch.optim.
    Everything that changes is in state_dict(); parameters are known there by their position in param_groups. Raises
    QuantError for a bad choice, and at the first step with it for a sparse gradient.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        mode: str = "paper",
        beta: float | None = None,
        clip_by: float | None = None,
        noise_decay: float = 1e-2,
        seed: int = 0,
        stats: str = "element",
        decay: str | None = None,
        clip: str = "absolute",
    ):
        _check(mode=mode, stats=stats, clip=clip, **({} if decay is None else {"decay": decay}))
        self.optimizer, self.mode, self.stats, self.clip = optimizer, mode, stats, clip
        self.decay = DECAYS[mode] if decay is None else decay
        self.beta = _beta(optimizer) if beta is None else beta
        clip_by = BOUNDS[clip] if clip_by is None else clip_by
        self.clip_by = clip_by if clip_by > 0 else math.inf
        self.noise_decay, self.seed = noise_decay, seed
        self.active, self.progress, self.boosted_steps = False, 0.0, 0
        self.buckets: list[_Bucket] = []
        self.noises: dict[torch.device, _Noise] = {}

    @property
    def param_groups(self) -> list[dict]:
        return self.optimizer.param_groups

    def add_param_group(self, group: dict) -> None:
        self.optimizer.add_param_group(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self) -> None:
        """Take in the gradients, boost them where it is time to, then the optimizer's own step."""
        if self.mode == "off":
            self.optimizer.step()
            return
        self.boosted_steps += self.active
        with self._weight_decay_folded():
            for bucket in self._buckets_due():
                self._take_in(bucket)
            self.optimizer.step()

    def _take_in(self, bucket: _Bucket) -> None:
        """Update a bucket's statistics by its gradients, and boost those where it is time to."""
        grads = [p.grad for p in bucket.params.values()]
        torch._foreach_copy_(bucket.shaped, grads)
        relative = self.active and self.clip == "relative" and self.clip_by < math.inf
        means = bucket.means() if bucket.layers or relative else None
        bucket.step += 1
        if bucket.layers:
            update_stats(bucket.n_min, bucket.n_max, means, bucket.step, self.beta, self.mode)
        else:
            for grad, n_min, n_max in zip(*map(_chunks, (bucket.flat, bucket.n_min, bucket.n_max)), strict=True):
                update_stats(n_min, n_max, grad.abs(), bucket.step, self.beta, self.mode)
        if self.active:
            self._boost(bucket, bucket.spread_out(means * self.clip_by) if relative else None)
            torch._foreach_copy_(grads, bucket.shaped)

    def _boost(self, bucket: _Bucket, bound: Tensor | None) -> None:
        """Boost a bucket's flat gradients; `bound` is flat too, or None for the same everywhere."""
        if bucket.layers:
            spreads = _chunks(bucket.spread_out(bucket.n_max - bucket.n_min))
        else:
            spreads = map(torch.sub, _chunks(bucket.n_max), _chunks(bucket.n_min))
        bounds = itertools.repeat(self.clip_by) if bound is None else _chunks(bound)
        noise = self._noise(bucket.flat.device)
        levels = (noise.levels * self._scale()).to(bucket.flat.dtype)
        for grad, spread, limit in zip(_chunks(bucket.flat), spreads, bounds):
            boost(grad, spread, noise.draw(levels, grad.numel()), limit)

    def _scale(self) -> float:
        return (
            math.exp(-5.0 * self.progress)
            if self.decay == "schedule"
            else (1.0 - self.noise_decay) ** self.boosted_steps
        )

    def _noise(self, device: torch.device) -> _Noise:
        if device not in self.noises:
            self.noises[device] = _Noise(device, self.seed + len(self.noises))
        return self.noises[device]

    def _buckets_due(self) -> list[_Bucket]:
        """The buckets whose gradients have come.

        One that got only a part of them is split; parameters not seen before make new ones.
        """
        present = self._present()
        self.buckets = [part for bucket in self.buckets for part in bucket.split(present)]
        due = [bucket for bucket in self.buckets if next(iter(bucket.params)) in present]
        if sum(len(bucket.params) for bucket in due) < len(present):
            new = _new_buckets(present, {i for bucket in due for i in bucket.params}, self.stats == "layer")
            self.buckets += new
            due += new
        return due

    def _present(self) -> dict[int, Tensor]:
        """The parameters to boost that have a gradient, by position."""
        everything = [(p, group.get("boost", True)) for group in self.param_groups for p in group["params"]]
        least = 0 if self.mode == "released" else 2  # dimensions
        return {i: p for i, (p, wanted) in enumerate(everything) if wanted and p.grad is not None and p.dim() >= least}

    @contextlib.contextmanager
    def _weight_decay_folded(self):
        """Adam's L2 term joins the gradient before the noise; the other optimizers' comes after it."""
        coupled = isinstance(self.optimizer, torch.optim.Adam) and not self.param_groups[0].get(
            "decoupled_weight_decay", False
        )
        decays = [group["weight_decay"] for group in self.param_groups] if coupled else []
        for group, decay in zip(self.param_groups, decays):
            params = [p for p in group["params"] if p.grad is not None] if decay else []
            if params:
                torch._foreach_add_([p.grad for p in params], params, alpha=-decay if group["maximize"] else decay)
            group["weight_decay"] = 0.0
        try:
            yield
        finally:
            for group, decay in zip(self.param_groups, decays):
                group["weight_decay"] = decay

    def state_dict(self) -> dict:
        # a parameter's position names its device
        homes = {bucket.flat.device: next(iter(bucket.params)) for bucket in self.buckets}
        return {
            "optimizer": self.optimizer.state_dict(),
            "boost": {
                "mode": self.mode,
                "stats": self.stats,
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
        for name in ("mode", "stats"):
            if boosting[name] != getattr(self, name):
                raise QuantError(
                    f"{name}: the checkpoint holds {boosting[name]!r}, this optimizer is {getattr(self, name)!r}"
                )
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("active", "progress", "boosted_steps"):
            setattr(self, name, boosting[name])
        params = [p for group in self.param_groups for p in group["params"]]
        self.buckets = [
            _Bucket({i: params[i] for i in s["positions"]}, self.stats == "layer", s) for s in boosting["buckets"]
        ]
        for home, generator in boosting["generators"].items():
            self._noise(params[home].device).generator.set_state(generator.cpu())


def _chunks(flat: Tensor) -> tuple[Tensor, ...]:
    return (flat,) if flat.is_cuda else flat.split(CHUNK)


def _new_buckets(present: dict[int, Tensor], known: set[int], layers: bool) -> list[_Bucket]:
    kinds: dict[tuple, dict[int, Tensor]] = {}
    for i, p in present.items():
        if p.grad.layout is not torch.strided:
            raise QuantError(
                f"gradient: {p.grad.layout} of a parameter of shape {tuple(p.shape)} cannot be boosted; use dense "
                "gradients"
            )
        if i not in known:
            kinds.setdefault((p.device, p.dtype), {})[i] = p
    return [_Bucket(params, layers) for params in kinds.values()]


def _check(**chosen: str) -> None:
    for name, value in chosen.items():
        if value not in CHOICES[name]:
            raise QuantError(f"{name}: {value!r} is not one of {', '.join(CHOICES[name])}")


def _beta(optimizer: torch.optim.Optimizer) -> float:
    options = optimizer.param_groups[0]
    return options["betas"][0] if "betas" in options else options.get("momentum") or 0.9
