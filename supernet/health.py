"""Whether a search went well: did the alphas decide, did they only save time, does the network they name do what the
mixture did?
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from nas.derive import latency_range
from nas.space import Choice
from quant.statistics import frozen_statistics
from supernet.loop import Search
from supernet.samplers import sampled_choice

PATHS = 8  # drawn by the alphas to judge the mixture
# entropy, share of cheapest candidates, accuracy lost: beyond them there is a warning
UNDECIDED, CHEAP, GAP = 0.95, 0.7, 0.1
NEAR = 1.1  # times the fastest network: a target so low leaves only cheap candidates


@torch.no_grad()
def path_top1(search: Search, choice: Choice, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Accuracy in [0, 1] of a path with the supernet's weights, batch norm by the batch."""
    right = total = 0
    with frozen_statistics(search.supernet):
        for x, y in batches:
            right, total = right + (search.supernet(x, choice).argmax(1) == y).sum().item(), total + len(y)
    return right / total


def health(search: Search, derived: Choice, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> dict:
    """Entropy and share of the cheapest candidates of the final alphas, accuracy of the mixture (the mean of PATHS
    paths drawn by them) and of the derived network under the same conditions, and warnings in words."""
    temperature = search.plan.temperature[1]
    drawn = [
        sampled_choice(search.alphas, temperature, 0.0, search.seed + 1, search.plan.steps + i) for i in range(PATHS)
    ]
    found = {
        "entropy": search.alphas.entropy(temperature).item(),
        "cheapest_share": search.alphas.cheapest_share(search.latency, temperature),
        "mixed_top1": sum(path_top1(search, choice, batches()) for choice in drawn) / PATHS,
        "derived_top1": path_top1(search, derived, batches()),
    }
    return found | {
        "warnings": warnings(found, search.target_ms > NEAR * latency_range(search.supernet.space, search.latency)[0])
    }


def warnings(found: dict, has_room: bool) -> list[str]:
    """What is wrong with such figures, and the mend.

    `has_room`: whether the target leaves more than the fastest candidates.
    """
    words = []
    if found["entropy"] > UNDECIDED:
        words.append(
            f"the alphas have hardly moved (entropy {found['entropy']:.2f} of 1): add --joint-steps or raise --alpha-lr"
        )
    if has_room and found["cheapest_share"] > CHEAP:
        words.append(
            f"collapse: {found['cheapest_share']:.0%} of the alphas' weight is on the fastest candidates: add "
            "--float-steps"
        )
    if found["mixed_top1"] - found["derived_top1"] > GAP:
        words.append(
            f"the derived network is {found['mixed_top1'] - found['derived_top1']:.0%} below the paths it comes from: "
            "add --joint-steps, so that the alphas decide"
        )
    return words
