"""INT8 modules to time: blocks fed as inside a network, and whole networks.

Latency hardly depends on values, so weights are random, and batch norms and ranges come from a few small random
images: all tensors are of ordinary size, as in a trained network. (With untrained batch norms deep networks fade to
1e-8, from where it is not far to numbers that a CPU computes many times more slowly.) It does depend on layout and on
conversions: a block gets quantized channels_last tensors and gives such, without the quantize-dequantize pair around it
that no network has (it would add 16 to 60 %).

What is left beside the work itself is the call: into torch's frozen module, or into a session, arrays and all. Each
part pays it, a network once; `call` measures it, so that the table can take it out.

A session that computes on channels_last tensors transposes a network's image once and its last features once; a part in
a session of its own is transposed at both ends, which no network pays (2 to 10 % of a block, more of a small one). With
a transpose of our own at each end the two meet, and the runtime takes both out.
"""

import functools
from collections.abc import Callable

import onnx
import torch
from onnx import helper
from torch import nn

import quant
from frostnet import FrostNet
from nas import Architecture, BlockSpec, HeadSpec, StemSpec, build
from quant.integer.frozen import OnnxNetwork

IMAGES = 4  # that set the batch norms
OBSERVED_SIZE = 64  # pixels of the images that set a network's ranges; below 33 its last blocks would see one pixel

# what the axes of the new tensor were in the old one
_TO_CONTIGUOUS, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def part(spec: StemSpec | BlockSpec | HeadSpec, size: int, engine: str, batch: int = 1) -> Callable[[], object]:
    """A frozen INT8 part on quantized images of `size` pixels, as a callable without arguments."""
    return _on_codes(build(spec), (batch, spec.in_channels, size, size), engine)


def call(engine: str, batch: int = 1) -> Callable[[], object]:
    """A part that computes nothing: what is left is the call."""
    return _on_codes(nn.Flatten(), (batch, 8, 1, 1), engine)


def _on_codes(module: nn.Module, shape: tuple[int, int, int, int], engine: str) -> Callable[[], object]:
    """`module` frozen, on channels_last codes of `shape` (N, C, H, W).

    Raises RuntimeError where codes or mode are not a network's.
    """
    executor = to_int8(module, shape[1], min(shape[2], OBSERVED_SIZE), engine, codes_io=True)
    codes = quant.code_inputs(executor, torch.rand(shape).contiguous(memory_format=_layout(engine)))
    frozen = quant.freeze(executor, *codes)
    if quant.ENGINES[engine].channels_last_inside:
        frozen = OnnxNetwork(channels_last(frozen.model), engine)
        codes = tuple(x.permute(0, 2, 3, 1).contiguous() for x in codes)  # the same bytes as torch's channels_last
    if executor.training or not all(_as_inside(x, engine) for x in codes):
        raise RuntimeError(f"{engine}: a part must be in evaluation mode and get quantized channels_last tensors")
    return functools.partial(frozen, *codes)


def _as_inside(x: torch.Tensor, engine: str) -> bool:
    """Whether a tensor is what one layer of a network hands to the next."""
    return x.dtype in (torch.uint8, torch.quint8) and x.is_contiguous(memory_format=_layout(engine))


def _layout(engine: str) -> torch.memory_format:
    return torch.contiguous_format if quant.ENGINES[engine].session else torch.channels_last


def network(arch: Architecture, engine: str, batch: int = 1) -> Callable[[], object]:
    """A frozen INT8 network on float images, real in and real out, as it is deployed."""
    executor = to_int8(FrostNet(arch), arch.stem.in_channels, min(arch.input_size, OBSERVED_SIZE), engine)
    images = torch.rand(batch, arch.stem.in_channels, arch.input_size, arch.input_size)
    images = images.contiguous(memory_format=torch.channels_last)
    return functools.partial(quant.freeze(executor, images), images)


def to_int8(model: nn.Module, channels: int, size: int, engine: str, codes_io: bool = False) -> nn.Module:
    """`model` converted for an engine, its batch norms and ranges from random images of `size` pixels."""
    images = torch.rand(IMAGES, channels, size, size).contiguous(memory_format=torch.channels_last)
    _wake(model)
    quant.recalibrate(model.eval(), [images])
    return observed(model, images[:1], engine, codes_io)


def _wake(model: nn.Module) -> None:
    """Give batch norms that begin at zero a scale of one: a branch of zeros has no range, a trained one has."""
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        if norm.weight is not None and not norm.weight.any():
            nn.init.ones_(norm.weight)


def observed(model: nn.Module, image: torch.Tensor, engine: str, codes_io: bool = False) -> nn.Module:
    """A model in evaluation mode converted for an engine, its ranges from `image` (1, C, H, W)."""
    graph = quant.attach(model, image, quant.QuantConfig(engine=engine)).train()
    quant.freeze_bn(graph)  # one image is no batch to normalise by
    quant.set_mode(graph, observe=True, fake_quant=False)
    with torch.no_grad():
        graph(image)
    return quant.convert(graph.eval(), engine, codes_io)


# ---- ONNX parts between channels_last tensors --------------------------------------------------------------


def channels_last(model: bytes) -> bytes:
    """The same ONNX model with (N, H, W, C) in the place of each input and output (N, C, H, W)."""
    loaded = onnx.load_from_string(model)
    graph = loaded.graph
    for value in filter(_is_image, graph.input):
        graph.node.insert(0, _transposed(value, _TO_CONTIGUOUS, into=value.name))
    for value in filter(_is_image, graph.output):
        graph.node.append(_transposed(value, _TO_CHANNELS_LAST))
    return loaded.SerializeToString(deterministic=True)


def _is_image(value: onnx.ValueInfoProto) -> bool:
    return len(value.type.tensor_type.shape.dim) == 4


def _transposed(value: onnx.ValueInfoProto, perm: tuple[int, ...], into: str = "") -> onnx.NodeProto:
    """The transpose between an inner tensor and the channels_last one that `value` is made to describe."""
    inner, outer = value.name, f"{value.name}_channels_last"
    sizes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
    kind = value.type.tensor_type.elem_type
    value.CopyFrom(helper.make_tensor_value_info(outer, kind, [sizes[axis] for axis in _TO_CHANNELS_LAST]))
    return helper.make_node("Transpose", [outer if into else inner], [inner if into else outer], perm=perm)
