"""The contract that every quantizer keeps."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from quant.errors import QuantError
from quant.quantizers.fake_quant import widen
from quant.quantizers.grid import QParams

INF = float("inf")


class Quantizer(nn.Module, ABC):
    """A module from tensor to tensor of the same shape and dtype, its values on a grid of at most 2^bits values.

    `observer_enabled` and `fake_quant_enabled` switch the tracking of ranges and the rounding; ranges that are learned
    go on learning. `batches` counts the training batches since the first observed one (calls: a quantizer shared by
    several tensors observes each in turn). These and the width travel in the state dict, as Python values, because
    reading them must not wait for a device: load a checkpoint on every rank. All other state is in buffers and
    Parameters. In evaluation mode nothing changes. A zero range never divides.
    """

    lr_scale = 1.0  # learning rate of a quantizer's own Parameters, relative to that of the weights
    min_bits = 2

    def __init__(self, bits: int):
        super().__init__()
        self.observer_enabled, self.fake_quant_enabled, self.batches = True, True, 0
        self.follows_default = False  # quant.attach: the width is the configuration's own, quant.set_bits moves it
        self.bits = 0
        self.set_bits(bits)

    def check_bits(self, bits: int) -> None:
        if not self.min_bits <= bits <= 8:
            raise QuantError(f"bits: {bits}, {type(self).__name__} takes {self.min_bits} to 8")

    def set_bits(self, bits: int) -> None:
        """Change the width; learned ranges stay. Raises QuantError for one that the method cannot have."""
        self.check_bits(bits)
        self.bits = bits

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize x."""

    def levels(self) -> tuple[int, int]:
        """How many quantization steps lie below and above zero.

        Raises:
            QuantError: the zero point follows a range (affine grids, as fqn's), so that no number is fixed.
        """
        raise QuantError(f"{type(self).__name__}: its zero point follows a range, so it has no fixed levels")

    def init_from(self, x: Tensor) -> None:  # noqa: B027 (most methods learn nothing)
        """Set the method's Parameters from a first tensor: the float weight when it is attached, or the first batch."""

    def extra_loss(self) -> Tensor | float:
        """A term that the training loss adds (0 unless the method has a regulariser)."""
        return 0.0

    def get_extra_state(self):
        return {
            "bits": self.bits,
            "observe": self.observer_enabled,
            "fake_quant": self.fake_quant_enabled,
            "batches": self.batches,
        }

    def set_extra_state(self, state):
        self.observer_enabled, self.fake_quant_enabled = bool(state["observe"]), bool(state["fake_quant"])
        self.bits, self.batches = int(state["bits"]), int(state["batches"])

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class ActivationQuantizer(Quantizer):
    """Quantizes what flows between layers, on one grid for the whole tensor.

    `floor` and `ceiling` are the bounds of an activation function fused into the clamp: 0 and inf for ReLU, 0 and 6 for
    ReLU6, -inf and inf for none. They hold with the rounding switched off too, so the module then computes the plain
    activation. `signed` says whether values below zero can come; methods with a fixed zero spend all codes above it
    otherwise.
    """

    transforms = False  # whether values change by more than rounding and clamping
    momentum: float | None = None  # weight of the newest batch, where the range is a moving average

    def __init__(self, bits: int, floor: float = -INF, ceiling: float = INF, signed: bool = True):
        super().__init__(bits)
        self.floor, self.ceiling, self.signed = floor, ceiling, signed and floor < 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.observer_enabled:
            self.observe(widen(x.detach()))
        if self.training and (self.observer_enabled or self.batches):
            self.batches += 1
        if not self.fake_quant_enabled or not self.ready():
            return self.activate(x)
        return self.quantize(widen(x)).to(x.dtype)

    def ready(self) -> bool:
        """Whether there is a range to quantize with."""
        return self.batches > 0

    def observe(self, x: Tensor) -> None:
        """Update the range from a training batch (float32 or wider, detached); a learned one starts at the first."""
        if self.batches == 0:
            self.init_from(x)

    @abstractmethod
    def quantize(self, x: Tensor) -> Tensor:
        """Fake-quantize x (float32 or wider)."""

    @abstractmethod
    def grid(self) -> QParams:
        """The grid of the values; QuantError where they are on none."""

    def qparams(self) -> QParams:
        """The grid as 8-bit codes; QuantError where there is none."""
        if self.batches and not self.ready():
            raise QuantError(
                f"an activation quantizer is still in its delay, after {self.batches} training batches; train on"
            )
        if not self.ready():
            raise QuantError(
                "an activation quantizer has seen no data: run some batches through the model in training mode first"
            )
        return self.grid()

    def activate(self, x: Tensor) -> Tensor:
        """The fused activation function alone."""
        if self.floor == -INF and self.ceiling == INF:
            return x
        return torch.clamp(x, self.floor, self.ceiling) if self.ceiling < INF else torch.relu(x)

    def clamp_to_ceiling(self, x: Tensor) -> Tensor:
        """x below the fused ceiling; the methods that call it bound x from below themselves."""
        return x.clamp(max=self.ceiling) if self.ceiling < INF else x


