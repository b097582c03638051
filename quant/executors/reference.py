"""The oracle: plain integer arithmetic in torch. Slow, exact, runs wherever torch does.

It uses no engine and no quantized tensor types. Codes are uint8 tensors. A layer computes its int32 accumulator exactly
(arXiv:1712.05877, equations 4 to 8):

    acc = sum W_code (x_code - x_zero) + round(b / (s_x s_w))
    y_code = clamp(round(acc s_x s_w / s_y) + y_zero, qmin, qmax)

in float32 where every partial sum is below 2^24 and in float64 elsewhere: both are exact there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from quant.engines import ORACLE
from quant.executors.base import Executor
from quant.integer.graph import IntGraph, Op
from quant.integer.transforms import instance_norm_as_affine
from quant.quantizers.grid import HALVES_AWAY, QParams

_EXACT_FLOAT32 = 2**24


class Reference(Executor):
    def __init__(self, graph: IntGraph, engine: str = ORACLE):
        super().__init__(graph, engine)
        layers = (op for op in graph.ops if op.weight is not None)
        self.dtypes = {op.name: _exact_dtype(op.weight) for op in layers}

    def quantize(self, x: Tensor, qparams: QParams) -> Tensor:
        return qparams.quantize(x)

    def dequantize(self, value: Tensor, qparams: QParams) -> Tensor:
        return qparams.dequantize(value)

    def codes(self, value: Tensor) -> Tensor:
        return value

    def from_codes(self, codes: Tensor, qparams: QParams) -> Tensor:
        return codes

    def conv(self, op: Op, x: Tensor) -> Tensor:
        acc = self._accumulate(op, x, lambda x, w: F.conv2d(x, w, **op.attrs))
        return self._requantize(op, acc, (1, -1, 1, 1))

    def linear(self, op: Op, x: Tensor) -> Tensor:
        return self._requantize(op, self._accumulate(op, x, F.linear), (-1,))

    def batch_norm(self, op: Op, x: Tensor) -> Tensor:
        (real,) = self._centred(op, (x,))
        factor, offset = (t.double().view(-1, 1, 1) for t in (op.weight_scale, op.bias))
        return op.qparams.quantize(real * factor + offset)

    def instance_norm(self, op: Op, x: Tensor) -> Tensor:
        q, (grid,) = x.long(), self.input_grids(op)
        factor, offset = instance_norm_as_affine(
            op, grid.scale, q.sum((2, 3)), (q * q).sum((2, 3)), x.shape[2] * x.shape[3]
        )
        return op.qparams.quantize(q * factor + offset)

    def add(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        a, b = self._centred(op, (x, y))
        return op.qparams.quantize(a + b)

    def mul(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        a, b = self._centred(op, (x, y))
        return op.qparams.quantize(a * b)

    def cat(self, op: Op, *xs: Tensor) -> Tensor:
        return torch.cat([op.qparams.quantize(x) for x in self._centred(op, xs)], op.attrs["dim"])

    def relu(self, op: Op, x: Tensor) -> Tensor:
        return x.clamp(min=op.qparams.zero_point)

    def resize(self, op: Op, values: dict):
        zero = op.qparams.zero_point
        centred = values | {op.inputs[0]: (values[op.inputs[0]].double() - zero) * HALVES_AWAY}
        return (torch.round(op.attrs["call"](centred.__getitem__)) + zero).to(torch.uint8)

    def move(self, op: Op, values: dict):
        """On float copies of the codes: torch's max-pool does not know uint8."""
        result = op.attrs["call"](lambda name: _cast(values[name], torch.uint8, torch.float32))
        return _cast(result, torch.float32, torch.uint8)

    def _accumulate(self, op: Op, x: Tensor, multiply) -> Tensor:
        (grid,) = self.input_grids(op)
        dtype = self.dtypes[op.name]
        return multiply(x.to(dtype) - grid.zero_point, op.weight.to(dtype)).double()

    def _requantize(self, op: Op, acc: Tensor, shape: tuple[int, ...]) -> Tensor:
        (grid,) = self.input_grids(op)
        step = (op.weight_scale.double() * grid.scale).view(shape)
        bias = torch.round(op.bias.double().view(shape) / step)
        return op.qparams.quantize((acc + bias) * step)

    def _centred(self, op: Op, xs: tuple[Tensor, ...]) -> list[Tensor]:
        """Real values in float64."""
        return [(x.double() - g.zero_point) * g.scale for x, g in zip(xs, self.input_grids(op), strict=True)]


def _exact_dtype(weight: Tensor) -> torch.dtype:
    """The narrowest type that holds every partial sum of a layer exactly."""
    bound = 255 * weight.flatten(1).int().abs().sum(1, dtype=torch.int64).max()
    return torch.float32 if bound < _EXACT_FLOAT32 else torch.float64


def _cast(value, source: torch.dtype, target: torch.dtype):
    """Every tensor of dtype `source` in a (nested) value, as `target`."""
    return fx.node.map_aggregate(value, lambda v: v.to(target) if isinstance(v, Tensor) and v.dtype == source else v)
