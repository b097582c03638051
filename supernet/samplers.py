"""Which paths through the supernet run in a step.

Every draw is a pure function of (seed, step), so a resumed search draws the same. One path, as a Choice, for the steps
that train weights:

largest_choice  the largest candidate of every slot
fair_choice     strict fairness (arXiv:1907.01845): in each round of `round_length` steps every candidate of every
                running slot runs equally often; the rounds alternate between full and random depth
sampled_choice  one path drawn from the alphas' probabilities, mixed with uniform

Weighted paths, as Gates, for the steps that move alphas: `sampled_gates`, by one of SAMPLERS.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.space import Choice, SearchSpace, Slot
from supernet.alphas import Alphas


def seed_for(seed: int, stream: int, index: int) -> int:
    """A seed for step `index` of a numbered stream of random numbers."""
    return (seed * 1_000_003 + stream) * 1_000_000_007 % 2**61 + index


def generator_for(seed: int, stream: int, index: int) -> torch.Generator:
    """A generator for step `index` of a numbered stream of random numbers."""
    return torch.Generator().manual_seed(seed_for(seed, stream, index))


def round_length(space: SearchSpace) -> int:
    """Steps in which every candidate of every slot runs equally often: the least common multiple of their counts.

    NOTE: counts without a common factor make long rounds (5, 7, 8, 9 and 11 candidates: 27,720 steps), and fairness
    holds only over whole ones.
    """
    return math.lcm(*_counts(space))


def covering_length(space: SearchSpace) -> int:
    """Steps after which `fair_choice` has run every candidate of every running slot at least once in a round."""
    # a round is made of permutations, so a slot of n candidates has run all of them after n steps
    return max(_counts(space))


def _counts(space: SearchSpace) -> list[int]:
    return [len(slot.candidates) for stage in space.stages for slot in stage.slots]


def largest(slot: Slot) -> int:
    """The candidate with the most hidden channels, then the most squeeze channels, then the largest kernel."""
    specs = slot.candidates
    return max(
        range(len(specs)), key=lambda i: (specs[i].hidden_channels, specs[i].squeeze_channels, specs[i].kernel_size)
    )


def largest_choice(space: SearchSpace, seed: int, step: int) -> Choice:
    """The largest candidates; every slot in even steps, random depths in odd ones."""
    depths = _depths(space, step % 2 == 0, generator_for(seed, 5, step))
    return space.choice(depths, [[largest(slot) for slot in stage.slots] for stage in space.stages])


def fair_choice(space: SearchSpace, seed: int, step: int) -> Choice:
    """The path of a step under strict fairness."""
    length = round_length(space)
    index, position = divmod(step, length)
    generator = generator_for(seed, 1, index)
    depths = _depths(space, index % 2 == 0, generator)
    ops = space.each_slot(lambda i, j: _shuffled(len(space.stages[i].slots[j].candidates), length, generator)[position])
    return space.choice(depths, ops)


def _depths(space: SearchSpace, full: bool, generator: torch.Generator) -> tuple[int, ...]:
    return tuple(len(stage.slots) for stage in space.stages) if full else space.random_depths(generator)


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
    return alphas.space.choice(picked, alphas.space.each_slot(lambda i, j: draw(ops[i][j])))


@dataclass(frozen=True)
class Gates:
    """The alternatives to add up, by `indices`; each has a 0-dim weight that carries the gradient to the alphas."""

    indices: tuple[int, ...]
    weights: tuple[Tensor, ...]


def sampled_gates(
    sampler: str, alphas: Alphas, temperature: float, seed: int, step: int
) -> tuple[list[list[Gates]], list[Gates]]:
    """Gates of every slot [stage][slot] and of the depth of every stage, whose indices count from min_depth.

    A key of SAMPLERS names the sampler. p = softmax(alpha / temperature) for all of them; they differ in how many
    alternatives run and in how the gradient reaches alpha.
    """
    generator, gate = generator_for(seed, 3, step), SAMPLERS[sampler]
    ops = alphas.space.each_slot(lambda i, j: gate(alphas.ops[i][j] / temperature, generator))
    return ops, [gate(alpha / temperature, generator) for alpha in alphas.depths]


def mixture(logits: Tensor, generator: torch.Generator) -> Gates:
    """All alternatives, weighted by their probabilities (DARTS, arXiv:1806.09055): y = sum_k p_k o_k.

    Costs as much as all of them.
    """
    return Gates(tuple(range(len(logits))), tuple(torch.softmax(logits, 0)))


def straight_through(logits: Tensor, generator: torch.Generator) -> Gates:
    """One alternative, drawn by Gumbel-softmax (arXiv:1611.01144, as one path: arXiv:1910.04465).

    With s = softmax(log p + g), k = argmax s: y = (1 + s_k - stop_gradient(s_k)) o_k. The value is that of one path;
    the gradient is biased, and noisy.
    """
    uniform = torch.rand(len(logits), generator=generator).clamp(1e-20, 1 - 1e-7)
    relaxed = torch.softmax(torch.log_softmax(logits, 0) - (-uniform.log()).log(), 0)
    index = int(relaxed.argmax())
    return Gates((index,), (1.0 + relaxed[index] - relaxed[index].detach(),))


def two_paths(logits: Tensor, generator: torch.Generator) -> Gates:
    """Two alternatives, drawn by p (ProxylessNAS, arXiv:1812.00332, section 3.2).

    The value is that of one of them, the gradient reaches both. With q = softmax([logit_i, logit_j]), one made active
    by q: y = sum_k (active_k + q_k - stop_gradient(q_k)) o_k.
    """
    if len(logits) == 1:
        return Gates((0,), (logits.new_ones(()),))
    p = torch.softmax(logits.detach(), 0).clamp(min=1e-6)
    pair = torch.multinomial(p, 2, generator=generator).sort().values
    q = torch.softmax(logits[pair], 0)
    active = int(torch.multinomial(q.detach(), 1, generator=generator))
    return Gates(tuple(pair.tolist()), tuple((float(k == active) - q[k].detach()) + q[k] for k in range(2)))


SAMPLERS = {"darts": mixture, "gumbel": straight_through, "proxyless": two_paths}
