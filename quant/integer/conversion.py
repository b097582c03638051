"""From a trained, attached graph to an integer network, and to the frozen form that is timed and shipped."""

import contextlib
import copy
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from quant import executors
from quant.attach.graph_pass import prepare
from quant.engines import ENGINES
from quant.errors import QuantError
from quant.executors import Executor
from quant.executors.onnx_engines import OnnxNetwork, to_bytes
from quant.export.onnx.graph import to_onnx
from quant.integer.graph import IntGraph
from quant.integer.lowering import lower


def convert(graph: fx.GraphModule, engine: str, codes_io: bool = False) -> Executor:
    """The integer network of an attached graph on `engine` (quant.engines.ENGINES): real images in, real
    outputs out, on the CPU.

    codes_io=True makes one that takes and gives code tensors (`code_inputs` prepares them). The graph is left as it is.
    Raises QuantError where ranges are missing, the engine cannot run here, or an operation has no place.
    """
    return executors.build(lower(graph), engine, codes_io).eval()


def code_inputs(executor: Executor, *inputs: Tensor) -> tuple:
    """The codes of real inputs, as an executor built with codes_io=True takes them."""
    grids = [op.qparams for op in executor.graph.ops if op.kind == "input"]
    with executors.use_engine(executor.engine), torch.inference_mode():
        return tuple(executor.quantize(x, grid) for x, grid in zip(inputs, grids, strict=True))


class Frozen:
    """A traced and frozen network; call it like the module it came from.

    It runs on its engine whatever torch's current one is.
    """

    def __init__(self, module: torch.jit.ScriptModule, engine: str | None):
        self.module, self.engine = module, engine

    def __call__(self, *inputs):
        if self.engine is None or torch.backends.quantized.engine == self.engine:
            return self.module(*inputs)
        with executors.use_engine(self.engine):
            return self.module(*inputs)

    def save(self, path: Path) -> None:
        with _quiet():
            torch.jit.save(self.module, str(path), _extra_files={"engine": self.engine or ""})


def load_frozen(path: Path, engine: str | None = None) -> Frozen | OnnxNetwork:
    """Read what the `save` of a frozen network wrote, of either sort: call what this returns. QuantError where it is
    neither.

    engine: "onnxruntime" (the default) or "openvino" for an ONNX model; a torch engine's module knows its own. Such a
    module is a
    program: load only files that you made.
    """
    if not Path(path).is_file():
        raise QuantError(f"{path}: there is no such file")
    if engine in sessions() or not zipfile.is_zipfile(path):
        _check_onnx_engine(engine or "onnxruntime")
        return OnnxNetwork.load(path, engine or "onnxruntime")
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = (name for name in archive.namelist() if name.endswith("extra/engine"))
            packed_for = archive.read(entry).decode() or None
    except (zipfile.BadZipFile, ValueError) as error:
        raise QuantError(f"{path}: not a network that a frozen one's save wrote") from error
    with _quiet(), executors.use_engine(packed_for or "reference"):  # weights are packed for the engine of the moment
        return Frozen(torch.jit.load(str(path)), packed_for)


def freeze(executor: Executor, *example_inputs) -> Frozen | OnnxNetwork:
    """The deployable form of an integer network: call it, or `save` it.

    torch's engines: a Frozen trace; half of a small network's time is Python without it. onnxruntime and openvino: an
    OnnxNetwork for inputs of this size (QuantError when called with another one), on as many threads as torch uses now.
    """
    if ENGINES[executor.engine].oracle:
        raise QuantError("engine: 'reference' is the oracle, it has no frozen form; convert for another engine")
    if ENGINES[executor.engine].session:
        return _onnx_network(executor.graph, executor.engine, example_inputs)
    with executors.use_engine(executor.engine):
        frozen = Frozen(_trace(executor, example_inputs), executor.engine)
        with torch.inference_mode():
            frozen(*example_inputs)  # the first calls compile
            frozen(*example_inputs)
    return frozen


def freeze_float(model: nn.Module, *example_inputs: Tensor, engine: str = "torch") -> Frozen | OnnxNetwork:
    """The float baseline that a user would really deploy, batch norm folded:

    "torch" channels_last, traced and frozen, or "onnxruntime".
    """
    model = copy.deepcopy(model).cpu().eval()
    if engine != "torch":
        _check_onnx_engine(engine)
        return _onnx_network(lower(prepare(model, example_inputs)), engine, example_inputs)
    frozen = Frozen(_trace(_Tuples(model.to(memory_format=torch.channels_last)), example_inputs), None)
    with torch.inference_mode():
        frozen(*example_inputs)
        frozen(*example_inputs)
    return frozen


class _Tuples(nn.Module):
    """A model whose lists of outputs are tuples: what a trace can give, and what integer networks give."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return _in_tuples(self.model(*inputs))


def _in_tuples(value: object) -> Tensor | tuple:
    if not isinstance(value, (Tensor, tuple, list)):
        raise QuantError(f"the model gives a {type(value).__name__}; let it give tensors, alone or in (nested) tuples")
    return value if isinstance(value, Tensor) else tuple(map(_in_tuples, value))


def sessions() -> tuple[str, ...]:
    """The engines that run ONNX models in sessions."""
    return tuple(name for name, engine in ENGINES.items() if engine.session)


def _check_onnx_engine(engine: str) -> None:
    if engine not in sessions() or not ENGINES[engine].available():
        raise QuantError(f"engine: {engine!r} runs no ONNX models here; choose from {', '.join(sessions())}")


def _onnx_network(graph: IntGraph, engine: str, example_inputs: tuple) -> OnnxNetwork:
    return OnnxNetwork(to_bytes(to_onnx(graph, [tuple(x.shape) for x in example_inputs])), engine)


def _trace(module: nn.Module, example_inputs: tuple) -> torch.jit.ScriptModule:
    with _quiet(), torch.inference_mode():
        traced = torch.jit.trace(module, example_inputs, check_trace=False)
        return torch.jit.freeze(traced.eval())


@contextlib.contextmanager
def _quiet():
    """torch announces the end of TorchScript at each call; here it is an optional speed-up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
