"""Executors: interchangeable ways to run an integer graph."""

from quant.engines import ORACLE, available, find_engine
from quant.errors import QuantError
from quant.executors.base import Executor
from quant.integer.graph import IntGraph


def build(graph: IntGraph, engine: str, codes_io: bool = False) -> Executor:
    """The executor of an engine for a graph; QuantError where the engine is unknown or cannot run here."""
    row = find_engine(engine)
    if not row.available():
        raise QuantError(f"engine: {engine!r} is not available here; choose from {', '.join((ORACLE, *available()))}")
    return row.executor_class()(graph.on_codes() if codes_io else graph, engine)


__all__ = ["Executor", "build"]
