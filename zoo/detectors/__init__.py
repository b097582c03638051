"""Detectors: networks, and what turns their outputs into losses and detections."""

from zoo.detectors.catalog import NAMES, build, knows, machinery
from zoo.detectors.postprocess import Machinery

__all__ = ["NAMES", "Machinery", "build", "knows", "machinery"]
