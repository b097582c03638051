"""The supernet of a search space, its alphas, samplers, search loop, scores, and the selection of a network.

Knows no task: loss and batches come from outside.
"""

from supernet.alphas import Alphas
from supernet.constraint import LatencyConstraint
from supernet.health import health
from supernet.loop import Search
from supernet.model import Supernet
from supernet.plan import Plan
from supernet.samplers import SAMPLERS, Gates, fair_choice, sampled_choice, sampled_gates
from supernet.score import (
    blended_scores,
    evaluations,
    mean_scores,
    most_probable,
    perturbation_losses,
    score_candidates,
)
from supernet.tune import inherited, top1, tune

__all__ = [
    "SAMPLERS",
    "Alphas",
    "Gates",
    "LatencyConstraint",
    "Plan",
    "Search",
    "Supernet",
    "blended_scores",
    "evaluations",
    "fair_choice",
    "health",
    "inherited",
    "mean_scores",
    "most_probable",
    "perturbation_losses",
    "sampled_choice",
    "sampled_gates",
    "score_candidates",
    "top1",
    "tune",
]
