"""The engines that run integer networks, one row each: what they need, how they are called, how large weights may be.

To add one, write its executor (quant/executors/) and add a row here.
"""

import contextlib
import importlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from quant.errors import QuantError


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        name: as users write it.
        runtime: the package whose kernels run; its version belongs to every measurement.
        executor: "module:class" of the executor, a subclass of `quant.executors.base.Executor`, imported when needed.
        adds_in_16_bits: where its kernels add pairs of 8-bit products in 16 bits, so that weights are limited to 63:
            "always", "without_vnni" (on x86 CPUs that lack these instructions) or "never".
        session: whether a converted network is a session of another runtime, made from an ONNX model: it takes
            contiguous tensors and is not a torch module. Its executor is a `quant.executors.sessions.SessionExecutor`.
        channels_last_inside: whether its sessions compute on channels_last tensors, so that they transpose what comes
            in and what goes out.
        oracle: whether it is exact and slow, for comparison only: never timed and never shipped.
        by_default: whether programs that run "all" engines include it.
        short: abbreviation of the runtime for column headings (default: the runtime).
    """

    name: str
    runtime: str
    executor: str
    adds_in_16_bits: Literal["always", "without_vnni", "never"]
    session: bool = False
    channels_last_inside: bool = False
    oracle: bool = False
    by_default: bool = True
    short: str = ""

    def available(self) -> bool:
        """Whether it can run on this machine."""
        if find_spec(self.runtime) is None:
            return False
        try:
            executor = self.executor_class()
        except ImportError:  # the file that calls torch's integer kernels can be deleted
            return False
        return executor.runs_here(self.name)

    def executor_class(self) -> type:
        """The class that runs an integer graph on this engine."""
        module, name = self.executor.split(":")
        return getattr(importlib.import_module(module), name)


_TORCH = "quant.executors.torch_engines:TorchEngine"
_ORT, _OPENVINO = "quant.executors.onnxruntime:OnnxRuntime", "quant.executors.openvino:OpenVino"
_ROWS = (
    Engine("reference", "torch", "quant.executors.reference:Reference", "never", oracle=True),
    Engine("fbgemm", "torch", _TORCH, "always"),
    Engine("qnnpack", "torch", _TORCH, "never"),
    Engine("x86", "torch", _TORCH, "always"),
    Engine("onednn", "torch", _TORCH, "without_vnni"),
    Engine("onnxruntime", "onnxruntime", _ORT, "without_vnni", session=True, channels_last_inside=True, short="ort"),
    Engine("openvino", "openvino", _OPENVINO, "without_vnni", session=True, by_default=False),
)
ENGINES = {row.name: row for row in _ROWS}
(ORACLE,) = (row.name for row in _ROWS if row.oracle)


def find_engine(name: str) -> Engine:
    """The engine of that name. Raises QuantError for an unknown one."""
    if name not in ENGINES:
        raise QuantError(f"engine: {name!r} is not one of {', '.join(ENGINES)}")
    return ENGINES[name]


def available() -> tuple[str, ...]:
    """Names of the engines that can run here, beside the reference."""
    return tuple(name for name, engine in ENGINES.items() if not engine.oracle and engine.available())


def weight_qmax(engine: str) -> int:
    """The largest quantized weight: 63 where an engine adds pairs of 8-bit products in 16 bits, else 127.

    fbgemm and x86 do so in depthwise convolutions on any x86 CPU. On CPUs without VNNI onednn, onnxruntime and openvino
    do so, too. With weights up to 63 the largest pair is 2 * 255 * 63 = 32130 < 2^15: nothing can saturate, whatever
    the activations. Raises QuantError for an unknown engine.
    """
    adds = find_engine(engine).adds_in_16_bits
    lacks_vnni = platform.machine().lower() in ("x86_64", "amd64") and not has_vnni()
    return 63 if adds == "always" or (adds == "without_vnni" and lacks_vnni) else 127


def engine_of_qmax() -> dict[int, str]:
    """For each largest quantized weight an engine that has it on any CPU."""
    return {weight_qmax(name): name for name, row in reversed(ENGINES.items()) if row.adds_in_16_bits != "without_vnni"}


def has_vnni() -> bool:
    """Whether this CPU multiplies 8-bit pairs into 32 bits directly (no 16-bit saturation)."""
    flags = getattr(torch.cpu, "get_capabilities", dict)()  # not in every supported torch
    return any(flags.get(name, False) for name in ("avx512_vnni", "avx_vnni"))


@contextlib.contextmanager
def use_engine(engine: str) -> Iterator[None]:
    """Make `engine` the one that torch's quantized operators run on; nothing where it is not one of torch's.

    Raises:
        QuantError: the engine is unknown.
    """
    find_engine(engine)
    try:
        from quant.executors.torch_engines import use_engine as use
    except ImportError:
        yield
        return
    with use(engine):
        yield
