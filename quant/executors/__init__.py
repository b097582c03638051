"""Executors: interchangeable ways to run an integer graph."""

from quant.errors import QuantError
from quant.executors.base import Executor
from quant.executors.reference import Reference
from quant.graph import IntGraph
from quant.grid import ENGINES

try:
    from quant.executors.torch_engines import TorchEngine, available, use_engine
except ImportError:  # the file can be deleted once torch drops its integer kernels
    import contextlib

    def available() -> tuple[str, ...]:
        return ()

    @contextlib.contextmanager
    def use_engine(engine: str):
        yield


def build(graph: IntGraph, engine: str, codes_io: bool = False) -> Executor:
    """The executor of an engine for a graph; QuantError where the engine is unknown or cannot run here."""
    if engine not in ENGINES:
        raise QuantError(f"engine: {engine!r} is not one of {', '.join(ENGINES)}")
    if engine == "reference":
        return Reference(graph, codes_io)
    if engine not in available():
        raise QuantError(f"engine: {engine!r} is not available here; choose from {', '.join(('reference', *available()))}")
    return TorchEngine(graph, engine, codes_io)


__all__ = ["Executor", "available", "build", "use_engine"]
