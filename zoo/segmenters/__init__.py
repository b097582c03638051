"""Segmenters: networks from images to logits of every pixel, at the network's finest stride."""

from zoo.segmenters.catalog import NAMES, build, knows

__all__ = ["NAMES", "build", "knows"]
