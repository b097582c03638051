"""From a trained, attached graph to the integer network of an engine."""

import torch
from torch import Tensor, fx

from quant.engines import use_engine
from quant.executors import Executor, build
from quant.integer.lowering import lower


def convert(graph: fx.GraphModule, engine: str, codes_io: bool = False) -> Executor:
    """Convert an attached graph to an integer network, which runs on the CPU. The graph is left as it is.

    Args:
        graph: what `attach` made, trained or calibrated.
        engine: a name in quant.engines.ENGINES.
        codes_io: whether the network takes and gives code tensors (`code_inputs` prepares them), not real ones.

    Raises:
        QuantError: ranges are missing, the engine cannot run here, or an operation has no integer form.
    """
    return build(lower(graph), engine, codes_io).eval()


def code_inputs(executor: Executor, *inputs: Tensor) -> tuple:
    """The codes of real inputs, as an executor built with codes_io=True takes them."""
    grids = [op.qparams for op in executor.graph.ops if op.kind == "input"]
    with use_engine(executor.engine), torch.inference_mode():
        return tuple(executor.quantize(x, grid) for x, grid in zip(inputs, grids, strict=True))
