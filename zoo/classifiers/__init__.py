"""Classifiers: networks of the papers, by torchvision, by timm, and our own."""

from zoo.classifiers.catalog import NAMES, build, knows

__all__ = ["NAMES", "build", "knows"]
