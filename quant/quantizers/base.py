"""The contract that every quantizer keeps."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Quantizer(nn.Module, ABC):
    """A module from tensor to tensor of the same shape and dtype, its values on an integer grid.

    `observe` and `fake_quant` switch the tracking of ranges and the rounding; both travel in the state dict. All other state is in
    buffers. In evaluation mode no buffer changes. A zero range never divides.
    """

    def __init__(self):
        super().__init__()
        self.observe = True
        self.fake_quant = True

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize x."""

    def extra_loss(self) -> Tensor | float:
        """A term that the training loss adds (0 unless the method has a regulariser)."""
        return 0.0

    def get_extra_state(self):
        return {"observe": self.observe, "fake_quant": self.fake_quant}

    def set_extra_state(self, state):
        self.observe, self.fake_quant = bool(state["observe"]), bool(state["fake_quant"])


class ActivationQuantizer(Quantizer):
    """Quantizes what flows between layers, on one grid for the whole tensor.

    `floor` and `ceiling` are the bounds of an activation function fused into the clamp: 0 and inf for ReLU, 0 and 6 for ReLU6,
    -inf and inf for none. They hold with the rounding switched off too, so the module then computes the plain activation.
    """

    def __init__(self, floor: float = float("-inf"), ceiling: float = float("inf")):
        super().__init__()
        self.floor, self.ceiling = floor, ceiling

    @abstractmethod
    def qparams(self):
        """The grid as a QParams; QuantError where none has been found yet."""

    def activate(self, x: Tensor) -> Tensor:
        """The fused activation function alone."""
        if self.floor == float("-inf") and self.ceiling == float("inf"):
            return x
        return torch.clamp(x, self.floor, self.ceiling) if self.ceiling < float("inf") else torch.relu(x)


class WeightQuantizer(Quantizer):
    """Quantizes a weight on a symmetric grid, from the current weight alone."""

    @abstractmethod
    def scale(self, weight: Tensor) -> Tensor:
        """Step sizes that broadcast over `weight`."""

    @abstractmethod
    def codes(self, weight: Tensor) -> Tensor:
        """The int8 codes of `weight`, same shape."""
