"""The supernet of a search space, its alphas, samplers, search loop and scores. Knows no task: loss and batches come from outside."""

from supernet.alphas import Alphas
from supernet.loop import Plan, Search
from supernet.model import Supernet
from supernet.samplers import Gates, fair_choice, sampled_choice, two_path_gates
from supernet.score import Scores, blended_scores, favourite, inherited, perturbation_scores, recalibrate, top1

__all__ = [
    "Alphas", "Gates", "Plan", "Scores", "Search", "Supernet", "blended_scores", "fair_choice", "favourite", "inherited",
    "perturbation_scores", "recalibrate", "sampled_choice", "top1", "two_path_gates",
]  # fmt: skip
