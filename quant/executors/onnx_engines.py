"""onnxruntime and OpenVINO: the integer graph written as ONNX (quant/export/onnx/graph.py) and run by another runtime's
integer kernels.

Codes are uint8 tensors. The whole network is one session, which fuses and reorders as it likes; `step` runs one
operation in a session of its own, on equal codes, which is what the parity gate compares.
"""

import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from quant.errors import QuantError
from quant.executors.reference import Reference
from quant.export.onnx.graph import structure, to_onnx
from quant.integer.graph import IntGraph, Op, Ref

QUANTIZED = (
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
Session = Callable[..., tuple[np.ndarray, ...]]  # arrays in, arrays out
SHAPES = 8  # of pictures, for which an engine keeps sessions


class OnnxEngine(Reference):
    """Runs the graph in sessions, made for the shapes that come and torch's number of threads at that moment.

    Height and width are fixed in a session (resizings carry their sizes as constants), only the batch is free: each new
    size takes seconds. Of the sizes that came, those of the last SHAPES stay. What no session is made for (its inputs'
    codes, splits, sizes) is the reference's: both know codes as uint8 tensors.
    """

    def __init__(self, graph: IntGraph, engine: str):
        super().__init__(graph, engine)
        # of the network ("") and of each operation, by shapes, last used last
        self._sessions: dict[str, dict[tuple, Session]] = {}

    @property
    def float_ops(self) -> list[str]:
        computed = super().float_ops
        return [op.name for op in self.graph.ops if op.kind == "instance_norm" or op.name in computed]

    @abstractmethod
    def session(self, model: bytes) -> Session:
        """A network ready to run, on as many threads as torch uses now."""

    def forward(self, *inputs: Tensor):
        run = self._open("", self.graph, inputs)
        outputs = iter(run(*(x.detach().contiguous().numpy() for x in inputs)))
        return torch.fx.node.map_aggregate(
            self.graph.output, lambda v: torch.from_numpy(next(outputs)) if isinstance(v, Ref) else v
        )

    def _open(self, name: str, graph: IntGraph, inputs, sizes: str = "") -> Session:
        kept, key = self._sessions.setdefault(name, {}), (sizes, *(tuple(x.shape[1:]) for x in inputs))
        run = kept.pop(key, None) or self.session(to_bytes(to_onnx(graph, [tuple(x.shape) for x in inputs])))
        kept[key] = run
        if len(kept) > SHAPES:
            del kept[next(iter(kept))]
        return run

    def step(self, op: Op, values: dict) -> object:
        """One operation in a session of its own where it makes codes of codes, else as the reference does."""
        op, sizes = _with_sizes(op, values) if op.kind == "resize" else (op, "")
        sources = [self.graph.op(name) for name in op.inputs]
        grids = [self.graph.op(s.inputs[0]) if s.kind == "dequantize" else s for s in sources]
        on_codes = all(s.qparams and isinstance(values[s.name], Tensor) for s in grids)
        if (
            op.kind in ("quantize", "dequantize", "float")
            or op.qparams is None
            or not on_codes
            or op.attrs.get("several")
        ):
            return super().step(op, values)
        inputs = [Op(s.name, "input", qparams=s.qparams) for s in dict.fromkeys(grids)]
        alone = IntGraph([*inputs, *(s for s in dict.fromkeys(sources) if s.kind == "dequantize"), op], Ref(op.name))
        tensors = [values[i.name] for i in inputs]
        run = self._open(op.name, alone, tensors, sizes)
        return torch.from_numpy(run(*(t.contiguous().numpy() for t in tensors))[0])


def _with_sizes(op: Op, values: dict) -> tuple[Op, str]:
    """A resizing with the sizes that the network works out written into its call, and these in words."""
    sizes = {name: values[name] for name in op.inputs[1:]}
    call = op.attrs["call"].given(sizes)
    return replace(op, inputs=op.inputs[:1], attrs=op.attrs | {"call": call}), str(list(sizes.values()))


class OnnxRuntime(OnnxEngine):
    def session(self, model: bytes) -> Session:
        return run_time_session(model)

    @property
    def float_ops(self) -> list[str]:
        """What the optimised network still computes in float."""
        kinds = {node.name for node in optimised(to_onnx(self.graph)).graph.node if node.op_type not in QUANTIZED}
        return [
            name
            for name in super().float_ops
            if any(f"{name}{end}" in kinds for end in ("", "_result", "_result_pooled"))
        ]

    @property
    def float_convs(self) -> int:
        """How many convolutions the optimised network computes in float."""
        nodes = optimised(to_onnx(self.graph)).graph.node
        return sum(node.op_type in ("Conv", "FusedConv", "ConvTranspose") for node in nodes)


class OpenVino(OnnxEngine):
    def session(self, model: bytes) -> Session:
        return openvino_session(model)


def to_bytes(model: onnx.ModelProto) -> bytes:
    """The same bytes for the same model."""
    return model.SerializeToString(deterministic=True)


def run_time_session(model: bytes, optimised_path: str = "") -> Session:
    """An onnxruntime session on torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3  # warnings are about the file of the optimised network
    options.optimized_model_filepath = optimised_path
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda *arrays: tuple(session.run(None, dict(zip(names, arrays))))


def openvino_session(model: bytes) -> Session:
    """A compiled OpenVINO network on torch's number of threads."""
    import openvino

    core = openvino.Core()
    config = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(model, b""), "CPU", config).create_infer_request()
    return lambda *arrays: tuple(np.array(value) for value in request.infer(list(arrays), share_inputs=True).values())


def optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network that onnxruntime makes of a model on this CPU, its integer operators fused."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "optimised.onnx")
        run_time_session(to_bytes(model), path)
        return onnx.load(path)


class OnnxNetwork:
    """An ONNX model as a deployed network: call it with tensors, NCHW (channels_last ones are copied first).

    It gives what the model gave: a tensor, or (nested) tuples of such. It runs on as many threads as torch used when it
    was made. Pictures may come in any number, but must have the size that it was made for: QuantError for others.
    `engine` is "onnxruntime" or "openvino".
    """

    def __init__(self, model: bytes, engine: str):
        self.model, self.engine = model, engine
        graph = onnx.load_model_from_string(model).graph
        constants = {tensor.name for tensor in graph.initializer}
        self._shapes = [_dims(value) for value in graph.input if value.name not in constants]
        self._structure = structure([value.name for value in graph.output])
        self._run = {"onnxruntime": run_time_session, "openvino": openvino_session}[engine](model)

    def __call__(self, *inputs: Tensor):
        try:
            outputs = [
                torch.from_numpy(value) for value in self._run(*(x.detach().contiguous().numpy() for x in inputs))
            ]
        except Exception:  # each runtime has its own; to look before is a good part of a small network's time
            for x, made_for in zip(inputs, self._shapes):
                _check_shape(tuple(x.shape), made_for)
            raise
        return torch.fx.node.map_aggregate(self._structure, outputs.__getitem__)

    def save(self, path: Path | str) -> None:
        """Write the model file, whole or not at all."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(self.model)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # already renamed unless something failed

    @classmethod
    def load(cls, path: Path, engine: str = "onnxruntime") -> "OnnxNetwork":
        """Read a model file; QuantError where it is none."""
        try:
            model = Path(path).read_bytes()
            onnx.checker.check_model(onnx.load_model_from_string(model))
        except (OSError, onnx.checker.ValidationError, DecodeError) as error:
            raise QuantError(f"{path}: not an ONNX model ({str(error).splitlines()[0]})") from error
        return cls(model, engine)


def _dims(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """The shape of a model's input: None for a size that may be any, or for all of them."""
    tensor = value.type.tensor_type
    return (
        [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        if tensor.HasField("shape")
        else None
    )


def _check_shape(shape: tuple[int, ...], made_for: list[int | None] | None) -> None:
    if made_for is None or (
        len(shape) == len(made_for) and all(size in (None, got) for got, size in zip(shape, made_for))
    ):
        return
    got, wanted = ("x".join("N" if size is None else str(size) for size in sizes) for sizes in (shape, made_for))
    mend = "resize the pictures, or freeze or export the network at their size"
    raise QuantError(f"pictures of {got}: this ONNX network was made for {wanted} (N: any number); {mend}")
