"""What a generator is trained against: float discriminators, their optimizer and their memory of older pictures.

Only generators are quantized; discriminators never leave training. They learn inside a task's training step, one step
of Adam each time, and stand still while the generator asks them what they think of its pictures.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import distributed
from tasks.pictures import generator

LR, BETAS = 2e-4, (0.5, 0.999)  # arXiv:1611.07004, section 3.3; the rate falls as the generator's does

# The loss of logits that ought to say "real" or "made", arXiv:1406.2661 and arXiv:1611.04076
LOSSES = {"vanilla": F.binary_cross_entropy_with_logits, "least_squares": F.mse_loss}


class Rival:
    """Discriminators by name, each with a pool of pictures made before.

    make       a fresh discriminator, made for each of the names
    loss       a key of LOSSES
    pool_size  pictures that each pool remembers; 0: discriminators see the newest pictures alone
    seed       of the discriminators' weights and of what is drawn from the pools
    """

    def __init__(
        self, names: tuple[str, ...], make: Callable[[], nn.Module], loss: str, pool_size: int = 0, seed: int = 0
    ):
        with torch.random.fork_rng(devices=[]):  # the generators' weights do not depend on whether there is a rival
            torch.default_generator.manual_seed(generator(seed, 5).initial_seed())
            self.networks = nn.ModuleDict({name: make() for name in names})
        self.loss = LOSSES[loss]
        self.pools = {name: Pool(pool_size, seed, number) for number, name in enumerate(names)}
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=LR, betas=BETAS)

    def learn(self, real: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Train each discriminator for a step on real and generated images (B, C, H, W); returns its loss.

        The loss is half of that on real and on generated images together, as published.
        """
        self.networks.requires_grad_(True)
        losses = {}
        for name, network in self.networks.items():
            older = self.pools[name].exchange(made[name].detach())
            losses[name] = 0.5 * (self._ought(network(real[name]), 1.0) + self._ought(network(older), 0.0))
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        distributed.average([self.networks])
        self.optimizer.step()
        return {f"discriminator_{name}": loss.detach() for name, loss in losses.items()}

    def fooled(self, name: str, made: Tensor) -> Tensor:
        """The generator's loss: how far a discriminator is from taking its pictures for real ones.

        Differentiable in `made` alone.
        """
        self.networks.requires_grad_(False)
        return self._ought(self.networks[name](made), 1.0)

    def _ought(self, logits: Tensor, answer: float) -> Tensor:
        return self.loss(logits.float(), torch.full_like(logits, answer, dtype=torch.float32))

    # ---- as the engine needs it

    def to(self, device: torch.device) -> None:
        self.networks.to(device, memory_format=torch.channels_last).train()

    def scale_lr(self, factor: float) -> None:
        """Let the learning rate be so much of its peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = LR * factor

    def parameters(self) -> list[Tensor]:
        return list(self.networks.parameters())

    def state_dict(self) -> dict[str, Any]:
        pools = {name: pool.state_dict() for name, pool in self.pools.items()}
        return {"networks": self.networks.state_dict(), "optimizer": self.optimizer.state_dict(), "pools": pools}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, pool in self.pools.items():
            pool.load_state_dict(state["pools"][name])


class Pool:
    """Up to `size` images made before (arXiv:1612.07828, section 2.3): they remind a discriminator how it was fooled.

    What happens to an image is drawn by its number, so that the memory and that number are all of the state. The ranks
    (common.distributed) hold the same memory: each has seen the images of all.
    """

    def __init__(self, size: int, seed: int, number: int):
        self.size, self.seed, self.number = size, seed, number
        self.seen, self.memory = 0, torch.empty(0)

    def exchange(self, pictures: Tensor) -> Tensor:
        """Each image (B, C, H, W) itself or, in one case of two with a full memory, an older one that it replaces."""
        if not self.size:
            return pictures
        self.memory = self.memory.to(pictures)
        found = torch.stack([self._one(picture) for picture in distributed.gather_tensor(pictures)])
        mine = found[distributed.rank() * len(pictures) :][: len(pictures)]
        return mine.contiguous(memory_format=torch.channels_last)

    def _one(self, picture: Tensor) -> Tensor:
        numbers = generator(self.seed, 6 + self.number, self.seen)
        self.seen += 1
        if len(self.memory) < self.size:
            self.memory = torch.cat([self.memory.view(-1, *picture.shape), picture[None]])
            return picture
        if torch.rand((), generator=numbers) < 0.5:
            return picture
        place = int(torch.randint(self.size, (), generator=numbers))
        older = self.memory[place].clone()
        self.memory[place] = picture
        return older

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "memory": self.memory.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen, self.memory = state["seen"], state["memory"]
