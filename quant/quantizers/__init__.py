"""Quantization methods by name: for each the class for weights and the class for activations."""

from quant.quantizers.base import ActivationQuantizer, Quantizer, WeightQuantizer
from quant.quantizers.int8 import Int8Activation, Int8Weight

WEIGHT_QUANTIZERS = {"int8": Int8Weight}
ACTIVATION_QUANTIZERS = {"int8": Int8Activation}

__all__ = [
    "ACTIVATION_QUANTIZERS",
    "WEIGHT_QUANTIZERS",
    "ActivationQuantizer",
    "Int8Activation",
    "Int8Weight",
    "Quantizer",
    "WeightQuantizer",
]
