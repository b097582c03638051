"""The forms of one network that are timed side by side: float as a user would deploy it, and INT8 on every engine.

    float eager         as torch's modules run it, batch norm unfolded, channels_last: what papers often divide by
    float torch         batch norm folded, channels_last, traced and frozen
    float onnxruntime   an onnxruntime session of the float network
    fbgemm, qnnpack ..  INT8, frozen (torch's engines) or a session (onnxruntime, openvino)

torch gets channels_last pictures and the sessions get contiguous ones, each what it runs without a copy.
"""

import copy
import functools
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import quant
from latency_lut import prepare

EAGER, FROZEN, SESSION = FLOATS = ("float eager", "float torch", "float onnxruntime")
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Contender:
    """One form of a network, ready to run: `network(image)`.

    float_ops: names of what an INT8 network computes in float between dequantize and quantize; None for float networks.
    float_convs: how many of these are convolutions.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    image: Tensor
    float_ops: tuple[str, ...] | None = None
    float_convs: int = 0

    def __call__(self) -> Tensor:
        """One inference. Switching torch's engine costs something, so it is done where the last call was another's."""
        engine = getattr(self.network, "engine", None)
        if (
            engine in quant.ENGINES
            and quant.ENGINES[engine].runtime == "torch"
            and torch.backends.quantized.engine != engine
        ):
            torch.backends.quantized.engine = engine
        return self.network(self.image)

    @functools.cached_property
    def file_bytes(self) -> int:
        """Size of the file that deploys it: the state dict of an eager module, else what its `save` writes."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network"
            if isinstance(self.network, nn.Module):
                torch.save(self.network.state_dict(), path)
            else:
                self.network.save(path)
            return path.stat().st_size


def contenders(model: nn.Module, images: Tensor, names: Iterable[str]) -> tuple[dict[str, Contender], dict[str, str]]:
    """(those that run, why the others do not), by name: of FLOATS and of quant.available().

    model: a settled float network (prepare.settle). images: (N, C, H, W). Made for the number of threads that torch
    uses now; each has run once. Call within quant.use_engine, which restores torch's engine and silences its notices.
    """
    ready, reasons = {}, {}
    for name in names:
        try:
            contender = _contender(name, model, images)
            with torch.inference_mode():
                contender()
            ready[name] = contender
        except Exception as error:  # whatever an engine raises, the others are timed
            reasons[name] = f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"
    return ready, reasons


def _contender(name: str, model: nn.Module, images: Tensor) -> Contender:
    images = images.contiguous() if _in_a_session(name) else images.contiguous(memory_format=torch.channels_last)
    if name == EAGER:
        return Contender(name, copy.deepcopy(model).eval().to(memory_format=torch.channels_last), images)
    if name in FLOATS:
        return Contender(name, quant.freeze_float(model, images, engine=name.split()[-1]), images)
    executor = prepare.observed(model, images[:1], name)
    network = quant.freeze(executor, images)
    float_ops = tuple(executor.float_ops)
    convs = _session_convs(network.model) if name == "onnxruntime" else _graph_convs(executor.graph, float_ops)
    return Contender(name, network, images, float_ops, convs)


def _in_a_session(name: str) -> bool:
    """Whether a form, of float or INT8, runs in another runtime's session."""
    engine = quant.ENGINES.get(name.split()[-1])
    return engine is not None and engine.session


def _graph_convs(graph: quant.IntGraph, float_ops: tuple[str, ...]) -> int:
    """How many of the float operations are convolutions."""
    calls = (graph.op(name).attrs["call"].function for name in float_ops)
    return sum(isinstance(f, CONVOLUTIONS) or "conv" in getattr(f, "__name__", "") for f in calls)


def _session_convs(model: bytes) -> int:
    """How many convolutions onnxruntime's optimised network computes in float."""
    import onnx

    from quant.executors.onnxruntime import optimised

    return sum(
        node.op_type in ("Conv", "FusedConv", "ConvTranspose")
        for node in optimised(onnx.load_from_string(model)).graph.node
    )
