"""The base of the executors that run an integer graph in another runtime, written as ONNX (quant/export/onnx/graph.py).

Codes are uint8 tensors. The whole network is one session, which fuses and reorders as it likes; `step` runs one
operation in a separate session, on equal codes, which is what the parity gate compares.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from quant.executors.reference import Reference
from quant.export.onnx.graph import to_onnx
from quant.integer.graph import IntGraph, Op, Ref

Session = Callable[..., tuple[np.ndarray, ...]]  # arrays in, arrays out
KEPT_SHAPES = 8  # of images, for which an executor keeps sessions


class SessionExecutor(Reference):
    """Runs the graph in sessions, made for the shapes that come and torch's number of threads at that moment.

    Height and width are fixed in a session (resizings carry their sizes as constants), only the batch is free: each new
    size takes seconds. Of the sizes that came, those of the last KEPT_SHAPES stay. What no session is made for (its
    inputs' codes, splits, sizes) is the reference's: both know codes as uint8 tensors.
    """

    def __init__(self, graph: IntGraph, engine: str):
        super().__init__(graph, engine)
        # of the network ("") and of each operation, by shapes, last used last
        self._sessions: dict[str, dict[tuple, Session]] = {}

    @staticmethod
    @abstractmethod
    def session(model: bytes) -> Session:
        """An ONNX model ready to run, on as many threads as torch uses now."""

    @property
    def float_ops(self) -> list[str]:
        computed = super().float_ops
        return [op.name for op in self.graph.ops if op.kind == "instance_norm" or op.name in computed]

    def forward(self, *inputs: Tensor):
        run = self._open("", self.graph, inputs)
        outputs = iter(run(*map(to_array, inputs)))
        return fx.node.map_aggregate(
            self.graph.output, lambda v: torch.from_numpy(next(outputs)) if isinstance(v, Ref) else v
        )

    def step(self, op: Op, values: dict) -> object:
        """One operation in a separate session where it makes codes of codes, else as the reference does."""
        op, sizes = _with_sizes(op, values) if op.kind == "resize" else (op, "")
        sources = [self.graph.op(name) for name in op.inputs]
        grids = [self.graph.op(s.inputs[0]) if s.kind == "dequantize" else s for s in sources]
        on_codes = all(s.qparams and isinstance(values[s.name], Tensor) for s in grids)
        made_alone = op.kind not in ("quantize", "dequantize", "float") and op.qparams and not op.attrs.get("several")
        if not (on_codes and made_alone):
            return super().step(op, values)
        inputs = [Op(s.name, "input", qparams=s.qparams) for s in dict.fromkeys(grids)]
        alone = IntGraph([*inputs, *(s for s in dict.fromkeys(sources) if s.kind == "dequantize"), op], Ref(op.name))
        tensors = [values[i.name] for i in inputs]
        run = self._open(op.name, alone, tensors, sizes)
        return torch.from_numpy(run(*map(to_array, tensors))[0])

    def _open(self, name: str, graph: IntGraph, inputs, sizes: str = "") -> Session:
        kept, key = self._sessions.setdefault(name, {}), (sizes, *(tuple(x.shape[1:]) for x in inputs))
        run = kept.pop(key, None) or self.session(to_bytes(to_onnx(graph, [tuple(x.shape) for x in inputs])))
        kept[key] = run
        if len(kept) > KEPT_SHAPES:
            del kept[next(iter(kept))]
        return run


def _with_sizes(op: Op, values: dict) -> tuple[Op, str]:
    """A resizing with the sizes that the network works out written into its call, and these as text."""
    sizes = {name: values[name] for name in op.inputs[1:]}
    call = op.attrs["call"].given(sizes)
    return replace(op, inputs=op.inputs[:1], attrs=op.attrs | {"call": call}), str(list(sizes.values()))


def to_array(x: Tensor) -> np.ndarray:
    """A tensor as sessions take it: contiguous."""
    return x.detach().contiguous().numpy()


def to_bytes(model: onnx.ModelProto) -> bytes:
    """The same bytes for the same model."""
    return model.SerializeToString(deterministic=True)
