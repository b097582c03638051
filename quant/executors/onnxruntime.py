"""onnxruntime's integer kernels. The package is imported when a session is opened."""

import os
import tempfile
from typing import final

import onnx
import torch

from quant.executors.sessions import Session, SessionExecutor, to_bytes
from quant.export.onnx.graph import to_onnx

INTEGER_OPS = (
    "QLinearConv",
    "QGemm",
    "QLinearAdd",
    "QLinearMul",
    "QLinearConcat",
    "QLinearAveragePool",
    "QLinearGlobalAveragePool",
    "QLinearLeakyRelu",
    "QLinearSigmoid",  # tables of all 256 codes
)


@final
class OnnxRuntime(SessionExecutor):
    """The executor of engine "onnxruntime"."""

    @staticmethod
    def session(model: bytes) -> Session:
        return open_session(model)

    @property
    def float_ops(self) -> list[str]:
        """What the optimised network still computes in float."""
        kinds = {node.name for node in optimised(to_onnx(self.graph)).graph.node if node.op_type not in INTEGER_OPS}
        ends = ("", "_result", "_result_pooled")
        return [name for name in super().float_ops if any(f"{name}{end}" in kinds for end in ends)]

    @property
    def float_convs(self) -> int:
        """How many convolutions the optimised network computes in float."""
        nodes = optimised(to_onnx(self.graph)).graph.node
        return sum(node.op_type in ("Conv", "FusedConv", "ConvTranspose") for node in nodes)


def open_session(model: bytes, optimised_path: str = "") -> Session:
    """An onnxruntime session on torch's number of threads; it also writes the optimised network, if given a path."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3  # warnings are about the file of the optimised network
    options.optimized_model_filepath = optimised_path
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda *arrays: tuple(session.run(None, dict(zip(names, arrays))))


def optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network that onnxruntime makes of a model on this CPU, its integer operators fused."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "optimised.onnx")
        open_session(to_bytes(model), path)
        return onnx.load(path)
