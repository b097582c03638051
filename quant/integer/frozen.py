"""The frozen forms of a network, which are timed and shipped: a TorchScript module for torch's engines, an ONNX model
for engines of other runtimes.
"""

import contextlib
import copy
import warnings
import zipfile
from pathlib import Path
from typing import final

import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, fx, nn

from common.files import write_bytes
from quant.attach.graph_pass import prepare
from quant.engines import ENGINES, ORACLE, find_engine, use_engine
from quant.errors import QuantError
from quant.executors import Executor
from quant.executors.sessions import to_array, to_bytes
from quant.export import FORMATS
from quant.export.onnx.graph import to_onnx
from quant.export.onnx.outputs import structure
from quant.integer.graph import IntGraph
from quant.integer.lowering import lower

SESSION_ENGINES = tuple(name for name, engine in ENGINES.items() if engine.session)
DEFAULT_SESSION_ENGINE = FORMATS["onnx"].engine


@final
class Frozen:
    """A traced and frozen network; call it like the module it came from.

    It runs on its engine whatever torch's current one is.
    """

    def __init__(self, module: torch.jit.ScriptModule, engine: str | None):
        self.module, self.engine = module, engine

    def __call__(self, *inputs):
        if self.engine is None or torch.backends.quantized.engine == self.engine:
            return self.module(*inputs)
        with use_engine(self.engine):
            return self.module(*inputs)

    def save(self, path: Path) -> None:
        with _quiet():
            torch.jit.save(self.module, str(path), _extra_files={"engine": self.engine or ""})

    @classmethod
    def load(cls, path: Path) -> "Frozen":
        """Read what `save` wrote. A frozen module is a program: load only files that you made.

        Raises:
            QuantError: it is another file.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                (entry,) = (name for name in archive.namelist() if name.endswith("extra/engine"))
                engine = archive.read(entry).decode() or None
        except (zipfile.BadZipFile, ValueError) as error:
            raise QuantError(f"{path}: not a network that a frozen one's save wrote") from error
        with _quiet(), use_engine(engine or ORACLE):  # weights are packed for the engine of the moment
            return cls(torch.jit.load(str(path)), engine)


@final
class OnnxNetwork:
    """An ONNX model as a deployed network: call it with tensors, NCHW (channels_last ones are copied first).

    It gives what the model gave: a tensor, or (nested) tuples of such. It runs on as many threads as torch used when it
    was made. Images may come in any number, but must have the size that it was made for: QuantError for others.
    `engine` is one of SESSION_ENGINES.
    """

    def __init__(self, model: bytes, engine: str):
        self.model, self.engine = model, engine
        graph = onnx.load_model_from_string(model).graph
        constants = {tensor.name for tensor in graph.initializer}
        self._shapes = [_dims(value) for value in graph.input if value.name not in constants]
        self._structure = structure([value.name for value in graph.output])
        self._run = ENGINES[engine].executor_class().session(model)

    def __call__(self, *inputs: Tensor):
        try:
            outputs = [torch.from_numpy(value) for value in self._run(*map(to_array, inputs))]
        except Exception:  # each runtime has its own; to look before is a good part of a small network's time
            for x, made_for in zip(inputs, self._shapes):
                _check_shape(tuple(x.shape), made_for)
            raise
        return fx.node.map_aggregate(self._structure, outputs.__getitem__)

    def save(self, path: Path | str) -> None:
        """Write the model file, whole or not at all. Raises UserError where it cannot be written."""
        write_bytes(path, self.model)

    @classmethod
    def load(cls, path: Path, engine: str = DEFAULT_SESSION_ENGINE) -> "OnnxNetwork":
        """Read a model file; QuantError where it is none."""
        try:
            model = Path(path).read_bytes()
            onnx.checker.check_model(onnx.load_model_from_string(model))
        except (OSError, onnx.checker.ValidationError, DecodeError) as error:
            raise QuantError(f"{path}: not an ONNX model ({str(error).splitlines()[0]})") from error
        return cls(model, engine)


def load_frozen(path: Path, engine: str | None = None) -> Frozen | OnnxNetwork:
    """Read what the `save` of a frozen network wrote, of either form; call what this returns.

    Args:
        path: the file. A frozen module is a program: load only files that you made.
        engine: for an ONNX model one of SESSION_ENGINES (default: DEFAULT_SESSION_ENGINE). A torch module knows
            its engine.

    Raises:
        QuantError: there is no such file, or it is of neither form.
    """
    if not Path(path).is_file():
        raise QuantError(f"{path}: there is no such file")
    if engine not in SESSION_ENGINES and zipfile.is_zipfile(path):
        return Frozen.load(path)
    engine = engine or DEFAULT_SESSION_ENGINE
    _check_session_engine(engine)
    return OnnxNetwork.load(path, engine)


def freeze(executor: Executor, *example_inputs) -> Frozen | OnnxNetwork:
    """The deployable form of an integer network: call it, or `save` it.

    torch's engines: a Frozen trace; half of a small network's time is Python without it. Engines of other runtimes: an
    OnnxNetwork for inputs of this size (QuantError when called with another one), on as many threads as torch uses now.
    """
    engine = ENGINES[executor.engine]
    if engine.oracle:
        raise QuantError(f"engine: {engine.name!r} is the oracle, it has no frozen form; convert for another engine")
    if engine.session:
        return _onnx_network(executor.graph, engine.name, example_inputs)
    with use_engine(engine.name):
        return _warmed_up(Frozen(_trace(executor, example_inputs), engine.name), example_inputs)


def freeze_float(model: nn.Module, *example_inputs: Tensor, engine: str | None = None) -> Frozen | OnnxNetwork:
    """The float baseline that a user would really deploy, batch norm folded.

    Args:
        model: any traceable model; it is left as it is.
        example_inputs: real tensors of the size that it will get.
        engine: name in ENGINES, whose runtime is to run it: a session of that engine for one of SESSION_ENGINES, a
            frozen channels_last trace for the others and by default.

    Raises:
        QuantError: the engine is unknown, or is a session engine that cannot run here.
    """
    model = copy.deepcopy(model).cpu().eval()
    if engine is not None and find_engine(engine).session:
        _check_session_engine(engine)
        return _onnx_network(lower(prepare(model, example_inputs)), engine, example_inputs)
    model = _Tuples(model.to(memory_format=torch.channels_last))
    return _warmed_up(Frozen(_trace(model, example_inputs), None), example_inputs)


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


def _trace(module: nn.Module, example_inputs: tuple) -> torch.jit.ScriptModule:
    with _quiet(), torch.inference_mode():
        traced = torch.jit.trace(module, example_inputs, check_trace=False)
        return torch.jit.freeze(traced.eval())


def _warmed_up(frozen: Frozen, example_inputs: tuple) -> Frozen:
    """After the first two calls, which compile."""
    with torch.inference_mode():
        frozen(*example_inputs)
        frozen(*example_inputs)
    return frozen


@contextlib.contextmanager
def _quiet():
    """torch announces the end of TorchScript at each call; here it is an optional speed-up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _onnx_network(graph: IntGraph, engine: str, example_inputs: tuple) -> OnnxNetwork:
    return OnnxNetwork(to_bytes(to_onnx(graph, [tuple(x.shape) for x in example_inputs])), engine)


def _check_session_engine(engine: str) -> None:
    if engine not in SESSION_ENGINES or not ENGINES[engine].available():
        raise QuantError(f"engine: {engine!r} runs no ONNX models here; choose from {', '.join(SESSION_ENGINES)}")


def _dims(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """The shape of a model's input: None for a size that may be any, or for all of them."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]


def _check_shape(shape: tuple[int, ...], made_for: list[int | None] | None) -> None:
    """Raise QuantError where a network was made for inputs of another shape."""
    if made_for is None or (
        len(shape) == len(made_for) and all(size in (None, got) for got, size in zip(shape, made_for))
    ):
        return
    got, wanted = ("x".join("N" if size is None else str(size) for size in sizes) for sizes in (shape, made_for))
    fix = "resize the pictures, or freeze or export the network at their size"
    raise QuantError(f"pictures of {got}: this ONNX network was made for {wanted} (N: any number); {fix}")
