"""Quantization methods, one file each; docs/quantizers.md says when to use which."""

from quant.quantizers.base import ActivationQuantizer, Quantizer, WeightQuantizer
from quant.quantizers.int8 import Int8Activation, Int8Weight
from quant.quantizers.same_grid import SameGrid
from quant.quantizers.spec import (
    ACTIVATION_QUANTIZERS,
    FLOAT,
    WEIGHT_QUANTIZERS,
    Spec,
    activation_quantizer,
    check_spec,
    gradient_quantizer,
    parse_spec,
    weight_quantizer,
)

__all__ = [
    "ACTIVATION_QUANTIZERS",
    "FLOAT",
    "WEIGHT_QUANTIZERS",
    "ActivationQuantizer",
    "Int8Activation",
    "Int8Weight",
    "Quantizer",
    "SameGrid",
    "Spec",
    "WeightQuantizer",
    "activation_quantizer",
    "check_spec",
    "gradient_quantizer",
    "parse_spec",
    "weight_quantizer",
]
