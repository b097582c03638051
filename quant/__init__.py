"""INT8 quantization of any traceable model: attach, train, convert, check. Usable alone.

graph = quant.attach(model, images, quant.QuantConfig(engine="fbgemm"))    # a model that trains on integer grids
... train ...
quant.snap_biases(graph)                                                   # biases as integers hold them
int8 = quant.convert(graph, "fbgemm")                                      # the integer network
quant.parity(graph, int8, images).check()                                  # computes what was trained
quant.freeze(int8, images[:1]).save("int8.pt")                             # the form to ship
quant.export_onnx(graph, "int8.onnx")                                      # for other runtimes, checked in onnxruntime
"""

from quant.attach.config import Override, QuantConfig
from quant.attach.graph_pass import (
    attach,
    extra_loss,
    plan,
    quantizer_parameters,
    quantizers_of,
    set_bits,
)
from quant.attach.plan import PlanRow
from quant.attach.settings import load_settings
from quant.calibrate import calibrate
from quant.depthwise import speed_up
from quant.engines import ENGINES, ORACLE, available, use_engine, weight_qmax
from quant.errors import QuantError
from quant.export import FORMATS
from quant.export.onnx.export import OnnxReport, export_onnx
from quant.integer.biases import snap_biases
from quant.integer.conversion import code_inputs, convert
from quant.integer.frozen import Frozen, freeze, freeze_float, load_frozen
from quant.integer.graph import IntGraph
from quant.integer.parity import ParityReport, parity
from quant.quantizers import ACTIVATION_QUANTIZERS, FLOAT, GRADIENT_QUANTIZERS, WEIGHT_QUANTIZERS, parse_spec
from quant.quantizers.grid import QParams
from quant.range_bn import RangeBN1d, RangeBN2d
from quant.statistics import freeze_bn, frozen_statistics, recalibrate, set_mode, weight_decay_groups
from quant.training.gradboost import GradBoost
from quant.training.statassist import Phase, Schedule, phase_at
from quant.training.train_8bit import train_8bit

__all__ = [
    "ACTIVATION_QUANTIZERS",
    "ENGINES",
    "FLOAT",
    "FORMATS",
    "GRADIENT_QUANTIZERS",
    "ORACLE",
    "WEIGHT_QUANTIZERS",
    "Frozen",
    "GradBoost",
    "IntGraph",
    "OnnxReport",
    "Override",
    "ParityReport",
    "Phase",
    "PlanRow",
    "QParams",
    "QuantConfig",
    "QuantError",
    "RangeBN1d",
    "RangeBN2d",
    "Schedule",
    "attach",
    "available",
    "calibrate",
    "code_inputs",
    "convert",
    "export_onnx",
    "extra_loss",
    "freeze",
    "freeze_bn",
    "freeze_float",
    "frozen_statistics",
    "load_frozen",
    "load_settings",
    "parity",
    "parse_spec",
    "phase_at",
    "plan",
    "quantizer_parameters",
    "quantizers_of",
    "recalibrate",
    "set_bits",
    "set_mode",
    "snap_biases",
    "speed_up",
    "train_8bit",
    "use_engine",
    "weight_decay_groups",
    "weight_qmax",
]
