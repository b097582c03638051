"""Executors: interchangeable ways to run an integer graph."""

import contextlib
from importlib.util import find_spec

from quant.errors import QuantError
from quant.executors.base import Executor
from quant.executors.onnx_engines import OnnxRuntime, OpenVino
from quant.executors.reference import Reference
from quant.integer.graph import IntGraph
from quant.quantizers.grid import ENGINES

try:
    from quant.executors import torch_engines
    from quant.executors.torch_engines import TorchEngine, use_engine
except ImportError:  # the file can be deleted once torch drops its integer kernels
    torch_engines, use_engine = None, contextlib.nullcontext

ONNX_ENGINES = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def available() -> tuple[str, ...]:
    """The engines that can run here, beside the reference."""
    of_torch = torch_engines.available() if torch_engines else ()
    return (*of_torch, *(name for name in ONNX_ENGINES if find_spec(name)))


def build(graph: IntGraph, engine: str, codes_io: bool = False) -> Executor:
    """The executor of an engine for a graph; QuantError where the engine is unknown or cannot run here."""
    if engine not in ENGINES:
        raise QuantError(f"engine: {engine!r} is not one of {', '.join(ENGINES)}")
    graph = graph.on_codes() if codes_io else graph
    if engine == "reference":
        return Reference(graph)
    if engine not in available():
        raise QuantError(
            f"engine: {engine!r} is not available here; choose from {', '.join(('reference', *available()))}"
        )
    return ONNX_ENGINES[engine](graph) if engine in ONNX_ENGINES else TorchEngine(graph, engine)


__all__ = ["Executor", "available", "build", "use_engine"]
