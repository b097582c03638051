"""Layers whose weight passes through a quantizer. They take over the Parameter objects of the float layer they replace."""

import torch.nn.functional as F
from torch import Tensor, nn

from quant.errors import QuantError
from quant.quantizers import WeightQuantizer


class _QuantizedWeight:
    """Mixed into a float layer class: the float layer's fields and Parameters, plus a weight quantizer."""

    weight_quant: WeightQuantizer

    @classmethod
    def from_float(cls, layer: nn.Module, quantizer: WeightQuantizer) -> nn.Module:
        """The layer with `quantizer` on its weight; weight and bias stay the same objects, so optimizer state stays valid."""
        if layer._forward_pre_hooks or layer._forward_hooks:
            raise QuantError(f"{type(layer).__name__}: has hooks (weight norm?), which would be lost; remove them before attaching")
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.__dict__.update({k: v for k, v in layer.__dict__.items() if not k.startswith("_") or k == "_reversed_padding_repeated_twice"})
        for name, parameter in layer.named_parameters(recurse=False):
            new.register_parameter(name, parameter)
        if layer.bias is None:
            new.register_parameter("bias", None)
        new.weight_quant = quantizer
        return new


class QuantConv2d(_QuantizedWeight, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight_quant(self.weight), self.bias)


class QuantLinear(_QuantizedWeight, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_quant(self.weight), self.bias)


QUANTIZED = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}
