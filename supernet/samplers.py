"""Which path through the supernet runs in a step. Every draw is a pure function of (seed, step), so a resumed search draws the same.

largest_choice  the largest candidate of every slot
fair_choice     strict fairness (arXiv:1907.01845): in each round of `round_length` steps every candidate of every running slot runs
                equally often; the rounds alternate between full and random depth
sampled_choice  one path drawn from the alphas' probabilities, mixed with uniform
two_path_gates  two candidates per slot drawn from the probabilities; gradients reach both alphas (ProxylessNAS, arXiv:1812.00332)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.space import Choice, SearchSpace, Slot
from supernet.alphas import Alphas


def seed_for(seed: int, stream: int, index: int) -> int:
    """A seed of its own for step `index` of a numbered stream of random numbers."""
    return (seed * 1_000_003 + stream) * 1_000_000_007 % 2**61 + index


def generator_for(seed: int, stream: int, index: int) -> torch.Generator:
    """A generator of its own for step `index` of a numbered stream of random numbers."""
    return torch.Generator().manual_seed(seed_for(seed, stream, index))


def round_length(space: SearchSpace) -> int:
    """Steps in which every candidate of every slot runs equally often: the least common multiple of their counts."""
    return math.lcm(*(len(slot.candidates) for stage in space.stages for slot in stage.slots))


def largest(slot: Slot) -> int:
    """The candidate with the most hidden channels and, among these, the most squeeze channels and the largest kernel."""
    specs = slot.candidates
    return max(range(len(specs)), key=lambda i: (specs[i].hidden_channels, specs[i].squeeze_channels, specs[i].kernel_size))


def largest_choice(space: SearchSpace, seed: int, step: int) -> Choice:
    """The largest candidates; every slot in even steps, random depths in odd ones."""
    generator = generator_for(seed, 5, step)
    depths = tuple(
        len(stage.slots) if step % 2 == 0 else int(torch.randint(stage.min_depth, len(stage.slots) + 1, (), generator=generator))
        for stage in space.stages
    )
    ops = tuple(tuple(largest(slot) if i < d else 0 for i, slot in enumerate(stage.slots)) for stage, d in zip(space.stages, depths))
    return Choice(depths, ops)


def fair_choice(space: SearchSpace, seed: int, step: int) -> Choice:
    """The path of a step under strict fairness."""
    length = round_length(space)
    index, position = divmod(step, length)
    generator = generator_for(seed, 1, index)
    full = index % 2 == 0
    depths = tuple(
        len(stage.slots) if full else int(torch.randint(stage.min_depth, len(stage.slots) + 1, (), generator=generator))
        for stage in space.stages
    )
    ops = tuple(
        tuple(_shuffled(len(slot.candidates), length, generator)[position] if i < depth else 0 for i, slot in enumerate(stage.slots))
        for stage, depth in zip(space.stages, depths)
    )
    return Choice(depths, ops)


def _shuffled(count: int, length: int, generator: torch.Generator) -> list[int]:
    """`length` indices below `count`: permutations one after the other."""
    rows = [torch.randperm(count, generator=generator) for _ in range(-(-length // count))]
    return torch.cat(rows)[:length].tolist()


@torch.no_grad()
def sampled_choice(alphas: Alphas, temperature: float, uniform_share: float, seed: int, step: int) -> Choice:
    """A path drawn from (1 - uniform_share) p + uniform_share / n in every slot and stage."""
    generator = generator_for(seed, 2, step)

    def draw(p: Tensor) -> int:
        mixed = (1.0 - uniform_share) * p + uniform_share / len(p)
        return int(torch.multinomial(mixed, 1, generator=generator))

    ops, depths = alphas.probabilities(temperature)
    picked = tuple(stage.min_depth + draw(p) for stage, p in zip(alphas.space.stages, depths, strict=True))
    rows = tuple(tuple(draw(p) if i < depth else 0 for i, p in enumerate(row)) for row, depth in zip(ops, picked))
    return Choice(picked, rows)


@dataclass(frozen=True)
class Gates:
    """How much of which results to add up: `indices` and, for each, a 0-dim weight that carries the gradient to the alphas."""

    indices: tuple[int, ...]
    weights: tuple[Tensor, ...]


def two_path_gates(alphas: Alphas, temperature: float, seed: int, step: int) -> tuple[list[list[Gates]], list[Gates]]:
    """Gates for every slot [stage][slot] and for every stage's depth (indices count from min_depth).

    Two alternatives run, the value is that of one of them, the gradient reaches both alphas. For alternatives i, j with
    p = softmax([alpha_i, alpha_j] / temperature), one is drawn by p and made active (arXiv:1812.00332, section 3.2):
        y = sum_k (active_k + p_k - stop_gradient(p_k)) o_k
    """
    generator = generator_for(seed, 3, step)
    ops = [[_pair(alpha, temperature, generator) for alpha in stage] for stage in alphas.ops]
    return ops, [_pair(alpha, temperature, generator) for alpha in alphas.depths]


def _pair(alpha: Tensor, temperature: float, generator: torch.Generator) -> Gates:
    if len(alpha) == 1:
        return Gates((0,), (alpha.new_ones(()),))
    p = torch.softmax(alpha.detach() / temperature, 0).clamp(min=1e-6)
    pair = torch.multinomial(p, 2, generator=generator).sort().values
    p_pair = torch.softmax(alpha[pair] / temperature, 0)
    active = int(torch.multinomial(p_pair.detach(), 1, generator=generator))
    weights = tuple((float(k == active) - p_pair[k].detach()) + p_pair[k] for k in range(2))
    return Gates(tuple(pair.tolist()), weights)
