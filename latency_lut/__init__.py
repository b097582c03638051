"""Latency tables: what every block of a search space takes as INT8 on this CPU, and what whole networks take."""

from latency_lut.table import LatencyTable, Prediction, SpaceLatency
from latency_lut.timing import Timing, time_interleaved, time_networks, torch_threads

__all__ = ["LatencyTable", "Prediction", "SpaceLatency", "Timing", "time_interleaved", "time_networks", "torch_threads"]
