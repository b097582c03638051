"""INT8 modules to time: blocks fed as inside a network, and whole networks.

Latency does not depend on values, so weights are random and ranges come from one small random picture. It does depend
on layout and on conversions: a block gets quantized channels_last tensors and gives such, without the
quantize-dequantize pair around it that no network has (it would add 16 to 60 %).
"""

import functools
from collections.abc import Callable

import torch
from torch import nn

import quant
from frostnet import FrostNet
from nas import Architecture, BlockSpec, HeadSpec, StemSpec, build_block, build_head, build_stem

OBSERVED_SIZE = 64  # pixels of the picture that sets a network's ranges; below 33 its last blocks would see one pixel

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
    """`model` converted for an engine, its ranges from one random picture of `size` pixels."""
    image = torch.rand(1, channels, size, size).contiguous(memory_format=torch.channels_last)
    graph = quant.attach(model, image, quant.QuantConfig(engine=engine)).train()
    quant.freeze_bn(graph)  # one picture is no batch to normalise by
    quant.set_mode(graph, observe=True, fake_quant=False)
    with torch.no_grad():
        graph(image)
    return quant.convert(graph.eval(), engine, codes_io)
