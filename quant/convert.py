"""From a trained, attached graph to an integer network, and to the frozen form that is timed and shipped."""

import contextlib
import copy
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from quant import executors
from quant.errors import QuantError
from quant.executors import Executor
from quant.lower import lower


def convert(graph: fx.GraphModule, engine: str, codes_io: bool = False) -> Executor:
    """The integer network of an attached graph on `engine` (quant.grid.ENGINES): real images in, real outputs out, on the CPU.

    codes_io=True makes one that takes and gives code tensors (`code_inputs` prepares them). The graph is left as it is.
    Raises QuantError where ranges are missing, the engine cannot run here, or an operation has no place.
    """
    return executors.build(lower(graph), engine, codes_io).eval()


def code_inputs(executor: Executor, *inputs: Tensor) -> tuple:
    """The codes of real inputs, as an executor built with codes_io=True takes them."""
    grids = {op.inputs[0]: op.qparams for op in executor.graph.ops if op.kind == "quantize"}
    names = [op.name for op in executor.graph.ops if op.kind == "input"]
    with executors.use_engine(executor.engine), torch.inference_mode():
        return tuple(executor.quantize(x, grids[name]) for x, name in zip(inputs, names, strict=True))


class Frozen:
    """A traced and frozen network; call it like the module it came from. It runs on its engine whatever torch's current one is."""

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

    @classmethod
    def load(cls, path: Path) -> "Frozen":
        """Read what `save` wrote. A frozen module is a program: load only files that you made."""
        try:
            with zipfile.ZipFile(path) as archive:
                (entry,) = (name for name in archive.namelist() if name.endswith("extra/engine"))
                engine = archive.read(entry).decode() or None
        except (zipfile.BadZipFile, ValueError) as error:
            raise QuantError(f"{path}: not a network that Frozen.save wrote") from error
        with _quiet(), executors.use_engine(engine or "reference"):  # weights are packed for the engine of the moment
            return cls(torch.jit.load(str(path)), engine)


def freeze(executor: Executor, *example_inputs) -> Frozen:
    """The deployable form of an integer network on one of torch's engines; half of a small network's time is Python without it."""
    if executor.engine == "reference":
        raise QuantError("engine: 'reference' is the oracle, it has no frozen form; convert for one of torch's engines")
    with executors.use_engine(executor.engine):
        frozen = Frozen(_trace(executor, example_inputs), executor.engine)
        with torch.inference_mode():
            frozen(*example_inputs)  # the first calls compile
            frozen(*example_inputs)
    return frozen


def freeze_float(model: nn.Module, *example_inputs: Tensor) -> Frozen:
    """The float baseline that a user would really deploy: batch norm folded, channels_last, traced and frozen."""
    model = copy.deepcopy(model).cpu().eval().to(memory_format=torch.channels_last)
    frozen = Frozen(_trace(model, example_inputs), None)
    with torch.inference_mode():
        frozen(*example_inputs)
        frozen(*example_inputs)
    return frozen


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
