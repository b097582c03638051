"""Quantization methods: one file and one row in the tables here for each. docs/quantizers.md says when to use which."""

from quant.quantizers.base import ActivationQuantizer, Quantizer, WeightQuantizer
from quant.quantizers.dorefa import DorefaActivation, DorefaWeight
from quant.quantizers.fqn import FqnActivation, FqnWeight
from quant.quantizers.gdrq import GdrqActivation, GdrqWeight
from quant.quantizers.gradients import DorefaGradient, MinMaxGradient
from quant.quantizers.int8 import Int8Activation, Int8Weight
from quant.quantizers.lsq import LsqActivation, LsqWeight
from quant.quantizers.pact import PactActivation
from quant.quantizers.qil import QilActivation, QilWeight
from quant.quantizers.same_grid import SameGrid
from quant.quantizers.spec import FLOAT, Spec, make, parse_spec

WEIGHT_QUANTIZERS = {
    "int8": Int8Weight,
    "fqn": FqnWeight,
    "dorefa": DorefaWeight,
    "qil": QilWeight,
    "gdrq": GdrqWeight,
    "lsq": LsqWeight,
}
ACTIVATION_QUANTIZERS = {
    "int8": Int8Activation,
    "fqn": FqnActivation,
    "pact": PactActivation,
    "dorefa": DorefaActivation,
    "qil": QilActivation,
    "gdrq": GdrqActivation,
    "lsq": LsqActivation,
}
GRADIENT_QUANTIZERS = {"dorefa": DorefaGradient, "minmax": MinMaxGradient}
_TABLES = {"weights": WEIGHT_QUANTIZERS, "activations": ACTIVATION_QUANTIZERS, "gradients": GRADIENT_QUANTIZERS}


def weight_quantizer(text: str, limit: int, axis: int) -> WeightQuantizer:
    """A quantizer for weights, made by a spec; QuantError where there is none such."""
    return make(WEIGHT_QUANTIZERS, "weights", parse_spec(text), limit=limit, axis=axis)


def activation_quantizer(text: str, floor: float, ceiling: float, signed: bool) -> ActivationQuantizer:
    return make(ACTIVATION_QUANTIZERS, "activations", parse_spec(text), floor=floor, ceiling=ceiling, signed=signed)


def gradient_quantizer(text: str, seed: int):
    return make(GRADIENT_QUANTIZERS, "gradients", parse_spec(text), seed=seed)


def check_spec(text: str, kind: str) -> None:
    """QuantError unless `text` makes a quantizer for `kind`: "weights", "activations" or "gradients"."""
    make(_TABLES[kind], kind, parse_spec(text))


__all__ = [
    "ACTIVATION_QUANTIZERS",
    "FLOAT",
    "GRADIENT_QUANTIZERS",
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
