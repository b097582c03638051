"""Health of a finished search.

Did the alphas decide, did they do more than save time, and is the derived network as accurate as the paths drawn?
"""

from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor

from nas.derive import latency_range
from nas.space import Choice
from quant.statistics import frozen_statistics
from supernet.loop import Search
from supernet.samplers import sampled_choice
from supernet.tune import accuracy

PATHS = 8  # drawn by the alphas, whose mean accuracy is that of the mixture
# entropy, share of the cheapest candidates, accuracy lost: beyond them there is a warning
UNDECIDED, CHEAP, GAP = 0.95, 0.7, 0.1
NEAR = 1.1  # times the fastest network: a target so low leaves only cheap candidates


def health(search: Search, derived: Choice, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> dict:
    """Figures of a finished search.

    Args:
        search: The search.
        derived: The chosen network.
        batches: () -> batches of held-out images.

    Returns:
        "entropy" and "cheapest_share" of the final alphas; "mixed_top1", the mean accuracy of PATHS paths that the
        alphas draw, and "derived_top1" of the chosen network, both with the supernet's weights; "warnings".
    """
    temperature = search.plan.temperature[1]
    drawn = [
        sampled_choice(search.alphas, temperature, 0.0, search.seed + 1, search.plan.steps + i) for i in range(PATHS)
    ]
    figures = {
        "entropy": search.alphas.entropy(temperature).item(),
        "cheapest_share": search.alphas.cheapest_share(search.latency, temperature),
        "mixed_top1": sum(path_top1(search, choice, batches()) for choice in drawn) / PATHS,
        "derived_top1": path_top1(search, derived, batches()),
    }
    fastest_ms = latency_range(search.supernet.space, search.latency)[0]
    return figures | {"warnings": warnings(figures, search.constraint.target_ms > NEAR * fastest_ms)}


def path_top1(search: Search, choice: Choice, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Accuracy in [0, 1] of a path with the supernet's weights and batch norm by the batch."""
    with frozen_statistics(search.supernet):
        return accuracy(partial(search.supernet, choice=choice), batches)


def warnings(figures: dict, has_room: bool) -> list[str]:
    """What is wrong with such figures, and how to fix it.

    `has_room`: whether the target leaves more than the fastest candidates.
    """
    messages = []
    if figures["entropy"] > UNDECIDED:
        messages.append(
            f"the alphas have hardly moved (entropy {figures['entropy']:.2f} "
            "of 1): add --joint-steps or raise --alpha-lr"
        )
    if has_room and figures["cheapest_share"] > CHEAP:
        messages.append(
            f"collapse: {figures['cheapest_share']:.0%} of the alphas' "
            "weight is on the fastest candidates: add --float-steps"
        )
    if figures["mixed_top1"] - figures["derived_top1"] > GAP:
        messages.append(
            f"the derived network is {figures['mixed_top1'] - figures['derived_top1']:.0%} below the paths it comes "
            "from: add --joint-steps, so that the alphas decide"
        )
    return messages
