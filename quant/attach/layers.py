"""Layers whose weight passes through a quantizer.

They take over the Parameter objects of the float layer they replace.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from quant.depthwise import conv_forward
from quant.errors import QuantError
from quant.quantizers import WeightQuantizer


class _QuantizedWeight:
    """Mixed into a float layer class: adds a weight quantizer and perhaps one for gradients."""

    weight_quant: WeightQuantizer
    channel_axis = 0  # of the weight's output channels

    @classmethod
    def from_float(cls, layer: nn.Module, quantizer: WeightQuantizer) -> nn.Module:
        """The layer with `quantizer` on its weight. Weight and bias stay the same objects, as optimizers need."""
        new = take_over(cls, layer)
        new.weight_quant, new.gradient_quant = quantizer, nn.Identity()
        quantizer.init_from(layer.weight)
        return new


class QuantConv2d(_QuantizedWeight, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self.gradient_quant(conv_forward(self, x, self.weight_quant(self.weight), self.bias))


class QuantConvTranspose2d(_QuantizedWeight, nn.ConvTranspose2d):
    channel_axis = 1

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        padding = self._output_padding(x, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation)
        y = F.conv_transpose2d(
            x, self.weight_quant(self.weight), self.bias, self.stride, self.padding, padding, self.groups, self.dilation
        )
        return self.gradient_quant(y)


class QuantLinear(_QuantizedWeight, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.gradient_quant(F.linear(x, self.weight_quant(self.weight), self.bias))


QUANTIZED = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear, nn.ConvTranspose2d: QuantConvTranspose2d}


def take_over(cls: type, layer: nn.Module) -> nn.Module:
    """A `cls` (a subclass of the layer's class) with the settings, Parameters and buffers of `layer`, the same objects.

    Raises QuantError where the layer has hooks.
    """
    if layer._forward_pre_hooks or layer._forward_hooks:
        raise QuantError(
            f"{type(layer).__name__}: has hooks (weight norm?), which would be lost; remove them before attaching"
        )
    new = cls.__new__(cls)
    nn.Module.__init__(new)
    new.__dict__.update(
        {k: v for k, v in layer.__dict__.items() if not k.startswith("_") or k == "_reversed_padding_repeated_twice"}
    )
    for name, parameter in layer._parameters.items():
        new.register_parameter(name, parameter)
    for name, buffer in layer._buffers.items():
        new.register_buffer(name, buffer)
    return new
