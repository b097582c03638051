"""Tasks: their data, training steps and metrics, and the one training loop.

tasks.trained builds a run's network again from its folder, tasks.ship turns it into files; `python -m tasks export`
does both.
"""

from tasks.classification import Classification
from tasks.data import DATA, ClassificationData, classification, num_classes, training_pictures
from tasks.engine import OPTIMIZERS, Diverged, Fitted, Recipe, fit, lr_factor
from tasks.pictures import Pictures, Stream, balanced, in_order, subset

__all__ = [
    "DATA",
    "OPTIMIZERS",
    "Classification",
    "ClassificationData",
    "Diverged",
    "Fitted",
    "Pictures",
    "Recipe",
    "Stream",
    "balanced",
    "classification",
    "fit",
    "in_order",
    "lr_factor",
    "num_classes",
    "subset",
    "training_pictures",
]
