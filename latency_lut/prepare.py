"""INT8 modules to time: blocks fed as inside a network, and whole networks.

Latency hardly depends on values, so weights are random, and batch norms and ranges come from a few small random pictures: all tensors
are of ordinary size, as in a trained network. (With untrained batch norms deep networks fade to 1e-8, from where it is not far to
numbers that a CPU computes many times more slowly.) It does depend on layout and on conversions: a block gets quantized channels_last
tensors and gives such, without the quantize-dequantize pair around it that no network has (it would add 16 to 60 %).
"""

import functools
from collections.abc import Callable

import torch
from torch import nn

import quant
from frostnet import FrostNet
from nas import Architecture, BlockSpec, HeadSpec, StemSpec, build_block, build_head, build_stem

PICTURES = 4  # that set the batch norms
OBSERVED_SIZE = 64  # pixels of the pictures that set a network's ranges; below 33 its last blocks would see one pixel

_BUILDERS = {StemSpec: build_stem, BlockSpec: build_block, HeadSpec: build_head}


def part(spec: StemSpec | BlockSpec | HeadSpec, size: int, engine: str) -> Callable[[], object]:
    """A frozen INT8 part on a quantized picture of `size` pixels, as a callable without arguments."""
    channels = spec.in_channels
    executor = to_int8(_BUILDERS[type(spec)](spec), channels, min(size, OBSERVED_SIZE), engine, codes_io=True)
    codes = quant.code_inputs(executor, torch.rand(1, channels, size, size))
    return functools.partial(quant.freeze(executor, *codes), *codes)


def network(arch: Architecture, engine: str) -> Callable[[], object]:
    """A frozen INT8 network on a float picture, real in and real out, as it is deployed."""
    executor = to_int8(FrostNet(arch), arch.stem.in_channels, min(arch.input_size, OBSERVED_SIZE), engine)
    image = torch.rand(1, arch.stem.in_channels, arch.input_size, arch.input_size)
    image = image.contiguous(memory_format=torch.channels_last)
    return functools.partial(quant.freeze(executor, image), image)


def to_int8(model: nn.Module, channels: int, size: int, engine: str, codes_io: bool = False) -> nn.Module:
    """`model` converted for an engine, its batch norms and ranges from random pictures of `size` pixels."""
    images = torch.rand(PICTURES, channels, size, size).contiguous(memory_format=torch.channels_last)
    settle(model, images)
    return observed(model, images[:1], engine, codes_io)


def settle(model: nn.Module, images: torch.Tensor) -> None:
    """Give every batch norm the statistics of `images` (N, C, H, W), at least two of them; the model is then in evaluation mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()


def observed(model: nn.Module, image: torch.Tensor, engine: str, codes_io: bool = False) -> nn.Module:
    """A settled model converted for an engine, its ranges from `image` (1, C, H, W)."""
    graph = quant.attach(model, image, quant.QuantConfig(engine=engine)).train()
    quant.freeze_bn(graph)  # one picture is no batch to normalise by
    quant.set_mode(graph, observe=True, fake_quant=False)
    with torch.no_grad():
        graph(image)
    return quant.convert(graph.eval(), engine, codes_io)
