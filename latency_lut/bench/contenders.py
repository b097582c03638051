"""The forms of one network that are timed side by side: float as a user would deploy it, and INT8 on every engine.

    float eager         as torch's modules run it, batch norm unfolded, channels_last: what papers often divide by
    float torch         batch norm folded, channels_last, traced and frozen
    float onnxruntime   a session of the float network; likewise for every other runtime that programs use by default
    fbgemm, qnnpack ..  INT8 on an engine of quant.ENGINES, frozen

torch gets channels_last images and the sessions get contiguous ones, each what it runs without a copy.
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
from quant.engines import Engine

_FIRST = {engine.runtime: engine for engine in reversed(quant.ENGINES.values())}  # engine of each runtime
EAGER, FROZEN = "float eager", "float torch"
# the float forms, and an engine of the runtime that each needs
FLOATS: dict[str, Engine] = {EAGER: _FIRST["torch"]} | {
    f"float {engine.runtime}": _FIRST[engine.runtime] for engine in quant.ENGINES.values() if engine.by_default
}
SESSION = next(name for name, engine in FLOATS.items() if engine.session)


def engine_of(name: str) -> Engine:
    """The row in quant.ENGINES of a form: its engine, or for a float form one of the same runtime."""
    return FLOATS.get(name) or quant.ENGINES[name]


@dataclass(frozen=True)
class Contender:
    """One form of a network, ready to run: `network(image)`.

    Attributes:
        name: of FLOATS or quant.ENGINES.
        network: float images to logits.
        image: (N, C, H, W).
        float_ops: names of what an INT8 network computes in float between dequantize and quantize; None for a float
            network.
        float_convs: how many convolutions an INT8 network computes in float.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    image: Tensor
    float_ops: tuple[str, ...] | None = None
    float_convs: int = 0

    def __call__(self) -> Tensor:
        """One inference. Switching torch's engine costs something, so it is done where the last call was another's."""
        if self._torch_engine and torch.backends.quantized.engine != self._torch_engine:
            torch.backends.quantized.engine = self._torch_engine
        return self.network(self.image)

    @functools.cached_property
    def _torch_engine(self) -> str | None:
        """What torch's engine has to be; None where it does not matter."""
        engine = getattr(self.network, "engine", None)
        return engine if engine in torch.backends.quantized.supported_engines else None

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
    """All forms of a network that run here, each made for the number of threads that torch uses now, and run once.

    Call it within quant.use_engine, which restores torch's engine and silences its notices.

    Args:
        model: a float network with statistics (quant.recalibrate).
        images: (N, C, H, W).
        names: of FLOATS and quant.available().

    Returns:
        (those that run, why the others do not), by name.
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
    images = as_fed(name, images)
    if name == EAGER:
        return Contender(name, copy.deepcopy(model).eval().to(memory_format=torch.channels_last), images)
    if name in FLOATS:
        return Contender(name, freeze_float(name, model, images), images)
    executor = prepare.observed(model, images[:1], name)
    network = quant.freeze(executor, images)
    return Contender(name, network, images, tuple(executor.float_ops), executor.float_convs)


def as_fed(name: str, images: Tensor) -> Tensor:
    """Images in the layout that a form runs without a copy."""
    session = engine_of(name).session
    return images.contiguous(memory_format=torch.contiguous_format if session else torch.channels_last)


def freeze_float(name: str, model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """A float network as the runtime of a form in FLOATS deploys it."""
    return quant.freeze_float(model, images, engine=engine_of(name).name)
