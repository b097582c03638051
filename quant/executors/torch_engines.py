"""torch's integer kernels: fbgemm, qnnpack, x86, onednn. Every call of torch's quantized operators is in this file.

That API is announced for removal (pytorch/pytorch#184982): `runs_here` asks torch what it has, and nothing else in
the package needs this file.
"""

import contextlib
import warnings
from typing import final

import torch
from torch import Tensor, nn

from quant.attach import ops
from quant.executors.base import Executor
from quant.executors.fbgemm_forms import apart, fast_form, together
from quant.integer.graph import Call, IntGraph, Op
from quant.integer.transforms import instance_norm_as_affine
from quant.quantizers.grid import QParams


@contextlib.contextmanager
def use_engine(engine: str):
    """Make `engine` the one that torch's quantized operators run on, and silence torch's notice about their future.

    torch has one engine for the whole process: networks for two of them cannot run in two threads at a time.
    """
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantiz.*", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*quantiz.*", category=DeprecationWarning)
        torch.backends.quantized.engine = engine if _is_supported(engine) else before
        try:
            yield
        finally:
            torch.backends.quantized.engine = before


def _is_supported(engine: str) -> bool:
    return engine in torch.backends.quantized.supported_engines


@final
class TorchEngine(Executor):
    """Codes are torch.quint8 tensors, channels_last; weights are packed once for the engine."""

    def __init__(self, graph: IntGraph, engine: str):
        super().__init__(graph, engine)
        self.phases: dict[str, int] = {}  # of a convolution's input
        with use_engine(engine):
            for op in graph.ops:
                if op.kind in ("conv", "linear"):
                    form, self.phases[op.name] = fast_form(op, engine) if op.kind == "conv" else (op, 1)
                    setattr(self, f"packed_{op.name}", _pack(form))

    @classmethod
    def runs_here(cls, engine: str) -> bool:
        return _is_supported(engine) and hasattr(torch.ops.quantized, "conv2d")

    def forward(self, *inputs):
        with use_engine(self.engine):  # its clamps would be another engine's otherwise, and wrong
            return super().forward(*inputs)

    def move(self, op: Op, values: dict):
        if self.engine != "qnnpack" or not _is_dilated_pool(op):
            return super().move(op, values)
        # qnnpack's own is wrong where padded and dilated
        codes = op.attrs["call"](lambda name: values[name].int_repr().float())
        return self.from_codes(codes.to(torch.uint8), op.qparams)

    def quantize(self, x: Tensor, qparams: QParams) -> Tensor:
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return self._clamp(torch.quantize_per_tensor(x, qparams.scale, qparams.zero_point, torch.quint8), qparams)

    def dequantize(self, value: Tensor, qparams: QParams) -> Tensor:
        return value.dequantize()

    def codes(self, value: Tensor) -> Tensor:
        return value.int_repr()

    def from_codes(self, codes: Tensor, qparams: QParams) -> Tensor:
        if codes.dim() == 4:
            codes = codes.contiguous(memory_format=torch.channels_last)
        return torch._make_per_tensor_quantized_tensor(codes, qparams.scale, qparams.zero_point)

    def conv(self, op: Op, x: Tensor) -> Tensor:
        packed, phases, size = getattr(self, f"packed_{op.name}"), self.phases[op.name], x.shape[2:]
        x = apart(x, phases) if phases > 1 else x
        x = torch.ops.quantized.conv2d(x, packed, op.qparams.scale, op.qparams.zero_point)
        return self._clamp(together(x, phases, size) if phases > 1 else x, op.qparams)

    def linear(self, op: Op, x: Tensor) -> Tensor:
        packed = getattr(self, f"packed_{op.name}")
        return self._clamp(torch.ops.quantized.linear(x, packed, op.qparams.scale, op.qparams.zero_point), op.qparams)

    def batch_norm(self, op: Op, x: Tensor) -> Tensor:
        mean, var = torch.zeros_like(op.bias), torch.ones_like(op.bias)
        scale, zero_point = op.qparams.scale, op.qparams.zero_point
        return self._clamp(
            torch.ops.quantized.batch_norm2d(x, op.weight_scale, op.bias, mean, var, 0.0, scale, zero_point), op.qparams
        )

    def instance_norm(self, op: Op, x: Tensor) -> Tensor:
        """Sums of whole numbers in float32: over a row exact up to 1024 columns. torch's own kernel for code tensors is
        over 50 steps off where values lie far from zero beside their spread."""
        (grid,) = self.input_grids(op)
        # codes - 128; `int_repr` takes as long as all else
        q = x.dequantize().mul_(1 / grid.scale).round_().add_(grid.zero_point - 128)
        # in the order of the memory
        total, squares = (values.permute(0, 2, 3, 1).sum(2).double().sum(1) for values in (q, q * q))
        factor, offset = instance_norm_as_affine(op, grid.scale, total, squares, x.shape[2] * x.shape[3])
        return self.quantize(torch.addcmul(offset.float(), q, factor.float()), op.qparams)

    def add(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return self._clamp(torch.ops.quantized.add(x, y, op.qparams.scale, op.qparams.zero_point), op.qparams)

    def mul(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return self._clamp(torch.ops.quantized.mul(x, y, op.qparams.scale, op.qparams.zero_point), op.qparams)

    def cat(self, op: Op, *xs: Tensor) -> Tensor:
        out = torch.ops.quantized.cat(
            list(xs), dim=op.attrs["dim"], scale=op.qparams.scale, zero_point=op.qparams.zero_point
        )
        return self._clamp(out, op.qparams)

    def relu(self, op: Op, x: Tensor) -> Tensor:
        return torch.relu(x)

    def function(self, op: Op, values: dict) -> Tensor:
        kernel = self._native(op)
        if kernel is None:
            return super().function(op, values)
        codes = values[self.graph.op(op.inputs[0]).inputs[0]]
        return self._clamp(kernel(op.attrs["call"], codes, op.qparams.scale, op.qparams.zero_point), op.qparams)

    @property
    def float_ops(self) -> list[str]:
        return [name for name in super().float_ops if self._native(self.graph.op(name)) is None]

    def _native(self, op: Op):
        """The integer kernel of a function, where there is one."""
        function = op.attrs["call"].function
        kernel = _NATIVE_FUNCTIONS.get(function) or _NATIVE_FUNCTIONS.get(type(function))
        on_codes = kernel and op.kind == "function" and self.graph.op(op.inputs[0]).kind == "dequantize"
        return kernel if on_codes else None

    def _clamp(self, x: Tensor, qparams: QParams) -> Tensor:
        """Codes outside [qmin, qmax] to its ends, where that is tighter than 8 bits."""
        if qparams.qmin == 0 and qparams.qmax == 255:
            return x
        if self.engine == "qnnpack":
            x = x.contiguous()  # its clamp is wrong on channels_last tensors
        return torch.ops.quantized.clamp(x, qparams.lowest, qparams.highest)


def _hardswish(call: Call, codes: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.ops.quantized.hardswish(codes, scale, zero_point)


def _leaky_relu(call: Call, codes: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.ops.quantized.leaky_relu(codes, ops.setting(call, 1, "negative_slope", 0.01), False, scale, zero_point)


_NATIVE_FUNCTIONS = {
    nn.Hardswish: _hardswish,
    nn.functional.hardswish: _hardswish,
    nn.LeakyReLU: _leaky_relu,
    nn.functional.leaky_relu: _leaky_relu,
}


def _is_dilated_pool(op: Op) -> bool:
    call = op.attrs["call"]
    is_pool = isinstance(call.function, nn.MaxPool2d) or call.function is nn.functional.max_pool2d
    return is_pool and ops.setting(call, 4, "dilation", 1) not in (1, (1, 1), [1, 1])


def _pack(op: Op):
    """The engine's own weight object, from int8 codes, scales and the real bias."""
    scale = op.weight_scale.double()
    weight = torch._make_per_channel_quantized_tensor(op.weight, scale, torch.zeros(len(scale), dtype=torch.long), 0)
    if op.kind == "linear":
        return torch.ops.quantized.linear_prepack(weight, op.bias)
    pairs = [ops.pair(op.attrs[name]) for name in ("stride", "padding", "dilation")]
    return torch.ops.quantized.conv2d_prepack(
        weight.contiguous(memory_format=torch.channels_last), op.bias, *pairs, op.attrs["groups"]
    )
