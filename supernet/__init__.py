"""The supernet of a search space, its alphas, samplers, search loop and scores.

Knows no task: loss and batches come from outside.
"""

from supernet.alphas import Alphas
from supernet.health import health
from supernet.loop import Plan, Search
from supernet.model import Supernet
from supernet.samplers import SAMPLERS, Gates, fair_choice, sampled_choice, sampled_gates
from supernet.score import Scores, blended_scores, evaluations, favourite, mean_scores, perturbation_scores
from supernet.tune import inherited, top1, tune

__all__ = [
    "SAMPLERS",
    "Alphas",
    "Gates",
    "Plan",
    "Scores",
    "Search",
    "Supernet",
    "blended_scores",
    "evaluations",
    "fair_choice",
    "favourite",
    "health",
    "inherited",
    "mean_scores",
    "perturbation_scores",
    "sampled_choice",
    "sampled_gates",
    "top1",
    "tune",
]
