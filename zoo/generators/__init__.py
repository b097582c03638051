"""Generators of image translation, and the discriminators that they are trained against."""

from zoo.generators.catalog import NAMES, Cycle, build, check_size, knows
from zoo.generators.norms import NORMS

__all__ = ["NAMES", "NORMS", "Cycle", "build", "check_size", "knows"]