class WeightQuantizer(Quantizer):
    """Quantizes a weight from its current values (and the method's Parameters, if it has any).

    limit  largest code that the engine takes (quant.engines.weight_qmax); methods with free steps keep to it
    axis   of the output channels: 0, for transposed convolutions 1
    """

    def __init__(self, bits: int, limit: int = 127, axis: int = 0):
        super().__init__(bits)
        self.limit, self.axis = limit, axis

    def forward(self, weight: Tensor) -> Tensor:
        return self.quantize(weight) if self.fake_quant_enabled else weight

    @abstractmethod
    def quantize(self, weight: Tensor) -> Tensor:
        """Fake-quantize `weight`."""

    @abstractmethod
    def scale(self, weight: Tensor) -> Tensor:
        """Step sizes that broadcast over `weight`; values are scale * integer."""

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """The int8 codes of `weight`, same shape; QuantError where it has none that the engine takes."""
        codes = torch.round(self.quantize(weight) / self.scale(weight))
        largest = int(codes.abs().max())
        if largest > self.limit:
            name = type(self).__name__
            raise QuantError(
                f"{name}: codes reach {largest}, this engine takes {self.limit}; take fewer bits, or another engine"
            )
        return codes.to(torch.int8)

    def reduce_dims(self, weight: Tensor, granularity: str = "channel") -> list[int]:
        """The dimensions that share a scale: those of one output channel ("channel"), or all ("tensor")."""
        return [d for d in range(weight.dim()) if d != self.axis or granularity == "tensor"]


def check_range(field: str, value: float, low: float, high: float = INF) -> float:
    """`value` if it lies between `low` and `high`, else QuantError."""
    if not low <= value <= high:
        raise QuantError(
            f"{field}: {value}, must be " + (f"at least {low:g}" if high == INF else f"between {low:g} and {high:g}")
        )
    return value


def choose(field: str, value: str, *words: str) -> str:
    """`value` if it is one of `words`, else QuantError."""
    if value not in words:
        raise QuantError(f"{field}: {value!r} is not one of {', '.join(words)}")
    return value


def sample(x: Tensor, most: int = 2**14) -> Tensor:
    """At most about `most` elements of x, evenly spread over its memory, one-dimensional."""
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    stride = -(-x.numel() // most)
    while x.dim() > 1 and math.gcd(stride, x.shape[1] * x.shape[-1]) > 1 and stride > 1:
        stride += 1  # a common divisor would visit some channels or columns only
    return x.as_strided((-(-x.numel() // stride),), (stride,)) if dense else x.reshape(-1)[::stride]


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The sum of a * b, in one pass where the two lie alike in memory."""
    alike = a.stride() == b.stride() and (
        a.is_contiguous() or (a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last))
    )
    return torch.dot(*(t.as_strided((t.numel(),), (1,)) for t in (a, b))) if alike else (a * b).sum()


def quantiles(x: Tensor, outside: float) -> tuple[Tensor, Tensor]:
    """The values that a share `outside` of x (of a sample of it) lies below, and above."""
    x = sample(x)
    k = max(1, round(outside * x.numel()))
    return x.topk(k, largest=False).values.amax(), x.topk(k).values.amin()
